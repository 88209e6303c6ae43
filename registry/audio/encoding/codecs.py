"""Brings 16-bit samples through a codec of FFmpeg into its container, as they come.

Streams can be joined: an mp3 has a constant bit rate and neither tags nor a Xing header, and Opus
has a serial number of its own. Equal samples give equal bytes, however they are cut.
"""

import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av import AudioFrame, AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray

FIRST_S = 0.02  # of a stream, which is known by it


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg, the container that its packets go into, and the options of both."""

    encoder: str
    container: str
    encoding: dict[str, str] = field(default_factory=dict)  # options of the one,
    muxing: dict[str, str] = field(default_factory=dict)  # and of the other


CODECS = {
    "mp3": Codec(
        "libmp3lame",
        "mp3",
        {"reservoir": "0"},  # no frame waits for another, or needs one before it
        {"write_xing": "0", "id3v2_version": "0", "write_id3v1": "0"},
    ),
    "opus": Codec(
        "libopus",
        "ogg",
        muxing={"page_duration": "20000", "serial_offset": "{serial}"},  # µs: a page for a packet
    ),
    "aac": Codec("aac", "adts", {"aac_coder": "fast"}),  # half the work, and as near to the speech
    "ulaw": Codec("pcm_mulaw", "mulaw"),
    "alaw": Codec("pcm_alaw", "alaw"),
}


class Sink:
    """A file for FFmpeg to write, which keeps what nobody took yet."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, part: bytes) -> int:
        self._written += part
        return len(part)

    def taken(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


class CodecStream:
    """Encodes one stream of samples into its container, as they come."""

    def __init__(self, name: str, sample_rate: int, bit_rate: int | None) -> None:
        self._codec, self._sample_rate, self._bit_rate = CODECS[name], sample_rate, bit_rate
        self._first_frames = round(sample_rate * FIRST_S)
        self._first = np.empty(0, "<i2")
        self._track: AudioStream | None = None
        self._sink = Sink()
        self._frames = 0

    def feed(self, pcm: NDArray[np.int16]) -> bytes:
        """Take samples of shape (n,); return the bytes that are ready."""
        if self._track is None:
            pcm = self._first = np.concatenate([self._first, pcm])
            if len(pcm) < self._first_frames:
                return b""
        self._encode(pcm)
        return self._sink.taken()

    def finish(self) -> bytes:
        """Return the rest of the file, which is empty if nothing was fed."""
        if self._track is None:
            self._encode(self._first)
        if self._track is not None:
            self._container.mux(self._track.encode(None))
            self._container.close()
        return self._sink.taken()

    def _encode(self, pcm: NDArray[np.int16]) -> None:
        if len(pcm):
            self._track = self._track or self._opened()
            frame = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = self._sample_rate, Fraction(1, self._sample_rate)
            frame.pts = self._frames
            self._frames += len(pcm)
            self._container.mux(self._track.encode(frame))

    @cached_property
    def _container(self) -> OutputContainer:
        serial = zlib.crc32(self._first[: self._first_frames].tobytes()) >> 1  # 31 bits
        options = {key: text.format(serial=serial) for key, text in self._codec.muxing.items()}
        always = {"fflags": "bitexact", "flush_packets": "1"}
        return av.open(self._sink, "w", format=self._codec.container, options=options | always)

    def _opened(self) -> AudioStream:
        track = self._container.add_stream(self._codec.encoder, self._sample_rate)
        assert isinstance(track, AudioStream)
        track.codec_context.layout = "mono"
        track.codec_context.options = {"flags": "bitexact"} | self._codec.encoding
        if self._bit_rate is not None:
            track.bit_rate = 1000 * self._bit_rate
        return track
