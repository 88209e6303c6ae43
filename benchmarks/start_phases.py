"""One cold start, phase by phase, in the process that runs this file; seconds as JSON on stdout.

Imports nothing but the standard library before its clock runs. A phase is a function that takes a
Start and leaves on it what later phases need: to measure more, add a function to PHASES.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Start:
    """What was asked for, and what the phases have made so far."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.folder, self.device_name, self.dtype_name = folder, device, dtype
        self.device: Any = None
        self.dtype: Any = None
        self.shape: Any = None
        self.text: Any = None
        self.weights: Any = None
        self.details: dict[str, float] = {}  # of some phases, in seconds, but for *_gb


def import_torch(_: Start) -> None:
    import torch  # noqa: F401


def open_device(start: Start) -> None:
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    start.device = torch.device(start.device_name or found)
    torch.zeros(1, device=start.device)


def import_engine(start: Start) -> None:
    from inference.engine.config import DTYPES, default_dtype
    from inference.engine.engine import Engine  # noqa: F401

    start.dtype = DTYPES[start.dtype_name or default_dtype(start.device)]


def load_tokenizer(start: Start) -> None:
    from inference.engine.tokenizer import load_tokenizer

    start.text = load_tokenizer(start.folder)


def load_weights(start: Start) -> None:
    from inference.engine.loading import load_with_report
    from inference.engine.shapes import read_shape

    start.shape = read_shape(start.folder)
    start.weights, report = load_with_report(start.folder, start.shape, start.dtype, start.device)
    moved = report.transferred
    start.details |= {
        "weights_gb": moved.nbytes / 1e9,
        "transfer": moved.seconds,
        "reading, of the transfer": moved.reading_s,
        "projections": report.seconds - moved.seconds,
    }


PHASES: tuple[Callable[[Start], None], ...] = (
    import_torch,
    open_device,
    import_engine,
    load_tokenizer,
    load_weights,
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
