"""Clips that went from a Volume: a copy of each stays in `removed/` for an hour.

A container that stalls or dies while it removes a clip publishes that late, or at a moment when
another has enrolled the same clip again: nothing holds a Volume's writers apart. So no clip goes
for good before every claim of that time is dead, and one that a voice turns out to have is put
back. Prompts and conditioned clips are made from clips, and need none of this.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from registry.storage.blobs import TMP_PREFIX, hash_stored, read_stored, write_once
from registry.storage.data_dir import DataDir, is_plain, is_settled, is_sha256, sha256_of
from registry.storage.volume.snapshots import Mount


class RemovedClips:
    """Keeps copies of removed clips for an hour, and puts back those that a voice needs."""

    def __init__(self, mount: Mount, data: DataDir) -> None:
        self._mount, self._data = mount, data
        self._folder = mount.path / "removed"

    def keep(self, paths: Iterable[Path]) -> None:
        """Copy those of the files that are sound clips, for everyone, before they are removed.

        In a commit of its own: who dies in the middle of one has published a part of it.
        """
        with self._mount.gate:
            clips = [path for path in paths if self._is_clip(path)]
            if [path for path in clips if copy_sound(path, self._folder / path.name)]:
                self._mount.commit()

    def has(self, sha256: str) -> bool:
        """Tell whether there is a copy of this clip, once the Volume is reloaded."""
        with self._mount.gate:
            self._mount.reload()
            return is_plain(self._folder / sha256)

    def is_any(self) -> bool:
        """Tell whether there are any copies, whole or not."""
        with self._mount.gate:
            return any(self._copies()) or any(self._unfinished())

    def put_back(self, sha256: str) -> None:
        """Put back a clip that a row names; within a transaction, so that no removal runs."""
        with self._mount.gate:
            clip = self._data.clip(sha256)
            is_sound = hash_stored(clip)[0] == sha256
            if not is_sound and copy_sound(self._folder / sha256, clip):
                self._mount.dirty = True

    def finish(self, is_named: Callable[[str], bool]) -> None:
        """Put back what a row names, and remove copies that are older than any removal's delay.

        Call it within a transaction, so that what is named stays so.
        """
        with self._mount.gate:
            for copy in [*self._copies()]:
                if is_named(copy.name):
                    self.put_back(copy.name)
                if is_settled(copy):
                    self._unlink(copy)
            for path in filter(is_settled, [*self._unfinished()]):
                self._unlink(path)

    def _unlink(self, path: Path) -> None:
        path.unlink()
        self._mount.dirty = True

    def _is_clip(self, path: Path) -> bool:
        return path == self._data.clip(path.name) and is_sha256(path.name) and is_plain(path)

    def _copies(self) -> Iterator[Path]:
        yield from (path for path in self._entries() if is_sha256(path.name))

    def _unfinished(self) -> Iterator[Path]:
        """Yield the temporary files of containers that died while they wrote a copy."""
        yield from (path for path in self._entries() if path.name.startswith(TMP_PREFIX))

    def _entries(self) -> list[Path]:
        return sorted(filter(is_plain, self._folder.iterdir())) if self._folder.is_dir() else []


def copy_sound(path: Path, target: Path) -> bool:
    """Copy a file to `target` if its content has the hash in its name; return whether it has."""
    content = read_stored(path)
    if sha256_of(content) != path.name:
        return False
    write_once(target, content)
    return True
