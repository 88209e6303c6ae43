"""The one stand-in: inference without a model, for tests where only a fake device will do.

It keeps the protocol's promises: prompt files are written and verified like real ones, and each
voice has a tone of its own, so that a wrong voice can be heard by its frequency.
"""

import asyncio
import hashlib
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from registry.contract import (
    Deadline,
    ModelRef,
    PromptRef,
    PromptSource,
    SpeakParams,
    Speech,
    SpeechRequest,
    fingerprint,
)
from registry.errors import Overloaded, PromptBroken
from registry.storage.blobs import write_atomically
from registry.storage.data_dir import DataDir

SAMPLE_RATE = 24_000
MODEL = ModelRef("fake", "r1")
CHUNKS = 4
PATIENCE_S = 30


class Pace:
    """Lets the test's thread decide when the engine makes its next chunk, or breaks."""

    def __init__(self, free: int = 0) -> None:
        """So many chunks are `free`: made at once."""
        self._free = free
        self.left = threading.Event()
        self._asked = threading.Semaphore(0)
        self._turns: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def turn(self) -> None:
        if self._free > 0:
            self._free -= 1
            return
        self._loop = asyncio.get_running_loop()
        self._asked.release()
        try:
            error = await self._turns.get()
        except asyncio.CancelledError:
            self.left.set()
            raise
        if error is not None:
            raise error

    def open(self) -> None:
        """From now on chunks are made at once; those too that are waited for."""
        self._free = sys.maxsize
        for _ in range(1000):
            self._loop.call_soon_threadsafe(self._turns.put_nowait, None)

    def until_asked(self) -> None:
        assert self._asked.acquire(timeout=PATIENCE_S), "nobody asks for a chunk"

    def give(self, chunks: int = 1, error: Exception | None = None) -> None:
        for _ in range(chunks):
            self.until_asked()
            self._loop.call_soon_threadsafe(self._turns.put_nowait, error)


class Chunks(AsyncIterator[np.ndarray]):
    """The first one is there; closing is noticed even before it is taken."""

    def __init__(self, samples: np.ndarray, pace: Pace | None) -> None:
        self._first, *self._rest = np.array_split(samples, CHUNKS)
        self._pace = pace
        self._begun = False
        self.ended = threading.Event()
        self.was_closed_early = False

    async def __anext__(self) -> np.ndarray:
        if not self._begun:
            self._begun = True
            return self._first
        if not self._rest:
            self.ended.set()
            raise StopAsyncIteration
        if self._pace is not None:
            await self._pace.turn()
        return self._rest.pop(0)

    async def aclose(self) -> None:
        self.was_closed_early |= not self.ended.is_set()
        self.ended.set()


@dataclass
class FakeInference:
    data: DataDir
    model: ModelRef = MODEL
    pace: Pace | None = None  # when set up, each chunk waits for it
    started: list[str] = field(default_factory=list)
    params: list[SpeakParams] = field(default_factory=list)
    asked: list[SpeechRequest] = field(default_factory=list)
    extracted: int = 0
    encoders: int = 1
    spare: bool = False
    room: int | None = None
    room_in_line: int = 1000
    seen: set[PromptRef] = field(default_factory=set)
    chunks: list[Chunks] = field(default_factory=list)  # of each speech that began
    sounds: list[np.ndarray] = field(default_factory=list)  # of the next speeches, else tones

    def describe(self) -> SimpleNamespace:
        return SimpleNamespace(
            model=self.model,
            source=self.model.id,
            languages=("english",),
            sample_rate=SAMPLE_RATE,
            dtype="float32",
            device="cpu",
        )

    def is_spare(self) -> bool:
        return self.spare

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(
            state="warm", queued=0, running=0, slots=8, queue_limit=self.room_in_line, error=None
        )

    def refuse_full(self, ahead: int) -> None:
        if ahead >= self.room_in_line:
            raise Overloaded(f"{ahead} requests are waiting already. Try again later.", 3)

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        clip = self.data.conditioned(source).read_bytes()
        key = fingerprint(source, self.model)
        content = hashlib.sha256(clip + key.encode()).digest() * 8
        self.extracted += 1
        sha256 = hashlib.sha256(content).hexdigest()
        write_atomically(self.data.prompt(PromptRef(source.voice_id, key, sha256)), content)
        return SimpleNamespace(
            fingerprint=key,
            sha256=sha256,
            frames=12,
            modes=("icl", "xvec"),
            model=self.model,
            room=self.room,
        )

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        if self.pace is not None:
            await self.pace.turn()
        text, params = asked.text, asked.params
        self.asked.append(asked)
        self.started.append(text)
        self.params.append(params)
        cache = self._look_up(ref)
        sound = self.sounds.pop(0) if self.sounds else tone(ref.voice_id, len(text))
        self.chunks.append(Chunks(sound, self.pace))
        return Speech(
            sample_rate=SAMPLE_RATE,
            seed=params.seed or 0,
            prompt_cache=cache,
            mode="xvec" if params.mode == "xvec" else "icl",
            timings={"queue": 0.0, "prompt": 0.0, "ttfa": 0.0},
            chunks=self.chunks[-1],
            text_tokens=len(text.split()),
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
