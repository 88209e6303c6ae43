"""The one stand-in: inference without a model, for tests where only a fake device will do.

It keeps the protocol's promises: prompt files are written and verified like real ones, and each
voice has a tone of its own, so that a wrong voice can be heard by its frequency.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from registry.errors import PromptBroken
from registry.files import DataDir, ModelRef, PromptRef, PromptSource, fingerprint, write_atomically
from registry.inference_client import SpeakParams

SAMPLE_RATE = 24_000
MODEL = ModelRef("fake", "r1")


@dataclass
class FakeInference:
    data: DataDir
    model: ModelRef = MODEL
    gate: asyncio.Event | None = None  # when set up, speaking waits for it
    started: list[str] = field(default_factory=list)
    params: list[SpeakParams] = field(default_factory=list)
    extracted: int = 0
    seen: set[PromptRef] = field(default_factory=set)

    def describe(self) -> SimpleNamespace:
        return SimpleNamespace(
            model=self.model,
            source=self.model.id,
            languages=("english",),
            sample_rate=SAMPLE_RATE,
            dtype="float32",
            device="cpu",
        )

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(state="warm", queued=0, error=None)

    async def extract_prompt(self, source: PromptSource) -> SimpleNamespace:
        clip = self.data.conditioned(source).read_bytes()
        key = fingerprint(source, self.model)
        content = hashlib.sha256(clip + key.encode()).digest() * 8
        self.extracted += 1
        sha256 = hashlib.sha256(content).hexdigest()
        write_atomically(self.data.prompt(PromptRef(source.voice_id, key, sha256)), content)
        return SimpleNamespace(
            fingerprint=key, sha256=sha256, frames=12, modes=("icl", "xvec"), model=self.model
        )

    async def speak(self, ref: PromptRef, text: str, params: SpeakParams) -> SimpleNamespace:
        if self.gate is not None:
            await self.gate.wait()
        self.started.append(text)
        self.params.append(params)
        cache = self._look_up(ref)
        samples = tone(ref.voice_id, len(text))
        return SimpleNamespace(
            sample_rate=SAMPLE_RATE,
            seed=params.seed or 0,
            prompt_cache=cache,
            mode=params.mode or "icl",
            timings={"queue": 0.0, "prompt": 0.0, "ttfa": 0.0},
            chunks=_chunks(samples),
        )

    def _look_up(self, ref: PromptRef) -> str:
        if ref in self.seen:
            return "memory"
        path = self.data.prompt(ref)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != ref.sha256:
            raise PromptBroken(f"The prompt file of {ref.voice_id} is missing or damaged.")
        self.seen.add(ref)
        return "file"

    def close(self) -> None:
        self.seen.clear()


def tone_hz(voice_id: str) -> int:
    return 200 + int.from_bytes(hashlib.sha256(voice_id.encode()).digest()[:2]) % 4000


def tone(voice_id: str, characters: int) -> np.ndarray:
    """(n,) float32: 50 ms a character, at the frequency that belongs to the voice."""
    time_s = np.arange(characters * SAMPLE_RATE // 20) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * tone_hz(voice_id) * time_s)).astype(np.float32)


async def _chunks(samples: np.ndarray) -> AsyncIterator[np.ndarray]:
    for chunk in np.array_split(samples, 2):
        yield chunk
