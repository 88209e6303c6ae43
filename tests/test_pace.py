"""Requests and answers have a pace: who lags makes room for others, who keeps it is never ended.

The clock of most of these leaps to whatever is awaited next, so that minutes take no time.
"""

import asyncio
import select
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api import add, problem
from fakes import FakeInference
from fastapi import FastAPI
from faults import quick_app
from serving import serving
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from test_slow_clients import JSON, answer
from test_uploads import BEGUN, FORM, HEAD, LARGE, PATHS, until_gone

from cli.server import http_server
from cli.server.http_server import Limits, Server, config
from registry.api import pace
from registry.api.limits import RequestLimit
from registry.api.pace import KEY, Exchange, Pace, end_slowest
from registry.api.problems import add_handlers, rendered
from registry.api.requests import while_connected
from registry.api.uploads import AT_ONCE, OF_ONE_CLIENT, Uploads
from registry.app import create_app
from registry.errors import BodyTooSlow, ServerBusy
from registry.settings import Settings
from registry.storage.store import VoiceStore

KIB = 1024
MIB = 1024 * KIB
GRACE_S = 60
OURS = FastAPI()
add_handlers(OURS, lambda _: rendered)
Part = tuple[float, int]  # after so many seconds, so many bytes


class Leaping(asyncio.SelectorEventLoop):
    """Its time goes on only while nothing else can."""

    def __init__(self) -> None:
        self.now_s = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                loop.now_s += timeout or 0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now_s


def leaping(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Leaping) as runner:
        runner.run(work)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def sent(*parts: Part, whole: bool = False) -> Exchange:
    """A body whose client waits before each part, and after them for ever."""
    left = list(parts)

    async def receive() -> Message:
        if not left:
            await asyncio.get_running_loop().create_future()
        wait_s, size = left.pop(0)
        await asyncio.sleep(wait_s)
        return {"type": "http.request", "body": bytes(size), "more_body": bool(left) or not whole}

    return Exchange(receive, taken, GRACE_S)


async def taken(message: Message) -> None:
    """By a reader who is quick."""


def answering(*waits_s: float, abort: Callable[[], None] | None) -> Exchange:
    """An answer whose reader takes each part after so long, and then no more."""
    left = list(waits_s)

    async def send(message: Message) -> None:
        if not left:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(left.pop(0))

    return Exchange(sent((0, 1), whole=True).receive, send, GRACE_S, abort)


async def answer_without_end(exchange: Exchange) -> None:
    await read(exchange)
    while True:
        await exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})


async def read(body: Exchange, parts: int = 10**6) -> None:
    for _ in range(parts):
        if not (await body.receive())["more_body"]:
            return


@contextmanager
def being_read(*all_of_them: Exchange) -> Iterator[list["asyncio.Task[None]"]]:
    tasks = [asyncio.create_task(read(body)) for body in all_of_them]
    yield tasks
    for task in tasks:
        task.cancel()


# ------------------------------------------------------------------ the pace


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(5, 1)] * 1000,
        [(0, 15 * MIB)],
        [(0, 15 * MIB), *[(5, 1)] * 1000],
        [(1, 60 * KIB)] * 100,
        [(1, 60 * KIB), (59, 1), (2, 1)],
    ],
)
def test_a_body_that_lags_is_ended_however_it_came_before(parts: list[Part]) -> None:
    async def run() -> None:
        body = sent(*parts)
        came_s = sum(wait for wait, size in parts if size > 1)
        with pytest.raises(BodyTooSlow, match="60 s behind one that comes at 50 KiB/s"):
            await read(body)
        assert now_s() == pytest.approx(came_s + GRACE_S, abs=1)

    leaping(run())


@pytest.mark.parametrize(
    "parts",
    [
        [(20 / 60, 20 * KIB)] * 1000,
        [(1, 60 * KIB)] * 340,
        [(1, 51 * KIB)] * 400,
        [(9, 540 * KIB)] * 38,
        [(9, 1), *[(1, 60 * KIB)] * 340],
    ],
)
def test_a_slow_body_that_keeps_the_pace_may_never_be_ended(parts: list[Part]) -> None:
    async def run() -> None:
        body = sent(*parts, whole=True)
        with being_read(body) as [reading]:
            while not reading.done():
                assert end_slowest([body]) is None
                await asyncio.sleep(0.5)
            reading.result()

    leaping(run())


