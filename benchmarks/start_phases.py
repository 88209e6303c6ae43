"""One cold start, phase by phase, in the process that runs this file; seconds as JSON on stdout.

What the service does for its first caller: read the weights ahead while torch is imported,
Engine.load, the graphs of one stream, then a voice's first sound. From asking for a process to that
sound, every second is in one phase. As there, "load model" reads the weights on a thread
while the kernels compile and the tokenizer loads: its details overlap, so their sum is more than
the phase. A phase ends when its calls return; what it left to the device is in the next ones.

Imports nothing but the standard library before its clock runs. A phase is a function that takes a
Start and leaves on it what later phases need: to measure more, add a function to PHASES.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REFERENCE_FRAMES = 100  # a clip of 8 s
TRANSCRIPT = "The clip says nothing, but these are about as many words as fit into it."
TEXT = "The first sound is what everyone waits for."


class Start:
    """What was asked for, and what the phases have made so far."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.folder, self.device_name, self.dtype_name = folder, device or None, dtype or None
        self.reading = contextlib.ExitStack()  # ahead, while modules are imported
        self.config: Any = None
        self.model_config: Any = None
        self.parts: tuple[Any, ...] = ()  # weights, text and setup
        self.engine: Any = None
        self.voice: Any = None
        self.details: dict[str, float] = {}  # of "load model", in seconds, but for *_gb


def import_torch(start: Start) -> None:
    from inference.models.read_ahead import reading_ahead

    start.reading.enter_context(reading_ahead(start.folder))
    import torch  # noqa: F401


def open_device(start: Start) -> None:
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=start.device_name or found)


def import_engine(start: Start) -> None:
    from inference.engine import EngineConfig
    from inference.engine.engine import Engine  # noqa: F401

    start.reading.close()
    start.config = EngineConfig(device=start.device_name, dtype=start.dtype_name)


def load_model(start: Start) -> None:
    from inference.engine.checkpoint.loading import load_with_report
    from inference.engine.checkpoint.tokenizer import load_tokenizer
    from inference.engine.config import Setup, place
    from inference.engine.model_config import read_model_config

    start.model_config, (device, dtype) = read_model_config(start.folder), place(start.config)
    with ThreadPoolExecutor(1) as reader:
        loading = reader.submit(load_with_report, start.folder, start.model_config, dtype, device)
        setup = timed(start, "kernels", lambda: Setup.of(start.config))
        text = timed(start, "tokenizer", lambda: load_tokenizer(start.folder))
    weights, report = loading.result()
    start.parts = weights, text, setup
    moved = report.transferred
    start.details |= {
        "weights": report.seconds,
        "weights_gb": moved.nbytes / 1e9,
        "transfer, of the weights": moved.seconds,
        "reading, of the transfer": moved.reading_s,
    }


def engine(start: Start) -> None:
    from inference.engine import Engine

    start.engine = Engine(start.model_config, *start.parts)


def graphs(start: Start) -> None:
    start.engine.capture(streams=1)


def voice(start: Start) -> None:
    """Random features of a clip: there is no clip, and no encoder."""
    import numpy as np

    random, model_config = np.random.default_rng(0), start.model_config
    embedding = random.normal(0, 0.3, model_config.talker.hidden_size).astype(np.float32)
    codes = random.integers(
        0, model_config.codebook_size, (REFERENCE_FRAMES, model_config.num_code_groups)
    ).astype(np.int16)
    start.voice = start.engine.prepare(embedding, codes, TRANSCRIPT)


def first_audio(start: Start) -> None:
    """Until the first PCM of a request is on the host."""
    from inference.engine import Request

    start.engine.submit(Request(start.voice, TEXT))
    first = next(output for output in start.engine.run() if len(output.pcm) or output.error)
    if first.error is not None:
        raise first.error


def timed(start: Start, name: str, call: Callable[[], Any]) -> Any:
    begun_s = time.monotonic()
    made = call()
    start.details[name] = time.monotonic() - begun_s
    return made


PHASES: tuple[Callable[[Start], None], ...] = (
    import_torch,
    open_device,
    import_engine,
    load_model,
    engine,
    graphs,
    voice,
    first_audio,
)


def run(start: Start, asked_s: float) -> dict[str, float]:
    """Seconds of each phase; the first is from asking for the process to its first statement."""
    found = {"interpreter": time.monotonic() - asked_s}
    for phase in PHASES:
        begun_s = time.monotonic()
        phase(start)
        found[phase.__name__.replace("_", " ")] = time.monotonic() - begun_s
    return found


if __name__ == "__main__":
    asked_s, folder, device, dtype = sys.argv[1:]
    start = Start(Path(folder), device, dtype)
    phases = run(start, float(asked_s))
    sys.stdout.write(json.dumps({"phases": phases, "details": start.details}))
