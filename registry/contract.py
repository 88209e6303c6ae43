"""The types and names that the registry and inference share, for all that crosses between them.

Ids and hashes cross, never clips or features. The standard library and numpy only: both sides
import this module, and `registry.errors`, which says what can go wrong.
"""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

PROMPT_FORMAT = "1"
PREPROCESSING = "2"
TRANSIENT_PREFIX = "transient_"  # begins the id of a voice that is not kept
Samples = NDArray[np.float32]
Item = dict[str, Any]  # a part of an answer that comes from another process
InferenceState = Literal["cold", "warming", "warm", "failed"]
Mode = Literal["auto", "icl", "xvec"]
SpokenMode = Literal["icl", "xvec"]
MODES: tuple[Mode, ...] = get_args(Mode)

GREEDY_BELOW = 0.01  # the temperature under which the likeliest code is taken, whatever the seed
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "temperature": (0, 2),
    "top_k": (1, 3072),
    "top_p": (0.001, 1),
    "repetition_penalty": (0.1, 10),
}
WHOLE = ("seed", "top_k")


@dataclass(frozen=True)
class ModelRef:
    """A model as prompt features know it; `revision` is a hub commit, or a hash of a directory."""

    id: str
    revision: str


@dataclass(frozen=True)
class PromptSource:
    """The input of prompt features; all of it but `voice_id` is in the fingerprint."""

    voice_id: str
    clip_sha256: str
    transcript: str | None  # None: the speaker embedding only, mode xvec
    preprocessing: str = PREPROCESSING


@dataclass(frozen=True)
class PromptRef:
    """The address of one prompt file, and the SHA-256 that its bytes must have."""

    voice_id: str
    fingerprint: str
    sha256: str


def fingerprint(source: PromptSource, model: ModelRef) -> str:
    """Return the key of prompt features: SHA-256 of all they depend on, as canonical JSON."""
    parts = {k: v for k, v in asdict(source).items() if k != "voice_id"}
    parts |= {"model_id": model.id, "model_revision": model.revision, "format": PROMPT_FORMAT}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_transient(voice_id: str) -> bool:
    return voice_id.startswith(TRANSIENT_PREFIX)


@dataclass(frozen=True)
class SamplingParams:
    """How codes are sampled, by talker and code predictor alike; None leaves it to the model.

    A temperature under GREEDY_BELOW is greedy. The same seed gives the same codes. Raises
    ValueError for a value out of range.
    """

    seed: int | None = None  # 0 .. 2**31 - 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None  # applies to codebook 0

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if name in WHOLE and not isinstance(value, int):
                raise ValueError(f"{name} is a whole number, not {value!r}.")
            if not low <= value <= high:
                raise ValueError(f"{name} is between {low} and {high}, not {value}.")


@dataclass(frozen=True)
class SpeakParams(SamplingParams):
    """How one text is spoken; None leaves it to the voice's defaults, then to the model."""

    language: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in (None, *MODES):
            raise ValueError(f"mode is auto, icl or xvec, not {self.mode!r}.")

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Deadline:
    """How long one request waits at most for a GPU that has to start, however often it asks it."""

    most_s: float = float("inf")
    since_s: float = field(default_factory=time.monotonic)

    def at_most(self, seconds: float) -> "Deadline":
        return Deadline(min(self.most_s, seconds), self.since_s)

    def left_s(self) -> float:
        return self.since_s + self.most_s - time.monotonic()


@dataclass(frozen=True)
class SpeechRequest:
    """A request for one speech, as it goes from the route to the engine.

    A client's next request that waits for a slot comes after one of each other `client`.
    """

    text: str
    params: SpeakParams = field(default_factory=SpeakParams)
    client: str = ""
    deadline: Deadline = field(default_factory=Deadline)

    def asking(self, params: SpeakParams) -> "SpeechRequest":
        """Return the request with other parameters."""
        return replace(self, params=params)


@dataclass(frozen=True)
class Description:
    """Describes the model; dtype and device are None until it is loaded, or where nobody says."""

    model: ModelRef
    source: str
    languages: tuple[str, ...]
    sample_rate: int  # Hz
    weights_bytes: int | None = None
    dtype: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Status:
    """How busy inference is."""

    state: InferenceState
    queued: int = 0
    running: int = 0  # speeches, or 1 while the model loads
    slots: int | None = None  # None until the model is loaded
    queue_limit: int | None = None  # speeches that may wait for a slot
    error: str | None = None  # why it failed


@dataclass(frozen=True)
class ExtractedPrompt:
    """A prompt file that was written: its address but for the voice, and what it offers."""

    fingerprint: str
    sha256: str
    frames: int  # frames of 80 ms; 0 without a transcript
    modes: tuple[str, ...]
    model: ModelRef
    room: int | None = None  # tokens of a text that fit into one request in icl


class Chunks(Protocol):
    """Yields mono PCM in order; may raise half-way.

    A reader that leaves before the end must close it, even before taking the first chunk: that ends
    the request and frees its slot.
    """

    def __aiter__(self) -> AsyncIterator[Samples]: ...
    async def __anext__(self) -> Samples: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True)
class Speech:
    """Speech whose first chunk exists already, so most of what can be refused was.

    `chunks` may still raise; closing it early frees the slot at the next frame.
    """

    sample_rate: int  # Hz
    seed: int
    prompt_cache: Literal["memory", "file"]
    mode: SpokenMode
    timings: Mapping[str, float]  # seconds: queue, load if it had to, prompt, ttfa
    chunks: Chunks  # mono float32, in order
    text_tokens: int | None = None  # of the model; None where an older one does not say


class SpeechModel(Protocol):
    """A model, wherever it is."""

    def describe(self) -> Description:
        """Return the model, found without loading it. May read files: not for the event loop."""

    def status(self) -> Status | None:
        """Return how busy it is; None if no model has been asked for.

        It never loads, wakes or waits for anything.
        """

    def refuse_full(self, ahead: int) -> None:
        """Raise Overloaded if a speech that comes now, after `ahead` others, would meet it.

        For the event loop: it waits for nothing, and what it lets pass may be refused later.
        """

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> ExtractedPrompt:
        """Read the conditioned clip, and write the prompt file.

        A caller that leaves early waits for a file that is being made, unless another machine makes
        it.
        """

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        """Begin to speak. Raises PromptBroken, and every other error, before the first chunk."""


class Inference(SpeechModel, Protocol):
    """A model as the registry uses it, in this process or on another machine."""

    encoders: int  # how many clips it takes at once; more would wait there, in no fair order

    def is_spare(self) -> bool:
        """Tell whether a short speech would keep nobody waiting, and be made at once."""

    def close(self) -> None:
        """Stop, which may take some seconds: not for the event loop."""
