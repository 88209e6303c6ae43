"""Finds what stands around the sound in a file: tags and padding, and where it breaks off.

Bytes in, offsets and answers out; nothing here decodes. Sizes are read, never trusted.
"""

import re
from collections.abc import Iterator

SEARCHED = 1 << 16  # bytes of rubbish that may stand before the first frame of an MP3 or AAC
CHAINED = 3  # so many frames in a row are no accident
KBIT = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
)
HERTZ = (44_100, 48_000, 32_000)
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675


def after_tags(data: bytes) -> int:
    """Return where the file itself begins: behind ID3v2 and APEv2 tags, zeros and white space."""
    start = 0
    while (found := tag_end(data, start)) > start:
        start = found
    return start


def tag_end(data: bytes, start: int) -> int:
    """Return the end of the tag or padding at `start`; `start` where there is neither."""
    head = data[start : start + 32]
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80 and max(head[3:5]) < 0xFF:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return start + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return start + 32 + int.from_bytes(head[12:16], "little")
    padding = re.compile(rb"(\xef\xbb\xbf)?[\0\s]*").match(data, start)
    return padding.end() if padding else start


def before_tags(data: bytes) -> int:
    """Return where the file itself ends: before ID3v1 and APEv2 tags."""
    end = len(data)
    if data[end - 128 : end - 125] == b"TAG":
        end -= 128
    if data[max(end - 32, 0) : end][:8] == b"APETAGEX":
        end -= int.from_bytes(data[end - 20 : end - 16], "little") + 32 * (data[end - 9] >> 7)
    return max(end, 0)


def first_frame(data: bytes, start: int) -> int | None:
    """Return where frames of MP3 or AAC begin, with rubbish before them or none, if anywhere."""
    for found in re.compile(rb"\xff[\xe0-\xff]").finditer(data, start, start + SEARCHED):
        ends = frame_ends(data, found.start())
        if sum(1 for _ in zip(range(CHAINED), ends, strict=False)) == CHAINED:
            return found.start()
    return None


def frame_ends(data: bytes, start: int) -> Iterator[int]:
    """Yield the end of each frame of MP3 or AAC in a row; the last may exceed the file."""
    while size := frame_bytes(data[start : start + 6]):
        start += size
        yield start


def frame_bytes(head: bytes) -> int:
    """Return the size of a frame of MP3, or of AAC in ADTS, by its header; 0 if it is none."""
    if len(head) < 6 or head[0] != 0xFF:
        return 0
    if head[1] & 0xF6 == 0xF0:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    rate, hertz = head[2] >> 4, head[2] >> 2 & 3
    if head[1] < 0xE0 or version == 1 or layer != 1 or hertz == 3 or not 0 < rate < 15:
        return 0
    one = version == 3
    per_s = HERTZ[hertz] >> (0 if one else 1 if version == 2 else 2)
    return (144 if one else 72) * KBIT[one][rate - 1] * 1000 // per_s + (head[2] >> 1 & 1)


def breaks_off(data: bytes, demuxer: str) -> bool:
    """Tell whether the last page, block or frame is longer than what is left of the file.

    A recording whose sizes were never written is whole, as long as its last block is.
    """
    if demuxer == "ogg":
        return ogg_breaks_off(data)
    if demuxer == "matroska":
        return ebml_breaks_off(data)
    if demuxer in ("mp3", "aac"):
        return frames_break_off(data)
    return False


def ogg_breaks_off(data: bytes) -> bool:
    page = data.rfind(b"OggS")
    head = data[page : page + 27]
    if len(head) < 27:
        return True
    sizes = data[page + 27 : page + 27 + head[26]]
    return len(sizes) < head[26] or page + 27 + head[26] + sum(sizes) > len(data)


def ebml_breaks_off(data: bytes) -> bool:
    """Walk the elements to the end; only a Segment and its Clusters may be of unknown size."""
    at = 0
    while at < len(data):
        width = 9 - data[at].bit_length()
        name = int.from_bytes(data[at : at + width], "big")
        size, at = ebml_size(data, at + width)
        if size is None and name not in (SEGMENT, CLUSTER):
            return at > len(data)
        at += size or 0
    return at > len(data)


def ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Return a size, None if it is unknown, and where the element's content begins."""
    if at >= len(data):
        return 0, at + 1
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def frames_break_off(data: bytes) -> bool:
    last = max(frame_ends(data, 0), default=0)
    return last > len(data)


def counts_frames(data: bytes) -> bool:
    """Tell whether an MP3's first frame says how many follow (Xing, or Info at a constant rate)."""
    found = re.search(rb"(Xing|Info)...[\1\3\5\7\11\13\15\17]", data[:256], re.DOTALL)
    return found is not None
