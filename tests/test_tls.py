"""`voices serve` over HTTPS: a certificate of our own, the real command line, slow clients.

What holds of plain connections holds of those on which there is no TLS yet.
"""

import asyncio
import inspect
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from clips import file, tone
from fakes import FakeInference
from faults import QuickEnroller
from keys import bearer, key_for
from test_serve import Server, served
from test_slow_clients import FEW, HALF, TLS_HELLO, is_open, rest
from uploading import enrol_bytes

from cli.main import cli
from cli.server.http_server import raise_descriptors
from cli.server.tls import Handshake, SecureConnection, server_context
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes certificates"
)


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two certificates and their keys, and a key that is encrypted."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("one", "other"):
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        )
    openssl(
        *("pkey", "-in", f"{folder}/one.key", "-aes256", "-passout", "pass:x"),
        *("-out", f"{folder}/locked.key"),
    )
    (folder / "none.pem").write_text("no certificate")
    return folder


def options(made: Path) -> tuple[str, ...]:
    return ("--tls-cert", str(made / "one.pem"), "--tls-key", str(made / "one.key"))


@pytest.fixture
def secure(made: Path, tmp_path: Path) -> Iterator[Server]:
    """Leaves whoever sends no head after 1 s."""
    few = {"descriptors": FEW, "header_timeout_s": 1}
    raise_descriptors()
    with served(tmp_path / "data", "--no-inference", *options(made), **few) as server:
        server.trusts = made / "one.pem"
        yield server
    assert not [line for line in server.log if "Traceback" in line or "ERROR" in line]


@pytest.fixture
def clients(secure: Server) -> Iterator[Callable[[bytes], socket.socket]]:
    with ExitStack() as held:

        def connect(said: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", secure.port), 30)
            held.enter_context(connection)
            connection.sendall(said)
            return connection

        yield connect


def in_tls(secure: Server, connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=secure.trusts)
    return context.wrap_socket(connection, server_hostname="localhost")


def alive(server: Server) -> bool:
    return server.ask("GET", "/healthz") == (200, b'{"status":"ok"}')


@pytest.mark.slow
def test_the_command_line_logs_in_with_a_key_over_https(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataDir(tmp_path / "data")
    with closing(VoiceStore(data)) as store:
        clip = file(tone(), 24_000)
        asyncio.run(enrol_bytes(QuickEnroller(store, FakeInference(data)), "alice", clip, None))
        key = key_for(store, "admin")
    monkeypatch.setenv("VOICES_CONFIG_HOME", str(tmp_path / "config"))
    with served(data.root, "--no-inference", "--host", "0.0.0.0", *options(made)) as server:
        url = f"https://localhost:{server.port}"
        assert server.url == f"https://0.0.0.0:{server.port}"
        server.trusts = made / "one.pem"
        assert server.ask("GET", "/voices")[0] == 401 and alive(server)
        assert server.ask("GET", "/voices", **bearer(key))[0] == 200

        def voices(*words: str, code: int = 0, input: str = "") -> str:
            done = CliRunner().invoke(cli, words, input=input)
            assert done.exit_code == code, done.output
            assert key not in done.output
            return done.output

        refused = voices("login", url, input=f"{key}\n", code=1)
        assert "certificate verify failed" in refused
        monkeypatch.setenv("SSL_CERT_FILE", str(server.trusts))
        voices("login", url, input=f"{key}\n")
        assert json.loads(voices("list", "--json"))[0]["name"] == "alice"
        other = voices("keys", "create", "shop", "--json")
        shop = json.loads(other)
        assert "shop" in voices("keys", "list")
        voices("keys", "revoke", shop["key"], "--yes")
        assert server.ask("GET", "/voices", **bearer(shop["key"]))[0] == 401
    assert key.split("_")[2] not in "\n".join(server.log)


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"\x16", TLS_HELLO, TLS_HELLO[:9]], ids=len)
def test_a_handshake_that_does_not_end_is_left(
    secure: Server, clients: Callable[[bytes], socket.socket], said: bytes
) -> None:
    since_s = time.monotonic()
    rest(clients(said))
    assert time.monotonic() - since_s < 5
    assert alive(secure)


