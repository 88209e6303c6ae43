"""How long a body may take to arrive, and how many requests are answered at once.

Who sends no request at all is the HTTP server's to leave; here every refusal is a problem document.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import BodyTooSlow, Overloaded, ServerBusy
from registry.problems import from_error
from registry.requests import body_limit

Ask = Callable[[Scope], None]  # raises Overloaded

BYTES_PER_S = 50 * 1024
ALWAYS_ANSWERED = "/healthz"


class BodyDeadline:
    """Refuses a body that takes longer than `grace_s` and its size at BYTES_PER_S."""

    def __init__(self, app: ASGIApp, grace_s: float, upload_limit: int) -> None:
        self._app = app
        self._grace_s = grace_s
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        allowed_s = self._grace_s + self._size(Headers(scope=scope)) / BYTES_PER_S
        ends_s: float | None = asyncio.get_running_loop().time() + allowed_s

        async def in_time() -> Message:
            nonlocal ends_s
            try:
                async with asyncio.timeout_at(ends_s):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(_too_slow(allowed_s)) from None
            if not message.get("more_body"):
                ends_s = None  # who asks again waits for the client to leave
            return message

        await self._app(scope, in_time, send)

    def _size(self, headers: Headers) -> int:
        """What is announced, if it would be taken; else the most that would be."""
        most = body_limit(headers, self._upload_limit)
        announced = headers.get("content-length", "")
        return min(int(announced), most) if announced.isdecimal() else most


class Gate:
    """Asks about a request before anything of it is read or looked up; refuses if it is Overloaded.

    `asks` has the questions by method and path.
    """

    def __init__(self, app: ASGIApp, asks: Mapping[tuple[str, str], Sequence[Ask]]) -> None:
        self._app = app
        self._asks = asks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                for ask in self._asks.get((scope["method"], scope["path"]), ()):
                    ask(scope)
            except Overloaded as refused:
                return await from_error(refused)(scope, receive, send)
        await self._app(scope, receive, send)


class RequestLimit:
    """Refuses requests while `most` others are being answered, but never to say it is alive."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._answering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == ALWAYS_ANSWERED:
            return await self._app(scope, receive, send)
        if self._answering >= self._most:
            return await from_error(ServerBusy(_busy(self._most), 1))(scope, receive, send)
        self._answering += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._answering -= 1


def _too_slow(allowed_s: float) -> str:
    return (
        f"The body was not here after {allowed_s:.0f} s, which is the most that one of its size "
        "may take. Nothing was done; send it again over a faster connection."
    )


def _busy(most: int) -> str:
    return f"This server already answers {most} requests, the most it does at once. Ask again."
