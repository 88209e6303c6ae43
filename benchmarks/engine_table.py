"""The records of benchmarks/engine.py side by side: one column for each thing measured."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]
CHECK = "check"  # engine_gpu_check.py keeps its runs in the same file
Column = dict[str, Found]  # what was found, by stage
PEERS = {"peer-stock": "qwen-tts 0.1.1", "peer-faster": "faster-qwen3-tts 0.3.2"}


@dataclass(frozen=True)
class Figure:
    """A line of the table. `limit` is what must be kept: at most so much, or at least."""

    name: str
    must: str
    aim: str
    stage: str
    read: Callable[[Found], float]
    limit: float | None = None
    at_least: bool = False

    def cell(self, column: Column) -> str:
        """The figure; bold where it misses what it must be."""
        if self.stage not in column:
            return ""
        try:
            value = self.read(column[self.stage])
        except KeyError:
            return ""
        shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        missed = self.limit is not None and (value < self.limit) == self.at_least
        return f"**{shown}**" if missed and value != self.limit else shown


def row(found: Found, **wanted: object) -> Found:
    """The row with these values; KeyError if there is none."""
    for candidate in found["rows"]:
        if all(candidate.get(name) == value for name, value in wanted.items()):
            return candidate
    raise KeyError(wanted)


def of_single(name: str) -> Callable[[Found], float]:
    return lambda found: row(found, mode="icl")[name]


def of_batch(streams: int) -> Callable[[Found], float]:
    return lambda found: row(found, streams=streams)["real_time"]


def of_load(rate: float, name: str) -> Callable[[Found], float]:
    return lambda found: row(found, rate=rate)[name]


FIGURES = (
    Figure("one stream, ms per frame", "≤ 6", "≤ 3", "single", of_single("ms_per_frame"), 6),
    Figure("of the bandwidth floor", "", "", "single", of_single("of_floor")),
    Figure("first audio, known voice, ms", "≤ 25", "≤ 10", "single", of_single("first_ms"), 25),
    Figure("8 streams, times real time", "", "", "batch", of_batch(8)),
    Figure("32 streams, times real time", "≥ 250", "≥ 500", "batch", of_batch(32), 250, True),
    Figure("64 streams, times real time", "≥ 350", "≥ 750", "batch", of_batch(64), 350, True),
    Figure(
        "10 requests/s, p95 first, ms", "≤ 50", "≤ 30", "poisson", of_load(10, "first_p95_ms"), 50
    ),
    Figure("10 requests/s, late chunks", "0", "0", "poisson", of_load(10, "late_chunks"), 0),
    Figure(
        "20 requests/s, p95 first, ms", "≤ 80", "≤ 50", "poisson", of_load(20, "first_p95_ms"), 80
    ),
    Figure("20 requests/s, late chunks", "0", "0", "poisson", of_load(20, "late_chunks"), 0),
    Figure("40 requests/s, p95 first, ms", "", "≤ 100", "poisson", of_load(40, "first_p95_ms")),
    Figure("40 requests/s, late chunks", "", "", "poisson", of_load(40, "late_chunks")),
    Figure("device memory, GiB", "≤ 14", "≤ 9", "memory", lambda f: f["device_used_gib"], 14),
    Figure("start to first audio, s", "", "≤ 10", "cold", lambda f: f["first_audio_s"]),
    Figure(
        "T4, ms per frame (estimate)", "", "", "single", lambda found: found["t4"]["ms_per_frame_1"]
    ),
    Figure("T4, 32 streams, ms (estimate)", "", "", "single", lambda f: f["t4"]["ms_per_frame_32"]),
)


def load(path: Path) -> list[Any]:
    runs: list[Any] = json.loads(path.read_text("utf-8"))
    return runs


def columns(runs: Sequence[Any], size: str, model: str | None = None) -> dict[str, Column]:
    """By title, of a size of random weights, or of a model; of two runs the later one counts."""
    made: dict[str, Column] = {}
    for run in runs:
        asked = run["arguments"]
        if (asked["model"], asked["size"]) == (model, size):
            for title, stage, found in _entries(asked, run["found"]):
                made.setdefault(title, {})[stage] = found
    ours = {title: column for title, column in made.items() if "tts" not in title}
    return ours | made


def _entries(asked: Mapping[str, Any], found: Found) -> Iterator[tuple[str, str, Found]]:
    stage, dtype = asked["stage"], asked["dtype"]
    if stage == CHECK:
        return
    if stage not in PEERS:
        switches = {"as_on_t4": " as on a T4", "no_kernels": ", plain torch"}
        named = "".join(words for name, words in switches.items() if asked.get(name))
        yield dtype + named, stage, found
        return
    for chunk in dict.fromkeys(line["chunk"] for line in found["rows"]):
        rows = [{**line, "mode": "icl"} for line in found["rows"] if line["chunk"] == chunk]
        title = f"{PEERS[stage]}, {dtype}" + ("" if chunk == "all" else f", chunk {chunk}")
        yield title, "single", {"rows": [line for line in rows if line["streams"] == 1]}
        yield title, "batch", {"rows": [line for line in rows if line["streams"] > 1]}


def markdown(found: Mapping[str, Column]) -> str:
    """A table of every figure that somebody has; bold is what misses a must."""
    lines = [["figure", "must", "aim", *found], ["---"] * (3 + len(found))]
    for figure in FIGURES:
        cells = [figure.cell(column) for column in found.values()]
        if any(cells):
            lines.append([figure.name, figure.must, figure.aim, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
