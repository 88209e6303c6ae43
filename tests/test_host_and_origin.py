"""`voices serve` answers to its own names, and does nothing for pages of other sites."""

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from api import CLIP, add, problem
from fakes import FakeInference
from serving import serving
from test_serve import Server, served

from registry.api.host_and_origin import add_fence
from registry.app import create_app
from registry.errors import SettingInvalid
from registry.settings import load_settings
from registry.storage.store import VoiceStore

PAGE = "https://app.example.org"
LOOPBACK = (
    "localhost",
    "localhost:8000",
    "LocalHost:1",
    "localhost.",
    "localhost.:8000",
    "localhost:",
    "registry.localhost:8000",
    "127.0.0.1",
    "127.8.9.10:65535",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:8000",
    "[::ffff:127.0.0.1]",
)
STRANGERS = (
    "rebound.example",
    "rebound.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:8000",
    "192.168.1.5",
    "0.0.0.0:8000",
    "[::]",
    "[2001:db8::1]:8000",
    "[::ffff:10.0.0.1]",
    "",
    ":8000",
    ".localhost",
    "a..localhost",
    "localhost..",
    "ann@localhost",
    "localhost@evil.example",
    "localhost:8000:8000",
    "localhost:eight",
    "localhost:65536",
    "localhost/..",
    "localhost, evil.example",
    "localhost evil.example",
    "http://localhost",
    "::1",
    "[::1",
    "[::1]evil.example",
    "[127.0.0.1]",
    "[::1%25lo]",
    "127.0.0.01",
    "127.1",
    "l\u043ecalhost".encode().decode("latin-1"),  # its first o is Cyrillic
)


@contextmanager
def fenced(
    store: VoiceStore, fake: FakeInference, bound: str = "127.0.0.1", **settings: str
) -> Iterator[httpx.Client]:
    chosen = load_settings(
        {f"VOICES_{name.upper()}": value for name, value in settings.items()}, store.data.root
    )
    app = create_app(store, fake, chosen)
    add_fence(app, chosen, [bound])
    with serving(app) as client:
        yield client


