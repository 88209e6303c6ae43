"""Clips and prompts over HTTP: ranges, entity tags, names (RFC 9110, RFC 6266)."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from api import CLIP, add, problem
from deployments import DEPLOYMENTS, client_of, deployed
from fastapi import FastAPI, Request, Response
from serving import serving

from registry.api.file_answers import answer, clip_file
from registry.storage.blobs import StoredContent
from registry.storage.store import VoiceStore

SIZE = len(CLIP)


@pytest.fixture(scope="module", params=DEPLOYMENTS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    store, fake = deployed(request.param, tmp_path_factory.mktemp("files"))
    with client_of(request.param, store, fake) as client:
        assert add(client, "alice").status_code == 201
        yield client


def clip(client: httpx.Client, asked: str | None = None, **more: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return client.get(
        "/voices/alice/clip", headers=headers | ({} if asked is None else {"Range": asked})
    )


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-1", 0, 2),
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        ("bytes=0-", 0, SIZE),
        (f"bytes=0-{SIZE - 1}", 0, SIZE),
        (f"bytes=0-{SIZE + 5}", 0, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("BYTES = 5-9", 5, 10),
        (f"bytes=5-9,{SIZE}-", 5, 10),
    ],
)
def test_a_range_is_those_bytes(served: httpx.Client, asked: str, start: int, end: int) -> None:
    part = clip(served, asked)
    assert (part.status_code, part.content) == (206, CLIP[start:end])
    assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert part.headers["content-length"] == str(end - start)
    assert part.headers["content-type"] == "audio/wav"
    assert part.headers["etag"] == clip(served).headers["etag"]


@pytest.mark.parametrize(
    "asked",
    [
        "bytes",
        "bytes=",
        "bytes=abc",
        "bytes=5-2",
        "bytes=-",
        "bytes=1-2-3",
        "bytes=--5",
        "bytes=1.5-2",
        "items=0-1",
        "bytes=٣-٤".encode().decode("latin-1"),
        "bytes=0-1,x",
        "bytes=0-,0-,0-",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(50)),
        "bytes=0-" + "9" * 5000,
    ],
    ids=lambda asked: asked[:20],
)
def test_what_is_no_range_of_bytes_is_ignored(served: httpx.Client, asked: str) -> None:
    whole = served.get("/voices/alice/clip", headers=[(b"range", asked.encode("latin-1"))])
    assert (whole.status_code, whole.content) == (200, CLIP)
    assert whole.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE}-{SIZE + 9}"])
def test_bytes_that_are_not_there_are_416(served: httpx.Client, asked: str) -> None:
    refused = clip(served, asked)
    assert problem(refused) == (416, "range-unsatisfiable")
    assert refused.headers["content-range"] == f"bytes */{SIZE}"


def test_several_ranges_come_in_parts(served: httpx.Client) -> None:
    parts = clip(served, "bytes=0-1, 10-19, -5")
    assert parts.status_code == 206
    kind, _, boundary = parts.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    found = parts.content.split(f"--{boundary}".encode())
    assert (found[0], found[-1]) == (b"", b"--\r\n")
    for part, (start, end) in zip(found[1:-1], [(0, 2), (10, 20), (SIZE - 5, SIZE)], strict=True):
        head, _, content = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{end - 1}/{SIZE}".encode() in head
        assert content == CLIP[start:end] + b"\r\n"


def test_what_a_client_has_is_not_sent_again(served: httpx.Client) -> None:
    tag = clip(served).headers["etag"]
    assert tag == f'"{served.get("/voices/alice").json()["clip"]["sha256"]}"'
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*", f', {tag} ,"y"'):
        kept = clip(served, if_none_match=known)
        assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", tag)
    for other in ('"x"', tag.strip('"'), "garbage", ""):
        assert clip(served, if_none_match=other).status_code == 200
    assert clip(served, "bytes=0-1", if_none_match=tag).status_code == 304


def test_a_range_is_of_the_file_that_was_meant(served: httpx.Client) -> None:
    tag = clip(served).headers["etag"]
    assert clip(served, "bytes=0-1", if_range=tag).status_code == 206
    for other in ('"x"', f"W/{tag}", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert clip(served, "bytes=0-1", if_range=other).content == CLIP
    assert clip(served, "bytes=0-1", if_match=tag).status_code == 206
    assert problem(clip(served, "bytes=0-1", if_match='"x"')) == (412, "edit-conflict")


def test_head_knows_no_ranges(served: httpx.Client) -> None:
    head = served.head("/voices/alice/clip", headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(SIZE))
    tag = head.headers["etag"]
    assert served.head("/voices/alice/clip", headers={"If-None-Match": tag}).status_code == 304


def test_a_prompt_is_a_file_like_a_clip(served: httpx.Client) -> None:
    whole = served.get("/voices/alice/prompt")
    part = served.get("/voices/alice/prompt", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    kept = served.get("/voices/alice/prompt", headers={"If-None-Match": whole.headers["etag"]})
    assert kept.status_code == 304
    disposition = whole.headers["content-disposition"]
    assert disposition == 'attachment; filename="alice.safetensors"'


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ("alice", 'inline; filename="alice.wav"'),
        ("Zoë", "inline; filename=\"Zo_.wav\"; filename*=UTF-8''Zo%C3%AB.wav"),
        ("小明", "inline; filename=\"__.wav\"; filename*=UTF-8''%E5%B0%8F%E6%98%8E.wav"),
        ('a"b;c', "inline; filename=\"a_b_c.wav\"; filename*=UTF-8''a%22b%3Bc.wav"),
        ("50%", "inline; filename=\"50_.wav\"; filename*=UTF-8''50%25.wav"),
    ],
)
def test_a_clip_has_the_name_of_its_voice(
    client: httpx.Client, name: str, disposition: str
) -> None:
    voice = add(client, name).json()
    found = client.get(f"/voices/{voice['id']}/clip").headers
    assert found["content-disposition"] == disposition
    assert found["x-content-type-options"] == "nosniff"


def test_a_file_that_goes_while_it_is_sent_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """Its reader sees that it is not whole, and the log says so in a sentence."""
    app = FastAPI()
    gone = StoredContent(9, lambda start, end: b"123"[start:end])

    @app.get("/clip")
    def clip(request: Request) -> Response:
        return answer(request, clip_file("alice", "0" * 64, "audio/wav", lambda: gone))

    with serving(app) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/clip")
    assert "GET /clip was cut off: its last 6 bytes are no longer there" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", ["text/html", "audio/wav\r\nX-Evil: 1", "audio/é", ""])
def test_a_type_that_no_upload_has_is_only_bytes(
    client: httpx.Client, store: VoiceStore, kind: str
) -> None:
    add(client, "alice")
    with closing(sqlite3.connect(store.data.database)) as database, database:
        database.execute(
            "UPDATE voice_version SET clip = json_set(clip, '$.media_type', ?)", [kind]
        )
    found = client.get("/voices/alice/clip")
    assert (found.status_code, found.content) == (200, CLIP)
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"] == 'attachment; filename="alice.bin"'
    assert "x-evil" not in found.headers
