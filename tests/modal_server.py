"""A fake control plane on loopback, for the real client of Modal: it deploys nothing, and says yes.

It answers what `modal deploy` and the Python API of the pinned client send, and keeps it for a test
to look at. It does not know what the real server would accept: a GPU that does not exist passes. An
RPC it lacks is recorded and answered UNIMPLEMENTED; a name or id it does not know, NOT_FOUND.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterable, Iterable
from functools import partial
from typing import Any, NamedTuple, Self

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream
from modal_apps import ENVIRONMENT, WORKSPACE, Functions
from modal_files import Files, identify
from modal_proto import api_pb2 as pb
from modal_proto.api_grpc import ModalClientBase

TOKEN_ID, TOKEN_SECRET = "ak-fake", "as-fake"
BUILDER = "2025.06"


class Call(NamedTuple):
    name: str
    message: Any  # the protobuf


class ModalServer(Functions, Files):
    """Use it as a context; in it, a child process with `environ` finds this server and no other."""

    def __init__(self) -> None:
        Functions.__init__(self)
        self._grpc, self._http = _listen(), _listen()
        Files.__init__(self, _url(self._http))
        self.url = _url(self._grpc)
        self.requests: list[Call] = []
        self._token: str | None = TOKEN_ID
        self._loop = asyncio.new_event_loop()
        self._leaving = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
            "MODAL_ENVIRONMENT": "",
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_DISABLE_API_PROXY": "1",
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()
        self._loop.close()

    def refuse_token(self) -> None:
        """From now on nobody is let in."""
        self._token = None

    def sent(self, name: str) -> list[Any]:
        """The messages of one RPC, in order."""
        return [call.message for call in self.requests if call.name == name]

    def answer(
        self, name: str, token: object, request: Message
    ) -> Iterable[Message] | AsyncIterable[Message]:
        self.requests.append(Call(name, request))
        if token != self._token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed.")
        if (method := getattr(self, name, None)) is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"The fake control plane has no {name}.")
        try:
            reply = method(request)
        except KeyError as missing:
            raise GRPCError(Status.NOT_FOUND, f"{name} knows no {missing}.") from missing
        return [reply] if isinstance(reply, Message) else reply

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        plane = _Plane([_Service(self)])  # type: ignore[abstract]
        await plane.start(sock=self._grpc)
        application = web.Application()
        application.add_routes([web.put("/{key}", self.receive), web.get("/{key}", self.send)])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.SockSite(runner, self._http).start()
        await self._leaving.wait()
        await runner.cleanup()
        await plane.leave()

    def ClientHello(self, request: Empty) -> Message:
        return pb.ClientHelloResponse(image_builder_version=BUILDER)

    def WorkspaceNameLookup(self, request: Empty) -> Message:
        return pb.WorkspaceNameLookupResponse(workspace_name=WORKSPACE, username=WORKSPACE)

    def TokenInfoGet(self, request: pb.TokenInfoGetRequest) -> Message:
        return pb.TokenInfoGetResponse(token_id=TOKEN_ID, workspace_name=WORKSPACE)

    def EnvironmentGetOrCreate(self, request: pb.EnvironmentGetOrCreateRequest) -> Message:
        name = request.deployment_name or ENVIRONMENT
        if name != ENVIRONMENT:
            raise KeyError(name)
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = pb.EnvironmentMetadata(name=name, settings=settings)
        return pb.EnvironmentGetOrCreateResponse(
            environment_id=identify("en", name), metadata=metadata
        )


class _Service(ModalClientBase):
    """Every RPC of the real client, passed on with its name."""

    def __init__(self, server: ModalServer) -> None:
        self._server = server

    def __mapping__(self) -> dict[str, Handler]:
        return {
            path: handler._replace(func=partial(self._pass_on, path.rpartition("/")[2]))
            for path, handler in super().__mapping__().items()
        }

    async def _pass_on(self, name: str, stream: Stream[Message, Message]) -> None:
        request = await stream.recv_message()
        assert request is not None and stream.metadata is not None
        token = stream.metadata.get("x-modal-token-id")
        replies = self._server.answer(name, token, request)
        if isinstance(replies, AsyncIterable):
            async for reply in replies:
                await stream.send_message(reply)
        else:
            for reply in replies:
                await stream.send_message(reply)


_Service.__abstractmethods__ = frozenset()


class _Plane(Server):
    """Hangs up on its clients when it leaves, which otherwise it would wait for."""

    def __init__(self, services: list[ModalClientBase]) -> None:
        super().__init__(services)
        self._connected: list[H2Protocol] = []

    def _protocol_factory(self) -> H2Protocol:
        self._connected.append(super()._protocol_factory())
        return self._connected[-1]

    async def leave(self) -> None:
        self.close()
        for protocol in self._connected:
            protocol.connection.close()
        await self.wait_closed()


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
