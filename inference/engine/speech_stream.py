"""The host's account of one request that has a slot: what is made, known, decoded, delivered."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.engine.codec.vocoder import CHUNKS, PendingSound
from inference.engine.model_config import FRAME_SAMPLES
from inference.engine.request import Request, Timings
from registry.errors import RegistryError, SpeechFailed, SpeechUnfinished


@dataclass(frozen=True)
class Chunk:
    """Frames [start, start + count) of a stream, in a PendingSound's row."""

    sound: PendingSound
    row: int
    start: int
    count: int


@dataclass(eq=False)
class SpeechStream:
    """Follows one request that has a slot; its frames are counted from 0.

    Up to `budget + 1` are made, since a speech must end by itself.
    """

    request: Request
    slot: int
    entries: list[int]  # of the key/value cache
    prompt_len: int  # positions
    budget: int  # frames
    submitted_s: float
    admitted_s: float
    made: int = 0  # frames the device was asked for
    sent: int = 0  # frames the codec was asked for
    length: int | None = None  # frames of the whole speech, once its end was seen
    error: RegistryError | None = None
    codes: list[NDArray[np.int64]] = field(default_factory=list)  # of the frames seen, (groups,)
    chunks: list[Chunk] = field(default_factory=list)  # not delivered yet, in order
    chunks_sent: int = 0
    delivered: int = 0  # frames
    first_s: float | None = None

    @property
    def wants_frames(self) -> bool:
        return self.length is None and self.error is None and self.made <= self.budget

    @property
    def finished(self) -> bool:
        return self.length is not None and self.delivered == self.length

    def append_frame(self, codes: NDArray[np.int64], eos: int, bad: bool) -> None:
        """Take in the next frame of the device: codes (groups,), or the end, or a failure."""
        if self.length is not None or self.error is not None:
            return
        if bad:
            self.error = SpeechFailed("The model's numbers are not finite. Try another seed.")
        elif codes[0] == eos:
            self.length = len(self.codes)
        elif len(self.codes) == self.budget:
            self.error = SpeechUnfinished(
                f"The speech did not end within {self.budget} frames ({self.budget * 0.08:.0f} s),"
                " far more than this text needs. Try another seed, or a lower temperature."
            )
        else:
            self.codes.append(codes)

    def due_frames(self) -> int:
        """Frames the codec should decode now, one of CHUNKS; 0 if it should wait for more."""
        ready = (self.made if self.length is None else self.length) - self.sent
        size = CHUNKS[min(self.chunks_sent, len(CHUNKS) - 1)]
        if ready >= size:
            return size
        if self.length is None or ready <= 0:
            return 0
        return next(size for size in CHUNKS if size >= ready)  # the tail, and a few to throw away

    def append_chunk(self, sound: PendingSound, row: int, count: int) -> None:
        self.chunks.append(Chunk(sound, row, self.sent, count))
        self.sent += count
        self.chunks_sent += 1

    def take_ready(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Take PCM and codes of the chunks that are ready and known to be speech; perhaps none."""
        ready = []
        while self.chunks and self._is_ready(self.chunks[0]):
            chunk = self.chunks.pop(0)
            count = min(chunk.count, len(self.codes) - chunk.start)
            ready.append(chunk.sound.of(chunk.row)[: max(0, count) * FRAME_SAMPLES])
        pcm = np.concatenate(ready) if ready else np.empty(0, np.float32)
        if not np.isfinite(pcm).all():
            self.error = SpeechFailed("The model's sound is not finite. Try another seed.")
            pcm = pcm[:0]
        start, self.delivered = self.delivered, self.delivered + len(pcm) // FRAME_SAMPLES
        codes = self.codes[start : self.delivered]
        if len(pcm) and self.first_s is None:
            self.first_s = time.perf_counter()
        return pcm, np.array(codes, np.int64)

    def timings(self) -> Timings | None:
        if self.first_s is None:
            return None
        ended = time.perf_counter() - self.submitted_s if self.finished else None
        return Timings(self.admitted_s - self.submitted_s, self.first_s - self.submitted_s, ended)

    def _is_ready(self, chunk: Chunk) -> bool:
        known = self.length is not None or len(self.codes) >= chunk.start + chunk.count
        return known and chunk.sound.event.done()
