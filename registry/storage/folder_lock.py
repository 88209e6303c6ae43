"""Locks on a data directory: any number of programs share it, or one replaces it.

The lock is on the folder itself (flock), so a kill gives it back, and a folder that was exchanged
takes its lock along.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from registry.errors import FolderInUse
from registry.storage import private


@contextmanager
def share_folder(root: Path) -> Iterator[None]:
    """Keep others from replacing the folder; raise FolderInUse if someone is about to."""
    said = f"A backup is being restored to {root}. Try again when that is done."
    with _locked(root, fcntl.LOCK_SH, said):
        yield


@contextmanager
def own_folder(root: Path) -> Iterator[None]:
    """Keep all others out of the folder, which need not be there yet; raise FolderInUse."""
    said = (
        f"A program is at work in {root}. Stop the server, or wait until the command is done; then "
        "restore again."
    )
    made = _make(root)
    try:
        with _locked(root, fcntl.LOCK_EX, said):
            yield
    finally:
        if made:
            with suppress(OSError):  # by now it holds something
                root.rmdir()


@contextmanager
def hold_files(folder: Path) -> Iterator[None]:
    """Keep the files of forgotten voices from being removed; wait for a removal under way."""
    with _opened(folder) as descriptor:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextmanager
def may_remove(folder: Path) -> Iterator[bool]:
    """Try to get the exclusive file lock, and yield whether it was got."""
    with _opened(folder) as descriptor:
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Open a folder; yield None if it is not there, for then there is no file to protect."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make(root: Path) -> bool:
    try:
        private.make(root)
    except FileExistsError:
        return False
    return True


@contextmanager
def _locked(root: Path, kind: int, said: str) -> Iterator[None]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, kind, said)
        if not os.path.samestat(os.fstat(descriptor), root.stat()):
            raise FolderInUse(said)  # it was exchanged since it was opened
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, said: str) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUse(said) from error
