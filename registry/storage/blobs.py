"""Blobs by key: files that survive a power cut once written, and are not trusted when read.

Standard library only, so that inference may share it.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.storage import private

TMP_PREFIX = ".tmp-"
MOST_BYTES = 20 * 1024 * 1024  # the most that is read of a file: the size of the largest upload
PART_BYTES = 256 * 1024  # how much is read of a file at once
PLAIN = os.O_NONBLOCK | os.O_NOFOLLOW  # neither waits for a pipe nor goes where a link leads
NO_FILE: tuple[int, ...] = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
NO_FILE += (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)  # errors that sockets and devices give


@dataclass(frozen=True)
class StoredContent:
    """A stored file whose hash was checked, to be read in parts.

    No file is open between two parts: a slow reader holds neither its bytes nor a descriptor, which
    would keep a Volume from being reloaded. A file never changes under its name.
    """

    size: int
    read: Callable[[int, int], bytes]  # from a byte to before another; less if the file is gone

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `end`. Raises EOFError if the file is gone."""
        while start < end:
            part = self.read(start, min(end, start + PART_BYTES))
            if not part:
                raise EOFError(f"its last {end - start:,} bytes are no longer there")
            yield part
            start += len(part)


class BlobStore(Protocol):
    """Stores bytes under keys such as `clips/<sha256>`: whole or not at all, until deleted.

    A key is a name below the folders of a data directory; one that ends in `/` means all below it.
    A blob that is not there reads as empty; one that is there and can't be read raises OSError.
    """

    def put(self, key: str, content: bytes) -> bool:
        """Store once under a key made of the hash; return False, and renew it, if it was there."""

    def replace(self, key: str, content: bytes) -> None:
        """Store `content`, whatever is there."""

    def take(self, key: str, file: FileIO, *, move: bool) -> None:
        """Store what a temporary file holds; the file itself may be moved if `move` is true."""

    def read(self, key: str, most_bytes: int = MOST_BYTES) -> bytes:
        """Return the content, or nothing if it is not there or larger than `most_bytes`."""

    def read_part(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`, or as many as there are."""

    def digest(self, key: str) -> tuple[str, int]:
        """Return the SHA-256 and the size of what `read` would give."""

    def open(self, key: str) -> AbstractContextManager[FileIO | None]:
        """Open a blob to be read by a decoder; give None if it is not there."""

    def exists(self, key: str) -> bool:
        """Tell whether there is a blob, or a folder for a key that ends in `/`."""

    def written_s(self, key: str) -> float | None:
        """Return when it was stored or last renewed; None if nothing at all is there."""

    def renew(self, key: str) -> None:
        """Set the time at which it was written to now, so that no clean-up takes it as old."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield in order the keys of all that is stored directly below a key ending in `/`."""

    def delete(self, key: str) -> None:
        """Delete a blob, if it is there; for a key that ends in `/`, only its empty folder."""

    def delete_all(self, prefix: str) -> None:
        """Delete all below a key that ends in `/`."""


@dataclass(frozen=True)
class FolderBlobs:
    """A BlobStore whose blobs are files below one folder."""

    root: Path

    def path(self, key: str) -> Path:
        return self.root / key

    def put(self, key: str, content: bytes) -> bool:
        return write_once(self.path(key), content)

    def replace(self, key: str, content: bytes) -> None:
        write_atomically(self.path(key), content)

    def take(self, key: str, file: FileIO, *, move: bool) -> None:
        """Move a file that was not moved before and is on the same disk; copy any other."""
        path = self.path(key)
        if not (move and _moved(file, path)):
            file.seek(0)
            with replacing(path) as copy:
                shutil.copyfileobj(file, copy)

    def read(self, key: str, most_bytes: int = MOST_BYTES) -> bytes:
        return read_stored(self.path(key), most_bytes)

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return read_part(self.path(key), start, end)

    def digest(self, key: str) -> tuple[str, int]:
        return hash_stored(self.path(key))

    def open(self, key: str) -> AbstractContextManager[FileIO | None]:
        return opened(self.path(key))

    def exists(self, key: str) -> bool:
        path = self.path(key)
        return not path.is_symlink() and (path.is_dir() if key.endswith("/") else path.is_file())

    def written_s(self, key: str) -> float | None:
        try:
            return self.path(key).lstat().st_mtime
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            return None

    def renew(self, key: str) -> None:
        os.utime(self.path(key))

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys of files that are neither links nor still being written."""
        try:
            with os.scandir(self.path(prefix)) as found:
                plain = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from (f"{prefix}{n}" for n in sorted(plain) if not n.startswith(TMP_PREFIX))

    def delete(self, key: str) -> None:
        if key.endswith("/"):
            with suppress(OSError):  # it holds what is not ours
                self.path(key).rmdir()
        else:
            self.path(key).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path(prefix))


def make_folder(path: Path) -> None:
    """Create `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    private.make(path, exist_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave it as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Do as `whole_file` does, in a folder that is made if it is not there."""
    private.refuse_link(path.parent)
    make_folder(path.parent)
    with whole_file(path) as file:
        yield file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Make `path` of what the block writes: temp file, fsync, rename, fsync of the folder.

    The order is the promise: a reader sees the old file or the whole new one, power cut or not.
    """
    temporary = path.parent / f"{TMP_PREFIX}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb", opener=private.opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_stored(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return what a file holds; nothing if it is not there, no plain file, or too large.

    A pipe in its place is not waited for, and a device is not read. OSError if it can't be read.
    """
    content = read_part(path, 0, most_bytes + 1)
    return content if len(content) <= most_bytes else b""


def read_part(path: Path, start: int, end: int) -> bytes:
    """Return the bytes from `start` to before `end` of a stored file, or as many as there are."""
    with opened(path) as file:
        if file is None:
            return b""
        file.seek(start)
        with BufferedReader(file) as whole:
            return whole.read(end - start)


def hash_stored(path: Path, most_bytes: int = MOST_BYTES) -> tuple[str, int]:
    """Return the SHA-256 and size of what `read_stored` would give, without holding it."""
    hashed, size = hashlib.sha256(), 0
    with opened(path) as file:
        while file and (part := file.read(PART_BYTES)):
            hashed.update(part)
            if (size := size + len(part)) > most_bytes:
                return hashlib.sha256().hexdigest(), 0
    return hashed.hexdigest(), size


@contextmanager
def opened(path: Path) -> Iterator[FileIO | None]:
    """Open a plain file to read; yield None if there is none. OSError if it can't be read."""
    try:
        private.refuse_link(path.parent)
        descriptor = os.open(path, os.O_RDONLY | PLAIN)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        yield None
        return
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with FileIO(descriptor) as file:
            yield file
    else:
        os.close(descriptor)
        yield None


def write_once(path: Path, data: bytes) -> bool:
    """Store `data` under a name made of its hash; a sound file is kept, and renewed.

    Returns False if it was there. A crash can leave wrong content under a right name, so it is read
    first.
    """
    with suppress(FileNotFoundError):  # a clean-up takes it at this moment
        if read_stored(path) == data:
            os.utime(path)
            return False
    write_atomically(path, data)
    return True


def _moved(file: FileIO, target: Path) -> bool:
    """Move a file; return False if it was moved before, or if `target` is on another disk."""
    make_folder(target.parent)
    os.fsync(file.fileno())
    try:
        os.rename(file.name, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOENT):
            raise
        return False
    sync_folder(target.parent)
    return True


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
