"""What the service is given and what it answers with. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from inference.serving.stream import Chunks
from registry.storage.data_dir import ModelRef


@dataclass(frozen=True)
class ServiceConfig:
    """None leaves device and dtype to the engine, and torch's threads as they are."""

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    slots: int | None = None  # speeches at once
    queue_limit: int = 32  # waiting for a slot, or for the model to load
    queue_timeout_s: float = 30.0
    prompt_cache_bytes: int = 512 * 1024 * 1024  # on the device: a voice takes 3 to 15 MB


@dataclass(frozen=True)
class ExtractedPrompt:
    """A prompt file that was written: its address but for the voice, and what it offers."""

    fingerprint: str
    sha256: str
    frames: int  # of 80 ms; 0 without a transcript
    modes: tuple[str, ...]
    model: ModelRef
    room: int | None  # tokens of a text that fit into one request in icl; None without it


@dataclass(frozen=True)
class Speech:
    """Speech whose first chunk exists already, so most of what can be refused was.

    `chunks` may still raise an InferenceError; closing it early frees the slot at the next frame.
    """

    sample_rate: int  # Hz
    seed: int
    prompt_cache: Literal["memory", "file"]
    mode: str  # icl or xvec
    timings: Mapping[str, float]  # seconds: queue, load if it had to, prompt, ttfa
    chunks: Chunks  # mono float32, in order


@dataclass(frozen=True)
class Description:
    """The model in words. dtype and device are None until it is loaded."""

    model: ModelRef
    source: str
    languages: tuple[str, ...]
    sample_rate: int
    weights_bytes: int
    dtype: str | None
    device: str | None


@dataclass(frozen=True)
class Status:
    state: Literal["cold", "warming", "warm", "failed"]
    queued: int
    running: int  # speeches, or 1 while the model loads
    slots: int | None  # None until the model is loaded
    queue_limit: int  # of speeches that may wait for a slot
    error: str | None  # why it failed
