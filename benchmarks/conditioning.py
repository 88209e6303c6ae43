"""What conditioning does for the voice of a clip that was recorded badly.

Each fault is made of the bundled clip of alice. The figure is the cosine of the speaker embedding
with that of the clean clip, by the demo model's own speaker encoder: once through a plain mean of
the channels, as conditioning was, and once through the registry.
"""

import io
from collections.abc import Mapping
from typing import Any

import measure
import numpy as np
import soundfile
from numpy.typing import NDArray
from uploading import read_clip

from inference.engine.extract import Extractor
from inference.engine.model_config import read_model_config
from registry.audio.clips import ClipLimits

RATE = 24_000
FOLDER = measure.ROOT / "inference" / "demo"
CLIP = measure.ROOT / "cli" / "data" / "alice.wav"
Samples = NDArray[np.float64]  # (channels, frames)


def faults(voice: Samples) -> Mapping[str, Samples]:
    """The voice (frames,), as bad recordings have it."""
    silence, rms = np.zeros_like(voice), np.sqrt(np.square(voice).mean())
    rumble = np.sqrt(2) * rms * np.sin(2 * np.pi * 40 * np.arange(len(voice)) / RATE)
    return {
        "as it is": voice[None],
        "after 10 s of silence": np.concatenate([np.zeros(10 * RATE), voice])[None],
        "30 dB lower": voice[None] * 10 ** (-30 / 20),
        "with rumble of 40 Hz as loud": (voice + rumble)[None],
        "one channel inverted": np.stack([voice, -0.98 * voice]),
        "on one of six channels": np.stack([silence, silence, silence, silence, voice, silence]),
        "one channel 0.5 ms late": np.stack([voice, np.roll(voice, 12)]),
        "beside a channel of hum": np.stack([voice, 3 * rumble]),
    }


def heard(samples: Samples) -> NDArray[np.float32]:
    """What the model hears of a file with these channels."""
    file = io.BytesIO()
    soundfile.write(file, samples.T, RATE, "FLOAT", format="WAV")
    conditioned = io.BytesIO(read_clip(file.getvalue(), ClipLimits()).conditioned_wav)
    return np.asarray(soundfile.read(conditioned, dtype="float32")[0])


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def main() -> None:
    measure.arguments(__doc__).parse_args()
    extractor = Extractor.load(FOLDER, read_model_config(FOLDER), "cpu")

    def embedding(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return extractor.extract(samples, None).ref_spk_embedding

    voice = soundfile.read(CLIP)[0]
    clean = embedding(voice.astype(np.float32))
    print(
        "| the clip | cosine, plain mean | cosine, conditioned | seconds heard |\n|---|---|---|---|"
    )
    for name, samples in faults(voice).items():
        mean, made = samples.mean(axis=0).astype(np.float32), heard(samples)
        row: list[Any] = [cosine(clean, embedding(each)) for each in (mean, made)]
        print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {len(made) / RATE:.1f} |")


if __name__ == "__main__":
    main()
