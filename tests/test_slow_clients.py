"""Clients that say nothing, or say or read it slowly: each is left in time, and others are served.

Every server is a process of its own with few descriptors, and every client a socket.
"""

import asyncio
import json
import re
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import file
from conftest import PYTHON
from fakes import FakeInference
from faults import QuickEnroller
from test_serve import Server, served
from uploading import enrol_bytes
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cli.server.http_server import PART_BYTES, ClientConnection, Limits, config, raise_descriptors
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

FEW = 256
NEVER_S = 3600
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
JSON = b"Host: localhost\r\nContent-Type: application/json\r\n"
FORM = b"Host: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(128))


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """The clients are all in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_descriptors()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def clients() -> Iterator[Callable[..., socket.socket]]:
    """Opens connections that stay open for as long as the test."""
    with ExitStack() as held:

        def connect(server: Server, said: bytes = b"") -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", server.port), 60)
            held.enter_context(connection)
            connection.sendall(said)
            return connection

        yield connect


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Leaves a head after 1 s, and a body 1 s after what its size takes."""
    home = tmp_path_factory.mktemp("hasty") / "data"
    soon = {"header_timeout_s": 1, "body_timeout_s": 1}
    with served(home, "--no-inference", descriptors=FEW, **soon) as server:
        yield server
    assert not [line for line in server.log if "Traceback" in line or "ERROR" in line]


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Server]:
    """Leaves nobody by the clock."""
    never = {"header_timeout_s": NEVER_S, "body_timeout_s": NEVER_S}
    home = tmp_path / "data"
    with served(home, "--no-inference", descriptors=FEW, max_requests=2, **never) as server:
        yield server
    log = "\n".join(server.log)
    assert len(log) < 100_000 and "Traceback" not in log and "out of system resource" not in log


def alive(server: Server) -> bool:
    return server.ask("GET", "/healthz") == (200, b'{"status":"ok"}')


def rest(connection: socket.socket) -> bytes:
    """All that the server says until it closes the connection; 60 s without a word are an error."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


def trickle(connection: socket.socket, byte: bytes) -> bytes:
    """Sends the byte again and again until the server closes, and returns what it said."""
    said = b""
    for _ in range(2000):
        try:
            if select.select([connection], [], [], 0.02)[0]:
                part = connection.recv(65536)
                if not part:
                    return said
                said += part
            connection.send(byte)
        except (ConnectionResetError, BrokenPipeError):
            return said
    raise AssertionError("the server takes bytes without end")


def is_open(connection: socket.socket) -> bool:
    return not select.select([connection], [], [], 0)[0]


def answer(connection: socket.socket) -> bytes:
    """One answer with a Content-Length."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += connection.recv(1)
    size = int(re.findall(rb"content-length: (\d+)", said)[0])
    while size:
        part = connection.recv(size)
        said, size = said + part, size - len(part)
    return said


# ------------------------------------------------------------------ many at once


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"G", HALF, b"POST /speak HTTP/1.1\r\n"])
def test_half_open_connections_make_nobody_deaf(
    patient: Server, clients: Callable[..., socket.socket], said: bytes
) -> None:
    held = [clients(patient, said) for _ in range(300)]
    assert alive(patient)
    assert not is_open(held[0]) and is_open(held[-1])  # who waited longest made room


@pytest.mark.slow
def test_idle_connections_make_room(patient: Server, clients: Callable[..., socket.socket]) -> None:
    for _ in range(300):
        assert answer(clients(patient, ALIVE)).startswith(b"HTTP/1.1 200")
    assert alive(patient)


@pytest.mark.slow
def test_a_request_is_never_closed_to_make_room(
    patient: Server, clients: Callable[..., socket.socket]
) -> None:
    sending = clients(patient, b"POST /speak HTTP/1.1\r\n" + JSON + b"Content-Length: 2\r\n\r\n{")
    for _ in range(300):
        clients(patient, HALF)
    assert alive(patient)
    sending.sendall(b"}")
    assert answer(sending).startswith(b"HTTP/1.1 422")


