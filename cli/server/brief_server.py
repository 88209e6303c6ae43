"""A server that ends as soon as it is told to, for the length of one command or one test."""

import asyncio
import socket
import threading
from contextlib import suppress

import uvicorn

TICK_S = 1.0  # between two looks at the clock, for the Date header
GOODBYE_S = 0.002  # in which a connection that a client has closed is seen as closed


class BriefServer(uvicorn.Server):
    """A uvicorn server that stops at once.

    uvicorn's own looks ten times a second whether it shall end, and then waits a tenth more.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def stop(self) -> None:
        """Stop it, from any thread, at any time; one that has not begun ends when it begins."""
        self.should_exit = True
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._told.set)

    async def main_loop(self) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            while not await self.on_tick(0):
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._told.wait()
        finally:
            with self._lock:  # a loop that is closed can be told nothing
                self._loop = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: at once, unless clients hold connections, which get uvicorn's time to end."""
        await asyncio.sleep(GOODBYE_S)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await self.lifespan.shutdown()
