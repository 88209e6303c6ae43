"""Reading ahead: every weight file is read, a missing one is not its business, leaving stops it."""

import os
import threading
from pathlib import Path

from inference.read_ahead import PIECE_BYTES, reading_ahead


def test_every_weight_file_is_read_to_its_end(tmp_path: Path) -> None:
    pipes = [tmp_path / "model.safetensors", tmp_path / "speech_tokenizer" / "model.safetensors"]
    pipes[1].parent.mkdir()
    for pipe in pipes:
        os.mkfifo(pipe)
    with reading_ahead(tmp_path):
        for pipe in pipes:
            pipe.write_bytes(bytes(3 * PIECE_BYTES))  # returns once it was read


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
