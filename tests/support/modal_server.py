"""A fake control plane on loopback, for the real client of Modal: it deploys nothing, and says yes.

It answers what `modal deploy` and the Python API of the pinned client send, and keeps it for a test
to look at. It does not know what the real server would accept: a GPU that does not exist passes. An
RPC it lacks is recorded and answered UNIMPLEMENTED; a name or id it does not know, NOT_FOUND.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server, Stream
from modal_apps import ENVIRONMENT, WORKSPACE, Functions
from modal_files import Files, identify
from modal_proto import api_pb2 as pb
from modal_proto.api_grpc import ModalClientBase

TOKEN_ID, TOKEN_SECRET = "ak-fake", "as-fake"
BUILDER = "2025.06"
Door = Callable[[], asyncio.BaseProtocol]


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
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()  # made here, once for all threads
        self._reception = Reception()
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
        self._loop.call_soon_threadsafe(self._reception.close)
        self._thread.join()
        self._runner.close()

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
        with self._grpc, self._http:
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        application = web.Application()
        application.add_routes([web.put("/{key}", self.receive), web.get("/{key}", self.send)])
        runner = web.AppRunner(application)
        await runner.setup()
        assert runner.server is not None
        plane = Server([_Service(self)])  # type: ignore[abstract]
        doors = {self._grpc: plane._protocol_factory, self._http: runner.server}
        try:
            await self._reception.receive(doors)
        finally:
            await runner.cleanup()

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


class Reception:
    """Lets in one caller after the other, and at the end shows out all who are in.

    A server of asyncio lets a caller in by a task of its own, so that whoever closes one may meet
    connections that are accepted, but that nobody can close yet.
    """

    def __init__(self) -> None:
        self._knocked = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._knocked.set()

    async def receive(self, doors: Mapping[socket.socket, Door]) -> None:
        """Returns when it is closed."""
        loop, callers = asyncio.get_running_loop(), []
        for listener in doors:
            listener.setblocking(False)
            loop.add_reader(listener, self._knocked.set)
        while not self._closed:
            await self._knocked.wait()
            self._knocked.clear()
            for listener, door in doors.items():
                with suppress(BlockingIOError, ConnectionAbortedError):
                    connection, _ = listener.accept()
                    caller, _ = await loop.connect_accepted_socket(door, connection)
                    callers.append(caller)
        for listener in doors:
            loop.remove_reader(listener)
        for caller in callers:
            caller.abort()


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
