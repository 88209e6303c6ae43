"""Turns what a disk or the database refuses into the registry's own errors, which name the folder.

Errors of files outside the data directory are not touched: they stay what they are.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from registry.errors import (
    DatabaseDamaged,
    Overloaded,
    RegistryError,
    StorageFull,
    StorageReadOnly,
    StorageUnreadable,
)
from registry.storage import sqlite
from registry.storage.sqlite import DatabaseFault

STORAGE_ERRORS = (OSError, sqlite.Error, DBAPIError)
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM)


@contextmanager
def storage_errors(home: Path, *, writing: bool) -> Iterator[None]:
    """Raise as a RegistryError what the storage of `home` refuses within the block."""
    try:
        yield
    except STORAGE_ERRORS as error:
        said = storage_error(error, home, writing=writing)
        if said is None:
            raise
        raise said from error


def storage_error(error: Exception, home: Path, *, writing: bool) -> RegistryError | None:
    """Return the registry's error for this one; None if it is not about the storage in `home`."""
    if isinstance(error, OSError):
        return _of_a_file(error, home, writing)
    return _of_the_database(error, home, writing)


def _of_the_database(error: Exception, home: Path, writing: bool) -> RegistryError | None:
    reason = sqlite.reason(error)
    match sqlite.refusal(error):
        case DatabaseFault.MOVED:
            return StorageUnreadable(
                f"The database in {home} was moved or removed while a program had it open. Restart "
                "the server."
            )
        case DatabaseFault.CUT_OFF:
            return StorageUnreadable(
                f"A write in {home} was cut off, and can't be undone because the folder can't be "
                "written. Open it once where it can be."
            )
        case DatabaseFault.FULL:
            return _full(home)
        case DatabaseFault.BUSY:
            return Overloaded("Another process is writing to the database.", 1)
        case DatabaseFault.READ_ONLY:
            return _read_only(home, reason)
        case DatabaseFault.UNOPENED if writing:
            return _read_only(home, reason)
        case DatabaseFault.UNOPENED | DatabaseFault.UNREADABLE:
            return _unreadable(home, reason)
        case DatabaseFault.DAMAGED:
            return damaged(home, reason)
        case None:
            return None


def damaged(home: Path, reason: str) -> DatabaseDamaged:
    return DatabaseDamaged(
        f"The database in {home} is damaged ({reason}). Nothing is written to it any more. See "
        "what `voices doctor` finds, then put back a backup with `voices restore`."
    )


def _of_a_file(error: OSError, home: Path, writing: bool) -> RegistryError | None:
    if error.errno in FULL:
        return _full(home)
    nameless = error.filename is None and error.errno in (*DENIED, errno.EROFS, errno.EIO)
    if not (nameless or _is_within(error.filename, home)):
        return None
    reason = f"{error.strerror}: {error.filename!r}" if error.filename else str(error.strerror)
    if error.errno == errno.EROFS or (error.errno in DENIED and writing):
        return _read_only(home, reason)
    return _unreadable(home, reason)


def _is_within(name: object, home: Path) -> bool:
    return isinstance(name, str | Path) and Path(name).is_relative_to(home)


def _full(home: Path) -> StorageFull:
    return StorageFull(
        f"The disk is full, or a quota is used up; nothing was stored. Free some space for {home}."
    )


def _read_only(home: Path, reason: str) -> StorageReadOnly:
    return StorageReadOnly(
        f"This program can't write to {home} ({reason}); nothing was stored. What is there can "
        "still be read."
    )


def _unreadable(home: Path, reason: str) -> StorageUnreadable:
    return StorageUnreadable(f"This program can't read all of {home} ({reason}).")