def test_a_body_may_be_ended_once_it_lags_by_more_than_ten_seconds() -> None:
    async def run() -> None:
        body = sent((0, 15 * MIB), (4, 1), (4, 1), (4, 1))
        with being_read(body) as [reading]:
            await asyncio.sleep(9.9)
            assert end_slowest([body]) is None
            await asyncio.sleep(0.2)
            assert end_slowest([body]) is body
            assert end_slowest([body]) is None, "it is ended already"
            with pytest.raises(BodyTooSlow, match=r"10 s behind .* another needed its place"):
                await reading

    leaping(run())


def test_time_in_which_the_server_does_not_wait_is_not_the_clients() -> None:
    async def run() -> None:
        body = sent((0, 1), (0, 1), (0, 1), whole=True)
        for _ in range(3):
            assert end_slowest([body]) is None
            await read(body, 1)
            await asyncio.sleep(1000)
        assert body.lag_s() == 0

    leaping(run())


def test_who_waits_for_the_answer_is_not_ended() -> None:
    async def run() -> None:
        body = sent((0, 1), whole=True)
        await read(body)
        waiting = asyncio.create_task(body.receive())
        await asyncio.sleep(1000)
        assert end_slowest([body]) is None and not waiting.done()
        waiting.cancel()

    leaping(run())


def test_the_one_that_lags_most_is_ended() -> None:
    async def run() -> None:
        three = [sent((20, MIB), (0, 1)), sent(), sent((5, MIB))]
        with being_read(*three) as reading:
            await asyncio.sleep(30)
            assert end_slowest(three) is three[1]
            assert end_slowest(three) is three[2]
            await asyncio.wait(reading, timeout=1)
            assert [task.done() for task in reading] == [False, True, True]

    leaping(run())


# ------------------------------------------------------------------ answers


def test_an_answer_may_be_ended_once_nothing_of_it_was_read_for_fifteen_seconds() -> None:
    async def run() -> None:
        aborted = list[float]()
        exchange = answering(0, 14, abort=lambda: aborted.append(now_s()))
        task = asyncio.create_task(answer_without_end(exchange))
        while now_s() < 29:
            await asyncio.sleep(0.5)
            assert end_slowest([exchange]) is None
        await asyncio.sleep(0.6)
        assert end_slowest([exchange]) is exchange and aborted == [now_s()]
        assert end_slowest([exchange]) is None, "it is ended already"
        task.cancel()

    leaping(run())


def test_speech_that_is_played_while_it_comes_is_never_ended() -> None:
    async def run() -> None:
        exchange = answering(*[12.0] * 100, abort=lambda: None)  # 48 KiB of Opus at 32 kbit/s
        task = asyncio.create_task(answer_without_end(exchange))
        while now_s() < 1200:
            await asyncio.sleep(0.7)
            assert end_slowest([exchange]) is None
        task.cancel()

    leaping(run())


def test_time_in_which_the_server_makes_the_answer_is_not_the_readers() -> None:
    async def run() -> None:
        exchange = answering(0, 0, abort=lambda: None)
        await read(exchange)
        for _ in range(2):
            await exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(1000)
            assert end_slowest([exchange]) is None

    leaping(run())


def test_an_answer_that_the_server_cannot_end_stays() -> None:
    async def run() -> None:
        exchange = answering(abort=None)
        task = asyncio.create_task(answer_without_end(exchange))
        await asyncio.sleep(1000)
        assert end_slowest([exchange]) is None
        task.cancel()

    leaping(run())


# ------------------------------------------------------------------ places


def test_of_one_client_its_own_make_room(tmp_path: Path) -> None:
    async def run() -> None:
        uploads, others = Uploads(tmp_path), [sent(), sent()]
        own = [sent((2, 1)) for _ in range(OF_ONE_CLIENT)]
        with being_read(*others, *own) as reading:
            for body in others:
                uploads.begin("other", body)
            for body in own:
                begun = uploads.begin("one", body)
            await asyncio.sleep(5)
            for client in ("one", "other", "a third"):
                with pytest.raises(ServerBusy):
                    uploads.begin(client, sent())
            await asyncio.sleep(20)
            uploads.begin("one", sent())
            await asyncio.sleep(0)
            assert not reading[0].done() and not reading[1].done()
            uploads.begin("a third", sent())
            await asyncio.wait(reading[:2], timeout=1)
            assert reading[0].done() or reading[1].done()
            assert sum(task.done() for task in reading) == 2
            begun.close()
            uploads.begin("one", sent())
            begun.close()

    leaping(run())


def test_an_upload_that_was_ended_gives_its_place_back_once(tmp_path: Path) -> None:
    async def run() -> None:
        uploads, slow = Uploads(tmp_path), sent()
        with being_read(slow):
            ended = uploads.begin("slow", slow)
            for i in range(AT_ONCE - 1):
                uploads.begin(f"{i}", sent())
            await asyncio.sleep(20)
            uploads.begin("next", sent())
            for _ in range(2):
                ended.close()
                with pytest.raises(ServerBusy):
                    uploads.begin("last", sent())

    leaping(run())


