"""Checks that weights are whole: by what their own headers say, and by every byte. No torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from inference.models.hashes import sha256_of_file

HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own
HEADER_ERRORS = (OSError, ValueError, LookupError, TypeError, RecursionError, OverflowError)


def cut_short(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Say in a sentence of each file that it is not what its header says."""
    for file in (folder / name for name in names):
        try:
            size, wanted = file.stat().st_size, bytes_wanted(file)
        except HEADER_ERRORS as error:
            yield f"{file} is no safetensors file, or can't be read: {error}."
            continue
        if size < wanted:
            yield f"{file} is cut short: {size:,} of its {wanted:,} bytes are there."
        elif size > wanted:
            yield f"{file} is damaged: {size - wanted:,} bytes follow its end."


def bytes_wanted(file: Path) -> int:
    """Compute the size that the header gives; raises one of HEADER_ERRORS if it is none."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= HEADER_LIMIT_BYTES:
            raise ValueError(f"its header would have {length:,} bytes")
        header = dict(json.loads(opened.read(length)))
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    if not ends:
        raise ValueError("it holds no tensor")
    return 8 + length + int(max(ends))


def changed(folder: Path, expected: Mapping[str, str]) -> Iterator[str]:
    """Say in a sentence of each file that its sha256 is not the expected one; reads all of them."""
    for name, sha256 in expected.items():
        found = sha256_of_file(folder / name)
        if found != sha256:
            yield f"{folder / name} has changed: its sha256 is {found[:12]}…, not {sha256[:12]}…."
