"""Measures an engine on this machine: milliseconds a frame, times real time, first audio.

Drives the engine's public face with voices of random codes, whose speech costs what any other does.
Knows no names and no HTTP.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from inference.engine.config import EngineConfig
from inference.engine.engine import Engine
from inference.engine.request import Output, PreparedVoice, Request
from registry.errors import Overloaded, SpeechFailed

FRAME_S = 0.08
SENTENCE = "A voice that is asked for by name says this and then goes on to say some more of it. "
REFERENCE_FRAMES = 25  # of a voice that `bench` makes: two seconds
REPEAT = 10  # times that first audio is waited for


@dataclass(eq=False)
class Caller:
    """Someone who asked for speech, and what they have heard of it."""

    request: Request
    asked_s: float
    heard_s: list[float] = field(default_factory=list)  # when each chunk came
    chunks: list[int] = field(default_factory=list)  # frames of each
    queued_s: float = 0.0
    error: str | None = None

    @property
    def frames(self) -> int:
        return sum(self.chunks)

    @property
    def first_s(self) -> float:
        """Seconds from asking to the first sound."""
        return self.heard_s[0] - self.asked_s


@dataclass(frozen=True)
class Arrival:
    """A request, and when it is made."""

    after_s: float  # from the beginning of the session
    request: Request


@dataclass(frozen=True)
class CounterSample:
    """The engine's counters at one moment."""

    at_s: float
    steps: int
    frames: int


class Session:
    """Lets callers come when their time has come, and leave once they have heard enough."""

    def __init__(self, engine: Engine, frames: int) -> None:
        """A caller cancels after `frames` frames of its own."""
        self._engine, self._frames = engine, frames
        self.callers: list[Caller] = []
        self.samples: list[CounterSample] = []
        self.most_queued = 0
        self.refused = 0
        self._by_request: dict[Request, Caller] = {}

    def run(self, arrivals: Iterable[Arrival]) -> "Session":
        waiting, begun_s = deque(arrivals), time.perf_counter()
        while waiting or self._engine.busy:
            while waiting and begun_s + waiting[0].after_s <= time.perf_counter():
                arrival = waiting.popleft()
                self._ask(arrival.request, begun_s + arrival.after_s)
            if self._engine.busy:
                self._step()
            elif waiting:
                time.sleep(max(0.0, begun_s + waiting[0].after_s - time.perf_counter()))
        settle(self._engine)
        if not self.heard:
            raise SpeechFailed(
                next((c.error for c in self.callers if c.error), "The engine made no sound.")
            )
        return self

    @property
    def heard(self) -> list[Caller]:
        """The callers who heard anything at all."""
        return [caller for caller in self.callers if caller.chunks]

    def step_s(self) -> float:
        """Seconds a step, while everyone who came was being heard."""
        begin_s = max(caller.heard_s[0] for caller in self.heard)
        end_s = min(caller.heard_s[-1] for caller in self.heard)
        inside = [sample for sample in self.samples if begin_s <= sample.at_s <= end_s]
        if len(inside) < 2 or inside[0].steps == inside[-1].steps:
            inside = self.samples
        first, last = inside[0], inside[-1]
        return (last.at_s - first.at_s) / max(1, last.steps - first.steps)

    def real_time(self) -> float:
        """Seconds of speech for each second, from the first question to the last chunk."""
        begin_s = min(caller.asked_s for caller in self.callers)
        end_s = max(caller.heard_s[-1] for caller in self.heard)
        return FRAME_S * sum(caller.frames for caller in self.callers) / (end_s - begin_s)

    def _ask(self, request: Request, asked_s: float) -> None:
        try:
            self._engine.submit(request)
        except Overloaded:
            self.refused += 1
            return
        caller = Caller(request, asked_s)
        self.callers.append(caller)
        self._by_request[request] = caller
        self.most_queued = max(self.most_queued, self._engine.queued)

    def _step(self) -> None:
        for output in self._engine.step():
            self._hear(output, self._by_request[output.request])
        counters = self._engine.counters
        self.samples.append(CounterSample(time.perf_counter(), counters.steps, counters.frames))

    def _hear(self, output: Output, caller: Caller) -> None:
        if len(output.codes):
            caller.heard_s.append(time.perf_counter())
            caller.chunks.append(len(output.codes))
        if output.timings is not None:
            caller.queued_s = output.timings.admitted_s
        if output.error is not None:
            caller.error = str(output.error)
        elif caller.frames >= self._frames and not output.finished:
            self._engine.cancel(output.request)


