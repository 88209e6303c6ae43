"""Finds recordings that stand in a row in one file, and what each says of its audio.

Bytes in; nothing here decodes. Ogg and Matroska may be joined end to end. FFmpeg reads all by what
the first one says, or the first alone: the others have another pitch then, or are not there.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from registry.audio.decoding.wrapping import SEGMENT, ebml_size

FIRST_PAGE = 2  # the flag of a logical stream's first page
OPUS_HZ = 48_000  # the rate at which it is decoded, whatever was recorded
TRACKS, TRACK, CODEC, PRIVATE, AUDIO = 0x1654AE6B, 0xAE, 0x86, 0x63A2, 0xE1
ENTERED = (SEGMENT, TRACKS, TRACK)
HERTZ, CHANNELS = 0xB5, 0x9F
IN_FRAMES = ("FLAC", "MPEG/L3")  # codecs of which each frame tells its own channels
VORBIS = re.compile(rb"\x01vorbis.{4}(.)(.{4})", re.DOTALL)
OPUS = re.compile(rb"OpusHead.(.).{8}(.*)", re.DOTALL)
FLAC = re.compile(rb"\x7fFLAC.{4}fLaC.{14}(.{3})", re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """The codec, rate and setup of a recording; recordings of equal kinds may follow each other."""

    codec: str
    rate: int
    setup: bytes = b""


def kinds_in_row(data: bytes, demuxer: str) -> list[Kind]:
    """Return the kind of each recording's first audio track, in order; none for other files."""
    if demuxer == "ogg":
        return [kinds[0] for kinds in ogg_links(data) if kinds]
    if demuxer == "matroska":
        return [kinds[0] for kinds in ebml_segments(data) if kinds]
    return []


def ogg_links(data: bytes) -> Iterator[list[Kind]]:
    """Yield each recording's kinds: first pages of streams read together precede all others."""
    link: list[Kind] = []
    beginning = True
    for is_first, content in ogg_pages(data):
        if is_first and not beginning:
            yield link
            link = []
        beginning = is_first
        if is_first and (kind := ogg_kind(content)):
            link.append(kind)
    yield link


def ogg_pages(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield for each page whether it is the first of its stream, with its content if it is."""
    at = data.find(b"OggS")
    while 0 <= at < len(data) - 27:
        sizes = data[at + 27 : at + 27 + data[at + 26]]
        start = at + 27 + len(sizes)
        is_first = bool(data[at + 5] & FIRST_PAGE)
        yield is_first, data[start : start + sum(sizes)] if is_first else b""
        at = data.find(b"OggS", start + sum(sizes))


def ogg_kind(head: bytes) -> Kind | None:
    """Return what the first page of a stream says of it; None if it is no audio that is taken."""
    if found := VORBIS.match(head):
        return Kind("Vorbis", int.from_bytes(found[2], "little"), found[1])
    if found := OPUS.match(head):
        return Kind("Opus", OPUS_HZ, found[1] + found[2])
    if found := FLAC.match(head):
        return Kind("FLAC", int.from_bytes(found[1], "big") >> 4)
    return None


def ebml_segments(data: bytes) -> list[list[Kind]]:
    """Return for each recording in a Matroska file the kinds of its audio tracks."""
    segments: list[list[dict[int, bytes]]] = []
    for name, start, end in ebml_elements(data, 0, len(data)):
        if name == SEGMENT:
            segments.append([])
        elif name == TRACK and segments:
            segments[-1].append({})
        elif name in (CODEC, PRIVATE, AUDIO) and segments and segments[-1]:
            segments[-1][-1][name] = data[start:end]
    return [[ebml_kind(track) for track in tracks if AUDIO in track] for tracks in segments]


def ebml_elements(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield each element's name, and where its content begins and ends.

    Elements in ENTERED, and those that do not say where they end, are followed by what is in them.
    """
    while at < stop:
        width = 9 - data[at].bit_length()
        name = int.from_bytes(data[at : at + width], "big")
        size, start = ebml_size(data, at + width)
        at = start if name in ENTERED or size is None else start + size
        yield name, start, at


def ebml_kind(track: dict[int, bytes]) -> Kind:
    codec = track.get(CODEC, b"").rstrip(b"\0").decode("ascii", "replace").removeprefix("A_")
    if codec == "OPUS":
        return Kind(codec, OPUS_HZ)
    sound = track[AUDIO]
    about = {name: sound[at:end] for name, at, end in ebml_elements(sound, 0, len(sound))}
    channels = about.get(CHANNELS, b"\1")
    setup = b"" if codec in IN_FRAMES else channels + track.get(PRIVATE, b"")
    return Kind(codec, hertz(about.get(HERTZ)), setup)


def hertz(packed: bytes | None) -> int:
    """Return a sample rate; 8,000 where a track says none (RFC 9559), 0 where it is no number."""
    if packed is None:
        return 8_000
    if len(packed) not in (4, 8):
        return 0
    (found,) = struct.unpack(">f" if len(packed) == 4 else ">d", packed)
    return round(found) if 0 < found < 1e9 else 0
