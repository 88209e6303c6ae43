"""Measures the pace of requests and answers: a client that lags behind makes room for others.

A body lags by the time that the server has waited for it, less what its bytes take at BYTES_PER_S.
What came sooner is no credit: who sends all but the end must not keep a place for minutes. An
answer lags while its reader takes nothing of it; how fast it is taken is the reader's own matter,
for speech may be played while it comes.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import BodyTooSlow

BYTES_PER_S = 50 * 1024
SECURE_S = 10.0  # a client that lags less keeps its place, whoever else wants it
UNREAD_S = 15.0  # for readers: a connection sees only each 48 KiB that were taken
PART_BYTES = 64 * 1024  # bytes of an answer that are given to the server at once
KEY = "voices.exchange"
ABORT = "voices.abort"  # among the extensions of a scope: the server's way to close a connection


class Exchange:
    """One request and its answer, and how far its client lags behind."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        grace_s: float,
        abort: Callable[[], None] | None = None,
    ) -> None:
        """Measure what goes through `receive` and `send`; without `abort` no answer is ended."""
        self._receive, self._send = receive, send
        self._grace_s = grace_s
        self._abort = abort
        self._lag_s = 0.0  # the body's lag when it was last waited for
        self._waiting: asyncio.Timeout | None = None  # set while the body is waited for
        self._since_s = 0.0
        self._unread_since_s: float | None = None
        self._whole = False
        self._in_the_way = False

    async def receive(self) -> Message:
        """Return the next part of the body. Raises BodyTooSlow."""
        if self._whole:  # who asks again waits for the client to leave
            return await self._receive()
        self._since_s = _now_s()
        try:
            async with asyncio.timeout(self._grace_s - self._lag_s) as self._waiting:
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(self._why()) from None
        finally:
            self._lag_s, self._waiting = self._body_lag_s(), None
        self._lag_s = max(0.0, self._lag_s - len(message.get("body", b"")) / BYTES_PER_S)
        self._whole = not message.get("more_body")
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, once the reader has taken enough of those before.

        It goes in small parts, for the server takes each as a whole: an answer in one piece would
        be done with, and its place free, while all of it lies in memory.
        """
        for part in _parts(message):
            self._unread_since_s = _now_s()
            try:
                await self._send(part)
            finally:
                self._unread_since_s = None

    def lag_s(self) -> float:
        """Return how many seconds the client is behind now."""
        if self._unread_since_s is not None:
            return _now_s() - self._unread_since_s
        return self._body_lag_s()

    def may_be_ended(self) -> bool:
        """Tell whether it lags enough to be ended; never while the server is at work on it."""
        if self._in_the_way:
            return False
        if self._unread_since_s is not None:
            return self._abort is not None and self.lag_s() > UNREAD_S
        waiting = self._waiting is not None and not self._waiting.expired()
        return waiting and self.lag_s() > SECURE_S

    def end(self) -> None:
        """End it, for another needs its place."""
        self._in_the_way = True
        if self._unread_since_s is not None and self._abort is not None:
            self._abort()
        elif self._waiting is not None:
            self._waiting.reschedule(_now_s())

    def _body_lag_s(self) -> float:
        return self._lag_s + (0.0 if self._waiting is None else _now_s() - self._since_s)

    def _why(self) -> str:
        reason = "another needed its place" if self._in_the_way else "no body may be longer"
        return (
            f"The body is {self.lag_s():.0f} s behind one that comes at {BYTES_PER_S // 1024} "
            f"KiB/s, and {reason}. Nothing was done; send it again over a faster connection."
        )


class Pace:
    """Makes each request an Exchange, whose body ends once it lags by `grace_s`."""

    def __init__(self, app: ASGIApp, grace_s: float) -> None:
        self._app = app
        self._grace_s = grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            abort = scope.get("extensions", {}).get(ABORT)
            exchange = scope[KEY] = Exchange(receive, send, self._grace_s, abort)
            receive, send = exchange.receive, exchange.send
        await self._app(scope, receive, send)


def exchange_of(scope: Scope) -> Exchange:
    return cast(Exchange, scope[KEY])


def end_slowest(exchanges: Iterable[Exchange]) -> Exchange | None:
    """End the exchange that lags most, if any may be ended, and return it."""
    slow = max((e for e in exchanges if e.may_be_ended()), key=Exchange.lag_s, default=None)
    if slow is not None:
        slow.end()
    return slow


def _parts(message: Message) -> Iterator[Message]:
    body = message.get("body", b"")
    if len(body) <= PART_BYTES:
        return (yield message)
    for start in range(0, len(body), PART_BYTES):
        more = message.get("more_body", False) or start + PART_BYTES < len(body)
        yield {**message, "body": body[start : start + PART_BYTES], "more_body": more}


def _now_s() -> float:
    return asyncio.get_running_loop().time()
