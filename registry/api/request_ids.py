"""Each request has an id, which its answer tells in `X-Request-Id`, and the log where it fails.

One that comes with the request is kept, if it is such that a log can show it.
"""

import re
import secrets

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

HEADER = "X-Request-Id"
REQUEST_ID = "voices.request_id"  # in a scope
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class IdentifyingApp(FastAPI):
    """Outside of all that answers: of middleware that is added later, and of its error handlers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        found = scope[REQUEST_ID] = _kept(Headers(scope=scope)) or _new()

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = found
            await send(message)

        await super().__call__(scope, receive, identified)


def _kept(headers: Headers) -> str | None:
    sent = headers.getlist(HEADER)
    return sent[0] if len(sent) == 1 and WELL_FORMED.fullmatch(sent[0]) else None


def _new() -> str:
    return f"req_{secrets.token_hex(16)}"


def request_id(scope: Scope) -> str:
    """Of a request that no IdentifyingApp has taken, as in a test of a part, none."""
    return str(scope.get(REQUEST_ID, "-"))
