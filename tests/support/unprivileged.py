"""Work done by someone without privileges, for whom the modes of files count."""

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from faults import FORKS, process

CAPABILITY_VERSION_3 = 0x20080522
PATIENCE_S = 120


def unprivileged(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns, done in a process of its own that has no privileges."""
    receiver, sender = FORKS.Pipe(duplex=False)
    with process(_do, sender, work, args):
        sender.close()
        assert receiver.poll(PATIENCE_S), "nothing came of it"
        return receiver.recv()


def _do(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if os.geteuid() == 0:
        _give_up_capabilities()
    sender.send(work(*args))


def _give_up_capabilities() -> None:
    """Still the owner of what is root's, but no more allowed than any owner is."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder whose modes are given back before it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="voices-"))
    try:
        yield folder
    finally:
        set_modes(folder, 0o700, 0o600)
        rmtree(folder)


def set_modes(folder: Path, folders: int, files: int) -> None:
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            set_modes(path, folders, files)
        else:
            path.chmod(files)
    folder.chmod(folders)
