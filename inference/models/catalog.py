"""Resolves a model's name: `demo`, a local folder, or `org/name[@revision]` on the hub.

Finds a checkpoint on this machine, checks that it can clone voices, and says exactly which one it
is. Downloads only when asked to. Never loads a model, and needs no torch.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from inference.engine.model_config import CONFIG_ERRORS, ModelConfig, read_model_config
from inference.models.hashes import HashCache, folder_revision, sha256_of_file
from inference.models.whole_weights import cut_short
from registry.contract import ModelRef
from registry.errors import ModelCannotClone, ModelUnavailable
from registry.storage.data_dir import DataDir

INSTALL = "pip install 'voice-registry[inference]'"
COMMIT = re.compile(r"[0-9a-f]{40}")
CANNOT_CLONE = re.compile(r"custom-?voice|voice-?design", re.IGNORECASE)  # in a hub id
HUB_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]*/[A-Za-z0-9]([\w.-]*\w)?")
WEIGHTS = ("model.safetensors", "speech_tokenizer/model.safetensors")
CONFIGS = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "tokenizer_config.json",
    "vocab.json",
    "speech_tokenizer/config.json",
    "speech_tokenizer/preprocessor_config.json",
)
DEMO_FILES = ("preprocessor_config.json", *CONFIGS, *WEIGHTS)
FETCHED = ("*.json", "*.txt", *WEIGHTS)


@dataclass(frozen=True)
class KnownModel:
    """A released checkpoint: `sha256` of the files whose hash is known, and the whole size."""

    revision: str
    sha256: Mapping[str, str]
    approximate_bytes: int


DEFAULT = "Qwen/Qwen3-TTS-12Hz-1.7B-Base"
DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / DEMO
MODELS: Mapping[str, KnownModel] = {
    DEFAULT: KnownModel(
        "fd4b254389122332181a7c3db7f27e918eec64e3",
        {
            WEIGHTS[0]: "38fc7fc51c5e776e840414b6fd443962e9411b9654888fd7913e4da643cb857c",
            WEIGHTS[1]: "836b7b357f5ea43e889936a3709af68dfe3751881acefe4ecf0dbd30ba571258",
        },
        4_544_000_000,
    ),
    "Qwen/Qwen3-TTS-12Hz-0.6B-Base": KnownModel(
        "5d83992436eae1d760afd27aff78a71d676296fc",
        {WEIGHTS[0]: "180b3b10eb1c9f1b4db7806d5475bae3071c0243c299d49926bab1da3b6946f6"},
        2_516_000_000,
    ),
}


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, understood: `name` is demo, a folder, or a hub id."""

    kind: Literal["demo", "folder", "hub"]
    name: str
    revision: str | None = None  # of a hub id: a commit

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class LocatedModel:
    """A checkpoint on this machine. `source` is how it was named, in full."""

    source: str
    ref: ModelRef
    path: Path
    languages: tuple[str, ...]
    sample_rate: int  # Hz

    @property
    def weights_bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in WEIGHTS)


def parse(spec: str, models: Mapping[str, KnownModel] = MODELS) -> ModelSpec:
    """Understand a model's name; ModelUnavailable says what is wrong with it."""
    if spec == DEMO:
        return ModelSpec("demo", DEMO)
    name, _, revision = spec.partition("@")
    folder = os.path.expanduser(spec)
    if name not in models and spec and os.path.isdir(folder):
        return ModelSpec("folder", str(Path(folder).resolve()))
    if not HUB_ID.fullmatch(name):
        raise ModelUnavailable(
            f"{spec!r} is neither demo, nor a folder here, nor a hub id such as {DEFAULT}."
        )
    if CANNOT_CLONE.search(name):
        raise ModelCannotClone(
            f"{name} speaks with voices of its own and can't clone one, as {DEFAULT} can."
        )
    if not revision and name in models:
        revision = models[name].revision
    if not COMMIT.fullmatch(revision):
        raise ModelUnavailable(
            f"Name the revision of {name} as its full commit, 40 hexadecimal digits:"
            f" {name}@{'0' * 40}. Prompt features are only valid for one revision."
        )
    return ModelSpec("hub", name, revision)