@pytest.mark.slow
def test_a_head_that_does_not_end_is_left_over_tls_too(
    secure: Server, clients: Callable[[bytes], socket.socket]
) -> None:
    for said in (b"", HALF):
        with in_tls(secure, clients(b"")) as connection:
            connection.sendall(said)
            since_s = time.monotonic()
            assert rest(connection) == b"" and time.monotonic() - since_s < 8


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", TLS_HELLO[:9]])
def test_half_open_handshakes_make_nobody_deaf(made: Path, tmp_path: Path, said: bytes) -> None:
    raise_descriptors()
    never: dict[str, object] = {"header_timeout_s": 3600}
    home = tmp_path / "data"
    with (
        ExitStack() as held,
        served(home, "--no-inference", *options(made), descriptors=FEW, **never) as server,
    ):
        server.trusts = made / "one.pem"
        open_ = []
        for _ in range(300):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            client.sendall(said)
            open_.append(client)
        assert alive(server)
        assert not is_open(open_[0]) and is_open(open_[-1])  # who waited longest made room
    log = "\n".join(server.log)
    assert "Traceback" not in log and "out of system resource" not in log and len(log) < 100_000


@pytest.mark.slow
def test_what_is_no_tls_is_closed_at_once(made: Path, tmp_path: Path) -> None:
    """Long before the time of a head is over."""
    with served(tmp_path / "data", "--no-inference", *options(made)) as server:
        for said in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"SSH-2.0\r\n", bytes(600)):
            since_s = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                client.sendall(said)
                assert not rest(client).startswith(b"HTTP")
            assert time.monotonic() - since_s < 5
    assert not [line for line in server.log if "Traceback" in line or "ERROR" in line]


@pytest.mark.slow
def test_old_versions_of_tls_are_refused(secure: Server) -> None:
    context = ssl.create_default_context(cafile=secure.trusts)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    raw = socket.create_connection(("127.0.0.1", secure.port))
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        assert connection.version() == "TLSv1.2"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.port}", "-tls1_1"],
        input=b"",
        capture_output=True,
    )
    assert done.returncode != 0


@pytest.mark.slow
def test_a_server_ends_soon_though_a_client_holds_its_connection(
    made: Path, tmp_path: Path
) -> None:
    with served(tmp_path / "data", "--no-inference", *options(made)) as server:
        server.trusts = made / "one.pem"
        with in_tls(server, socket.create_connection(("127.0.0.1", server.port))) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            since_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == -signal.SIGTERM
            assert time.monotonic() - since_s < 10


@pytest.mark.slow
def test_a_page_of_the_server_itself_is_of_its_own_origin(secure: Server) -> None:
    for scheme, status in (("https", 200), ("http", 403)):
        origin = f"{scheme}://localhost:{secure.port}"
        headers = {"Host": f"localhost:{secure.port}", "Origin": origin}
        assert secure.ask("GET", "/voices", **headers)[0] == status


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("nowhere.pem", "one.key", "Can't read .*nowhere.pem': No such file or directory"),
        ("one.pem", "nowhere.key", "Can't read .*nowhere.key'"),
        (".", "one.key", "Is a directory"),
        ("none.pem", "one.key", "none.pem' holds no certificate in PEM"),
        ("one.pem", "one.pem", "one.pem' holds no key in PEM"),
        ("one.key", "one.pem", "one.key' holds no certificate in PEM"),
        ("one.pem", "other.key", "other.key' is not the key of the certificate in .*one.pem'"),
        ("one.pem", "locked.key", "is encrypted"),
        ("cut.pem", "one.key", "are no certificate and its key"),
    ],
)
def test_files_that_can_not_be_used_are_named(
    made: Path, certificate: str, key: str, said: str
) -> None:
    (made / "cut.pem").write_text((made / "one.pem").read_text()[:300])
    with pytest.raises(click.UsageError, match=said):
        server_context(made / certificate, made / key)


def test_a_certificate_without_its_key_is_a_mistake(made: Path, tmp_path: Path) -> None:
    for given in (("--tls-cert", f"{made}/one.pem"), ("--tls-key", f"{made}/one.key")):
        environ = {"VOICES_HOME": str(tmp_path)}
        done = CliRunner().invoke(cli, ["serve", *given], env=environ)
        assert done.exit_code == 2 and "belong together" in done.output


def test_what_is_used_of_asyncio_is_there() -> None:
    """None of it is promised: a release that changes it must not pass unseen."""
    parameters = inspect.signature(SSLProtocol.__init__).parameters
    assert {"server_side", "ssl_handshake_timeout", "ssl_shutdown_timeout"} <= set(parameters)
    assert list(parameters)[1:5] == ["loop", "app_protocol", "sslcontext", "waiter"]
    for name in ("connection_made", "connection_lost"):
        assert name in vars(SSLProtocol) and name in vars(Handshake)
    assert issubclass(SecureConnection, asyncio.Protocol)
