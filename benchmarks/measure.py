"""What every benchmark shares: timing, percentiles, a table, and the record of a run.

Knows nothing of voices. A record says what machine it was by its size, never by its name.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("voice-registry", "fastapi", "starlette", "uvicorn", "httpx", "pydantic"),
    *("sqlmodel", "sqlalchemy", "numpy", "torch", "transformers", "qwen-tts"),
)

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]  # the stand-in model, a server


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the folder that keeps the records"
    )
    return parser


@contextmanager
def stopwatch(into: list[float]) -> Iterator[None]:
    """Append the seconds that the block took."""
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ms(value_s: float) -> float:
    return round(1000 * value_s, 3)


def percentile(values: Sequence[float], percent: float) -> float:
    """By the nearest rank: always one of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def p50_p99(values_s: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": ms(statistics.median(values_s)), "p99_ms": ms(percentile(values_s, 99))}


def ratios(values_s: Sequence[float], base_s: Sequence[float]) -> dict[str, float]:
    """Pair by pair, so that what slows the machine down for a while slows both."""
    found = [value / base for value, base in zip(values_s, base_s, strict=True)]
    return {
        "median": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
    }


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Plain columns: the first to the left, numbers to the right."""
    cells = [list(map(_shown, row)) for row in [headings, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *rest = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in _wide(row, widths))
        print("  ".join([first, *rest]).rstrip())
    print()


def _wide(row: list[str], widths: list[int]) -> Iterator[tuple[int, tuple[str, int]]]:
    return enumerate(zip(row, widths, strict=True))


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.2f}"
    return str(cell)


def record(folder: Path, benchmark: str, asked: Mapping[str, Any], found: object) -> None:
    """Append this run to the benchmark's file, a JSON list."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "arguments": {k: nameless(v) for k, v in asked.items() if k != "results"},
            "found": found,
        }
    )
    path.write_text(json.dumps(runs, indent=1, ensure_ascii=False, default=str) + "\n")
    print(f"Kept as run {len(runs)} of {benchmark}.json.")


def nameless(value: Any) -> Any:
    """A folder by its last part only: where it lies is nobody's business."""
    is_folder = isinstance(value, str | Path) and Path(value).is_dir()
    return Path(value).resolve().name if is_folder else value


def machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