def locate(spec: str, data: DataDir, models: Mapping[str, KnownModel] = MODELS) -> LocatedModel:
    """Find the checkpoint that `spec` names, without network. `demo` came with this package.

    ModelUnavailable says how to get a missing one; ModelCannotClone names one that can clone.
    """
    wanted = parse(spec, models)
    if wanted.kind == "hub":
        path = _in_hub_cache(wanted)
        if path is None:
            raise _not_downloaded(wanted, models)
        _refuse_cut_short(wanted, path)
        return _located(wanted, path, ModelRef(wanted.name, wanted.revision or ""))
    path = _folder(wanted)
    _check_files(path)
    _refuse_cut_short(wanted, path)
    config = _read_config(path)
    name = DEMO if wanted.kind == "demo" else f"local/{path.name}"
    _check_can_clone(config, name)
    revision = folder_revision(path, CONFIGS, WEIGHTS, hash_cache(data))
    return _located(wanted, path, ModelRef(name, revision))


def _refuse_cut_short(wanted: ModelSpec, path: Path) -> None:
    if faults := [*cut_short(path, WEIGHTS)]:
        again = f" Delete it, then run `voices model download {wanted}`."
        raise ModelUnavailable(faults[0] + (again if wanted.kind == "hub" else " Copy it anew."))


def load_model_config(folder: Path) -> ModelConfig:
    """Read the config of the checkpoint in `folder`, or raise ModelUnavailable."""
    try:
        return read_model_config(folder)
    except CONFIG_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelUnavailable(f"The configs in {folder} are unusable. {reason}") from error


def download(spec: str, data: DataDir, models: Mapping[str, KnownModel] = MODELS) -> LocatedModel:
    """Fetch a hub model into the Hugging Face cache, with progress bars on stderr; resumes.

    Refuses a checkpoint that can't clone before its weights are fetched. A weight file with a wrong
    sha256 is deleted. A folder or demo is only located.
    """
    wanted = parse(spec, models)
    if wanted.kind == "hub":
        _download(wanted, models)
    return locate(spec, data, models)


def download_into(root: Path, spec: str, models: Mapping[str, KnownModel] = MODELS) -> LocatedModel:
    """Download into a folder of its own under `root`, which needs no cache to be read.

    What was fetched before is kept, so it goes on where it stopped. `demo` is copied there.
    """
    wanted = parse(spec, models)
    if wanted.kind == "demo":
        folder = Path(shutil.copytree(DEMO_FOLDER, root / DEMO, dirs_exist_ok=True))
        return replace(locate(spec, DataDir(root), models), path=folder)
    if wanted.kind == "folder":
        return locate(spec, DataDir(root), models)
    folder = root / f"{wanted.name.replace('/', '--')}--{wanted.revision}"
    _download(wanted, models, folder)
    return _located(wanted, folder, ModelRef(wanted.name, wanted.revision or ""))


def _download(
    wanted: ModelSpec, models: Mapping[str, KnownModel], folder: Path | None = None
) -> None:
    """Fetch the config, then the rest, then check; None for the folder is the hub's cache."""
    path = _fetch(wanted, ["config.json"], folder)
    _check_can_clone(_read_json(path / "config.json"), wanted.name)
    path = _fetch(wanted, FETCHED, folder)
    if lacking := missing(path):  # the hub's client keeps silent about a network that is gone
        raise ModelUnavailable(
            f"The download of {wanted} is not complete: {', '.join(lacking)} missing."
            " Check the network and run it again; it goes on where it stopped."
        )
    _verify(path, pinned_hashes(wanted, models))


def is_downloaded(spec: str, models: Mapping[str, KnownModel] = MODELS) -> bool:
    """True if `locate` would find the files; hashes nothing."""
    return not missing(expected_path(parse(spec, models)))


def size_on_disk(spec: str, models: Mapping[str, KnownModel] = MODELS) -> int:
    """Bytes of the model's files that are on this machine."""
    path = expected_path(parse(spec, models))
    if path is None:
        return 0
    files = [path / name for name in (*CONFIGS, *WEIGHTS)]
    return sum(file.stat().st_size for file in files if file.is_file())


def expected_path(wanted: ModelSpec) -> Path | None:
    if wanted.kind == "hub":
        return _in_hub_cache(wanted, complete=False)
    return _folder(wanted)


def _folder(wanted: ModelSpec) -> Path:
    return DEMO_FOLDER if wanted.kind == "demo" else Path(wanted.name)


def hash_cache(data: DataDir) -> HashCache:
    return HashCache(data.root / "models" / "hashes.json")


