"""Reads audio from server-sent events: a stream of those comes through Modal in real time."""

import json
from base64 import b64decode
from collections.abc import Iterator

import click

MEDIA_TYPE = "text/event-stream"
LINE_LIMIT = 4 << 20  # bytes of one event
BROKEN = "The speech broke off before its end."


def audio_of(body: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the audio; raise ClickException if the body ends too early, or an event is an error."""
    for line in lines_of(body):
        if line.startswith(b"data:"):
            part = part_of(line.removeprefix(b"data:"))
            if part is None:
                return
            yield part
    raise click.ClickException(BROKEN)


def lines_of(body: Iterator[bytes]) -> Iterator[bytes]:
    kept = b""
    for part in body:
        *lines, kept = (kept + part).split(b"\n")
        yield from lines
        if len(kept) > LINE_LIMIT:
            raise click.ClickException(f"{BROKEN} An event of it has no end.")
    yield kept


def part_of(data: bytes) -> bytes | None:
    """Return an event's audio: empty for an unknown kind of event, None for the last one."""
    try:
        event = json.loads(data)
        kind = event["type"]
        part = b64decode(event["audio"], validate=True) if kind == "speech.audio.delta" else b""
        reason = str(event["error"]["message"]) if kind == "error" else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise click.ClickException(f"{BROKEN} What came is no event of a speech.") from error
    if reason is not None:
        raise click.ClickException(f"{BROKEN} {reason}")
    return None if kind == "speech.audio.done" else part
