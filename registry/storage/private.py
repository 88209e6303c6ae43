"""Makes folders and files for their owner alone, whatever the umask: a voice is biometric data.

All of the data directory is made through here, and every backup. A mode is given where the folder
or file is made, so at no moment others can read it; only the doctor changes an old one.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
OTHERS = 0o077  # the group is others, too


def make(folder: Path, *, exist_ok: bool = False) -> None:
    """Make one folder, whose parent is there. Raises FileExistsError unless `exist_ok` is true."""
    folder.mkdir(FOLDER, exist_ok=exist_ok)
    if ~folder.stat().st_mode & FOLDER:  # the umask took from the owner, too
        folder.chmod(FOLDER)


def opener(path: str, flags: int) -> int:
    """Open a file so that one made by it is private: `open(path, mode, opener=private.opener)`."""
    descriptor = os.open(path, flags, FILE)
    if ~os.fstat(descriptor).st_mode & FILE:
        os.fchmod(descriptor, FILE)
    return descriptor


def touch(path: Path) -> None:
    """Make an empty file for SQLite or `copyfile` to fill, unless there is one.

    One that is there is not opened: closing it would give up SQLite's locks on it. Journals get the
    mode of their database.
    """
    with suppress(FileExistsError), open(path, "xb", opener=opener):
        pass


def is_open(path: Path) -> bool:
    """Tell whether its mode lets others do anything with it; its folder may still keep them out."""
    return bool(path.stat().st_mode & OTHERS)


def refuse_link(folder: Path) -> None:
    """Raise OSError if the folder of one voice is a link; that of all prompts may be one."""
    if folder.parent.name in ("prompts", "transient") and folder.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
