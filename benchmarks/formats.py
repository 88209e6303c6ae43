"""What each format of speech costs, and how much of a speech it needs before it sends any sound.

A bundled clip goes through `Renderer` in chunks of 80 ms, as a model makes them. Of each format,
speed and loudness: milliseconds of CPU for a second of audio, that divided by pcm's of the same
round, bytes for a second, and milliseconds of audio before the first sound is sent.
"""

import statistics
import time
from importlib import resources
from io import BytesIO
from typing import Any

import measure
import numpy as np
import soundfile
from numpy.typing import NDArray

from registry.audio.encoding.rendering import Renderer, Rendering
from registry.audio.formats import SPEECH, AudioFormat, format_named

RATE, CHUNK = 24_000, 1_920
HEADERS = {"wav": 44, "flac": 86, "opus": 97}  # bytes that are sent at once, and are no sound
AT_RATES = ("pcm_16000", "mp3_22050_32", "mp3_44100_128", "opus_48000_64", "aac_44100_128")
PCM = AudioFormat("pcm")


def renderings() -> dict[str, Rendering]:
    names = sorted([*SPEECH, *AT_RATES], key=lambda name: (name != "pcm", name.partition("_")[0]))
    return {
        **{name: Rendering(format_named(name)) for name in names},
        "pcm, speed 1.25": Rendering(PCM, speed=1.25),
        "pcm, speed 0.4": Rendering(PCM, speed=0.4),
        "pcm, speed 4": Rendering(PCM, speed=4.0),
        "pcm, loudness": Rendering(PCM, loudness=-20.0),
        "mp3_44100_128, both": Rendering(format_named("mp3_44100_128"), 1.25, -20.0),
    }


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of speech")
    parser.add_argument("--repeat", type=int, default=7, help="rounds of all formats in turn")
    asked = parser.parse_args()
    samples, every = speech(asked.seconds), renderings()
    rounds = [{n: rendered(samples, one) for n, one in every.items()} for _ in range(asked.repeat)]
    found = {name: figures(name, every[name], rounds, asked.seconds) for name in every}
    rows = [[name, *shown.values()] for name, shown in found.items()]
    headings = ["format", "CPU ms / s", "to pcm", "kB / s", "first sound after ms"]
    measure.table(headings, rows)
    measure.record(asked.results, "formats", vars(asked), found)


def speech(seconds: float) -> NDArray[np.float32]:
    clip = resources.files("cli.data").joinpath("alice.wav").read_bytes()
    samples, rate = soundfile.read(BytesIO(clip), dtype="float32")
    assert rate == RATE
    return np.resize(samples, round(seconds * RATE))


def rendered(samples: NDArray[np.float32], asked: Rendering) -> tuple[float, int]:
    """Seconds of CPU, and bytes."""
    started_s = time.process_time()
    made = Renderer(asked, RATE, whole=False)
    size = sum(len(made.feed(samples[i : i + CHUNK])) for i in range(0, len(samples), CHUNK))
    size += sum(map(len, made.finish()))
    return time.process_time() - started_s, size


def first_sound_ms(asked: Rendering) -> int:
    """How much speech must be made before any of it is sent, to the millisecond."""
    made, sent, step = Renderer(asked, RATE, whole=False), 0, RATE // 1000
    samples = speech(2.0)
    for number, start in enumerate(range(0, len(samples), step), start=1):
        sent += len(made.feed(samples[start : start + step]))
        if sent > HEADERS.get(asked.format.name, 0):
            return number
    raise AssertionError(f"{asked} sends nothing of two seconds")


def figures(
    name: str, asked: Rendering, rounds: list[dict[str, tuple[float, int]]], seconds: float
) -> dict[str, Any]:
    """Medians; the last of it is exact."""
    costs_s = [one[name][0] for one in rounds]
    to_pcm = measure.ratios(costs_s, [one["pcm"][0] for one in rounds])
    return {
        "cpu_ms_per_s": measure.ms(statistics.median(costs_s) / seconds),
        "to_pcm": to_pcm["median"],
        "kilobytes_per_s": round(rounds[0][name][1] / seconds / 1000, 2),
        "first_sound_ms": first_sound_ms(asked),
    }


if __name__ == "__main__":
    main()
