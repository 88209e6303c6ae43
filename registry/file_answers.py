"""A stored file over HTTP: whole or in ranges, asked for again by its hash (RFC 9110, 13 and 14).

A player on iOS asks for two bytes first, and plays nothing from a server that sends more.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request, Response

from registry.errors import EditConflict, RangeUnsatisfiable
from registry.etags import Tags

ENDINGS = {
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/webm": "webm",
    "audio/matroska": "mka",
}
BYTES = "application/octet-stream"
MAX_RANGES = 16
_RANGES = re.compile(r"bytes\s*=(.*)", re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,18})-(\d{0,18})|-(\d{1,18})", re.ASCII)

Span = tuple[int, int]  # the first byte, and the one after the last


@dataclass(frozen=True)
class StoredFile:
    """`read` gives the bytes, checked; it is called once they are known to be wanted."""

    sha256: str
    media_type: str
    name: str
    read: Callable[[], bytes]

    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.sha256}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",  # may be kept, but is asked about each time
            "Content-Disposition": disposition(self.name, inline=self.media_type in ENDINGS),
            "X-Content-Type-Options": "nosniff",
        }


def clip_file(name: str, sha256: str, media_type: str, read: Callable[[], bytes]) -> StoredFile:
    """A type that no upload has here came with somebody's backup: its bytes are only bytes."""
    known = media_type if media_type in ENDINGS else BYTES
    return StoredFile(sha256, known, f"{name}.{ENDINGS.get(known, 'bin')}", read)


def prompt_file(name: str, sha256: str, read: Callable[[], bytes]) -> StoredFile:
    return StoredFile(sha256, BYTES, f"{name}.safetensors", read)


def answer(request: Request, file: StoredFile) -> Response:
    """200, 206 or 304. Raises EditConflict, RangeUnsatisfiable."""
    headers = file.headers()
    tag = headers["ETag"]
    if not _asks_for(request, "if-match", Tags((), any=True)).has(tag):
        raise EditConflict("The file here is not the one that If-Match names.")
    if _asks_for(request, "if-none-match", Tags(())).has_like(tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    content = file.read()
    asked = request.headers.get("range", "")
    if not _asks_for(request, "if-range", Tags((), any=True)).has(tag):
        asked = ""
    spans = spans_of(asked, len(content))
    if not spans:
        return Response(content, media_type=file.media_type, headers=headers)
    return _partial(content, spans, file.media_type, headers)


def _asks_for(request: Request, header: str, otherwise: Tags) -> Tags:
    sent = request.headers.getlist(header)
    return Tags.of(", ".join(sent)) if sent else otherwise


def spans_of(asked: str, size: int) -> list[Span]:
    """What of `size` bytes a Range header asks for; none if it is to be ignored.

    It is when it is no range of bytes at all, or asks for more than there is.
    """
    ranges = _RANGES.fullmatch(asked.strip())
    found = [_RANGE.fullmatch(r.strip()) for r in ranges[1].split(",")] if ranges else []
    if not found or len(found) > MAX_RANGES:
        return []
    spans = []
    for match in found:
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            return []
        spans.append(_span(match, size))
    spans = [(start, end) for start, end in spans if start < end]
    if not spans:
        raise RangeUnsatisfiable(size)
    return spans if sum(end - start for start, end in spans) <= size else []


def _span(match: re.Match[str], size: int) -> Span:
    if match[3]:
        return max(0, size - int(match[3])), size
    return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size


def _partial(
    content: bytes, spans: list[Span], media_type: str, headers: dict[str, str]
) -> Response:
    size, status = len(content), HTTPStatus.PARTIAL_CONTENT
    if len(spans) == 1:
        [(start, end)] = spans
        headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return Response(content[start:end], status, headers, media_type)
    boundary = secrets.token_hex(16)
    parts = [
        f"--{boundary}\r\nContent-Type: {media_type}\r\n"
        f"Content-Range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode()
        + content[start:end]
        + b"\r\n"
        for start, end in spans
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return Response(body, status, headers, f"multipart/byteranges; boundary={boundary}")


def disposition(name: str, inline: bool) -> str:
    """With the name in ASCII for those who read no more, and as it is (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{"inline" if inline else "attachment"}; filename="{plain}"{exact}'
