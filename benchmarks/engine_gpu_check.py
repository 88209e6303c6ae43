"""Is the engine right on this device? Replay against eager, every stage against float32, a soak.

Random weights of one seed, the same numbers in every dtype. What CUDA does not promise (that a row
is the same in any batch) is reported, not required. Exits with 1 if a requirement does not hold.
"""

import argparse
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engine
import engine_logits
import measure
import numpy as np
import setups
import torch
from engine_stages import TEXT, TRANSCRIPT, Found
from numpy.typing import NDArray
from random_weights import NEVER, SOMETIMES, described, random_weights

from inference.engine.config import EngineConfig, Setup
from inference.engine.engine import Engine
from inference.engine.request import Counters, PreparedVoice, Request
from inference.serving.bench import random_voice, settle, text_of
from inference.testing.config import SIZES
from registry.contract import SamplingParams

KINDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "t4": "float16"}
BATCH = 8  # one of the captured sizes, so that eager multiplies the same shapes
NEIGHBOURS = (8, 32)
ALIVE = 48  # requests at once in the soak: more than there are slots
SLOTS = 32
CANCELLED = 0.3  # of the soak's requests
LSB = 1 / 32768


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kinds = asked.kinds or (["fp16", "bf16", "t4"] if device.type == "cuda" else ["fp32"])
    rows = [row for kind in kinds for row in checked(kind, device, asked)]
    measure.table(list(rows[0]), [list(row.values()) for row in rows])
    asked.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    asked.commit = asked.commit or engine.commit()
    kept = {k: v for k, v in vars(asked).items() if k != "out"}
    kept |= {"stage": "check", "dtype": " ".join(kinds), "as_on_t4": "t4" in kinds, "model": None}
    measure.record(asked.out.parent, asked.out.stem, kept, {"rows": rows})
    sys.exit(any(row["holds"] == "no" for row in rows))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all that suit")
    parser.add_argument("--size", choices=SIZES, default="1.7b", help="of random weights")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--frames", type=int, default=48, help="compared of each stream")
    parser.add_argument("--requests", type=int, default=1000, help="of the soak")
    parser.add_argument("--out", type=Path, default=engine.OUT, help="the JSON of runs")
    parser.add_argument("--commit", help="default: asked of git")
    return parser.parse_args(arguments)


def checked(kind: str, device: torch.device, asked: argparse.Namespace) -> Iterator[Found]:
    """One row for each check: what was found, and whether it holds."""
    made = made_engine(kind, device, asked.size, NEVER)
    for check in (replayed, repeated, invariant):
        yield from (_row(kind, *found) for found in check(made, asked.frames))
    del made
    _collect()
    for found in engine_logits.compared(setup_of(kind, device), asked.size):
        yield _row(kind, *found)
    _collect()
    made = made_engine(kind, device, asked.size, SOMETIMES)
    for found in soaked(made, asked.requests):
        yield _row(kind, *found)


def _row(kind: str, what: str, value: float, limit: float | None, at_least: bool = False) -> Found:
    kept = limit is None or (value >= limit if at_least else value <= limit)
    sign = "" if limit is None else f"{'≥' if at_least else '≤'} {limit:g}"
    holds = "reported" if limit is None else "yes" if kept else "no"
    return {"kind": kind, "check": what, "found": f"{value:.4g}", "limit": sign, "holds": holds}


def setup_of(kind: str, device: torch.device) -> Setup:
    config = EngineConfig(str(device), KINDS[kind], slots=SLOTS, queue_limit=ALIVE)
    return setups.setup_of(config, as_on_t4=kind == "t4")


def made_engine(kind: str, device: torch.device, size: str, end_gain: float) -> Engine:
    (model_config, text), setup = described(size), setup_of(kind, device)
    weights = random_weights(model_config, setup.dtype, device, end_gain=end_gain)
    made = Engine(model_config, weights, text, setup)
    made.capture()
    return made


Spoken = tuple[NDArray[np.int64], NDArray[np.float32]]  # codes (T, groups), PCM (T * 1920,)
Check = Iterator[tuple[Any, ...]]


def spoken(made: Engine, requests: Sequence[Request], frames: int) -> list[Spoken]:
    """The first `frames` frames of requests that are submitted together."""
    heard: dict[Request, list[Spoken]] = {request: [] for request in requests}
    for request in requests:
        made.submit(request)
    while made.busy:
        for output in made.step():
            if output.error is not None:
                raise output.error
            parts = heard[output.request]
            parts.append((output.codes, output.pcm))
            if sum(len(codes) for codes, _ in parts) >= frames and not output.finished:
                made.cancel(output.request)
    settle(made)
    joined = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in heard.values()]
    return [(codes[:frames], pcm[: frames * 1920]) for codes, pcm in joined]


