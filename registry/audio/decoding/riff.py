"""Reads WAV headers: what they promise, and samples of fewer bits than their bytes hold.

FFmpeg takes 24 bits in four bytes for floats. They stand at the upper end, as the specification
says, or at the lower one, as some programs write.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PCM, EXTENSIBLE = 1, 0xFFFE
EVEN = (PCM, 3, 6, 7)  # integers, floats, A-law, mu-law: each second has as many bytes
NEVER_WRITTEN = 0x7F000000  # a recorder writes larger sizes before it knows better


@dataclass(frozen=True)
class Wave:
    """A file that FFmpeg reads rightly, the factor for its samples, and the seconds it promises."""

    data: bytes
    scale: float = 1.0
    promised_s: float | None = None


@dataclass(frozen=True)
class Layout:
    """The numbers of a `fmt ` chunk at `at`."""

    at: int
    tag: int
    channels: int
    rate: int
    align: int
    bits: int
    valid: int

    @property
    def held(self) -> int:
        """The number of bits in the bytes that each sample takes."""
        return 8 * self.align // max(self.channels, 1)


def read_wave(data: bytes) -> Wave:
    """Return the file, put right where its samples are padded; as it is where its header is odd."""
    chunks = {name: (at, size) for name, at, size in chunks_of(data)}
    if b"fmt " not in chunks or b"data" not in chunks or chunks[b"fmt "][1] < 16:
        return Wave(data)
    layout = layout_at(data, chunks[b"fmt "][0])
    at, claimed = chunks[b"data"]
    if b"ds64" in chunks and claimed == 0xFFFFFFFF:
        claimed = int.from_bytes(data[chunks[b"ds64"][0] + 8 :][:8], "little")
    known = 0 < claimed < NEVER_WRITTEN and layout.align * layout.rate > 0
    promised_s = claimed / (layout.align * layout.rate) if known and layout.tag in EVEN else None
    padded = 8 <= layout.valid < layout.held
    if layout.tag != PCM or layout.held not in (16, 24, 32) or not padded:
        return Wave(data, 1.0, promised_s)
    scale = scale_of(data[at : at + claimed], layout.held, layout.valid)
    return Wave(widened(data, layout), scale, promised_s)


def chunks_of(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, place of the content and claimed size of each chunk, up to the data."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, size
        if name == b"data":
            return
        at += 8 + size + size % 2


def layout_at(data: bytes, at: int) -> Layout:
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", data.ljust(at + 40), at)
    valid = bits
    if tag == EXTENSIBLE:
        valid, _, tag = struct.unpack_from("<HIH", data.ljust(at + 40), at + 18)
        valid = valid or bits
    return Layout(at, tag, channels, rate, align, bits, valid)


def scale_of(content: bytes, held: int, valid: int) -> float:
    """Return the factor to full scale: above 1 for samples at the lower end of their bytes."""
    width = held // 8
    whole = content[: len(content) // width * width]
    padded = np.zeros((len(whole) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(whole, np.uint8).reshape(-1, width)
    samples = padded.view("<i4")[:, 0] >> (32 - held)
    spare = held - valid
    fits = np.abs(samples.astype(np.int64)).max(initial=0) <= 1 << (valid - 1)
    return float(1 << spare) if fits and (samples & ((1 << spare) - 1)).any() else 1.0


def widened(data: bytes, layout: Layout) -> bytes:
    """Return the file with a header that says that all bits of its samples count."""
    changed = bytearray(data)
    struct.pack_into("<H", changed, layout.at + 14, layout.held)
    if struct.unpack_from("<H", data, layout.at)[0] == EXTENSIBLE:
        struct.pack_into("<H", changed, layout.at + 18, layout.held)
    return bytes(changed)
