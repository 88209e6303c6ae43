"""A clip being uploaded: a file on the disk of the voices, hashed while it is written.

It is never in memory as a whole. Its file is locked for as long as its server lives, so that the
next start can tell what a dead one left; it goes with the request, or becomes a voice's clip.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.storage import private
from registry.storage.blobs import TMP_PREFIX, BlobStore, make_folder, opened
from registry.storage.errors import storage_errors

DECODERS = 2


class Clip(Protocol):
    """A clip to be decoded, and the client for whom this is done."""

    @property
    def sha256(self) -> str: ...
    @property
    def client(self) -> str: ...
    @property
    def open(self) -> Callable[[], AbstractContextManager[BinaryIO]]:
        """Opens the clip at its first byte, for this reader alone. Blocks."""


@dataclass(frozen=True)
class StoredClip:
    """The clip of a stored voice, decoded again by the server for itself."""

    sha256: str
    open: Callable[[], AbstractContextManager[BinaryIO]]
    client: str


class Upload:
    """A clip that comes in parts. All methods but `close` may block and raise storage errors."""

    def __init__(self, folder: Path, client: str, gone: Callable[[], object]) -> None:
        """Prepare an upload; nothing is made in the folder before the first part."""
        self._folder, self._gone = folder, gone
        self._file: FileIO | None = None
        self._hash = hashlib.sha256()
        self._is_dropped = False
        self.client = client

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, part: bytes | bytearray) -> None:
        """Append a part to the file, which the first one makes."""
        with storage_errors(self._folder.parent, writing=True):
            if self._file is None:
                self._file = locked_file(self._folder)
                if self._is_dropped:  # before this thread had made it
                    self._unlink()
            rest = memoryview(part)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(part)

    def open(self) -> FileIO:
        """Open the file once more for a decoder, which must not change what was hashed."""
        with storage_errors(self._folder.parent, writing=False):
            return FileIO(self._written.name)

    def keep(self, blobs: BlobStore, key: str, *, move: bool = True) -> bool:
        """Make this clip the blob of that key, for good; return False if it is it already.

        The file itself may become it, unless `move` is false.
        """
        if blobs.digest(key)[0] == self.sha256:
            blobs.renew(key)
            return False
        blobs.take(key, self._written, move=move)
        return True

    def close(self) -> None:
        """Delete the file, unless it has moved; whoever has opened it may read on."""
        if self._file is not None:
            self._unlink()
            self._file.close()
            self._file = None
        self._gone()

    def drop(self) -> None:
        """Delete the file while others work with it, for a process that ends; from any thread."""
        self._is_dropped = True
        self._unlink()

    def _unlink(self) -> None:
        if file := self._file:
            with suppress(OSError):  # it has moved
                os.unlink(file.name)

    @property
    def _written(self) -> FileIO:
        assert self._file is not None, "no part of it has come"
        return self._file


def locked_file(folder: Path) -> FileIO:
    """Make a temporary file, which `drop_abandoned` leaves alone until it is closed."""
    make_folder(folder)
    while True:
        path = folder / f"{TMP_PREFIX}{secrets.token_hex(8)}"
        file = FileIO(path, "x+", opener=private.opener)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was dropped before it was locked


def drop_abandoned(folder: Path) -> None:
    """Remove the temporary files of programs that have ended, however they did."""
    for path in folder.glob(f"{TMP_PREFIX}*"):
        drop_if_abandoned(path)


def drop_if_abandoned(path: Path) -> None:
    with suppress(OSError), _abandoned(path) as is_free:  # or a folder that is read only
        if is_free:
            path.unlink()


def is_abandoned(path: Path) -> bool:
    """Tell whether the program that wrote this temporary file has ended."""
    with _abandoned(path) as is_free:
        return is_free


@contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Yield whether nobody has a temporary file locked; nobody can lock it within the block."""
    with opened(path) as file:
        try:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or of a disk that knows no locks
            yield False
        else:
            yield file is not None
