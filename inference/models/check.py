"""Checks for `voices doctor` that a model is the one that the voices were made for. No torch."""

from inference.models.catalog import (
    CONFIGS,
    MODELS,
    WEIGHTS,
    expected_path,
    hash_cache,
    missing,
    parse,
    pinned_hashes,
)
from inference.models.hashes import folder_revision
from inference.models.whole_weights import changed, cut_short
from registry.errors import ModelUnavailable
from registry.storage.data_dir import DataDir


def examine(spec: str, revision: str, data: DataDir, *, read_data: bool) -> list[str]:
    """Say what is wrong with the files of a model, in sentences; nothing of one that is not here.

    `revision` is the one that the voices were made for. With `read_data` every byte is read.
    """
    try:
        wanted = parse(spec)
    except ModelUnavailable:
        return []  # a folder that was moved away, for example
    path = expected_path(wanted)
    if path is None or not path.is_dir():
        return []
    if lacking := missing(path):
        return [f"{path / name} is missing." for name in lacking]
    found = [*cut_short(path, WEIGHTS)]
    if found or not read_data:
        return found
    if wanted.kind == "hub":
        return [*changed(path, pinned_hashes(wanted, MODELS))]
    remembered = {name: hash_cache(data).remembered((path / name).resolve()) for name in WEIGHTS}
    found += changed(path, {name: sha256 for name, sha256 in remembered.items() if sha256})
    made_for = folder_revision(path, CONFIGS, WEIGHTS, None)
    if not found and made_for != revision:
        found.append(
            f"{path} has changed: its files are revision {made_for[:12]}…, and the voices here use "
            f"{revision[:12]}…."
        )
    return found
