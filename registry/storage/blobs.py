"""Blobs by key, as files that outlive a power cut when they are written, and are not believed when
they are read.

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
MOST_BYTES = 20 * 1024 * 1024  # of one file: the largest upload
PART_BYTES = 256 * 1024  # of a file that is read in parts
PLAIN = os.O_NONBLOCK | os.O_NOFOLLOW  # neither waits for a pipe nor goes where a link leads
NO_FILE: tuple[int, ...] = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
NO_FILE += (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)  # of sockets and devices


@dataclass(frozen=True)
class StoredContent:
    """A file whose hash was looked at, to be read in parts.

    Nothing of it is open in between: who takes the parts slowly holds neither its bytes nor a
    descriptor, which would keep a Volume from being reloaded. A file never changes under its name.
    """

    size: int
    read: Callable[[int, int], bytes]  # from a byte to before another; less if the file is gone

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """Raises EOFError if the file is gone before its last part was read."""
        while start < end:
            part = self.read(start, min(end, start + PART_BYTES))
            if not part:
                raise EOFError(f"its last {end - start:,} bytes are no longer there")
            yield part
            start += len(part)


class BlobStore(Protocol):
    """What is stored under keys such as `clips/<sha256>`: whole or not there, until it is deleted.

    A key is a name below the folders of a data directory; one that ends in `/` is all below it.
    Nothing is believed: what is there and can't be read is an OSError, what is not there is empty.
    """

    def put(self, key: str, content: bytes) -> bool:
        """Store once under a key that is made of the hash; False if it was there, and is young."""

    def replace(self, key: str, content: bytes) -> None:
        """Store, whatever is there."""

    def take(self, key: str, file: FileIO, *, move: bool) -> None:
        """Store what a temporary file holds, which may be moved."""

    def read(self, key: str, most_bytes: int = MOST_BYTES) -> bytes:
        """Nothing if it is not there, or larger."""

    def read_part(self, key: str, start: int, end: int) -> bytes: ...

    def digest(self, key: str) -> tuple[str, int]:
        """SHA-256 and size of what `read` would give."""

    def open(self, key: str) -> AbstractContextManager[FileIO | None]:
        """To be read by a decoder; None if it is not there."""

    def exists(self, key: str) -> bool: ...

    def written_s(self, key: str) -> float | None:
        """When it was stored, or was last made young; None if nothing at all is there."""

    def renew(self, key: str) -> None:
        """Make it young."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys of all that is stored directly below one that ends in `/`, in order."""

    def delete(self, key: str) -> None:
        """What is not there is gone already; of one that ends in `/`, only its empty folder."""

    def delete_all(self, prefix: str) -> None:
        """All below a key that ends in `/`."""


@dataclass(frozen=True)
class FolderBlobs:
    """Files below a folder."""

    root: Path

    def path(self, key: str) -> Path:
        return self.root / key

    def put(self, key: str, content: bytes) -> bool:
        return write_once(self.path(key), content)

    def replace(self, key: str, content: bytes) -> None:
        write_atomically(self.path(key), content)

    def take(self, key: str, file: FileIO, *, move: bool) -> None:
        """Moves a file that has not moved before, and is on the same disk; else copies it."""
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
        """Files that are neither links nor being written."""
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
    """Make `path` hold `data` or leave it as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`whole_file` in a folder that is made if it is not there."""
    private.refuse_link(path.parent)
    make_folder(path.parent)
    with whole_file(path) as file:
        yield file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """What the block writes becomes `path`: temp file, fsync, rename, fsync of the folder.

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
    """What is stored under a name; nothing if it is not there, or is no file of that size.

    A pipe in its place is not waited for, and a device is not read. OSError if it can't be read.
    """
    content = read_part(path, 0, most_bytes + 1)
    return content if len(content) <= most_bytes else b""


def read_part(path: Path, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end` of what is stored, or as many as there are."""
    with opened(path) as file:
        if file is None:
            return b""
        file.seek(start)
        with BufferedReader(file) as whole:
            return whole.read(end - start)


def hash_stored(path: Path, most_bytes: int = MOST_BYTES) -> tuple[str, int]:
    """The SHA-256 of what `read_stored` would give, and its size, without holding it."""
    hashed, size = hashlib.sha256(), 0
    with opened(path) as file:
        while file and (part := file.read(PART_BYTES)):
            hashed.update(part)
            if (size := size + len(part)) > most_bytes:
                return hashlib.sha256().hexdigest(), 0
    return hashed.hexdigest(), size


@contextmanager
def opened(path: Path) -> Iterator[FileIO | None]:
    """None if there is no such file; OSError if it can't be read."""
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
    """Store `data` under a name made of its hash: a sound file is kept, and made young again.

    False if it was there. A crash can leave wrong content under a right name, so it is read first.
    """
    with suppress(FileNotFoundError):  # a clean-up takes it at this moment
        if read_stored(path) == data:
            os.utime(path)
            return False
    write_atomically(path, data)
    return True


def _moved(file: FileIO, target: Path) -> bool:
    """False where the file has gone before, or another disk begins."""
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
