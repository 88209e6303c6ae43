"""The types that go into the engine and come out of it."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from inference.engine.codec.decoder import CodecState
from inference.engine.prompt_builder import ReferenceEmbeds
from registry.contract import MODES, Mode, SamplingParams, SpokenMode
from registry.errors import ModeUnavailable, RegistryError


@dataclass(frozen=True, eq=False)
class PreparedVoice:
    """All that depends on a voice alone, ready on the device. Made by `Engine.prepare`."""

    speaker: torch.Tensor  # (D,) float32
    reference: ReferenceEmbeds | None  # None without a transcript: x-vector mode only
    past: CodecState | None  # the codec after the reference

    @property
    def nbytes(self) -> int:
        reference = self.reference
        parts = [] if reference is None else [reference.codes, reference.text]
        size = sum(part.nbytes for part in [self.speaker, *parts])
        return size + (0 if self.past is None else self.past.nbytes)

    def mode(self, asked: Mode) -> SpokenMode:
        """Choose the mode to speak in; ModeUnavailable for icl without a reference."""
        if asked == "icl" and self.reference is None:
            raise ModeUnavailable(
                "This voice has no transcript, so it can't speak in mode icl."
                " Use mode xvec, or enrol the voice again with a transcript."
            )
        return "xvec" if asked == "xvec" or self.reference is None else "icl"


@dataclass(frozen=True, eq=False)
class Request:
    """One text to speak; it is its own identity."""

    voice: PreparedVoice
    text: str
    language: str | None = None  # None or "auto": the model decides
    mode: Mode = "auto"  # icl where the voice has a reference
    sampling: SamplingParams = field(default_factory=SamplingParams)
    patience_s: float = float("inf")  # how long it may wait for a slot; below 0 is 0
    client: str = ""  # whose it is: those of one client wait behind those of others

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is auto, icl or xvec, not {self.mode!r}.")
        object.__setattr__(self, "patience_s", max(0.0, self.patience_s))


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was submitted."""

    admitted_s: float
    first_s: float  # the first PCM
    last_s: float | None = None  # all of it


@dataclass(frozen=True)
class Output:
    """The result of a step for one request: PCM, its end, or both. No more follows an end."""

    request: Request
    pcm: NDArray[np.float32]  # (frames * 1920,)
    codes: NDArray[np.int64]  # (frames, groups)
    timings: Timings | None = None  # with PCM
    finished: bool = False
    error: RegistryError | None = None

    @classmethod
    def of_error(cls, request: Request, error: RegistryError) -> "Output":
        """End a request without sound."""
        return cls(request, np.empty(0, np.float32), np.empty((0, 0), np.int64), error=error)


@dataclass
class Counters:
    """Counts of all that the engine has done since it was made."""

    submitted: int = 0
    refused: int = 0  # never admitted: the queue was full, or the wait too long
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    frames: int = 0  # of all requests together: frames / steps is the mean batch
    largest_batch: int = 0  # rows in one step
    prefills: int = 0
    prefilled: int = 0  # positions
    chunks: int = 0  # of PCM
