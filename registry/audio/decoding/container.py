"""Opens the files that people wrap clips in: what a file is, its audio track, that one's frames.

FFmpeg reads them from memory, by the demuxer that their first bytes call for and allowed codecs.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from av import AudioFrame, AudioStream, Packet
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from registry.audio.decoding.recording import Block
from registry.audio.decoding.wrapping import (
    after_tags,
    before_tags,
    breaks_off,
    counts_frames,
    first_frame,
)
from registry.audio.report import MediaType, Refusal

Kinds = tuple[tuple[bytes, str, MediaType], ...]

CONTAINERS: Kinds = (  # the first bytes, FFmpeg's demuxer, the media type
    (rb"(RIFF|RF64|BW64)....WAVE", "wav", "audio/wav"),
    (rb"fLaC", "flac", "audio/flac"),
    (rb"OggS", "ogg", "audio/ogg"),
    (rb"....(ftyp|styp|moov|moof|mdat|wide|free|skip|pnot|sidx)", "mov", "audio/mp4"),
    (rb"\x1aE\xdf\xa3.{,60}webm", "matroska", "audio/webm"),
    (rb"\x1aE\xdf\xa3", "matroska", "audio/matroska"),
)
FRAMES: Kinds = (  # without a container: any frame may be the first
    (rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "mp3", "audio/mpeg"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "aac", "audio/aac"),
)
TAKEN = "WAV, FLAC, MP3, OGG (Opus, Vorbis), M4A (AAC, ALAC), AAC and WebM are taken"
CODECS = (
    *("aac", "alac", "flac", "libopus", "mp3", "mp3float", "opus", "vorbis"),
    *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "pcm_s16be", "pcm_s16le", "pcm_s24be"),
    *("pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le"),
)


@dataclass(frozen=True)
class Sound:
    """A file without tags around it, and which demuxer reads it."""

    data: bytes
    demuxer: str
    media_type: MediaType


def sound_of(data: bytes) -> Sound:
    """Identify a file by its first bytes behind tags and padding, never by its name.

    Raises Refusal for what is no audio, or none of a known format.
    """
    if not data:
        raise Refusal("audio-empty", "The file is empty (0 bytes).")
    start = after_tags(data)
    sizes = range(start, max(start - 4, -1), -1)  # an MP4's first size looks like padding
    frame = first_frame(data, start if start < len(data) else len(b"ID3"))
    places: list[tuple[int, Kinds]] = [(at, CONTAINERS) for at in (0, *sizes)]
    places += [(start if frame is None else frame, FRAMES)]
    for at, kinds in places:
        for magic, demuxer, media_type in kinds:
            if re.compile(magic, re.DOTALL).match(data, at):
                return Sound(data[at : before_tags(data)], demuxer, media_type)
    if data.startswith(b"ID3"):
        raise Refusal("audio-undecodable", "The file begins with an ID3 tag, and no sound follows.")
    raise Refusal("audio-unsupported", f"The file is not audio of a known format: {TAKEN}.")


def opened(data: bytes, demuxer: str) -> InputContainer:
    """Open a container from memory alone, by one demuxer, with the allowed codecs only.

    Raises Refusal for a file that can't be opened.
    """
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2" if demuxer == "mov" else demuxer,
        "codec_whitelist": ",".join(CODECS),
        "max_streams": "16",
    }
    try:
        return av.open(io.BytesIO(data), "r", demuxer, container_options=options)
    except av.error.FFmpegError as error:
        if demuxer == "mov" and b"moov" not in data:
            message = "The file was cut off: its index (moov), often at the end, is missing."
            raise Refusal("audio-undecodable", message) from None
        message = f"The file begins as {demuxer} does but cannot be opened: {error.strerror}."
        raise Refusal("audio-undecodable", message) from None


def tracks_of(container: InputContainer) -> list[int]:
    """Return the audio tracks that can be read, the default one first; pictures are passed over."""
    tracks = container.streams.audio
    if not tracks:
        raise Refusal("audio-empty", "The file holds no audio track.")
    codecs = [track.codec_context.name if track.codec_context else "unknown" for track in tracks]
    taken = [at for at, codec in enumerate(codecs) if codec in CODECS]
    if not taken:
        raise Refusal("audio-unsupported", f"The codec {codecs[0]} is not taken: {TAKEN}.")
    return sorted(taken, key=lambda at: not tracks[at].disposition & Disposition.default)


def track(container: InputContainer, at: int) -> AudioStream:
    stream = container.streams.audio[at]
    stream.codec_context.thread_count = 1
    return stream


def promised_s(sound: Sound, container: InputContainer, stream: AudioStream) -> float | None:
    """Return the seconds that the header promises; None where FFmpeg only guesses them."""
    if sound.demuxer == "matroska":  # tells the length of its longest track, maybe another
        known = breaks_off(sound.data, sound.demuxer)
        return container.duration / av.time_base if container.duration and known else None
    headed = sound.demuxer in ("flac", "mov") or (
        sound.demuxer == "mp3" and counts_frames(sound.data)
    )
    if not headed or stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def frames_of(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame | None]:
    """Yield every decoded frame in order; None stands for a packet too damaged to decode."""
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
    """Return a frame's samples (channels, frames), with integer formats scaled to [-1, 1)."""
    raw: NDArray[Any] = frame.to_ndarray()
    if frame.format.is_packed:
        raw = raw.reshape(-1, frame.layout.nb_channels).T
    if raw.dtype.kind == "f":
        return raw
    half = np.float32(2.0 ** (8 * raw.dtype.itemsize - 1))
    return np.asarray((raw.astype(np.float32) - half * (raw.dtype.kind == "u")) / half)