def settle(engine: Engine) -> None:
    """Wait until the device has nothing to do."""
    if engine.setup.device.type == "cuda":
        torch.cuda.synchronize(engine.setup.device)


def text_of(letters: int) -> str:
    return (SENTENCE * (1 + letters // len(SENTENCE)))[:letters]


def random_voice(engine: Engine, frames: int, transcript: str, seed: int = 0) -> PreparedVoice:
    """Prepare a voice with a reference of `frames` random codes, or with none."""
    generator, model_config = np.random.default_rng(seed), engine.model_config
    embedding = generator.normal(0, 0.1, model_config.talker.hidden_size).astype(np.float32)
    if not frames:
        return engine.prepare(embedding)
    codes = generator.integers(
        0, model_config.codebook_size, (frames, model_config.num_code_groups)
    ).astype(np.int16)
    return engine.prepare(embedding, codes, transcript)


def first_audio(engine: Engine, request: Request, times: int) -> list[float]:
    """Measure the seconds from `submit` to PCM on the host, on an idle device, `times` over."""
    waited = []
    for _ in range(times):
        settle(engine)
        asked_s = time.perf_counter()
        engine.submit(request)
        while engine.busy and not any(len(output.pcm) for output in engine.step()):
            pass
        waited.append(time.perf_counter() - asked_s)
        engine.cancel(request)
    settle(engine)
    return waited


@dataclass(frozen=True)
class ConcurrentStreams:
    """The figures of streams that were asked for at the same moment."""

    streams: int
    ms_per_frame: float  # of every stream: one step
    real_time: float  # seconds of speech a second, of all streams together
    first_ms: float  # the median stream's first audio


@dataclass(frozen=True)
class BenchReport:
    """The figures of one benchmark, and the device that it ran on."""

    device: str
    dtype: str
    first_ms: float  # alone, the voice known
    together: Sequence[ConcurrentStreams]


def bench(
    folder: Path, streams: Sequence[int], seconds: float, config: EngineConfig
) -> BenchReport:
    """Load the checkpoint in `folder`, and speak for `seconds` with each number of streams."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engine = Engine.load(folder, config)
    engine.capture()
    frames = max(1, round(seconds / FRAME_S))
    # The tiny model ends with its text: one frame a letter, after the transcript is used up.
    voice = random_voice(engine, REFERENCE_FRAMES, text_of(REFERENCE_FRAMES))
    request = Request(voice, text_of(frames))
    together(engine, request, max(streams), min(frames, 8))  # what is slow once is slow here
    first = first_audio(engine, request, REPEAT)
    device = engine.setup.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return BenchReport(
        device=name,
        dtype=str(engine.setup.dtype).removeprefix("torch."),
        first_ms=round(1000 * median(first), 1),
        together=[together(engine, request, count, frames) for count in streams],
    )


def together(engine: Engine, request: Request, streams: int, frames: int) -> ConcurrentStreams:
    alike = [Request(request.voice, request.text) for _ in range(streams)]
    session = Session(engine, frames).run(Arrival(0.0, request) for request in alike)
    return ConcurrentStreams(
        streams=streams,
        ms_per_frame=round(1000 * session.step_s(), 2),
        real_time=round(session.real_time(), 2),
        first_ms=round(1000 * median(caller.first_s for caller in session.heard), 1),
    )