@pytest.mark.slow
def test_those_that_come_and_go_leave_nothing(patient: Server) -> None:
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR) * 100:
        with socket.create_connection(("127.0.0.1", patient.port), 60) as connection:
            connection.sendall(HALF)
            connection.shutdown(how)
    assert alive(patient)


@pytest.mark.slow
def test_more_requests_than_are_answered_at_once_are_told_when_to_come_back(
    patient: Server, clients: Callable[..., socket.socket]
) -> None:
    unsent = (
        b"POST /speak HTTP/1.1\r\n"
        + JSON
        + b"Expect: 100-continue\r\n"
        + b"Content-Length: 2\r\n\r\n"
    )
    first, second = clients(patient, unsent), clients(patient, unsent)
    for sending in (first, second):
        assert sending.recv(100).startswith(b"HTTP/1.1 100")  # both are being answered
    refused = clients(patient, b"GET /voices HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = answer(refused).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head.lower()
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "server-busy"
    assert alive(patient)
    first.sendall(b"{}")
    assert answer(first).startswith(b"HTTP/1.1 422")
    refused.sendall(
        b"GET /voices HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )  # its connection is still good
    assert answer(refused).startswith(b"HTTP/1.1 200")


# ------------------------------------------------------------------ one that is slow


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1", HALF, ALIVE[:-2], b"SSH-2.0-x\r\n"])
def test_a_head_that_does_not_end_is_left(
    hasty: Server, clients: Callable[..., socket.socket], said: bytes
) -> None:
    assert rest(clients(hasty, said)) == b""


@pytest.mark.slow
def test_a_head_that_comes_byte_by_byte_is_left(
    hasty: Server, clients: Callable[..., socket.socket]
) -> None:
    assert trickle(clients(hasty, HALF), b"a") == b""


@pytest.mark.slow
def test_the_second_head_of_a_connection_has_its_time_too(
    hasty: Server, clients: Callable[..., socket.socket]
) -> None:
    connection = clients(hasty, ALIVE)
    assert answer(connection).startswith(b"HTTP/1.1 200")
    assert trickle(clients(hasty, HALF), b"a") == b""
    assert rest(connection) == b""


@pytest.mark.slow
def test_a_request_with_half_of_the_next_is_answered_then_left(
    hasty: Server, clients: Callable[..., socket.socket]
) -> None:
    said = trickle(clients(hasty, ALIVE + HALF), b"a")
    assert said.startswith(b"HTTP/1.1 200") and said.count(b"HTTP/1.1") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "byte"),
    [
        (b"POST /speak HTTP/1.1\r\n" + JSON + b"Content-Length: 100\r\n\r\n", b""),
        (b"POST /speak HTTP/1.1\r\n" + JSON + b"Content-Length: 9000\r\n\r\n", b" "),
        (b"POST /speak HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"PATCH /voices/a HTTP/1.1\r\n" + JSON + b"Content-Length: 9000\r\n\r\n{", b" "),
        (b"POST /voices HTTP/1.1\r\n" + FORM + b"Content-Length: 9000\r\n\r\n", b""),
        (b"POST /clone HTTP/1.1\r\n" + FORM + b"Content-Length: 9000\r\n\r\n--x\r\n", b""),
    ],
)
def test_a_body_that_does_not_end_is_refused(
    hasty: Server, clients: Callable[..., socket.socket], head: bytes, byte: bytes
) -> None:
    connection = clients(hasty, head)
    said = trickle(connection, byte) if byte else rest(connection)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408") and b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (408, "body-too-slow")


@pytest.mark.slow
def test_a_body_that_nobody_wants_is_not_taken_for_ever(
    hasty: Server, clients: Callable[..., socket.socket]
) -> None:
    head = b"POST /nowhere HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    assert trickle(clients(hasty, head), b"1\r\n \r\n").startswith(b"HTTP/1.1 404")


@pytest.mark.slow
@pytest.mark.parametrize("said", [TLS_HELLO, b"\0" * 100, b"HELLO\r\n\r\n"])
def test_what_is_no_http_is_closed_at_once(
    patient: Server, clients: Callable[..., socket.socket], said: bytes
) -> None:
    assert rest(clients(patient, said)).startswith(b"HTTP/1.1 400")
    answered = rest(clients(patient, ALIVE + said))  # pipelined
    assert answered.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 400" in answered


def test_rubbish_in_a_body_that_nobody_wants_closes_the_connection(
    hasty: Server, clients: Callable[..., socket.socket]
) -> None:
    head = b"POST /nowhere HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    connection = clients(hasty, head)
    assert answer(connection).startswith(b"HTTP/1.1 404")
    connection.sendall(b"no chunk\r\n")
    assert rest(connection) == b""


CHUNKED = b"POST /speak HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
BLANK = b"1\r\n \r\n"
LAST = b'24\r\n{"voice": "nobody", "text": "hello"}\r\n0\r\n\r\n'


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (CHUNKED + BLANK * 20_000, 400),
        (CHUNKED + b'1;a="%s"\r\n \r\n' % (b"b" * 40) * 2_000, 400),
        (CHUNKED + BLANK * 500 + LAST, 404),
        (CHUNKED + b"14\r\n%s\r\n" % (b" " * 20) * 3_000 + LAST, 404),
        (CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n" + LAST, 400),
        (ALIVE[:-2] + b"a: b\r\n" * 99 + b"\r\n", 200),
        (ALIVE[:-2] + b"a: b\r\n" * 100 + b"\r\n", 400),
        (ALIVE[:-2] + b"a:b\r\n" * 12_500 + b"\r\n", 400),
    ],
)
def test_what_costs_much_and_says_little_is_refused(
    hasty: Server, clients: Callable[..., socket.socket], said: bytes, status: int
) -> None:
    connection = clients(hasty)
    with suppress(ConnectionError):  # it may be closed before it has said all
        connection.sendall(said)
    assert connection.recv(12) == b"HTTP/1.1 %d" % status
    if status == 400:
        with suppress(ConnectionError):
            assert b"connection: close" in rest(connection).lower()
    assert alive(hasty)


@pytest.mark.parametrize("named", [b"Host: evil\r\n", b"Origin: http://evil\r\n" + JSON, JSON])
def test_a_request_that_breaks_before_it_is_answered_leaves_no_traceback(
    hasty: Server, clients: Callable[..., socket.socket], named: bytes
) -> None:
    """`hasty` looks at its log in the end."""
    head = b"POST /speak HTTP/1.1\r\n" + named + b"Transfer-Encoding: chunked\r\n\r\n"
    for _ in range(20):
        assert rest(clients(hasty, head + b"ZZ\r\n")).startswith(b"HTTP/1.1 4")
    assert alive(hasty)


def test_others_have_their_turn_between_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio brings a quarter of a MiB at once, which may be 40,000 chunks."""
    parts: list[int] = []
    parse = H11Protocol.data_received

    def counted(self: H11Protocol, data: bytes) -> None:
        parts.append(len(data))
        parse(self, data)

    monkeypatch.setattr(H11Protocol, "data_received", counted)
    chunked = CHUNKED + b"14\r\n%s\r\n" % (b" " * 20) * 5_000 + b"0\r\n\r\n"
    whole = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b" " * 1_000_000
    assert asyncio.run(length_of(chunked)) == 100_000
    assert max(parts) == PART_BYTES and len(parts) > 60
    parts.clear()
    assert asyncio.run(length_of(whole)) == 1_000_000
    assert max(parts) > 8 * PART_BYTES
    parts.clear()
    assert asyncio.run(length_of(chunked + whole)) == 100_000


async def length_of(request: bytes) -> int:
    """How long a body the app gets, as it answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, message = 0, {"more_body": True}
        while message["more_body"]:
            message = await receive()
            size += len(message["body"])
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": b"%d\n" % size})

    chosen = config(app, Limits(10), lifespan="off", log_config=None)
    chosen.load()
    protocol = partial(
        chosen.http_protocol_class, config=chosen, server_state=ServerState(), app_state={}
    )
    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"\r\n")  # the size of the chunk
        size = int(await reader.readuntil(b"\n"))
        writer.close()
    return size


