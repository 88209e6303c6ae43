"""Gives each request an id, which its answer tells in `X-Request-Id`, and the log if it fails.

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
    """Identifies requests outside of all that answers, later middleware and error handlers too."""

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
    """Return a request's id; `-` if no IdentifyingApp has taken it, as in a test of a part."""
    return str(scope.get(REQUEST_ID, "-"))
