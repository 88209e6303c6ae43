"""`voices demo`: the whole path once, in a data directory of its own, over HTTP."""

import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import compose
from cli.filenames import format_for
from cli.output import new_file, print_line, print_voices, refuse_overwriting, say, write_wave
from cli.pitch import median_pitch_hz
from cli.server.private_server import private_registry
from cli.session import progress
from registry.audio.formats import AudioFormat

if TYPE_CHECKING:
    from cli.api.client import Registry

MARKER = "made-by-voices-demo"
SEED = 7
RATE = 24_000  # Hz
VOICES = {"alice": "a high voice of espeak-ng", "bob": "a low voice of espeak-ng"}
SENTENCE = "A voice is enrolled once, and from then on it speaks by name."
WHAT_NOW = """
The demo model is 16 MB and speaks a robot's English, for it has heard nothing but espeak-ng.
For real voices, fetch the real model (4.5 GB) and enrol your own clip:
  voices model download
  voices add carol ref.wav "the words of the clip"
  voices speak carol "Hello"
"""


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=".demo", show_default=True, help="Its data."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="demo.wav",
    show_default=True,
    help="The file for what both say, one after the other; it is replaced.",
)
def demo(home: Path, output: Path) -> None:
    """Enrol two bundled voices, a high and a low one, and let both speak with the demo model.

    Uses a data directory of its own, which each run empties first, and nothing else.

    \b
    Example:
      voices demo
    """
    format_for(output, AudioFormat("wav"))
    refuse_overwriting(output, force=True)
    empty(home)
    settings = compose.load_settings(home=home, model="demo", inference="on")
    with private_registry(settings) as voices:
        for name in VOICES:
            enrol(voices, name)
        print_voices([voice for page in voices.pages() for voice in page["data"]])
        spoken = {name: speak(voices, name) for name in VOICES}
    with new_file(output, force=True) as file:
        write_wave(file, spoken.values(), RATE)
    print_pitches(spoken)
    say(f"\nWrote {output}.{WHAT_NOW.rstrip()}")


def empty(home: Path) -> None:
    """Empty the folder, but only one that a demo made. Raises ClickException."""
    import shutil

    from registry.storage import private
    from registry.storage.blobs import make_folder

    if home.exists() and any(home.iterdir()) and not (home / MARKER).exists():
        raise click.ClickException(
            f"{home} holds something that is not a demo's. Name another folder with --home."
        )
    if home.exists():
        shutil.rmtree(home)
    make_folder(home)
    private.touch(home / MARKER)


def enrol(voices: "Registry", name: str) -> None:
    transcript = bundled(f"{name}.txt").decode().strip()
    form = {"name": name, "transcript": transcript, "description": VOICES[name]}
    started = time.perf_counter()
    with progress(f"Enrolling {name} …"):
        voice = voices.add(form, bundled(f"{name}.wav"))
    took_s = time.perf_counter() - started
    length_s = voice["clip"]["duration_s"]
    say(f"Enrolled {name} from a clip of {length_s:.1f} s in {took_s:.2f} s.")


def bundled(name: str) -> bytes:
    return resources.files("cli.data").joinpath(name).read_bytes()


def speak(voices: "Registry", name: str) -> bytes:
    """16-bit samples at 24 kHz."""
    request = {"voice": name, "text": SENTENCE, "seed": SEED, "format": "pcm"}
    started = time.perf_counter()
    with progress(f"{name} speaks …"), voices.speech(request) as (spoken, sound):
        pcm = b"".join(sound)
    took_s, length_s = time.perf_counter() - started, len(pcm) / 2 / spoken.rate
    say(f"{name} said {SENTENCE!r}: {length_s:.3f} s in {took_s:.2f} s.")
    return pcm


def print_pitches(spoken: dict[str, bytes]) -> None:
    """Print the median pitch of each clip, and of what was spoken in its voice."""
    import io

    import numpy as np
    import soundfile

    print_line("\nVOICE   PITCH OF THE CLIP   PITCH OF THE SPEECH")
    for name, pcm in spoken.items():
        clip, rate = soundfile.read(io.BytesIO(bundled(f"{name}.wav")), dtype="float32")
        speech = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        theirs, ours = median_pitch_hz(clip, rate), median_pitch_hz(speech, RATE)
        print_line(f"{name:<7} {theirs:>14.0f} Hz {ours:>18.0f} Hz")
