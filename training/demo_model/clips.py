"""The two clips that `voices demo` enrols, and what the tests compare speech with.

    python -m training.demo_model.clips

writes cli/data/NAME.wav and NAME.txt, and tests/demo_sentences.safetensors: the MFCCs of six
held-out sentences as espeak-ng says them in the same two voices.
"""

from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file
from scipy.io import wavfile

from training.demo_model.codec_report import VOICES
from training.demo_model.espeak import SAMPLE_RATE, Espeak
from training.demo_model.evaluate import as_floats
from training.demo_model.matching import mfcc
from training.demo_model.sentences import read_lines
from training.demo_model.utterances import utter

ROOT = Path(__file__).parents[2]
CLIPS = {  # by name: the voice and what it says
    "alice": (VOICES[1], "Good morning, my name is Alice, and I live in a small house by the sea."),
    "bob": (VOICES[0], "Hello, my name is Bob, and every day I walk my dog along the river."),
}
SENTENCES = 6
PEAK = 0.7  # of a clip


def write_clips(folder: Path) -> None:
    """16-bit files at 24 kHz, espeak-ng's sound at another level and nothing else."""
    espeak = Espeak()
    for name, (voice, text) in CLIPS.items():
        sound = utter(espeak, text, voice, 0.06, 0.12).sound.astype(np.float64)
        loud = np.round(sound * (PEAK * 32767 / np.abs(sound).max())).astype(np.int16)
        wavfile.write(folder / f"{name}.wav", SAMPLE_RATE, loud)
        (folder / f"{name}.txt").write_text(f"{text}\n", "utf-8")


def write_sentences(path: Path) -> None:
    """`NAME.K`: (frames, 19) float16 of sentence K in the voice of NAME; the texts beside them."""
    espeak, texts = Espeak(), read_lines("heldout")[:SENTENCES]
    tensors = {
        f"{name}.{k}": mfcc(as_floats(utter(espeak, text, voice, 0.06, 0.12))).astype(np.float16)
        for name, (voice, _) in CLIPS.items()
        for k, text in enumerate(texts)
    }
    save_file(tensors, path, metadata={str(k): text for k, text in enumerate(texts)})


@click.command()
@click.option("--clips", type=click.Path(path_type=Path), default=ROOT / "cli" / "data")
@click.option(
    "--sentences",
    type=click.Path(path_type=Path),
    default=ROOT / "tests" / "demo_sentences.safetensors",
)
def main(clips: Path, sentences: Path) -> None:
    """Write both."""
    write_clips(clips)
    write_sentences(sentences)


if __name__ == "__main__":
    main()