@pytest.mark.slow
def test_who_reads_no_answer_is_left(tmp_path: Path, clients: Callable[..., socket.socket]) -> None:
    """It asks for more than the buffers of both sides hold, and so keeps one request going."""
    limits = {"max_requests": 1, "body_timeout_s": 1, "log_level": "warning"}
    with served(tmp_path / "data", "--no-inference", descriptors=FEW, **limits) as server:
        reader = clients(server)
        reader.settimeout(1)
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        with pytest.raises(TimeoutError):  # neither side reads
            while True:
                reader.sendall(asked)
        statuses = {server.ask("GET", "/voices")[0]}
        while 200 not in statuses:
            statuses.add(server.ask("GET", "/voices")[0])
    assert not [line for line in server.log if "Traceback" in line]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_slow_readers_of_a_clip_hold_no_memory(
    tmp_path: Path, clients: Callable[..., socket.socket]
) -> None:
    data = DataDir(tmp_path / "data")
    samples = np.random.default_rng(0).normal(0, 0.1, (1, 9_000_000)).astype(np.float32)
    upload = file(samples, 192_000)
    with closing(VoiceStore(data)) as store:
        enroller = QuickEnroller(store, FakeInference(data))
        asyncio.run(enrol_bytes(enroller, "alice", upload, None))
    with served(data.root, "--no-inference") as server:
        asked = b"GET /voices/alice/clip HTTP/1.1\r\nHost: localhost\r\n"
        assert len(upload) > 17_000_000
        assert server.ask("GET", "/voices/alice/clip")[1] == upload
        before_mib = server.peak_mib()
        for ending in (b"\r\n", b"Range: bytes=0-\r\n\r\n", b"Range: bytes=0-9,9-\r\n\r\n"):
            for _ in range(12):
                assert b" 20" in clients(server, asked + ending).recv(12)  # and nothing more
        assert alive(server)
        assert server.peak_mib() < before_mib + 100
        server.process.kill()  # it would wait for its readers


