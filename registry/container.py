"""The files that people wrap clips in: what a file is, its audio track, and the frames of that.

FFmpeg reads them from memory, by the demuxer that their first bytes call for and allowed codecs.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np
from av import AudioFrame, AudioStream, Packet
from av.container import InputContainer
from numpy.typing import NDArray

from registry.clip_report import Refusal
from registry.recording import Block

CONTAINERS = (  # the first bytes, FFmpeg's demuxer, the media type
    (rb"(RIFF|RF64|BW64)....WAVE", "wav", "audio/wav"),
    (rb"fLaC", "flac", "audio/flac"),
    (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "mp3", "audio/mpeg"),
    (rb"OggS", "ogg", "audio/ogg"),
    (rb"....ftyp", "mov", "audio/mp4"),
    (rb"\x1aE\xdf\xa3.{,60}webm", "matroska", "audio/webm"),
    (rb"\x1aE\xdf\xa3", "matroska", "audio/matroska"),
)
TAKEN = "WAV, FLAC, MP3, OGG (Opus, Vorbis), M4A (AAC, ALAC) and WebM are taken"
CODECS = (
    *("aac", "alac", "flac", "libopus", "mp3", "mp3float", "opus", "vorbis"),
    *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "pcm_s16be", "pcm_s16le", "pcm_s24be"),
    *("pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le"),
)


def container_of(data: bytes) -> tuple[str, str]:
    """The demuxer and media type that the first bytes call for; a file's name is never asked."""
    if not data:
        raise Refusal("audio-empty", "The file is empty (0 bytes).")
    for magic, demuxer, media_type in CONTAINERS:
        if re.match(magic, data, re.DOTALL):
            return demuxer, media_type
    raise Refusal("audio-unsupported", f"The file is not audio of a known format: {TAKEN}.")


def opened(data: bytes, demuxer: str) -> InputContainer:
    """The container, read from memory alone by one demuxer, with the allowed codecs only."""
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2" if demuxer == "mov" else demuxer,
        "codec_whitelist": ",".join(CODECS),
        "max_streams": "16",
    }
    try:
        return av.open(io.BytesIO(data), "r", demuxer, container_options=options)
    except av.error.FFmpegError as error:
        message = f"The file begins as {demuxer} does but cannot be opened: {error.strerror}."
        raise Refusal("audio-undecodable", message) from None


def audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream; cover art and video are passed over."""
    if not container.streams.audio:
        raise Refusal("audio-empty", "The file holds no audio track.")
    stream = container.streams.audio[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in CODECS:
        raise Refusal("audio-unsupported", f"The codec {codec} is not taken: {TAKEN}.")
    stream.codec_context.thread_count = 1
    return stream


def frames_of(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame | None]:
    """Every decoded frame in order; None stands for a packet too damaged to decode."""
    try:
        for packet in container.demux(stream):
            yield from decoded(packet)
    except av.error.FFmpegError:
        yield None


def decoded(packet: "Packet[AudioStream]") -> list[AudioFrame] | list[None]:
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return [None]


def samples_of(frame: AudioFrame) -> Block:
    """A frame's samples (channels, frames), with integer formats scaled to [-1, 1)."""
    raw: NDArray[Any] = frame.to_ndarray()
    if frame.format.is_packed:
        raw = raw.reshape(-1, frame.layout.nb_channels).T
    if raw.dtype.kind == "f":
        return raw
    half = np.float32(2.0 ** (8 * raw.dtype.itemsize - 1))
    return np.asarray((raw.astype(np.float32) - half * (raw.dtype.kind == "u")) / half)
