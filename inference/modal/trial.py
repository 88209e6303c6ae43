"""One sentence in the voice of a clip, from the class with the GPU: no registry, nothing kept.

The clip goes by way of the Volume that the class reads, under a name of its own.
"""

import secrets
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import soxr

from inference.prompts.clips import SAMPLE_RATE
from registry.contract import Item, PromptRef, PromptSource
from registry.storage.data_dir import DataDir, sha256_of

WAIT_S = 900.0  # for a GPU that may have to start
ON_VOLUME = DataDir(Path("/"))


class TrialFailed(Exception):
    """The trial was refused, in the words of whoever did."""


def speak_once(voices: Any, volume: Any, clip: Path, transcript: str | None, text: str) -> bytes:
    """Speak; returns 16-bit PCM. The class `voices` at Modal reads clips from `volume`."""
    with on_volume(volume, conditioned(clip), transcript) as source:
        until_s = time.time() + WAIT_S
        found = checked(voices.extract_prompt.remote(asdict(source), until_s))["prompt"]
        ref = PromptRef(source.voice_id, found["fingerprint"], found["sha256"])
        items = voices.speak.remote_gen(asdict(ref), text, {}, until_s)
        return b"".join(checked(item).get("pcm", b"") for item in items)


def checked(item: Item) -> Item:
    if "error" in item:
        raise TrialFailed(item["error"]["detail"])
    return item


def conditioned(clip: Path) -> bytes:
    """Make a clip mono at 24 kHz, as conditioned clips are; TrialFailed if it can't be read."""
    try:
        samples, rate = soundfile.read(clip, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise TrialFailed(f"{clip} can't be read: {error}") from error
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
    file = BytesIO()
    soundfile.write(file, np.clip(mono, -1, 1), SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return file.getvalue()


@contextmanager
def on_volume(volume: Any, clip: bytes, transcript: str | None) -> Iterator[PromptSource]:
    """Put the clip where the class finds it; it and the prompt file are gone afterwards."""
    name = f"trial_{secrets.token_hex(8)}"
    source = PromptSource(name, sha256_of(name.encode() + clip), transcript)
    path = PurePosixPath(ON_VOLUME.conditioned(source))
    with volume.batch_upload(force=True) as batch:
        batch.put_file(BytesIO(clip), str(path))
    try:
        yield source
    finally:
        prompts = PurePosixPath(ON_VOLUME.prompts(name))
        for left, recursive in ((path, False), (prompts, True)):
            with suppress(FileNotFoundError):
                volume.remove_file(str(left), recursive=recursive)


def write_wave(path: Path, pcm: bytes) -> float:
    """Write a WAV file; returns its length in seconds."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "not compressed"))
        file.writeframes(pcm)
    return len(pcm) / 2 / SAMPLE_RATE