# ------------------------------------------------------------------ the process


def test_the_soft_limit_of_descriptors_is_lifted() -> None:
    script = "from cli.server.http_server import raise_descriptors as lift; print(lift(), lift())"
    limited = f"ulimit -n 500 && ulimit -S -n 100 && {PYTHON} -c '{script}'"
    done = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "500"]


OUT_OF_DESCRIPTORS = """
import socket
from cli.server.http_server import Limits, Server, config
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
Server(config(app, Limits(connections=1000), lifespan="off")).run(sockets=[listener])
"""


@pytest.mark.slow
def test_running_out_of_descriptors_is_said_once(clients: Callable[..., socket.socket]) -> None:
    """More connections are let in than there are descriptors, which `voices serve` never does."""
    words = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", PYTHON, "-c", OUT_OF_DESCRIPTORS]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = Server(process, f"http://127.0.0.1:{process.stdout.readline().strip()}")
    held = [clients(server, HALF) for _ in range(100)]
    assert process.stderr is not None
    while "out of system resource" not in (line := process.stderr.readline()):
        assert line, "the server ended"
    for connection in held:
        connection.close()
    assert server.ask("GET", "/")[0] == 204
    process.terminate()
    assert "out of system resource" not in process.communicate(timeout=60)[1]


@pytest.mark.slow
def test_what_is_overridden_of_uvicorn_is_there() -> None:
    """None of it is promised: a release that renames a part of it must not pass unseen."""
    own = {name for name, value in vars(ClientConnection).items() if callable(value)}
    named = {name for name in own if not name.startswith("_")} - {"make_room"}
    assert named and all(callable(getattr(H11Protocol, name, None)) for name in named)