@pytest.fixture
def behind(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    with fenced(store, fake) as client:
        yield client


def said(port: int | None, request: str) -> bytes:
    """Status and body of an answer to what no client would send."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return b"%d %s" % (answer.status, answer.read())


def answer_to(client: httpx.Client, host: str) -> httpx.Response:
    return client.get("/voices", headers={"Host": host.encode("latin-1")})


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_name_of_loopback_is_answered(behind: httpx.Client, host: str) -> None:
    assert answer_to(behind, host).status_code == 200


@pytest.mark.parametrize("host", STRANGERS)
def test_another_name_is_not(behind: httpx.Client, host: str) -> None:
    assert problem(answer_to(behind, host)) == (421, "host-unknown")
    gone = behind.delete("/voices/alice", headers={"Host": host.encode("latin-1")})
    assert problem(gone) == (421, "host-unknown")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/", "/nowhere"])
def test_no_path_is_outside_the_fence(behind: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE"):
        refused = behind.request(method, path, headers={"Host": "rebound.example"})
        assert refused.status_code == 421


def test_a_forwarded_name_is_not_read(behind: httpx.Client) -> None:
    forwarded = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    refused = behind.get("/voices", headers={"Host": "rebound.example"} | forwarded)
    assert problem(refused) == (421, "host-unknown")
    harmless = behind.get("/voices", headers={"X-Forwarded-Host": "rebound.example"})
    assert harmless.status_code == 200


def test_two_hosts_are_refused_even_if_one_is_ours(behind: httpx.Client) -> None:
    """h11 refuses them itself; a fence behind another server must not take the first."""
    for second in ("rebound.example", "localhost"):
        request = f"GET /voices HTTP/1.1\r\nHost: localhost\r\nHost: {second}\r\n\r\n"
        assert said(behind.base_url.port, request)[:3] in (b"400", b"421")


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "status"),
    [
        ("192.168.1.5", "", "192.168.1.5:8000", 200),
        ("192.168.1.5", "", "192.168.1.6:8000", 421),
        ("192.168.1.5", "", "localhost", 200),
        ("fd00::5", "", "[FD00:0::5]:8000", 200),
        ("fe80::5%eth0", "", "[fe80::5]:8000", 200),
        ("box.lan", "", "Box.LAN.:8000", 200),
        ("0.0.0.0", "", "0.0.0.0:8000", 200),
        ("0.0.0.0", "", "192.168.1.5:8000", 200),
        ("0.0.0.0", "", "rebound.example:8000", 421),
        ("::", "", "[2001:db8::1]:8000", 200),
        ("::", "", "rebound.example", 421),
        ("127.0.0.1", "voices.example.org", "Voices.Example.org.:443", 200),
        ("127.0.0.1", "Voices.Example.ORG", "voices.example.org", 200),
        ("127.0.0.1", "voices.example.org", "a.voices.example.org", 421),
        ("127.0.0.1", "voices.example.org", "voices.example.org.evil.example", 421),
        ("127.0.0.1", "*.example.org", "a.b.example.org", 200),
        ("127.0.0.1", "*.example.org", "example.org", 421),
        ("127.0.0.1", "*.example.org", "evilexample.org", 421),
        ("127.0.0.1", "voices,10.0.0.7,[fd00::7]", "voices:8000", 200),
        ("127.0.0.1", "voices,10.0.0.7,[fd00::7]", "10.0.0.7", 200),
        ("127.0.0.1", "voices,10.0.0.7,[FD00::0:7]", "[fd00::7]:1", 200),
        ("127.0.0.1", "*", "rebound.example", 200),
    ],
)
def test_the_bound_address_and_listed_names_are_answered(
    store: VoiceStore, fake: FakeInference, bound: str, allowed: str, host: str, status: int
) -> None:
    with fenced(store, fake, bound, allowed_hosts=allowed) as client:
        assert answer_to(client, host).status_code == status


@pytest.mark.parametrize(
    "hosts",
    [
        "http://a.example",
        "a.example:8000",
        "a.example,",
        "a.example, b.example",
        "a.example\n",
        "a.*.example",
        "*,a.example",
        "*example",
        ".example",
        "ann@a.example",
        "a b",
        "::1",
    ],
)
def test_what_is_no_name_refuses_to_start(hosts: str, tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match="VOICES_ALLOWED_HOSTS"):
        load_settings({"VOICES_ALLOWED_HOSTS": hosts}, tmp_path)


@pytest.mark.parametrize(
    "proxies",
    ["*", "proxy", "10.0.0.1/8", "10.0.0.1,", "10.0.0.1, 10.0.0.2", "10.0.0.1:80", "[::1]"],
)
def test_what_is_neither_address_nor_network_is_no_proxy(proxies: str, tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match="VOICES_PROXIES"):
        load_settings({"VOICES_PROXIES": proxies}, tmp_path)


def own(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def of_strangers(port: int) -> list[dict[str, str]]:
    origins = (
        "https://evil.example",
        "null",
        "NULL",
        "",
        "file://",
        f"https://127.0.0.1:{port}",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        f"http://ann@127.0.0.1:{port}",
        f"http://127.0.0.1:{port}.evil.example",
        f"http://127.0.0.1:{port}/voices",
        f"http://127.0.0.1:{port} https://evil.example",
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{port}999999",
    )
    sites = ("cross-site", "same-site", "Cross-Site", "same-origin, cross-site", "", "elsewhere")
    ours = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"}
    lying = {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}
    return [
        *({"Origin": origin} for origin in origins),
        *({"Sec-Fetch-Site": site} for site in sites),
        ours,
        lying,
        lying | {"X-Forwarded-Host": "evil.example", "X-HTTP-Method-Override": "GET"},
    ]


def test_a_page_of_another_site_changes_nothing(behind: httpx.Client, fake: FakeInference) -> None:
    add(behind, "alice")
    assert behind.base_url.port is not None
    for headers in of_strangers(behind.base_url.port):
        form = {"name": "planted", "transcript": "hello there"}
        for refused in (
            behind.post("/voices", data=form, files={"audio": CLIP}, headers=headers),
            behind.post("/voices/alice/rebuild", headers=headers),
            behind.post("/speak", json={"voice": "alice", "text": "Hi"}, headers=headers),
            behind.patch("/voices/alice", json={"name": "bob"}, headers=headers),
            behind.delete("/voices/alice", headers=headers),
            behind.post("/nowhere", headers=headers),
        ):
            assert problem(refused) == (403, "origin-refused"), headers
    assert [voice["name"] for voice in behind.get("/voices").json()["data"]] == ["alice"]


def test_two_origins_are_refused_unless_both_may(behind: httpx.Client) -> None:
    for order in (1, -1):
        headers = [("Origin", own(behind)), ("Origin", "https://evil.example")][::order]
        refused = behind.delete("/voices/alice", headers=headers)
        assert problem(refused) == (403, "origin-refused")


@pytest.mark.slow
def test_our_own_page_and_programs_may_do_everything(behind: httpx.Client) -> None:
    port = behind.base_url.port
    for headers in (
        {},
        {"Origin": own(behind)},
        {"Origin": own(behind), "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Host": f"LOCALHOST.:{port}", "Origin": f"http://localhost:{port}"},
        {"Host": "localhost", "Origin": "http://localhost"},
        {"Host": "localhost:80", "Origin": "http://localhost"},
        {"Host": "[0::1]:9", "Origin": "http://[::1]:9"},
        {"Host": "localhost", "Origin": "https://localhost", "X-Forwarded-Proto": "https"},
    ):
        form = {"name": "alice", "transcript": "hello there"}
        made = behind.post("/voices", data=form, files={"audio": CLIP}, headers=headers)
        assert made.status_code == 201, headers
        assert behind.delete("/voices/alice", headers=headers).status_code == 204


FOREIGN = (
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "audio"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "null"},
    {"Origin": "https://evil.example"},
)
READ = ("/voices/alice/clip", "/voices/alice/prompt", "/voices", "/healthz", "/docs", "/gone")


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_reads_and_plays_nothing(
    behind: httpx.Client, headers: dict[str, str]
) -> None:
    """An <audio> element asks without CORS, and many of them are a load."""
    add(behind, "alice")
    for path in READ:
        for method in ("GET", "HEAD", "OPTIONS"):
            found = behind.request(method, path, headers=headers)
            assert found.status_code == 403
            assert not [name for name in found.headers if name.startswith("access-control")]


def test_a_page_of_another_site_may_lead_its_visitor_here(behind: httpx.Client) -> None:
    """Who follows a link sees our page, and the page that led there sees nothing of it."""
    add(behind, "alice")
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for path in READ[:-1]:
        found = behind.get(path, headers=headers)
        assert found.status_code == 200
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert found.headers["x-content-type-options"] == "nosniff"
    assert problem(behind.delete("/voices/alice", headers=headers)) == (403, "origin-refused")


def test_a_star_lets_every_page_play_clips(store: VoiceStore, fake: FakeInference) -> None:
    with fenced(store, fake, allowed_origins="*") as client:
        add(client, "alice")
        for headers in FOREIGN:
            found = client.get("/voices/alice/clip", headers=headers)
            assert found.status_code == 200
            assert found.headers["cross-origin-resource-policy"] == "cross-origin"


def test_a_listed_page_may_do_everything(store: VoiceStore, fake: FakeInference) -> None:
    with fenced(store, fake, allowed_origins=f"http://localhost:3000,{PAGE}") as client:
        for origin in (PAGE, "http://localhost:3000"):
            add(client, "alice")
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            gone = client.delete("/voices/alice", headers=headers)
            assert (gone.status_code, gone.headers["access-control-allow-origin"]) == (204, origin)
        for origin in ("https://evil.example", f"{PAGE}.evil.example", "http://localhost:3001"):
            refused = client.delete("/voices/alice", headers={"Origin": origin})
            assert problem(refused) == (403, "origin-refused")
        unnamed = client.delete("/voices/alice", headers={"Sec-Fetch-Site": "cross-site"})
        assert problem(unnamed) == (403, "origin-refused")
        preflight = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
        assert client.options("/voices/alice", headers=preflight).status_code == 200
        elsewhere = client.options("/voices/alice", headers=preflight | {"Host": "evil.example"})
        assert problem(elsewhere) == (421, "host-unknown")


def test_a_star_lets_every_page_in(store: VoiceStore, fake: FakeInference) -> None:
    with fenced(store, fake, allowed_origins="*") as client:
        for origin in ("https://evil.example", "null"):
            add(client, "alice")
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            assert client.delete("/voices/alice", headers=headers).status_code == 204


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path / "data", "--no-inference") as server:
        yield server


@pytest.mark.slow
def test_serve_puts_up_the_fence_and_logs_what_it_refuses(tmp_path: Path) -> None:
    with served(tmp_path / "data", "--no-inference") as server:
        assert server.ask("GET", "/voices")[0] == 200
        status, answer = server.ask("GET", "/voices", Host="rebound.example")
        assert status == 421 and b'"code":"host-unknown"' in answer
        status, answer = server.ask("POST", "/speak", "{}", Origin="null")
        assert status == 403 and b'"code":"origin-refused"' in answer
    log = "\n".join(server.log)
    assert '"GET /voices HTTP/1.1" 421' in log and '"POST /speak HTTP/1.1" 403' in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://rebound.example/voices", "localhost", b"421"),
        ("HTTP://rebound.example/voices", "localhost", b"421"),
        ("http://rebound.example", "localhost", b"421"),
        ("http://localhost@rebound.example/voices", "localhost", b"421"),
        ("http://localhost/voices", "rebound.example", b"421"),
        ("//rebound.example/voices", "localhost", b"404"),
        ("/voices?at=http://rebound.example/", "localhost", b"422"),
    ],
)
def test_a_target_may_name_no_other_host(
    server: Server, target: str, host: str, status: bytes
) -> None:
    assert said(server.port, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")[:3] == status


@pytest.mark.slow
def test_what_is_refused_is_answered_before_its_body_comes(server: Server) -> None:
    head = "POST /voices HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nExpect: 100-continue\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n"
    for size in ("Content-Length: 9000000", "Transfer-Encoding: chunked"):
        assert said(server.port, f"{head}{size}\r\n\r\n").startswith(b"403 ")


@pytest.mark.slow
def test_a_program_of_http_1_0_needs_no_host(server: Server) -> None:
    assert said(server.port, "GET /voices HTTP/1.0\r\n\r\n").startswith(b"200 ")
    refused = "DELETE /voices/alice HTTP/1.0\r\nOrigin: http://127.0.0.1\r\n\r\n"
    assert said(server.port, refused).startswith(b"403 ")


@pytest.mark.slow
def test_a_server_for_the_network_answers_to_addresses_and_listed_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "VOICES_ALLOWED_HOSTS", "voices,*.example.org")
    options = ("--no-inference", "--host", "0.0.0.0", "--insecure-no-auth")
    with served(tmp_path / "data", *options) as server:
        for host in ("192.168.1.5", "[fd00::5]:8000", "voices:8000", "a.example.org", "localhost"):
            assert server.ask("GET", "/voices", Host=host)[0] == 200
        assert server.ask("GET", "/voices", Host="rebound.example")[0] == 421
