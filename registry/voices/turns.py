"""Gives fair turns at what only few can have at once: clients take turns, whatever each asks for.

Whoever waits holds one of the places that a server has for all its requests. So the line has an
end, unless those who wait were counted before.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry.errors import Overloaded, ServerBusy

RETRY_S = 2


class FairTurns:
    """Lets `most` requests at a time work, and passes free turns from client to client."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the first client is the next
        self._in_line = Counter[str]()  # of those who wait, the ones that came by a line

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(
        self, client: str, line: int | None = None, wait_s: float | None = None
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it within the block.

        Raises ServerBusy if `line` wait already, or seven eighths of them, all of this client;
        Overloaded if the turn has not come in `wait_s` seconds. Without a line, whoever comes was
        counted before, and takes nobody's place in one.
        """
        await self._begin(client, line, wait_s)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, client: str, line: int | None, wait_s: float | None) -> None:
        if self._free:
            self._free -= 1
            return
        if line is not None:
            self._refuse_full(line, client)
            self._in_line[client] += 1
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(mine)
        try:
            async with asyncio.timeout(wait_s):
                await self._come(client, mine)
        except TimeoutError as error:
            said = f"The queue is slow: this request waited {wait_s:g} s. Try again later."
            raise Overloaded(said, RETRY_S) from error
        finally:
            if line is not None:
                self._in_line -= Counter([client])  # and forget a client at 0

    async def _come(self, client: str, mine: asyncio.Future[None]) -> None:
        """Wait for the turn; a caller that leaves meanwhile passes on a turn that has come."""
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(client, mine)
            else:  # the turn came in the same moment
                self._end()
            raise

    def _leave(self, client: str, mine: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(client, deque())
        if mine in waiting:
            waiting.remove(mine)
        if not waiting:
            self._waiting.pop(client, None)

    def _refuse_full(self, line: int, client: str) -> None:
        own, all_of_them = self._in_line[client], self._in_line.total()
        if all_of_them >= line or own >= line - line // 8:
            raise ServerBusy(
                f"{all_of_them} others wait for the same work already, which is the most. Nothing "
                "was done; ask again.",
                RETRY_S,
            )

    def _end(self) -> None:
        """Pass the turn to the first request of the next client, which becomes the last one."""
        while self._waiting:
            client = next(iter(self._waiting))
            waiting = self._waiting.pop(client)
            first = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting
            if not first.cancelled():
                return first.set_result(None)
        self._free += 1
