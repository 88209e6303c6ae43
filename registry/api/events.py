"""A speech as server-sent events: each part of the audio in a line of JSON.

What stands in front of a server may hold other streams back; events come through in real time. All
parts together are one file of the format that was asked for. Whoever has not seen the last event,
`speech.audio.done`, has not heard all. The names are OpenAI's.
"""

import json
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from registry.errors import RegistryError

MEDIA_TYPE = "text/event-stream"
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def audio_events(
    parts: AsyncGenerator[bytes, None],
    summary: Callable[[], Mapping[str, object]],
    failure: Callable[[RegistryError], Mapping[str, object]],
) -> AsyncGenerator[bytes, None]:
    """Yield the audio as events, and last the `summary`, which is called then.

    A RegistryError is sent as an event with its `failure`, then raised: that cuts the connection.
    """
    async with aclosing(parts):
        try:
            async for part in parts:
                yield delta(part)
        except RegistryError as error:
            yield event("error", error=failure(error))
            raise
    yield event("speech.audio.done", **summary())


def delta(part: bytes) -> bytes:
    return event("speech.audio.delta", audio=b64encode(part).decode())


def accepted(header: str) -> bool:
    """Tell whether an Accept header names events; not to exclude them is not enough."""
    kinds = (kind.split(";") for kind in header.lower().split(","))
    return any(
        name.strip() == MEDIA_TYPE and not any(_is_zero(part) for part in parameters)
        for name, *parameters in kinds
    )


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.strip().partition("=")
    return name == "q" and value.strip("0. ") == ""


def event(kind: str, **fields: object) -> bytes:
    return f"data: {json.dumps({'type': kind, **fields})}\n\n".encode()
