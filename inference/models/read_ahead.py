"""Brings a checkpoint's weights into the page cache while Python still imports torch."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 8 << 20


@contextlib.contextmanager
def reading_ahead(folder: Path) -> Iterator[None]:
    """Read the weights in `folder` once, on a thread, until they or the block end.

    A file that can't be read is left to whoever loads it, and says why.
    """
    left = threading.Event()
    thread = threading.Thread(target=_read, args=(folder, left), name="read ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def _read(folder: Path, left: threading.Event) -> None:
    piece = bytearray(PIECE_BYTES)
    with contextlib.suppress(OSError):
        for path in sorted(folder.rglob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while not left.is_set() and file.readinto(piece):
                    pass
