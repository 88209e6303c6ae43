"""Measure a cold start: a fresh process for each run, with the weight files in memory and without.

Without --model it writes a checkpoint of the true names and shapes with random values, which needs
neither qwen_tts nor transformers. Phases are those of start_phases.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import measure
import random_checkpoint

ROOT = measure.ROOT
CACHES = ("warm", "cold")


def main() -> None:
    options = parse()
    with TemporaryDirectory(dir=options.scratch) as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            random_checkpoint.write(folder, options.size)
        runs = {cache: measured(folder, cache, options) for cache in CACHES}
    found = {cache: summary(kept) for cache, kept in runs.items()}
    report(found)
    asked = {k: v for k, v in vars(options).items() if k != "scratch"}
    measure.record(options.results, "cold_start", asked, found)


def parse() -> argparse.Namespace:
    parser = measure.arguments(__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--size", default="1.7b", help="of the checkpoint that is made without one")
    parser.add_argument("--scratch", type=Path, help="where to make it")
    parser.add_argument("--device", default="", help="cuda if there is one")
    parser.add_argument("--dtype", default="", help="the engine's choice for the device")
    parser.add_argument("--repeat", type=int, default=5)
    return parser.parse_args()


def measured(folder: Path, cache: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each run; a run before them warms what is not measured."""
    start(folder, options)
    runs = []
    for _ in range(options.repeat):
        if cache == "cold":
            forget(folder)
        runs.append(start(folder, options))
    return runs


def start(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run start_phases.py in a fresh process."""
    script = str(Path(__file__).with_name("start_phases.py"))
    command = [sys.executable, script, str(time.monotonic()), str(folder)]
    done = subprocess.run(
        [*command, options.device, options.dtype],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forget(folder: Path) -> None:
    """Drop the weight files from the page cache; what the disk itself caches stays."""
    for name in random_checkpoint.FILES:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians: milliseconds, but for gigabytes."""
    phases = {name: [run["phases"][name] for run in runs] for name in runs[0]["phases"]}
    phases["total"] = [sum(run["phases"].values()) for run in runs]
    details = {name: [run["details"][name] for run in runs] for name in runs[0]["details"]}
    return {
        "phases_ms": {name: measure.ms(median(values)) for name, values in phases.items()},
        "details": {
            name: round(median(v), 3) if name.endswith("_gb") else measure.ms(median(v))
            for name, v in details.items()
        },
    }


def report(found: dict[str, dict[str, dict[str, float]]]) -> None:
    warm, cold = (found[cache] for cache in CACHES)
    rows = [[name, ms, cold["phases_ms"][name]] for name, ms in warm["phases_ms"].items()]
    measure.table(["phase", "warm ms", "cold ms"], rows)
    rows = [[name, value, cold["details"][name]] for name, value in warm["details"].items()]
    measure.table(["of load model", "warm ms", "cold ms"], rows)


if __name__ == "__main__":
    main()
