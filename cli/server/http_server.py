"""Makes uvicorn leave clients that send no request, or read no answer, in time.

There are fewer connections than the process has descriptors, so that accepting one does not fail.
Where all are in use, the one that has waited longest for a request makes room for the next. It
knows nothing of the app behind it.
"""

import asyncio
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128
AT_ONCE = 8  # connections accepted in one turn of the loop; it closes one three turns later
HEAD_BYTES, MOST_HEADERS = 16 * 1024, 100  # the most of a request: target and headers
MOST_SMALL_CHUNKS = 1000  # chunks of a body, if they have fewer than 16 bytes in the mean
PART_BYTES = 2048  # bytes that are parsed at once
DESCRIPTORS = 8192  # below what macOS lets a process have, whatever its hard limit says
BYTES_PER_S = 50 * 1024
UNREAD_S = 15.0  # until a reader that takes nothing makes room for others
ABORT = "voices.abort"  # an extension of the scope: closes the connection, answered or not
OUT_OF_RESOURCES = "socket.accept() out of system resource"


class Client(Protocol):
    """The holder of one of the connections."""

    @property
    def transport(self) -> asyncio.Transport: ...


class LogThrottle:
    """Limits a log line to one a minute: true when first called, then once a minute."""

    def __init__(self) -> None:
        self._next_s = float("-inf")

    def __call__(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + 60
        return True


class Timer:
    """Calls back once after a time, unless it is stopped before."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def is_set(self) -> bool:
        return self._handle is not None

    def set(self, after_s: float) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(after_s, self._fire)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._callback()


@dataclass
class Limits:
    """Limits shared by the connections of one server, and which of them wait.

    `waiting` are those whose request the server waits for; `handshaking` those on which there is no
    TLS yet; `unread` those of whose answer nothing has been taken since a monotonic time. The
    oldest come first.
    """

    connections: int
    header_s: float = 10.0
    body_s: float = 60.0  # to read an answer, on top of its size at BYTES_PER_S
    waiting: dict["ClientConnection", None] = field(default_factory=dict)  # longest first
    handshaking: dict[Client, None] = field(default_factory=dict)  # longest first
    unread: dict["ClientConnection", float] = field(default_factory=dict)  # since when
    may_log: LogThrottle = field(default_factory=LogThrottle)

    def lagging(self) -> Iterator["ClientConnection"]:
        """Yield the connections that have read nothing for long."""
        late_s = time.monotonic() - UNREAD_S
        of_old = (found for found, since_s in self.unread.items() if since_s < late_s)
        return (found for found in of_old if found.transport.get_write_buffer_size())


class Parser(h11.Connection):
    """An h11 parser that refuses costly chunking and ambiguous framing."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEAD_BYTES)
        self._is_chunked = False
        self._chunks = self._chunk_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._begin({name for name, _ in event.headers}, len(event.headers))
        elif isinstance(event, h11.Data) and self._is_chunked:
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > MOST_SMALL_CHUNKS and self._chunk_bytes < 16 * self._chunks:
                raise h11.RemoteProtocolError("its chunks are too small")
        return event

    def is_in_plain_body(self) -> bool:
        return self.their_state is h11.SEND_BODY and not self._is_chunked

    def _begin(self, names: set[bytes], lines: int) -> None:
        self._is_chunked = b"transfer-encoding" in names
        self._chunks = self._chunk_bytes = 0
        if lines > MOST_HEADERS:
            raise h11.RemoteProtocolError(f"it has more than {MOST_HEADERS} headers")
        if self._is_chunked and b"content-length" in names:
            raise h11.RemoteProtocolError("its length is told in two ways")


class ClientConnection(H11Protocol):
    """One client's connection, closed if its head or its reading takes too long."""

    def __init__(self, *args: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*args, **named)
        self.conn = self._parser = Parser()
        self._limits = limits
        self._unread = bytearray()
        self._is_in_turn = False  # a call of _read_on is due
        self._head_timer = Timer(self._leave)
        self._read_timer = Timer(self._abandon)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.make_room(self)
        self._limits.waiting[self] = None
        self._head_timer.set(self._limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.waiting.pop(self, None)
        self._limits.unread.pop(self, None)
        self._head_timer.stop()
        self._read_timer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self._is_in_turn:
            self._read_on()

    def _read_on(self) -> None:
        """Parse a part of what has come, then let others have their turn.

        Heads and chunks cost by their number, not by their bytes, and asyncio brings 256 KiB at
        once. h11 looks at the size of a head only when it has read some of it.
        """
        self._is_in_turn = False
        if self.transport.is_closing():
            return self._unread.clear()
        size = len(self._unread) if self._parser.is_in_plain_body() else PART_BYTES
        part, self._unread = bytes(self._unread[:size]), self._unread[size:]
        super().data_received(part)
        if not self.transport.get_write_buffer_size():  # asyncio does not tell when it is empty
            self._limits.unread.pop(self, None)
        if self._is_answering():
            self._limits.waiting.pop(self, None)
            self._head_timer.stop()
        elif not self._head_timer.is_set():
            self._head_timer.set(self._limits.header_s)
        if self._unread:
            self._is_in_turn = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def handle_events(self) -> None:
        """Handle events; let the app, whose task has not begun yet, abort the request."""
        super().handle_events()
        if self._is_answering():
            extensions = cast(dict[str, Any], self.cycle.scope.setdefault("extensions", {}))
            extensions[ABORT] = self.transport.abort

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering():
            self._limits.waiting[self] = None
            if self.conn.their_state is h11.SEND_BODY:  # nobody wants the rest of it
                self._head_timer.set(self._limits.header_s)
        if self.transport.get_write_buffer_size():
            self._await_reader()

    def send_400_response(self, msg: str) -> None:
        if self._is_answering():  # the app's answer comes too late
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # the rubbish comes after an answer to the same request
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._limits.unread.pop(self, None)
        self._read_timer.stop()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._limits.unread.setdefault(self, time.monotonic())
        self._read_timer.set(self._limits.body_s + unread / BYTES_PER_S)

    def make_room(self, newcomer: Client) -> None:
        """Close one connection if there are too many, that of the newcomer if all others work.

        It is the one that has waited longest for TLS or a request and has nothing left to read;
        else one that reads nothing.
        """
        limits = self._limits
        if len(self.connections) + len(limits.handshaking) <= limits.connections:
            return
        if limits.may_log():
            most = limits.connections
            self.logger.warning("All %d connections are in use; those that wait make room.", most)
        half_open = (client for client in limits.handshaking if client is not newcomer)
        idle = (c for c in limits.waiting if not c.transport.get_write_buffer_size())
        found = next(half_open, None) or next(idle, None) or next(limits.lagging(), newcomer)
        if isinstance(found, ClientConnection):
            limits.waiting.pop(found, None)
        else:
            limits.handshaking.pop(found, None)
        found.transport.abort()

    def _leave(self) -> None:
        self.transport.close()

    def _abandon(self) -> None:
        """Abort an answer that is still unread; closing would wait for its reader."""
        if self.flow.write_paused or self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """A uvicorn server that accepts few connections at a time, so that closing others keeps up."""

    def __init__(
        self,
        config: uvicorn.Config,
        if_forced: Callable[[], object] = lambda: None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Call `if_forced` where a second Ctrl-C keeps the app from ending in order.

        `at_end` is called before the signal that ended it ends the process.
        """
        super().__init__(config)
        self._if_forced, self._at_end = if_forced, at_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(quietly_out_of_resources())
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has one figure for this and for AT_ONCE

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            self._if_forced()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on SIGHUP, of a closed terminal, as on SIGTERM, unless nohup has it ignored."""
        is_main = threading.current_thread() is threading.main_thread()
        hangs_up = is_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        with super().capture_signals():
            if hangs_up:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                if hangs_up:
                    signal.signal(signal.SIGHUP, signal.SIG_DFL)
                self._at_end()


def config(
    app: Any,
    limits: Limits,
    proxies: str = "",
    client: Callable[..., asyncio.BaseProtocol] = ClientConnection,
    **options: Any,
) -> uvicorn.Config:
    """Configure uvicorn; X-Forwarded-For and -Proto count only from one of `proxies`.

    `client` is what stands for each connection.
    """
    options |= {"proxy_headers": bool(proxies), "forwarded_allow_ips": proxies}
    protocol = cast(type[asyncio.Protocol], partial(client, limits=limits))
    # httptools, which uvicorn would take, drops the body of a request that asks for an upgrade
    options |= {"ws": "none", "backlog": AT_ONCE, "h11_max_incomplete_event_size": HEAD_BYTES}
    return uvicorn.Config(app, http=protocol, **options)


def quietly_out_of_resources() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Log once a minute, not for each connection, that none can be accepted."""
    may_log = LogThrottle()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") != OUT_OF_RESOURCES or may_log():
            loop.default_exception_handler(context)

    return handle


def raise_descriptors() -> int:
    """Lift the soft limit to the hard one, within reason; return how many there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
