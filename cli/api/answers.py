"""Checks what a registry answers: its media type, its size and its shape.

Another server may stand at the address, or a registry of another time, and answer anything.
"""

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import click
import httpx

from cli.api import events
from registry.audio.formats import CLIP_ENDINGS, AudioFormat

MIB = 1 << 20
JSON_LIMIT = 32 * MIB  # a page of 200 voices with all that they may hold is a third of it
CLIP_LIMIT = 64 * MIB
SPEECH_LIMIT = 1024 * MIB  # six hours
BODY_S = 120.0  # for all of an answer that is read whole, once it has begun
DEEPEST = 20
MOST_VALUES = 1_000_000  # of one answer, each of which takes some 60 bytes

_TEXT_OR_VALUE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[{,]', re.DOTALL)
Shape = type | re.Pattern[str] | tuple["Shape", ...] | list["Shape"] | dict[Any, "Shape"] | None
VOICE: Shape = {
    "id": re.compile(r"voice_[0-9a-f]{32}"),
    "name": str,
    "description": str,
    "labels": {str: str},
    "defaults": dict,
    "row_version": int,
    "modes": [str],
    "clip": {"duration_s": float},
    "warnings": [str],
}
PAGE: Shape = {"data": [VOICE], "damaged": [str], "next": (str, None)}
KEY: dict[Any, Shape] = {
    "id": str,
    "name": str,
    "scopes": [str],
    "voices": ([str], None),
    "expires_at": (str, None),
    "last_used_at": (str, None),
    "revoked_at": (str, None),
}
NEW_KEY: Shape = {**KEY, "key": str}
KEYS: Shape = {"data": [KEY]}
ALIAS: Shape = {"alias": str, "voice": str, "voice_id": str}
ALIASES: Shape = {"data": [ALIAS]}
PROBLEM: Shape = {"detail": str, "code": str}
HEALTH: Shape = {"status": str}


class Unexpected(click.ClickException):
    """Raised for an answer that no registry gives."""

    def __init__(self, answer: httpx.Response, reason: str) -> None:
        place = answer.request.url.copy_with(query=None, userinfo=b"")
        super().__init__(f"{place} answers as no voice registry does: {reason}.")


def media_type(answer: httpx.Response) -> str:
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()


def whole(answer: httpx.Response, limit: int) -> bytes:
    """Return the body, which must tell its end: what is cut off must not look whole."""
    refuse_unreadable(answer)
    until_s, parts, size = time.monotonic() + BODY_S, list[bytes](), 0
    for part in answer.iter_raw():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise Unexpected(answer, f"it sends more than {limit // MIB} MiB")
        if time.monotonic() > until_s:
            raise Unexpected(answer, f"after {BODY_S:.0f} s it has not sent all")
    return b"".join(parts)


def refuse_unreadable(answer: httpx.Response) -> None:
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Unexpected(answer, f"it sends {encoding!r}, which was not asked for")
    told = {"content-length", "transfer-encoding"} & answer.headers.keys()
    if not told and answer.status_code != 204:
        raise Unexpected(answer, "it does not tell where its answer ends")


def parsed_json(answer: httpx.Response, shape: Shape) -> Any:
    """Parse JSON of this shape; raise Unexpected for anything else."""
    if media_type(answer) not in ("application/json", "application/problem+json"):
        sent = media_type(answer) or "something of no type"
        raise Unexpected(answer, f"it sends {sent}, not JSON")
    if values_in(answer.content) > MOST_VALUES:
        raise Unexpected(answer, f"it sends more than {MOST_VALUES:,} values")
    try:
        found = json.loads(answer.content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Unexpected(answer, "what it sends is not JSON") from error
    if _is_deeper(found, DEEPEST):
        raise Unexpected(answer, "its JSON is too deep")
    if wrong := misfit(found, shape):
        raise Unexpected(answer, f"{wrong} of another shape, or missing")
    return found


def values_in(content: bytes) -> int:
    """Count the values of JSON before it is parsed, for they take far more memory than their text.

    What stands in a text is not counted, unless there are few values anyway; what is more than one
    too many is not counted either.
    """
    most = sum(content.count(before) for before in (b"[", b"{", b","))
    if most <= MOST_VALUES:
        return most
    found = (True for one in _TEXT_OR_VALUE.finditer(content) if content[one.start()] != ord('"'))
    return sum(islice(found, MOST_VALUES + 1))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in inner)


def misfit(value: object, shape: Shape, place: str = "its JSON is") -> str | None:
    """Name the part that has another shape; None if all fits.

    A shape is a type, a pattern of a text, a tuple of those that may be, [one for all of a list],
    {str: one for all values}, or the keys that a mapping must have, among others.
    """
    match shape, value:
        case tuple(), _:
            return None if any(misfit(value, one) is None for one in shape) else place
        case list(), list():
            parts = [(place, part, shape[0]) for part in value]
        case dict(), dict():
            every = shape.get(str)
            keys = value if every else shape
            parts = [(f"{key!r} is", value.get(key, _ABSENT), every or shape[key]) for key in keys]
        case ((list() | dict()), _):
            return place
        case _:
            return None if _is_a(value, shape) else place
    return next(filter(None, (misfit(part, one, name) for name, part, one in parts)), None)


_ABSENT = object()


def _is_a(value: object, kind: Shape) -> bool:
    if kind is None:
        return value is None
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and kind.fullmatch(value) is not None
    if kind is float:
        return isinstance(value, int | float) and -1e9 < value < 1e9
    return type(value) is kind


@dataclass(frozen=True)
class SpeechHeaders:
    """The headers of a speech."""

    voice_id: str | None  # None for a clip that is not enrolled
    seed: int
    mode: str
    cache: str
    seconds: float | None  # absent from a stream
    rate: int = 0  # Hz, of PCM
    loudness: float | None = None  # LUFS, of a whole speech if one was asked for
    retries: int = 0  # how often it could not be heard
    fallback: str = "none"  # the mode that nobody asked for
    warnings: list[str] = field(default_factory=list)  # those of a clip that is not enrolled

    @property
    def made_again(self) -> str:
        """A clause for people on a speech that could not be heard at first; empty if it could."""
        if not self.retries:
            return ""
        times = "once" if self.retries == 1 else f"{self.retries} times"
        how = "" if self.fallback == "none" else f", in mode {self.fallback} in the end"
        return f", made again {times} because nothing could be heard{how}"


def spoken(answer: httpx.Response, format: AudioFormat) -> SpeechHeaders:
    """Read the headers of a speech; raise Unexpected unless it is one in this format."""
    refuse_unreadable(answer)
    headers = answer.headers
    in_events = media_type(answer) == events.MEDIA_TYPE
    sent = str(headers.get("X-Audio-Type" if in_events else "content-type", ""))
    kind = sent.partition(";")[0].strip().lower()
    if kind != format.media_type:
        found = kind or "something of no type"
        raise Unexpected(answer, f"it sends {found}, not {format.media_type}")
    rate = re.search(r";\s*rate=([1-9]\d{3,5})\s*(?:;|$)", sent, re.ASCII)
    if format.name == "pcm" and rate is None:
        raise Unexpected(answer, "it sends samples of an unknown rate")
    length, loudness = headers.get("X-Audio-Seconds"), headers.get("X-Loudness", "running")
    try:
        return SpeechHeaders(
            voice_id=headers.get("X-Voice-Id"),
            seed=int(headers["X-Seed"]),
            mode=headers["X-Mode"],
            cache=headers["X-Prompt-Cache"],
            seconds=None if length is None else _finite(length),
            rate=int(rate[1]) if rate else 0,
            loudness=None if loudness == "running" else _finite(loudness),
            retries=int(headers.get("X-Retries", "0")),
            fallback=headers.get("X-Fallback", "none"),
            warnings=_sentences(headers.get("X-Warnings", "[]")),
        )
    except (KeyError, ValueError, RecursionError) as error:
        raise Unexpected(answer, "its headers do not tell of a speech") from error


def _finite(header: str) -> float:
    found = float(header)
    if not math.isfinite(found):
        raise ValueError(f"{header[:80]!r} is no number")
    return found


def _sentences(header: str) -> list[str]:
    found = json.loads(header)
    if not (isinstance(found, list) and all(isinstance(each, str) for each in found)):
        raise ValueError(f"{header[:80]!r} is no list of sentences")
    return found


def sound(answer: httpx.Response) -> Iterator[bytes]:
    """Yield the body as it comes, or the audio that its events carry."""
    size, body = 0, answer.iter_raw()
    for part in events.audio_of(body) if media_type(answer) == events.MEDIA_TYPE else body:
        size += len(part)
        if size > SPEECH_LIMIT:
            raise Unexpected(answer, f"it speaks more than {SPEECH_LIMIT // MIB} MiB")
        yield part
    if size == 0:
        raise Unexpected(answer, "it sends no sound")


def clip(answer: httpx.Response) -> tuple[bytes, str]:
    """Return a recording and the ending of its kind; refuse a page that calls itself one."""
    kind = media_type(answer)
    if not kind.startswith("audio/"):
        raise Unexpected(answer, f"it sends {kind or 'something of no type'}, not a clip")
    if answer.content.lstrip()[:1] in (b"", b"<", b"{"):
        raise Unexpected(answer, f"what it calls {kind} is none")
    return answer.content, CLIP_ENDINGS.get(kind, "bin")
