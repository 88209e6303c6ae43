"""Bodies on their way in: each has its pace, and one that lags behind makes room for others.

A body lags by the time that the server has waited for it, less what its bytes take at BYTES_PER_S.
What came sooner is no credit: who sends all but the end must not keep a place for minutes.
"""

import asyncio
from collections.abc import Iterable
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import BodyTooSlow

BYTES_PER_S = 50 * 1024
SECURE_S = 10.0  # a body that lags less keeps its place, whoever else wants it
KEY = "voices.body"


class Body:
    def __init__(self, receive: Receive, grace_s: float) -> None:
        self._receive = receive
        self._grace_s = grace_s
        self._lag_s = 0.0  # when it was last waited for
        self._waiting: asyncio.Timeout | None = None
        self._since_s = 0.0
        self._whole = False
        self._in_the_way = False

    async def receive(self) -> Message:
        """The next part. Raises BodyTooSlow."""
        if self._whole:  # who asks again waits for the client to leave
            return await self._receive()
        self._since_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._grace_s - self._lag_s) as self._waiting:
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(self._why()) from None
        finally:
            self._lag_s, self._waiting = self.lag_s(), None
        self._lag_s = max(0.0, self._lag_s - len(message.get("body", b"")) / BYTES_PER_S)
        self._whole = not message.get("more_body")
        return message

    def lag_s(self) -> float:
        if self._waiting is None:
            return self._lag_s
        return self._lag_s + asyncio.get_running_loop().time() - self._since_s

    def may_be_ended(self) -> bool:
        """Never while the server itself is at work on it."""
        return (
            self._waiting is not None
            and not self._waiting.expired()
            and not self._in_the_way
            and self.lag_s() > SECURE_S
        )

    def end(self) -> None:
        assert self._waiting is not None
        self._in_the_way = True
        self._waiting.reschedule(asyncio.get_running_loop().time())

    def _why(self) -> str:
        reason = "another needed its place" if self._in_the_way else "no body may be longer"
        return (
            f"The body is {self.lag_s():.0f} s behind one that comes at {BYTES_PER_S // 1024} "
            f"KiB/s, and {reason}. Nothing was done; send it again over a faster connection."
        )


class BodyPace:
    """Gives each request its Body, which ends once it lags by `grace_s`."""

    def __init__(self, app: ASGIApp, grace_s: float) -> None:
        self._app = app
        self._grace_s = grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = scope[KEY] = Body(receive, self._grace_s)
            receive = body.receive
        await self._app(scope, receive, send)


def body_of(scope: Scope) -> Body:
    return cast(Body, scope[KEY])


def end_slowest(bodies: Iterable[Body]) -> Body | None:
    """The one that lagged most, unless all may stay."""
    slow = max((b for b in bodies if b.may_be_ended()), key=Body.lag_s, default=None)
    if slow is not None:
        slow.end()
    return slow
