"""Sends a stored file over HTTP: whole or in ranges, cached by its hash (RFC 9110, 13 and 14).

A player on iOS asks for two bytes first, and plays nothing from a server that sends more. A file is
sent in parts as its reader takes them, so slow readers hold no memory.
"""

import logging
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from registry.api.etags import Tags
from registry.api.problems import request_line
from registry.audio.formats import CLIP_ENDINGS
from registry.errors import EditConflict, RangeUnsatisfiable, RegistryError
from registry.storage.blobs import StoredContent

log = logging.getLogger("registry")

BYTES = "application/octet-stream"
MAX_RANGES = 16
PARTIAL = HTTPStatus.PARTIAL_CONTENT
_RANGES = re.compile(r"bytes\s*=(.*)", re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,18})-(\d{0,18})|-(\d{1,18})", re.ASCII)

ByteRange = tuple[int, int]  # the first byte, and the one after the last


@dataclass(frozen=True)
class StoredFile:
    """A file to send; `find`, which looks at its bytes, is called only if they are wanted."""

    sha256: str
    media_type: str
    name: str
    find: Callable[[], StoredContent]

    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.sha256}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",  # may be kept, but is asked about each time
            "Content-Disposition": disposition(self.name, inline=self.media_type in CLIP_ENDINGS),
            "X-Content-Type-Options": "nosniff",
        }


def clip_file(
    name: str, sha256: str, media_type: str, find: Callable[[], StoredContent]
) -> StoredFile:
    """Describe a clip; a type that uploads can't have came by a backup, and means plain bytes."""
    known = media_type if media_type in CLIP_ENDINGS else BYTES
    return StoredFile(sha256, known, f"{name}.{CLIP_ENDINGS.get(known, 'bin')}", find)


def prompt_file(name: str, sha256: str, find: Callable[[], StoredContent]) -> StoredFile:
    return StoredFile(sha256, BYTES, f"{name}.safetensors", find)


def answer(request: Request, file: StoredFile) -> Response:
    """Answer with 200, 206 or 304. Raises EditConflict, RangeUnsatisfiable."""
    headers = file.headers()
    tag = headers["ETag"]
    if not _asks_for(request, "if-match", Tags((), any=True)).has(tag):
        raise EditConflict("The file here is not the one that If-Match names.")
    if _asks_for(request, "if-none-match", Tags(())).has_like(tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    content = file.find()
    asked = ", ".join(request.headers.getlist("range"))
    if not _asks_for(request, "if-range", Tags((), any=True)).has(tag):
        asked = ""
    spans = spans_of(asked, content.size)
    if len(spans) > 1:
        return _multipart(content, spans, file.media_type, headers)
    if not spans:
        return _sent([content.parts(0, content.size)], content.size, headers, file.media_type)
    [(start, end)] = spans
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    return _sent([content.parts(start, end)], end - start, headers, file.media_type, PARTIAL)


def _asks_for(request: Request, header: str, otherwise: Tags) -> Tags:
    sent = request.headers.getlist(header)
    return Tags.of(", ".join(sent)) if sent else otherwise


def spans_of(asked: str, size: int) -> list[ByteRange]:
    """Return which of `size` bytes a Range header asks for; none if it is to be ignored.

    It is ignored when it is no range of bytes at all, or asks for more than there is. Raises
    RangeUnsatisfiable where none of its ranges is within the file.
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


def _span(match: re.Match[str], size: int) -> ByteRange:
    if match[3]:
        return max(0, size - int(match[3])), size
    return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size


def _multipart(
    content: StoredContent, spans: list[ByteRange], media_type: str, headers: dict[str, str]
) -> Response:
    boundary, size, body = secrets.token_hex(16), 0, list[Iterator[bytes]]()
    for start, end in spans:
        head = (
            f"--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{content.size}\r\n\r\n"
        ).encode()
        body += [iter([head]), content.parts(start, end), iter([b"\r\n"])]
        size += len(head) + end - start + 2
    last = f"--{boundary}--\r\n".encode()
    kind = f"multipart/byteranges; boundary={boundary}"
    return _sent([*body, iter([last])], size + len(last), headers, kind, PARTIAL)


def _sent(
    body: list[Iterator[bytes]], size: int, headers: dict[str, str], kind: str, status: int = 200
) -> Response:
    """Answer with a body of `size` bytes, which are read as the client takes them."""
    headers = headers | {"Content-Length": str(size)}
    return FileParts(chain.from_iterable(body), status, headers, kind)


class FileParts(StreamingResponse):
    """Streams a file; one that can't be read to its end cuts the connection, and is logged."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (EOFError, RegistryError) as error:
            log.warning("%s was cut off: %s", request_line(Request(scope)), error)


def disposition(name: str, inline: bool) -> str:
    """Write a Content-Disposition: the name in ASCII for old readers, and as it is (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{"inline" if inline else "attachment"}; filename="{plain}"{exact}'
