"""sha256 of big files, remembered by (size, mtime, inode), and of a whole checkpoint."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from registry.storage.blobs import read_stored, write_atomically
from registry.storage.data_dir import sha256_of

Stamp = list[object]  # [size, mtime_ns, inode, sha256]


@dataclass(frozen=True)
class HashCache:
    """Keeps a JSON file {path: [size, mtime_ns, inode, sha256]}; a damaged one counts as empty."""

    path: Path

    def sha256(self, file: Path) -> str:
        """Look up the file's sha256 if the file seems untouched, else compute and keep it.

        Where nothing can be kept, on a read-only disk, it is computed each time.
        """
        if known := self.remembered(file):
            return known
        stamp, found = _stamp(file), sha256_of_file(file)
        entries = {**self._read(), str(file): [*stamp, found]}
        with suppress(OSError):
            write_atomically(self.path, json.dumps(entries, indent=1, sort_keys=True).encode())
        return found

    def remembered(self, file: Path) -> str | None:
        """Look up the file's sha256; None if the file may have changed, or was never seen."""
        known = self._read().get(str(file))
        if isinstance(known, list) and known[:3] == _stamp(file) and _is_sha256(known[3:]):
            return str(known[3])
        return None

    def _read(self) -> dict[str, object]:
        try:
            entries = json.loads(read_stored(self.path))  # waits for no pipe
        except (OSError, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _is_sha256(rest: list[object]) -> bool:
    return len(rest) == 1 and isinstance(rest[0], str) and len(rest[0]) == 64


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_revision(
    folder: Path, configs: Iterable[str], weights: Iterable[str], cache: HashCache | None
) -> str:
    """Hash the names and hashes of a checkpoint's files: its identity on any machine.

    Without a cache every byte is read.
    """
    hashed = sha256_of_file if cache is None else cache.sha256
    hashes = {name: sha256_of_file(folder / name) for name in configs}
    hashes |= {name: hashed((folder / name).resolve()) for name in weights}
    lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return sha256_of("".join(lines).encode())
