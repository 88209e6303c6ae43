"""Writes WAV files: a mono RIFF header, then little-endian samples."""

import struct

PCM, IEEE_FLOAT = 1, 3  # RIFF format tags
UNKNOWN_SIZE = 0xFFFFFFFF  # of a RIFF chunk that ends with the stream


def wave_file(pcm: bytes, sample_rate: int, tag: int, bits: int) -> bytes:
    """Make a mono RIFF file of little-endian samples; equal samples give equal bytes."""
    return wave_header(len(pcm), sample_rate, tag, bits) + pcm


def wave_header(size: int, sample_rate: int, tag: int, bits: int) -> bytes:
    """Make all of the file that comes before its `size` bytes of samples."""
    frame = bits // 8
    layout = struct.pack("<HHIIHH", tag, 1, sample_rate, sample_rate * frame, frame, bits)
    content = b"WAVE" + chunk(b"fmt ", layout if tag == PCM else layout + b"\0\0")
    if tag != PCM:
        content += chunk(b"fact", struct.pack("<I", size // frame))
    content += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(len(content) + size, UNKNOWN_SIZE)) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