def not_imported(error: ImportError | OSError) -> ModelUnavailable:
    """Say which package is missing, or what the system says against one that is there."""
    if isinstance(error, ImportError):
        return ModelUnavailable(f"This needs torch and qwen-tts ({error}): {INSTALL}")
    return ModelUnavailable(f"torch and qwen-tts can't be imported here: {error}")


def missing(path: Path | None) -> list[str]:
    """The files of a checkpoint that are not there."""
    names = (*CONFIGS, *WEIGHTS)
    return [name for name in names if path is None or not (path / name).is_file()]


def _check_files(path: Path) -> None:
    if lacking := missing(path):
        raise ModelUnavailable(
            f"{path} is not a complete checkpoint: {', '.join(lacking)} missing."
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}") from error


def _read_config(path: Path) -> Any:
    return _read_json(path / "config.json")


def _check_can_clone(config: Any, name: str) -> None:
    """Raise ModelUnavailable for no 12 Hz Qwen3-TTS, ModelCannotClone if it is not a Base one."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    tokenizer = config.get("tokenizer_type") if kind else None
    if (kind, tokenizer) != ("qwen3_tts", "qwen3_tts_tokenizer_12hz"):
        raise ModelUnavailable(
            f"{name} is no Qwen3-TTS 12 Hz model"
            f" (model_type {kind!r}, tokenizer_type {tokenizer!r})."
        )
    if config.get("tts_model_type") != "base":
        size = {"0b6": "0.6B"}.get(config.get("tts_model_size"), "1.7B")
        raise ModelCannotClone(
            f"{name} is a {config.get('tts_model_type')} checkpoint, which speaks with voices of"
            f" its own and can't clone one. Qwen/Qwen3-TTS-12Hz-{size}-Base does."
        )


def _located(wanted: ModelSpec, path: Path, ref: ModelRef) -> LocatedModel:
    config, speech = _read_config(path), _read_json(path / "speech_tokenizer" / "config.json")
    _check_can_clone(config, ref.id)
    try:
        names = config["talker_config"]["codec_language_id"].keys()
        sample_rate = int(speech["output_sample_rate"])
        languages = tuple(sorted(name for name in names if "dialect" not in name))
    except CONFIG_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelUnavailable(
            f"The configuration in {path} is incomplete or wrong. {reason}"
        ) from error
    return LocatedModel(str(wanted), ref, path, languages, sample_rate)


def _in_hub_cache(wanted: ModelSpec, complete: bool = True) -> Path | None:
    """The snapshot's folder, if it is there (and has all files, where `complete`)."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(wanted.name, "config.json", revision=wanted.revision)
    folder = Path(config).parent if isinstance(config, str) else None
    return None if complete and missing(folder) else folder


def _fetch(wanted: ModelSpec, names: Sequence[str], into: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            wanted.name, revision=wanted.revision, allow_patterns=list(names), local_dir=into
        )
    except (OSError, ValueError, _root_of(HfHubHTTPError)) as error:
        raise ModelUnavailable(f"The download of {wanted} failed: {error}") from error
    return Path(folder)


def _root_of(http_error: type[Exception]) -> type[Exception]:
    """The error class of the HTTP client that this huggingface_hub uses; that changed twice."""
    return next(base for base in http_error.__bases__ if issubclass(base, Exception))


def pinned_hashes(wanted: ModelSpec, models: Mapping[str, KnownModel]) -> Mapping[str, str]:
    known = models.get(wanted.name)
    return known.sha256 if known and known.revision == wanted.revision else {}


def _verify(path: Path, expected: Mapping[str, str]) -> None:
    for name, sha256 in expected.items():
        file = path / name
        found = sha256_of_file(file)
        if found != sha256:
            file.resolve().unlink()  # the blob that the snapshot links to
            file.unlink(missing_ok=True)
            raise ModelUnavailable(
                f"{name} was damaged on the way (sha256 {found[:12]}…, not {sha256[:12]}…) and has"
                " been deleted. Run the download again."
            )


def _not_downloaded(wanted: ModelSpec, models: Mapping[str, KnownModel]) -> ModelUnavailable:
    known = models.get(wanted.name)
    name = "" if str(wanted).startswith(DEFAULT) else f" {wanted}"
    size = f" ({known.approximate_bytes / 1e9:.1f} GB)" if known else ""
    return ModelUnavailable(
        f"The model {wanted} is not on this machine, or not all of it: fetch it with"
        f" `voices model download{name}`{size}, or use the small one that is bundled:"
        " `voices model use demo`."
    )
