"""Wrong, hostile and oversized requests: each a problem document, never a 500."""

import json
import select
import socket
from collections.abc import Iterator

import httpx
import pytest
from api import add, problem
from deployments import DEPLOYMENTS, client_of, deployed

from registry.storage.data_dir import DataDir


@pytest.fixture(scope="module", params=DEPLOYMENTS)
def deployment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(
    deployment: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, DataDir]]:
    """One server with one voice for all of this module: nothing here may change anything."""
    store, fake = deployed(deployment, tmp_path_factory.mktemp("refusals"))
    with client_of(deployment, store, fake) as client:
        assert add(client, "alice").status_code == 201
        yield client, store.data
        assert client.get("/voices/alice").json()["row_version"] == 1


@pytest.fixture
def client(served: tuple[httpx.Client, DataDir]) -> httpx.Client:
    return served[0]


@pytest.fixture
def home(served: tuple[httpx.Client, DataDir]) -> DataDir:
    return served[1]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/voices/alice", "DELETE, GET, HEAD, PATCH"),
        ("DELETE", "/voices", "GET, HEAD, POST"),
        ("GET", "/speak", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_405_names_every_method(client: httpx.Client, method: str, path: str, allow: str) -> None:
    refused = client.request(method, path)
    assert problem(refused) == (405, "method-not-allowed")
    assert refused.headers["allow"] == allow


@pytest.mark.parametrize(
    "path", ["/healthz", "/voices", "/voices/alice", "/voices/alice/clip", "/voices/nobody", "/"]
)
def test_head_answers_what_get_does_without_the_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    same = set(got.headers) - {"date", "x-request-id"}
    assert {name: head.headers[name] for name in same} == {n: got.headers[n] for n in same}
    assert client.head("/speak").status_code == 405


def test_errors_of_transport_have_the_same_shape(client: httpx.Client) -> None:
    assert problem(client.get("/nowhere")) == (404, "not-found")
    plain = {"content-type": "text/plain"}
    for path, content in (("/speak", b"{}"), ("/voices", b"name=x")):
        refused = client.post(path, content=content, headers=plain)
        assert problem(refused) == (415, "content-type-unsupported")
    bulky = client.post("/speak", json={"voice": "a", "text": "x" * 70_000})
    assert problem(bulky) == (413, "body-too-large")


def test_uploads_are_refused_while_they_are_read(client: httpx.Client) -> None:
    """Speaks HTTP by hand, for no client library looks at the answer before its body is sent."""
    if client.base_url.port is None:
        pytest.skip("the private socket has no port")
    head = b"POST /voices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
    with socket.create_connection((client.base_url.host, client.base_url.port), 30) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(part), part))
        sent_mib = 0
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
            sent_mib += 1
            assert sent_mib < 30
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert sent_mib >= 20


def test_announced_uploads_are_refused_before_they_are_read(client: httpx.Client) -> None:
    large = client.post("/voices", data={"name": "a"}, files={"audio": ("a", bytes(21 * 2**20))})
    assert problem(large) == (413, "body-too-large")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "a/b"}, "name-invalid"),
        ({"transcript": "  "}, "text-invalid"),
        ({"transcript": "x" * 2001}, "text-too-long"),
        ({"labels": "[1]"}, "request-invalid"),
        ({"labels": '{"A b": "x"}'}, "request-invalid"),
        ({"labels": '{"a": 1e999}'}, "request-invalid"),
        ({"description": "x" * 2001}, "request-invalid"),
        ({"surprise": "x"}, "request-invalid"),
        ({"name": "<absent>"}, "request-invalid"),
    ],
)
def test_wrong_enrolments_are_422(client: httpx.Client, fields: dict[str, str], code: str) -> None:
    given = {"name": "ok"} | fields
    assert problem(add(client, given.pop("name"), **given)) == (422, code)
    assert [voice["name"] for voice in client.get("/voices").json()["data"]] == ["alice"]


def test_a_clip_that_is_no_clip_leaves_nothing_behind(client: httpx.Client, home: DataDir) -> None:
    form = {"name": "bob", "transcript": "x"}
    before = list(home.content_files())
    html = client.post("/voices", data=form, files={"audio": ("a.wav", b"<html>no</html>")})
    assert problem(html) == (415, "audio-unsupported")
    empty = client.post("/voices", data=form, files={"audio": ("a.wav", b"")})
    assert problem(empty) == (422, "audio-empty")
    assert list(home.content_files()) == before


HOSTILE = [
    b'{"voice": "\\ud800", "text": "x"}',
    b'{"voice": "alice", "text": "\\ud800"}',
    b'{"voice": "alice", "text": "\\u0000"}',
    b'{"voice": "alice", "text": "x", "temperature": NaN}',
    b'{"voice": "alice", "text": "x", "temperature": 1e999}',
    b'{"voice": "alice", "text": "x", "temperature": -1}',
    b'{"voice": "alice", "text": "x", "top_p": Infinity}',
    b'{"voice": "alice", "text": "x", "top_p": 0}',
    b'{"voice": "alice", "text": "x", "seed": 1' + b"0" * 400 + b"}",
    b'{"voice": "alice", "text": "x", "seed": 1' + b"0" * 5000 + b"}",
    b'{"voice": "alice", "text": "x", "seed": 9223372036854775808}',
    b'{"voice": "alice", "text": "x", "seed": -1}',
    b'{"voice": "alice", "text": "x", "seed": true}',
    b'{"voice": "alice", "text": "x", "seed": NaN}',
    b'{"voice": "alice", "text": "x", "top_k": 0}',
    b'{"voice": "alice", "text": "x", "mode": "both"}',
    b'{"voice": "alice", "text": "x", "format": "mp4"}',
    b'{"voice": "alice", "text": "x", "bogus": 1}',
    b'{"voice": "alice", "text": 5}',
    b'{"voice": "alice", "text": null}',
    b'{"voice": "alice", "text": ""}',
    b'{"voice": "alice", "text": " \\n\\t "}',
    b'{"voice": {"id": "alice"}, "text": "x"}',
    b'{"voice": "", "text": "x"}',
    b'{"voice": ["alice"], "text": "x"}',
    b'{"text": "x"}',
    b"NaN",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\xff\xfe",
    b"[" * 30_000,
    b'{"voice": "alice", "text": ' + b"[" * 20_000,
    json.dumps({"voice": "alice", "text": "x" * 5001}).encode(),
    json.dumps({"voice": "alice", "language": "\x00", "text": "x"}).encode(),
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:48]))
def test_hostile_json_is_refused_without_a_500(client: httpx.Client, body: bytes) -> None:
    refused = client.post("/speak", content=body, headers={"content-type": "application/json"})
    status, _ = problem(refused)
    assert status in (400, 422)
    patched = client.patch(
        "/voices/alice", content=body, headers={"content-type": "application/json"}
    )
    assert problem(patched)[0] in (400, 422)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=99999999999999999999", "after=%FF", "after=!", "after=é"]
)
def test_wrong_queries_are_422(client: httpx.Client, query: str) -> None:
    assert problem(client.get(f"/voices?{query}"))[0] == 422


@pytest.mark.parametrize("reference", ["%00", "%FF%FE", "%ED%A0%80", "x" * 4000, "..%2f", "%0A"])
def test_odd_references_are_404(client: httpx.Client, reference: str) -> None:
    assert problem(client.get(f"/voices/{reference}"))[0] == 404
