"""Reading ahead: every weight file is read, a missing one is not its business, leaving stops it."""

import os
import select
import threading
from contextlib import ExitStack
from pathlib import Path

from inference.models.read_ahead import PIECE_BYTES, reading_ahead

PATIENCE_S = 60


class Pipe:
    """Weights that tell how much of them is read. A reader who stays away hangs nobody."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        self._end: int | None = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def fill(self, size: int) -> None:
        """Returns once all was read but what a pipe holds."""
        assert self._end is not None
        while size > 0:
            assert select.select([], [self._end], [], PATIENCE_S)[1], f"{size} bytes are not read"
            size -= os.write(self._end, bytes(min(size, 65536)))

    def close(self) -> None:
        if self._end is not None:
            self._path.unlink()
            os.close(self._end)
            self._end = None


def test_every_weight_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "codec").mkdir()
    pipes = [Pipe(tmp_path / "codec" / "a.safetensors"), Pipe(tmp_path / "model.safetensors")]
    with reading_ahead(tmp_path), ExitStack() as opened:
        for pipe in pipes:
            opened.callback(pipe.close)
        for pipe in pipes:
            pipe.fill(3 * PIECE_BYTES)
            pipe.close()


def test_a_file_that_is_missing_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    with reading_ahead(tmp_path):
        pass


def test_leaving_stops_it(tmp_path: Path) -> None:
    """A sparse file of 1 TiB would take minutes."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(1 << 40)
    with reading_ahead(tmp_path):
        pass
    assert "read ahead" not in {thread.name for thread in threading.enumerate()}
