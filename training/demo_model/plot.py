"""Spectrograms of what espeak-ng and the model say, one above the other, as a PNG.

python -m training.demo_model.plot espeak.wav model.wav --out spectrograms.png
"""

import struct
import zlib
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile

SIZE, HOP = 1024, 120
HIGHEST_HZ = 5_000
RANGE_DB = 60.0
GAP = 6  # pixels between two pictures
INK = np.array([[255, 255, 255], [176, 196, 222], [65, 105, 160], [20, 30, 70]], np.float64)
Pixels = NDArray[np.uint8]


def spectrogram(sound: NDArray[np.float32], rate: int) -> Pixels:
    """(height, width, 3): low frequencies at the bottom, loud is dark."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, SIZE // 2), SIZE)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(SIZE), axis=1)) ** 2
    level = 10 * np.log10(power[:, : SIZE * HIGHEST_HZ // rate] + 1e-9)
    loudness = np.clip((level - level.max()) / RANGE_DB + 1, 0, 1)
    shades = np.linspace(0, 1, len(INK))
    colours = [np.interp(loudness, shades, INK[:, channel]) for channel in range(3)]
    return np.stack(colours, -1).astype(np.uint8).transpose(1, 0, 2)[::-1]


def stacked(pictures: list[Pixels]) -> Pixels:
    """One above the other, padded with white."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        missing = ((0, GAP), (0, width - picture.shape[1]), (0, 0))
        rows.append(np.pad(picture, missing, constant_values=255))
    return np.concatenate(rows)


def write_png(path: Path, pixels: Pixels) -> None:
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@click.command()
@click.argument("sounds", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(sounds: tuple[Path, ...], out: Path) -> None:
    """Draw SOUNDS."""
    pictures = []
    for path in sounds:
        rate, sound = wavfile.read(path)
        pictures.append(spectrogram(sound.astype(np.float32) / 32768, rate))
    write_png(out, stacked(pictures))


if __name__ == "__main__":
    main()