def crowd(voice: PreparedVoice, count: int) -> list[Request]:
    """Requests that differ in nothing but their seeds; x-vector, so that one step admits all."""
    seeds = [SamplingParams(seed=seed) for seed in range(count)]
    return [Request(voice, TEXT, mode="xvec", sampling=sampling) for sampling in seeds]


def replayed(made: Engine, frames: int) -> Check:
    """The same functions called as they are, and as captured graphs."""
    voice = random_voice(made, 0, TRANSCRIPT)
    graphs = spoken(made, crowd(voice, BATCH), frames)
    inner, vocoder, prefill = made._frames, made._vocoder, made._prefill
    kept = inner._sample, inner._advance, vocoder._graphs, prefill._graphs
    inner.__dict__ |= {"_sample": inner._sample_frame, "_advance": inner._advance_talker}
    vocoder.__dict__ |= {"_graphs": vocoder._decode}
    prefill.__dict__ |= {"_graphs": prefill._run}
    eager = spoken(made, crowd(voice, BATCH), frames)
    inner._sample, inner._advance, vocoder._graphs, prefill._graphs = kept
    yield "replay = eager, equal codes", _equal(graphs, eager), 1.0, True
    yield "replay = eager, PCM apart, LSB", _apart(graphs, eager), 1.0


def repeated(made: Engine, frames: int) -> Check:
    """One caller at a time gets the same again."""
    voice = random_voice(made, 20, TRANSCRIPT)
    first, second = (spoken(made, [Request(voice, TEXT)], frames) for _ in range(2))
    yield "same seed again, equal codes", _equal(first, second), 1.0, True
    yield "same seed again, PCM apart, LSB", _apart(first, second), 0.0


def invariant(made: Engine, frames: int) -> Check:
    """One request alone, and among others."""
    voice = random_voice(made, 0, TRANSCRIPT)
    alone = spoken(made, crowd(voice, 1), frames)
    for count in NEIGHBOURS:
        among = spoken(made, crowd(voice, count), frames)[:1]
        yield f"alone = one of {count}, equal codes", _equal(alone, among), None


def _equal(left: Sequence[Spoken], right: Sequence[Spoken]) -> float:
    """The share of codes that are equal."""
    return float(np.mean([a == b for (a, _), (b, _) in zip(left, right, strict=True)]))


def _apart(left: Sequence[Spoken], right: Sequence[Spoken]) -> float:
    """The largest difference between samples, in steps of 16 bits."""
    pairs = zip(left, right, strict=True)
    return max(float(np.abs(a - b).max()) for (_, a), (_, b) in pairs) / LSB


def soaked(made: Engine, requests: int) -> Check:
    """Joins, ends and cancels by chance leave nothing behind."""
    voices = [random_voice(made, frames, TRANSCRIPT, frames) for frames in (0, 5, 30)]
    soak(made, voices, min(2 * ALIVE, requests), seed=1)  # libraries take their memory
    slots, entries = len(made._free), made._pages.free_entries
    memory, threads = _allocated(), threading.active_count()
    made.counters = counters = Counters()
    soak(made, voices, requests, seed=2)
    ends = counters.finished + counters.failed + counters.cancelled + counters.refused
    yield "soak: requests", counters.submitted, requests, True
    yield "soak: requests without an end", counters.submitted - ends, 0
    yield "soak: ended by themselves", counters.finished, None
    yield "soak: cancelled", counters.cancelled, None
    yield "soak: budget reached, or failed", counters.failed, None
    yield "soak: slots missing", slots - len(made._free), 0
    yield "soak: cache entries missing", entries - made._pages.free_entries, 0
    yield "soak: bytes of memory more", _allocated() - memory, 0
    yield "soak: threads more", threading.active_count() - threads, 0


def soak(made: Engine, voices: Sequence[PreparedVoice], requests: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    patience: dict[Request, float] = {}  # frames until it is cancelled
    asked = 0
    while asked < requests or made.busy:
        while asked < requests and len(patience) < ALIVE:
            request = _any_request(random, voices)
            leaves = random.random() < CANCELLED
            patience[request] = random.integers(0, 60) if leaves else np.inf
            made.submit(request)
            asked += 1
        for output in made.step():
            patience[output.request] -= len(output.codes)
            if output.finished or output.error is not None:
                del patience[output.request]
        for request in [r for r, left in patience.items() if left <= 0]:
            made.cancel(request)
            del patience[request]
    settle(made)


def _any_request(random: np.random.Generator, voices: Sequence[PreparedVoice]) -> Request:
    voice = voices[random.integers(len(voices))]
    sampling = SamplingParams(seed=int(random.integers(2**31)))
    return Request(voice, text_of(int(random.integers(1, 20))), sampling=sampling)


def _allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
