"""`voices serve`, a process of its own, and what it writes in its log."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import PYTHON

pytestmark = pytest.mark.served

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR): +\S.*")
UPGRADES = {
    "h2c": {"Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__"},
    "websocket": {
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    },
}


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: list[str] = field(default_factory=list)
    trusts: Path | None = None  # a certificate, where it speaks HTTPS

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def peak_mib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if self.trusts is not None:
            context = ssl.create_default_context(cafile=self.trusts)
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=60, context=context
            )
        try:
            connection.request(method, path, body.encode(), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def served(
    home: Path, *options: str, descriptors: int | None = None, **settings: object
) -> Iterator[Server]:
    """Its log is whole once the block is left."""
    words = [PYTHON, "-m", "cli.main", "serve", "--port", "0", *options]
    if descriptors is not None:
        words = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *words]
    named = {f"VOICES_{name.upper()}": str(value) for name, value in settings.items()}
    environ = os.environ | {"VOICES_HOME": str(home)} | named
    process = subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while not re.search("on https?://", said):
        said = process.stderr.readline()
        assert said, "the server ended before it said where it listens"
    server = Server(process, said.rpartition("on ")[2].strip())
    try:
        yield server
    finally:
        process.terminate()
        server.log += process.communicate(timeout=60)[1].splitlines()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path / "data", "--no-inference") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("protocol", UPGRADES)
def test_a_request_that_asks_for_an_upgrade_keeps_its_body(server: Server, protocol: str) -> None:
    """httptools, where it is installed, would hand on none of it."""
    headers = UPGRADES[protocol] | {"Upgrade": protocol, "Content-Type": "application/json"}
    status, answer = server.ask("POST", "/speak", '{"voice": "alice", "text": "hi"}', **headers)
    assert (status, b"voice-not-found" in answer) == (404, True)


@pytest.mark.slow
def test_every_line_of_the_log_has_its_time(tmp_path: Path) -> None:
    with served(tmp_path / "data", "--no-inference") as server:
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("GET", "/voices/nobody")[0] == 404
    assert [line for line in server.log if not LINE.fullmatch(line)] == []
    said = "\n".join(server.log)
    assert '"GET /healthz HTTP/1.1" 200' in said and '"GET /voices/nobody HTTP/1.1" 404' in said


@pytest.mark.slow
def test_no_speech_waits_for_the_codecs_to_be_imported(tmp_path: Path, checkpoint: Path) -> None:
    with served(tmp_path / "data", "--model", str(checkpoint), "--device", "cpu") as server:
        libraries = Path(f"/proc/{server.process.pid}/maps")
        while "libmp3lame" not in libraries.read_text():  # or this test takes too long
            assert server.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_answered_has_the_whole_answer_when_it_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    """SIGHUP is the terminal that is closed."""
    head = "POST /speak HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = b'{"voice": "alice", "text": "hi"}'
    with (
        served(tmp_path / "data", "--no-inference") as server,
        socket.create_connection(("127.0.0.1", server.port), 60) as client,
    ):
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:9])
        while server.ask("GET", "/healthz")[0] != 200:  # the half of it is there by then
            pass
        server.process.send_signal(number)
        with pytest.raises(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", server.port), 60).close()
        client.sendall(body[9:])
        assert b"voice-not-found" in client.makefile("rb").read()
        assert server.process.wait(60) == -number


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_twice_to_end_leaves_no_upload(tmp_path: Path, first: signal.Signals) -> None:
    head = "POST /voices HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = (
        '--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + 1000000 * "a"
    )
    uploads = tmp_path / "data" / "uploads"
    with (
        served(tmp_path / "data", "--no-inference", log_level="warning") as server,
        socket.create_connection(("127.0.0.1", server.port), 60) as client,
    ):
        client.sendall(f"{head}{kind}{part}".encode())
        while not (uploads.is_dir() and [*uploads.iterdir()]):
            assert server.ask("GET", "/healthz")[0] == 200
        server.process.send_signal(first)
        with pytest.raises(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", server.port), 60).close()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == -first
    assert [*uploads.iterdir()] == []


def test_a_server_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the child inherits it
    try:
        with served(tmp_path / "data", "--no-inference") as server:
            server.process.send_signal(signal.SIGHUP)
            assert server.ask("GET", "/healthz")[0] == 200
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_an_ipv6_address_is_a_url(tmp_path: Path) -> None:
    with served(tmp_path / "data", "--no-inference", "--host", "::1") as server:
        assert re.fullmatch(r"http://\[::1\]:\d+", server.url)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("path", ["/voices", "/speak", "/nowhere"])
def test_a_body_without_end_takes_no_memory(server: Server, path: str) -> None:
    """Speaks HTTP by hand, and sends 200 MiB whatever the server says meanwhile."""
    assert server.ask("GET", "/voices")[0] == 200
    kind = "multipart/form-data; boundary=x" if path == "/voices" else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n'
    before_mib = server.peak_mib()
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        for _ in range(200):
            connection.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(12) == (b"HTTP/1.1 404" if path == "/nowhere" else b"HTTP/1.1 413")
    assert server.peak_mib() - before_mib < 16


FORWARDED = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proxies", "address", "status"),
    [
        ("", "127.0.0.1", 403),
        ("192.0.2.7", "127.0.0.1", 403),
        ("127.0.0.1", "192.0.2.7", 404),
        ("10.0.0.0/8,127.0.0.0/8", "192.0.2.7", 404),
    ],
)
def test_only_a_proxy_that_is_named_says_who_asks_and_by_which_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxies: str, address: str, status: int
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with served(tmp_path / "data", "--no-inference", proxies=proxies) as server:
        headers = FORWARDED | {"Origin": f"https://127.0.0.1:{server.port}"}
        assert server.ask("DELETE", "/voices/nobody", **headers)[0] == status
    [line] = [line for line in server.log if "DELETE" in line]
    assert f" {address}:" in line


@pytest.mark.slow
def test_a_client_that_leaves_is_no_error(tmp_path: Path) -> None:
    form = "multipart/form-data; boundary=x"
    with served(tmp_path / "data", "--no-inference") as server:
        for path, kind in (("/voices", form), ("/speak", "application/json")):
            with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--x\r\n".encode())
        assert server.ask("GET", "/healthz")[0] == 200
    assert not [line for line in server.log if "Traceback" in line or "ERROR" in line]


@pytest.mark.slow
def test_what_is_no_http_is_answered_in_plain_text(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400") and b"text/plain" in answer
