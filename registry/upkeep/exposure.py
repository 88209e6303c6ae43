"""Finds, and closes, what of a data directory is open to others, as older versions left it.

Only what programs of ours have made is looked at, and no link is followed.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from registry.storage import private
from registry.storage.data_dir import DataDir
from registry.storage.errors import storage_errors
from registry.upkeep.doctor import Finding

OURS = re.compile(  # files, and folders on the way to them
    r"registry\.db(-journal|-wal|-shm)?|ballast|uploads|migrate\.lock|made-by-voices-demo"
    r"|clips(/[0-9a-f]{64})?|conditioned(/[0-9a-f]{64}-\w{1,16}\.wav)?"
    r"|prompts(/voice_[0-9a-f]{32}(/[0-9a-f]{64}(-[0-9a-f]{16})?\.safetensors)?)?"
    r"|transient(/transient_[0-9a-f]{32}(/[^/]+)?)?"
    r"|models(/hashes\.json)?|backups(/registry-before-[^/]+\.db)?"
    r"|([^/]+/){0,2}\.tmp-[0-9a-f]{16}"
)


def examine_modes(data: DataDir, *, repair: bool) -> list[Finding]:
    """Return what is open to others; with `repair`, folders become 0700 and files 0600.

    Each folder is closed before what is in it: nobody else can exchange what comes next.
    """
    if not data.root.is_dir():
        return []
    with storage_errors(data.root, writing=repair):
        return [*_examine(data.root, data.root, repair)]


def _examine(path: Path, root: Path, repair: bool) -> Iterator[Finding]:
    status = path.lstat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_folder and not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & private.OTHERS:
        where = "the data directory" if path == root else path.relative_to(root).as_posix()
        what = f"{where} is open to others, by its mode {stat.S_IMODE(status.st_mode):04o}"
        yield _closed(path, is_folder, what) if repair else Finding("repairable", what)
    if is_folder:
        for name in sorted(os.listdir(path)):
            if OURS.fullmatch((path / name).relative_to(root).as_posix()):
                yield from _examine(path / name, root, repair)


def _closed(path: Path, is_folder: bool, what: str) -> Finding:
    try:
        path.chmod(private.FOLDER if is_folder else private.FILE)
    except PermissionError as error:  # another account's
        return Finding("repairable", f"{what}, and can't be closed: {error.strerror}")
    return Finding("repaired", what)
