"""What the tests of the engine share: an engine on a CPU, requests, and what was heard of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.engine import Engine, EngineConfig, Output, PreparedVoice, Request, SamplingParams
from registry import errors

Codes = NDArray[np.int64]
PCM = NDArray[np.float32]


def load(folder: Path, **config: Any) -> Engine:
    return Engine.load(folder, EngineConfig(device="cpu", threads=1, **config))


def pad_as_on_cuda(engine: Engine) -> Engine:
    """Let it round batches and prompts up to the sizes that have graphs on CUDA."""
    engine._lane.pads = engine._vocoder.lane.pads = True
    return engine


def make_voice(engine: Engine, seed: int = 0, frames: int = 0) -> PreparedVoice:
    """A random voice of the tiny checkpoint; with frames it has a reference of so many."""
    generator = np.random.default_rng(seed)
    embedding = generator.normal(0, 0.3, 64).astype(np.float32)
    if not frames:
        return engine.prepare(embedding)
    codes = generator.integers(0, 128, (frames, 16)).astype(np.int16)
    return engine.prepare(embedding, codes, "What the clip says.")


def ask(voice: PreparedVoice, text: str = "Hello.", seed: int = 0, **options: Any) -> Request:
    """A request; temperature and the like are sampling, the rest is the request's own."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    sampling = {name: options.pop(name) for name in names if name in options}
    return Request(voice, text, sampling=SamplingParams(seed, **sampling), **options)


@dataclass
class Heard:
    """All of one request's Outputs."""

    codes: list[Codes] = field(default_factory=list)
    pcm: list[PCM] = field(default_factory=list)
    finished: bool = False
    error: errors.RegistryError | None = None

    def add(self, output: Output) -> None:
        assert not self.finished and self.error is None
        assert len(output.pcm) == len(output.codes) * 1920
        self.finished, self.error = output.finished, output.error
        if len(output.pcm):
            self.codes.append(output.codes)
            self.pcm.append(output.pcm)

    def all_codes(self) -> Codes:
        return np.concatenate(self.codes)

    def all_pcm(self) -> PCM:
        return np.concatenate(self.pcm)


def hear(engine: Engine, requests: Sequence[Request], every: int = 0) -> list[Heard]:
    """Submit all and run to the end; the next one joins after `every` steps."""
    heard = {request: Heard() for request in requests}

    def listen(outputs: Iterable[Output]) -> None:
        for output in outputs:
            heard[output.request].add(output)

    for request in requests:
        engine.submit(request)
        for _ in range(every):
            listen(engine.step())
    listen(engine.run())
    return list(heard.values())


def hear_one(engine: Engine, request: Request) -> Heard:
    return hear(engine, [request])[0]
