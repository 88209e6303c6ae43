"""Clips of every container that clips.py can make, damaged from a seed: decoded or refused.

python tests/support/damaged_clips.py FOLDER SEED CLIPS, as a program of its own, so that it can
tell what is left: the clips go by the spool of uploads to the real decoder, two at once.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from random import Random

import clips
from clips import FFMPEG, LIBSNDFILE, WAVES, made, tone
from uploading import uploaded

from registry.audio.clips import CRASHED, ClipLimits, ClipRefused, read_clip
from registry.storage.data_dir import DataDir

HEAD = 400  # bytes, where most of what a container says of itself is
SIZES = (0, 1, 7, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LIMITS = ClipLimits()


@cache
def sound_ones() -> list[bytes]:
    """As they were before."""
    one, film = tone(), clips.muxed(tone(2.0, 48_000), 48_000, "mp4", "aac", picture=True)
    return [
        *(made("WAV", subtype) for subtype in WAVES),
        *(made(format, codec, rate) for format, codec, rate, _ in LIBSNDFILE + FFMPEG),
        clips.muxed(one, 24_000, "adts", "aac"),
        clips.id3_tag(b"\x89PNG") + made("MP3", "MPEG_LAYER_III"),
        clips.two_tracks(one, tone(hz=300.0), "matroska", "libopus", default=1),
        clips.two_tracks(one, tone(hz=300.0), "mp4", "aac", default=0),
        made("OGG", "VORBIS") + made("OGG", "VORBIS"),
        film,
    ]


def damaged(corpus: Sequence[bytes], random: Random) -> bytes:
    """What one to four damages make of one."""
    data = random.choice(corpus)
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        data = random.choice(DAMAGES)(data, random.choice(corpus), random)
    return data


def flip(data: bytes, other: bytes, random: Random) -> bytes:
    """A few bits."""
    copy = bytearray(data)
    for _ in range(random.randint(1, 8) if data else 0):
        copy[_place(data[:-1], random)] ^= 1 << random.randrange(8)
    return bytes(copy)


def cut(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def drop(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def splice(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: _place(data, random)] + other[_place(other, random) :]


def repeat(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:end] + data[start:end] * random.choice((1, 2, 30)) + data[end:]


def swap_heads(data: bytes, other: bytes, random: Random) -> bytes:
    size = random.choice((4, 12, 28, 44, 200, HEAD))
    return other[:size] + data[size:]


def resize(data: bytes, other: bytes, random: Random) -> bytes:
    """A number, which may be a size, a rate or a count, becomes another one."""
    at, width = _place(data, random), random.choice((1, 2, 4, 8))
    number = random.choice((*SIZES, len(data), random.getrandbits(32)))
    order: list[str] = ["big", "little"]
    size = (number % 256**width).to_bytes(width, random.choice(order))  # type: ignore[arg-type]
    return data[:at] + size + data[at + width :]


DAMAGES: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    *(flip, flip, cut, drop, splice, repeat, swap_heads, resize, resize),
)


def _place(data: bytes, random: Random) -> int:
    """As often in the head as anywhere."""
    return random.randint(0, random.choice((len(data), min(len(data), HEAD))))


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = _place(data, random)
    return start, min(len(data), start + random.choice((1, 4, 100, 5000)))


def end_of(data: DataDir, clip: bytes) -> str:
    """Of a clip as an upload: how it was taken, or a code; nothing else is raised."""
    with closing(uploaded(data, clip)) as upload:
        if not clip:
            upload.write(b"")
        with upload.open() as file:
            try:
                read_clip(file, upload.sha256, LIMITS)
            except ClipRefused as refused:
                return "crashed" if refused.message == CRASHED else refused.code
    return "decoded"


def main(folder: str, seed: str, count: str) -> None:
    data, slowest_s = DataDir(Path(folder)), 0.0
    data.create()
    corpus, before = sound_ones(), len(os.listdir("/dev/fd"))

    def end(number: int) -> tuple[str, float]:
        started = time.perf_counter()
        try:
            found = end_of(data, damaged(corpus, Random(f"{seed} {number}")))
        except BaseException as error:
            error.add_note(f"clip {number} of seed {seed}")
            raise
        return found, time.perf_counter() - started

    ends: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as pool:
        for found, took_s in pool.map(end, range(int(count))):
            ends[found] += 1
            slowest_s = max(slowest_s, took_s)
    found = {"ends": ends, "slowest_s": slowest_s, "left": left(data, before)}
    print(json.dumps(found))


def left(data: DataDir, descriptors: int) -> list[str]:
    """What should be gone by now."""
    found = [path.name for path in data.uploads.iterdir()]
    if more := len(os.listdir("/dev/fd")) - descriptors:
        found.append(f"{more} descriptors")
    with suppress(ChildProcessError):
        found.append(f"a child: {os.waitpid(-1, os.WNOHANG)}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
