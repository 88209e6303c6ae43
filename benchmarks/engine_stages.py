"""The stages that measure our engine: one stream, many at once, arrivals by chance, memory.

A stage returns a dictionary: `rows`, flat and alike, and what else is known. Speech has a fixed
number of frames: callers cancel then, since random weights never end by themselves.
"""

import argparse
import gc
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any

import engine_floor
import measure
import numpy as np
import setups
import torch
from random_weights import described, random_weights
from torch import Tensor

from inference.engine.checkpoint.loading import load_weights
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.config import EngineConfig, Setup
from inference.engine.engine import Engine
from inference.engine.model_config import ModelConfig, read_model_config
from inference.engine.request import PreparedVoice, Request
from inference.engine.text import TextTokenizer
from inference.engine.weights import Weights
from inference.serving import bench
from inference.serving.bench import Arrival, Caller, Session, random_voice, text_of

Found = dict[str, Any]
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
TEXT = text_of(41)
TRANSCRIPT = text_of(40)
POSITIONS = 1024  # of a slot, on average
VOICES = 8
STREAMS_IN_MEMORY = 32
SEED = 7
RAMP = 4  # chunks until a stream's chunks have their full length
GIB = 2**30


class Skipped(Exception):
    """A stage can't run here; the message says why."""


class Subject:
    """What is measured: a checkpoint or random weights, in one dtype, on one device."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self._engine: Engine | None = None

    @property
    def config(self) -> EngineConfig:
        asked = self.asked
        return EngineConfig(
            device=asked.device,
            dtype=DTYPES.get(asked.dtype),
            queue_limit=10_000,
        )

    def setup(self, slots: int | None = None) -> Setup:
        positions = None if slots is None else slots * POSITIONS
        config = replace(self.config, slots=slots, positions=positions)
        return setups.setup_of(config, self.asked.as_on_t4, plain_torch=self.asked.no_kernels)

    @cached_property
    def parts(self) -> tuple[ModelConfig, Weights, TextTokenizer]:
        setup, folder = self.setup(), self.asked.model
        if folder is not None:
            model_config = read_model_config(folder)
            weights = load_weights(folder, model_config, setup.dtype, setup.device)
            return model_config, weights, load_tokenizer(folder)
        model_config, text = described(self.asked.size)
        return model_config, random_weights(model_config, setup.dtype, setup.device), text

    def engine(self, slots: int) -> Engine:
        """One with at least so many slots; its graphs are captured."""
        if self._engine is None or self._engine.setup.limits.slots < slots:
            self.forget_engine()
            self._engine = self.fresh_engine(slots)
            self._engine.capture()
        return self._engine

    def fresh_engine(self, slots: int) -> Engine:
        model_config, weights, text = self.parts
        return Engine(model_config, weights, text, self.setup(slots))

    def forget_engine(self) -> None:
        self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def voice(self, engine: Engine, seed: int = 0) -> PreparedVoice:
        return random_voice(engine, self.asked.reference, TRANSCRIPT, seed)


def single(subject: Subject) -> Found:
    """One stream: milliseconds a frame, first audio of a known voice, share of the floor."""
    engine = subject.engine(max(subject.asked.streams))
    rows = [_alone(subject, engine, mode) for mode in ("xvec", "icl")]
    setup = engine.setup
    lowest = engine_floor.floor(engine.model_config, setup.dtype.itemsize, setup.device)
    for row in rows:
        row["of_floor"] = round(lowest["floor_ms"] / row["ms_per_frame"], 3)
    return {"rows": rows, "floor": lowest, "t4": engine_floor.t4_estimate(engine.model_config)}


def _alone(subject: Subject, engine: Engine, mode: Any) -> Found:
    asked = subject.asked
    request = Request(subject.voice(engine), TEXT, mode=mode)
    Session(engine, 8).run([Arrival(0.0, request)])
    first_s = bench.first_audio(engine, request, asked.repeat)
    paces: list[float] = []  # in seconds
    for _ in range(3):
        session = Session(engine, asked.frames).run([Arrival(0.0, replace(request))])
        paces += paces_s(session.callers[0])
    return {
        "mode": mode,
        "ms_per_frame": measure.ms(median(paces)),
        "p95_ms": measure.ms(measure.percentile(paces, 95)),
        "real_time": round(bench.FRAME_S / median(paces), 2),
        "first_ms": measure.ms(median(first_s)),
        "first_p95_ms": measure.ms(measure.percentile(first_s, 95)),
    }


def paces_s(caller: Caller) -> list[float]:
    """Seconds a frame, chunk by chunk, once the chunks have their full length."""
    begin = RAMP if len(caller.chunks) > RAMP else 1
    gaps = [late - early for early, late in pairwise(caller.heard_s)]
    return [gap / n for gap, n in zip(gaps, caller.chunks[1:], strict=True)][begin - 1 :]


def latenesses_s(caller: Caller) -> list[float]:
    """By how much chunks came after playback, begun with the first one, needed them."""
    needed_s = caller.heard_s[0] + bench.FRAME_S * np.cumsum([0, *caller.chunks[:-1]])
    late = np.array(caller.heard_s) - needed_s
    return [float(value) for value in late if value > 0]


def mean_batch(session: Session) -> float:
    first, last = session.samples[0], session.samples[-1]
    return (last.frames - first.frames) / max(1, last.steps - first.steps)


def batch(subject: Subject) -> Found:
    """Streams that begin together: milliseconds a step, and times real time of them all."""
    engine = subject.engine(max(subject.asked.streams))
    voices = _voices(subject, engine)
    return {"rows": [_together(subject, engine, voices, n) for n in subject.asked.streams]}


def _together(subject: Subject, engine: Engine, voices: list[PreparedVoice], streams: int) -> Found:
    requests = [Request(voices[n % len(voices)], TEXT) for n in range(streams)]
    arrivals = [Arrival(0.0, request) for request in requests]
    Session(engine, 4).run([Arrival(0.0, replace(request)) for request in requests])
    session = Session(engine, subject.asked.frames).run(arrivals)
    first_s = [caller.first_s for caller in session.heard]
    return {
        "streams": streams,
        "ms_per_step": measure.ms(session.step_s()),
        "real_time": round(session.real_time(), 1),
        "mean_batch": round(mean_batch(session), 2),
        "first_ms": measure.ms(median(first_s)),
        "late_chunks": sum(len(latenesses_s(caller)) for caller in session.heard),
    }


def poisson(subject: Subject) -> Found:
    """Arrivals by chance, so many a second: first audio, underruns, the queue."""
    engine = subject.engine(max(subject.asked.streams))
    voices = _voices(subject, engine)
    Session(engine, 4).run(_arrivals(voices, 40, min(1.0, subject.asked.seconds)))
    return {"rows": [_load(subject, engine, voices, rate) for rate in subject.asked.rates]}


def _load(subject: Subject, engine: Engine, voices: list[PreparedVoice], rate: float) -> Found:
    asked = subject.asked
    session = Session(engine, asked.utterance).run(_arrivals(voices, rate, asked.seconds))
    first_s = [caller.first_s for caller in session.heard]
    late_s = [lateness for caller in session.heard for lateness in latenesses_s(caller)]
    return {
        "rate": rate,
        "requests": len(session.callers),
        **{f"first_p{p}_ms": measure.ms(measure.percentile(first_s, p)) for p in (50, 95, 99)},
        "late_chunks": len(late_s),
        "latest_ms": measure.ms(max(late_s, default=0.0)),
        "queued_p95_ms": measure.ms(
            measure.percentile([caller.queued_s for caller in session.heard], 95)
        ),
        "most_queued": session.most_queued,
        "mean_batch": round(mean_batch(session), 2),
        "real_time": round(session.real_time(), 1),
    }


def _arrivals(voices: list[PreparedVoice], rate: float, seconds: float) -> list[Arrival]:
    """The same for the same rate; at least one."""
    generator = np.random.default_rng(SEED)
    gaps_s = generator.exponential(1 / rate, max(1, round(rate * seconds)))
    requests = [Request(voices[n % len(voices)], TEXT) for n in range(len(gaps_s))]
    times_s = np.cumsum(gaps_s) - gaps_s[0]
    return [Arrival(float(at_s), r) for at_s, r in zip(times_s, requests, strict=True)]


def _voices(subject: Subject, engine: Engine) -> list[PreparedVoice]:
    return [subject.voice(engine, seed) for seed in range(VOICES)]


def memory(subject: Subject) -> Found:
    """Device memory by part. In a process of its own, nothing else is counted with it."""
    if subject.setup().device.type != "cuda":
        raise Skipped("The stage memory measures a GPU's memory, and this is none.")
    subject.forget_engine()
    vars(subject).pop("parts", None)
    rows = list(_grown(subject))
    free, total = torch.cuda.mem_get_info()
    return {
        "rows": rows,
        "max_allocated_gib": _gib(torch.cuda.max_memory_allocated()),
        "max_reserved_gib": _gib(torch.cuda.max_memory_reserved()),
        "device_used_gib": _gib(total - free),  # with CUDA's own
    }


def _grown(subject: Subject) -> Iterator[Found]:
    """What each step of a start adds."""
    before = _held()
    torch.cuda.reset_peak_memory_stats()
    model_config, weights, _ = subject.parts
    torch.cuda.empty_cache()  # random numbers take memory to make, which loading does not
    yield {"part": "weights", **_more(before), "tensors_gib": _gib(nbytes(weights))}
    before = _held()
    engine = subject.fresh_engine(STREAMS_IN_MEMORY)
    cache = (
        2
        * model_config.talker.num_hidden_layers
        * model_config.talker.kv_size
        * engine.setup.dtype.itemsize
    )
    cache *= engine.setup.limits.cache_entries
    yield {"part": "cache, codec, state", **_more(before), "tensors_gib": _gib(cache)}
    before = _held()
    engine.capture()
    yield {"part": "graphs", **_more(before), "tensors_gib": 0.0}
    before = _held()
    _together(subject, engine, _voices(subject, engine), STREAMS_IN_MEMORY)
    yield {"part": "a run", **_more(before), "tensors_gib": 0.0}


def _held() -> tuple[int, int]:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _more(before: tuple[int, int]) -> Found:
    allocated, reserved = (now - then for now, then in zip(_held(), before, strict=True))
    return {"allocated_gib": _gib(allocated), "reserved_gib": _gib(reserved)}


def _gib(nbytes: int) -> float:
    return round(nbytes / GIB, 3)


def nbytes(value: Any) -> int:
    """Of all tensors in dataclasses, tuples and dictionaries; the same storage counts once."""
    return sum({t.data_ptr(): t.nbytes for t in _tensors(value)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