def test_requests_make_room_too() -> None:
    async def run() -> None:
        answered: list[int] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read(scope[KEY])

        async def send(message: Message) -> None:
            answered.append(message.get("status", 0))

        limit = RequestLimit(app, most=2)

        def ask() -> "asyncio.Task[None]":
            body = sent()
            scope = {"type": "http", "path": "/speak", "app": OURS, KEY: body}
            return asyncio.create_task(limit(scope, body.receive, send))

        first, second = ask(), ask()
        await asyncio.sleep(5)
        await ask()
        assert answered[0] == 503
        await asyncio.sleep(10)
        third = ask()
        await asyncio.wait({first, second}, timeout=1)
        assert sum(isinstance(t.exception(), BodyTooSlow) for t in (first, second) if t.done()) == 1
        assert not third.done()
        answered.clear()
        fourth = ask()
        await asyncio.wait({first, second}, timeout=1)
        assert first.done() and second.done() and not fourth.done() and not answered
        await ask()
        assert answered[0] == 503
        for task in (third, fourth):
            task.cancel()
        ends = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
        assert all(isinstance(end, BodyTooSlow) for end in ends[:2])

    leaping(run())


def test_a_body_that_nobody_reads_ends_work_with_its_reason() -> None:
    async def run() -> None:
        request = Request({"type": "http"}, sent().receive)
        with pytest.raises(BodyTooSlow):
            await while_connected(request, asyncio.sleep(1000))

    leaping(run())


# ------------------------------------------------------------------ over HTTP

AN_EMPTY_FORM = {"content-type": FORM}
FIELD = b'\r\n--x\r\nContent-Disposition: form-data; name="transcript"\r\n\r\n'
DRIPS = {
    "nothing": b"",
    "in a file": BEGUN + bytes(300_000),
    "in words": BEGUN + bytes(300_000) + FIELD,
    "between parts": BEGUN + bytes(300_000) + FIELD + b"hi\r\n--x",
    "before the end": BEGUN + bytes(300_000) + FIELD + b"hi\r\n--x-",
}


@contextmanager
def dripping(url: httpx.URL, asked: list[bytes], byte: bytes) -> Iterator[list[socket.socket]]:
    ended = threading.Event()
    with ExitStack() as held:
        sending = [socket.create_connection((url.host, url.port or 0), 60) for _ in asked]
        for connection, said in zip(sending, asked, strict=True):
            held.enter_context(connection)
            connection.sendall(said)

        def drip() -> None:
            while not ended.wait(0.1):
                for connection in sending:
                    try:
                        connection.send(byte)
                    except OSError:  # it has been left
                        continue

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield sending
        finally:
            ended.set()
            thread.join()


Hurry = Callable[[Callable[[], httpx.Response]], httpx.Response]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Hurry:
    """Sees that there is no room, then asks until there is, for bodies lag by less time than so."""
    monkeypatch.setattr(pace, "SECURE_S", 3600)

    def ask_until_let_in(ask: Callable[[], httpx.Response]) -> httpx.Response:
        for _ in range(5000):
            if (reply := ask()).status_code == 503:
                break
        assert problem(reply) == (503, "server-busy")
        monkeypatch.setattr(pace, "SECURE_S", 0.5)
        for _ in range(5000):
            reply = ask()
            if reply.status_code != 503:
                return reply
        raise AssertionError("nobody makes room")

    return ask_until_let_in


@pytest.mark.parametrize("how", DRIPS)
def test_clips_that_drip_keep_nobody_out(
    store: VoiceStore, fake: FakeInference, hurry: Hurry, how: str
) -> None:
    heads = [HEAD.format(path=PATHS[i % 2]) for i in range(OF_ONE_CLIENT)]
    asked = [f"{head}Content-Length: {LARGE}\r\n\r\n".encode() + DRIPS[how] for head in heads]
    byte = b"a" if how.startswith("in ") else b""
    with serving(quick_app(store, fake, Settings(home=store.data.root))) as client:
        with dripping(client.base_url, asked, byte) as sending:
            assert hurry(lambda: client.post("/voices", headers=AN_EMPTY_FORM)).status_code == 400
            assert add(client, "alice").status_code == 201
            if not byte:  # one that is sent after the end may take away what was said
                ended = select.select(sending, [], [], 60)[0]
                said = answer(ended[0])
                assert said.startswith(b"HTTP/1.1 408") and b"connection: close" in said.lower()
                assert b'"code":"body-too-slow"' in said and b"needed its place" in said
        until_gone(client, store.data)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), [("POST", "/speak"), ("PATCH", "/voices/alice")])
