"""sha256 of big files, remembered by (size, mtime, inode), and of a whole checkpoint."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from registry.files import sha256_of, write_atomically

Entry = list[object]  # [size, mtime_ns, inode, sha256]


@dataclass(frozen=True)
class HashCache:
    """A JSON file {path: [size, mtime_ns, inode, sha256]}; a damaged one counts as empty."""

    path: Path

    def sha256(self, file: Path) -> str:
        """The file's sha256: remembered if the file seems untouched, else computed and kept."""
        status = file.stat()
        stamp: Entry = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._read().get(str(file))
        if isinstance(known, list) and known[:3] == stamp and _is_sha256(known[3:]):
            return str(known[3])
        found = sha256_of_file(file)
        entries = {**self._read(), str(file): [*stamp, found]}
        write_atomically(self.path, json.dumps(entries, indent=1, sort_keys=True).encode())
        return found

    def _read(self) -> dict[str, object]:
        try:
            entries = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def _is_sha256(rest: list[object]) -> bool:
    return len(rest) == 1 and isinstance(rest[0], str) and len(rest[0]) == 64


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_revision(
    folder: Path, configs: Iterable[str], weights: Iterable[str], cache: HashCache
) -> str:
    """One sha256 over the names and hashes of a checkpoint's files: its identity on any machine."""
    hashes = {name: sha256_of_file(folder / name) for name in configs}
    hashes |= {name: cache.sha256((folder / name).resolve()) for name in weights}
    lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return sha256_of("".join(lines).encode())
