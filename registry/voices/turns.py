"""Turns at what few can have at once: whoever waits comes after one of each other client.

Whoever waits holds one of the places that a server has for all its requests. So where others have
not been counted before, the line has an end.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry.errors import ServerBusy

RETRY_S = 2


class FairTurns:
    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the first client is the next
        self._in_line = Counter[str]()  # of those who wait, who came by a line

    @asynccontextmanager
    async def turn(self, client: str, line: int | None = None) -> AsyncIterator[None]:
        """Raises ServerBusy if `line` wait already, or seven eighths of them, all of this client.

        Without one, whoever comes was counted before, and takes nobody's place in a line.
        """
        await self._begin(client, line)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, client: str, line: int | None) -> None:
        if self._free:
            self._free -= 1
            return
        if line is not None:
            self._refuse_full(line, client)
            self._in_line[client] += 1
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(client, mine)
            else:  # the turn came in the same moment
                self._end()
            raise
        finally:
            if line is not None:
                self._in_line -= Counter([client])  # and forget a client at 0

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
        """The next one's turn: the first of its client, who is the last now."""
        while self._waiting:
            client = next(iter(self._waiting))
            waiting = self._waiting.pop(client)
            first = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting
            if not first.cancelled():
                return first.set_result(None)
        self._free += 1
