"""How many requests are answered at once, and what is asked before one is read.

Who sends no request at all is the HTTP server's to leave; here every refusal is a problem document.
"""

from collections.abc import Callable, Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from registry.api.pace import Exchange, end_slowest, exchange_of
from registry.api.problems import from_error
from registry.errors import Overloaded, ServerBusy

Ask = Callable[[Scope], None]  # raises Overloaded

ALWAYS_ANSWERED = "/healthz"


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
    """Refuses requests while `most` others are being answered, but never to say it is alive.

    One whose body lags behind, or whose answer is not read, makes room for the next.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._answering: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == ALWAYS_ANSWERED:
            return await self._app(scope, receive, send)
        if not self._has_room():
            return await from_error(ServerBusy(_busy(self._most), 1))(scope, receive, send)
        exchange = exchange_of(scope)
        self._answering.add(exchange)
        try:
            await self._app(scope, receive, send)
        finally:
            self._answering.discard(exchange)

    def _has_room(self) -> bool:
        if len(self._answering) < self._most:
            return True
        slowest = end_slowest(self._answering)
        if slowest is not None:
            self._answering.discard(slowest)
        return slowest is not None


def _busy(most: int) -> str:
    return f"This server already answers {most} requests, the most it does at once. Ask again."