def test_json_that_drips_keeps_nobody_out(
    store: VoiceStore, fake: FakeInference, hurry: Hurry, method: str, path: str
) -> None:
    asked = f"{method} {path} HTTP/1.1\r\n".encode() + JSON + b"Content-Length: 60000\r\n\r\n{"
    app = quick_app(store, fake, Settings(home=store.data.root, max_requests=4))
    with serving(app) as client, dripping(client.base_url, [asked] * 4, b" "):
        assert hurry(lambda: client.get("/voices")).status_code == 200


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)

    is_endless = scope["path"] == "/endless"
    response = StreamingResponse(parts()) if is_endless else PlainTextResponse("here")
    await response(scope, receive, send)


def test_those_who_read_nothing_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "UNREAD_S", NEVER_S := 3600)
    limited = Pace(RequestLimit(endless, most=8), grace_s=NEVER_S)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await limited({**scope, "app": OURS}, receive, send)

    server = Server(config(app, Limits(100, body_s=NEVER_S), log_level="warning"))
    with running(server) as url, httpx.Client(base_url=url) as client, ExitStack() as held:
        readers = []
        for _ in range(8):
            readers.append(socket.create_connection((client.base_url.host, client.base_url.port)))
            held.enter_context(readers[-1])
            readers[-1].sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert readers[-1].recv(12) == b"HTTP/1.1 200"
        assert client.get("/").status_code == 503
        monkeypatch.setattr(pace, "UNREAD_S", 0.3)
        for _ in range(1000):
            if (reply := client.get("/")).status_code == 200:
                break
            time.sleep(0.01)
        assert reply.text == "here"
        assert sum(is_over(reader) for reader in readers) == 1
    assert not caplog.records


def is_over(reader: socket.socket) -> bool:
    """Whether more comes than buffers of both sides hold."""
    read = 0
    try:
        while read < 64 * MIB:
            part = reader.recv(MIB)
            read += len(part)
            if not part:
                return True
    except ConnectionResetError:
        return True
    return False


@contextmanager
def running(server: Server) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def test_an_answer_in_one_piece_is_given_to_the_server_in_parts() -> None:
    async def run() -> None:
        given = list[Message]()

        async def send(message: Message) -> None:
            given.append(message)

        exchange = Exchange(sent(whole=True).receive, send, GRACE_S)
        whole = bytes(range(256)) * KIB
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await exchange.send(start)
        await exchange.send({"type": "http.response.body", "body": whole + b"x", "more_body": True})
        await exchange.send({"type": "http.response.body", "body": whole})
        assert given[0] == start
        assert b"".join(one["body"] for one in given[1:]) == whole + b"x" + whole
        assert [one.get("more_body", False) for one in given[1:]] == [True] * 8 + [False]
        assert max(len(one["body"]) for one in given[1:]) == 64 * KIB

    leaping(run())


def test_a_large_answer_holds_its_place_until_it_is_read(
    store: VoiceStore, fake: FakeInference
) -> None:
    """1,024 who read nothing of a script of 1.5 MB held 1.4 GB, and every connection."""
    app = create_app(store, fake, Settings(home=store.data.root, max_requests=3))
    server = Server(config(app, Limits(100), log_level="warning"))
    with running(server) as url, httpx.Client(base_url=url) as client, ExitStack() as on:
        for _ in range(3):
            reader = slow_reader(client)
            on.enter_context(reader)
            reader.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert problem(client.get("/voices")) == (503, "server-busy")
        assert client.get("/healthz").status_code == 200


def slow_reader(client: httpx.Client) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)  # as beyond loopback
    reader.settimeout(60)
    reader.connect((client.base_url.host, client.base_url.port))
    return reader


def test_where_all_connections_are_in_use_one_that_reads_nothing_makes_room(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "UNREAD_S", 0.5)
    app = create_app(store, fake, Settings(home=store.data.root, max_requests=100))
    server = Server(config(app, Limits(8), log_level="critical"))
    with running(server) as url, httpx.Client(base_url=url) as client, ExitStack() as on:
        client.get("/healthz")
        for _ in range(8):
            reader = slow_reader(client)
            on.enter_context(reader)
            reader.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert reader.recv(12) == b"HTTP/1.1 200"
        while True:
            try:
                with httpx.Client(base_url=url, timeout=60) as another:
                    assert another.get("/healthz").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.05)
