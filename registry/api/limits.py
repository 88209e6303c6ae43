"""Limits how many requests are answered at once, and refuses some before they are read.

Who sends no request at all is the HTTP server's to leave; here every refusal is an answer.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from registry.api.pace import Exchange, end_slowest, exchange_of
from registry.api.problems import from_error
from registry.api.uploads import client_of
from registry.contract import Status
from registry.errors import Overloaded, ServerBusy

Ask = Callable[[Scope], None]  # raises Overloaded

ALWAYS_ANSWERED = "/healthz"
RETRY_S = 2  # by then one of the speeches under way is done, as a rule


class Gate:
    """Refuses a request by its head with 503 if any of its checks raises Overloaded.

    `asks` has the checks by method and path.
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
                return await from_error(refused, scope)(scope, receive, send)
        await self._app(scope, receive, send)


class SpeechShares:
    """Keeps the last eighth of the speech queue for clients other than the busiest.

    `status` tells how long the queue is; where it does not, as the queue is not this process's, no
    one is refused. `paths` are those whose POST asks for speech; `coming` of them are on the way to
    that queue.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        status: Callable[[], Status | None],
        coming: Callable[[], int],
    ) -> None:
        self._app, self._paths, self._status, self._coming = app, paths, status, coming
        self._under_way = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_speech = scope["type"] == "http" and scope["path"] in self._paths
        if not is_speech or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        client = client_of(scope)
        if self._under_way[client] and (refused := self._refusal(client)):
            return await from_error(refused, scope)(scope, receive, send)
        self._under_way[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]

    def _refusal(self, client: str) -> Overloaded | None:
        status = self._status()
        if status is None or status.queue_limit is None:
            return None
        own, all_of_them = self._under_way[client], self._under_way.total()
        waiting = max(status.queued + self._coming(), all_of_them - (status.slots or 0))
        if waiting < _seven_eighths(status.queue_limit) or own < _seven_eighths(all_of_them):
            return None
        return Overloaded(
            f"{own} speeches of this client are made or wait already, and the last places are for"
            " others. Nothing was done; ask again.",
            RETRY_S,
        )


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
            return await from_error(ServerBusy(_busy(self._most), 1), scope)(scope, receive, send)
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


def _seven_eighths(most: int) -> int:
    return most - most // 8


def _busy(most: int) -> str:
    return f"This server already answers {most} requests, the most it does at once. Ask again."
