"""What is heard of a speech in each format, by another library than the one that encodes it.

For AAC there is none: its frames are read here, and FFmpeg's fixed-point decoder hears them.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from registry.audio.formats import AudioFormat

G711 = {"ulaw": "ULAW", "alaw": "ALAW"}
MP3_KBPS = {  # of MPEG-1 and MPEG-2, layer III
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000)}
AAC_HZ = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000)


def heard(data: bytes, format: AudioFormat, rate: int) -> NDArray[np.float32]:
    """All samples, which are mono and at `rate` unless the decoder of the format has its own."""
    if format.name == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768
    if format.name == "aac":
        return of_adts(data, rate)
    raw = {"samplerate": rate, "channels": 1, "format": "RAW"} if format.name in G711 else {}
    codec = {"subtype": G711[format.name]} if raw else {}
    samples, found = soundfile.read(io.BytesIO(data), dtype="float32", **raw, **codec)
    assert (found, samples.ndim) == (rate, 1)
    return samples


def of_adts(data: bytes, rate: int) -> NDArray[np.float32]:
    assert all(frame.rate == rate for frame in adts_frames(data))
    decoder = av.CodecContext.create("aac_fixed", "r")
    packets = [*decoder.parse(data), *decoder.parse(None)]
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    assert {frame.layout.name for frame in frames} == {"mono"}
    return np.concatenate([f.to_ndarray()[0] for f in frames]).astype(np.float32) / 2**31


@dataclass(frozen=True)
class Frame:
    rate: int
    size: int
    kbps: int = 0
    begins: int = 0  # bytes before it that it goes on from


def adts_frames(data: bytes) -> list[Frame]:
    """Raises unless it is frames of AAC LC, mono, and nothing else."""
    frames, at = list[Frame](), 0
    while at < len(data):
        head = int.from_bytes(data[at : at + 7], "big")
        assert head >> 40 in (0xFFF1, 0xFFF0), at
        assert head >> 38 & 3 == 1 and head >> 30 & 7 == 1  # LC, one channel
        frames.append(Frame(AAC_HZ[head >> 34 & 15], head >> 13 & 0x1FFF))
        at += frames[-1].size
    assert at == len(data)
    return frames


def mp3_frames(data: bytes) -> list[Frame]:
    """Raises unless it is frames of layer III, mono, and nothing else: no tag, no Xing header."""
    frames, at = list[Frame](), 0
    while at < len(data):
        head = int.from_bytes(data[at : at + 4], "big")
        version = head >> 19 & 3
        assert (head >> 21, head >> 17 & 3, head >> 6 & 3) == (0x7FF, 1, 3), at
        assert head >> 16 & 1, "a checksum is not expected"
        kbps, rate = MP3_KBPS[version][head >> 12 & 15], MP3_HZ[version][head >> 10 & 3]
        size = (144 if version == 3 else 72) * kbps * 1000 // rate + (head >> 9 & 1)
        side = data[at + 4 : at + size]
        assert b"Xing" not in side[:40] and b"Info" not in side[:40]
        begins = side[0] << 1 | side[1] >> 7 if version == 3 else side[0]
        frames.append(Frame(rate, size, kbps, begins))
        at += size
    assert at == len(data)
    return frames


@dataclass(frozen=True)
class Page:
    flags: int
    granule: int
    serial: int
    content: bytes
    packets: int


def ogg_pages(data: bytes) -> Iterator[Page]:
    """Raises unless it is pages, in order, and nothing else."""
    at, number = 0, 0
    while at < len(data):
        mark, version, flags, granule, serial, sequence, _, segments = struct.unpack_from(
            "<4sBBqIIIB", data, at
        )
        assert (mark, version, sequence) == (b"OggS", 0, number)
        sizes = data[at + 27 : at + 27 + segments]
        start = at + 27 + segments
        at, number = start + sum(sizes), number + 1
        packets = sum(size < 255 for size in sizes)
        yield Page(flags, granule, serial, data[start:at], packets)
    assert at == len(data)


def lag(decoded: NDArray[np.float32], source: NDArray[np.float32]) -> int:
    """How many samples later the source stands in what was decoded of it."""
    size = 1 << (len(decoded) + len(source) - 1).bit_length()
    spectrum = np.fft.rfft(decoded, size) * np.fft.rfft(source, size).conj()
    return int(np.argmax(np.fft.irfft(spectrum)[: len(decoded)]))
