"""Gives fair turns at short requests, which all need a thread and the processor for a moment.

Enrolments and speeches have turns of their own, where they wait for a decoder, the encoders or a
slot. What is short would keep them from their threads if one client asked for it without end.
"""

from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.api.problems import from_error
from registry.api.uploads import client_of
from registry.errors import Overloaded
from registry.voices.turns import FairTurns

METHODS = ("GET", "HEAD", "DELETE")
PROBES = ("/healthz", "/readyz")  # answered whoever else asks
AT_ONCE = 8  # few of the pool's 40 threads
LINE = 256


class FairRequests:
    """Works on few short requests at once, in turns by client, until their answers begin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = FairTurns(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_short = scope["type"] == "http" and scope["method"] in METHODS
        if not is_short or scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        async with AsyncExitStack() as turn:

            async def send_out_of_turn(message: Message) -> None:
                await turn.aclose()  # whoever reads slowly keeps nobody waiting
                await send(message)

            try:
                await turn.enter_async_context(self._turns.turn(client_of(scope), LINE))
            except Overloaded as refused:
                return await from_error(refused, scope)(scope, receive, send)
            await self._app(scope, receive, send_out_of_turn)
