"""The HTTP API over the real app, the real database file and a stand-in for the model."""

import asyncio
import json
import select
import socket
import threading

import httpx
import pytest
from clips import file, tone
from fakes import FakeInference, tone_hz
from serving import serving

from registry.app import create_app
from registry.files import DataDir
from registry.settings import Settings
from registry.store import VoiceStore

CLIP = file(tone(), 24_000)


def add(client: httpx.Client, name: str, **fields: str) -> httpx.Response:
    form = {"name": name, "transcript": "hello there"} | fields
    form = {key: value for key, value in form.items() if value != "<absent>"}
    return client.post("/voices", data=form, files={"audio": ("ref", CLIP)})


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["type"].endswith(body["code"])
    assert body["detail"].endswith((".", "?"))
    return response.status_code, body["code"]


def test_a_voice_is_enrolled_and_read_by_name_and_id(client: httpx.Client) -> None:
    created = add(client, "Alice", description="calm", labels='{"use": "demo"}', language="english")
    assert created.status_code == 201
    voice = created.json()
    assert created.headers["location"] == f"/voices/{voice['id']}"
    assert created.headers["etag"] == '"1"'
    assert client.get("/voices/aLICE").json() == voice
    assert client.get(created.headers["location"]).json() == voice
    assert voice["modes"] == ["icl", "xvec"]
    assert voice["labels"] == {"use": "demo"}
    assert voice["defaults"]["language"] == "english"
    assert voice["prompt"]["state"] == "ready"


def test_without_a_transcript_the_voice_is_xvec_and_says_so(client: httpx.Client) -> None:
    voice = add(client, "bob", transcript="<absent>").json()
    assert voice["modes"] == ["xvec"]
    assert any("x-vector" in warning for warning in voice["warnings"])


def test_names_are_taken_whatever_their_case_and_width(client: httpx.Client) -> None:
    add(client, "Strasse")
    assert problem(add(client, "STRAßE")) == (409, "name-taken")
    assert "Strasse" in add(client, "STRAßE").json()["detail"]


def test_a_missing_voice_offers_near_names(client: httpx.Client) -> None:
    for name in ("alice", "alina", "robert", "alice-studio"):
        add(client, name)
    missing = client.get("/voices/alcie")
    assert problem(missing) == (404, "voice-not-found")
    assert missing.json()["near"][0] == "alice"
    assert "'alice'" in missing.json()["detail"]
    assert client.get("/voices/alice-st").json()["near"] == ["alice-studio"]
    assert client.get("/voices/zzz").json()["near"] == []
    assert problem(client.post("/speak", json={"voice": "alcie", "text": "x"}))[0] == 404


def test_pages_cover_every_voice_once_in_order(client: httpx.Client) -> None:
    names = [f"v{i:02}" for i in range(12)]
    for name in reversed(names):
        add(client, name)
    seen, query = [], {"limit": "5"}
    while True:
        page = client.get("/voices", params=query).json()
        seen += [voice["name"] for voice in page["data"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert seen == names


def test_search_is_a_prefix_and_label_a_key_or_pair(client: httpx.Client) -> None:
    add(client, "Anna", labels='{"use": "book"}')
    add(client, "anton", labels='{"use": "game"}')
    add(client, "bert", labels='{"use": "book", "x": "1"}')

    def names(**query: str) -> list[str]:
        return [v["name"] for v in client.get("/voices", params=query).json()["data"]]

    assert names(search="AN") == ["Anna", "anton"]
    assert names(label="use=book") == ["Anna", "bert"]
    assert names(label="x") == ["bert"]
    assert names(label="use=book", search="b") == ["bert"]
    assert names(search="%") == []


def test_edits_replace_what_they_name_and_count(client: httpx.Client) -> None:
    voice = add(client, "alice", description="old", labels='{"a": "1"}').json()
    patch = {"description": "new", "defaults": {"temperature": 0.5}}
    edited = client.patch("/voices/alice", json=patch, headers={"If-Match": '"1"'})
    assert edited.headers["etag"] == '"2"'
    assert edited.json()["description"] == "new"
    assert edited.json()["labels"] == {"a": "1"}
    assert edited.json()["defaults"]["temperature"] == 0.5
    assert client.get(f"/voices/{voice['id']}").json() == edited.json()


@pytest.mark.parametrize("tag", ['"1"', "1", "garbage", '"99"'])
def test_a_stale_or_foreign_etag_changes_nothing(client: httpx.Client, tag: str) -> None:
    add(client, "alice")
    before = client.patch("/voices/alice", json={"description": "theirs"}).json()
    stale = client.patch("/voices/alice", json={"description": "mine"}, headers={"If-Match": tag})
    assert problem(stale) == (412, "edit-conflict")
    gone = client.delete("/voices/alice", headers={"If-Match": tag})
    assert problem(gone) == (412, "edit-conflict")
    assert client.get("/voices/alice").json() == before


def test_renaming_frees_the_old_name_and_keeps_the_id(client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    add(client, "bob")
    assert problem(client.patch("/voices/alice", json={"name": "Bob"})) == (409, "name-taken")
    assert client.patch("/voices/alice", json={"name": "Carol"}).json()["id"] == voice["id"]
    assert client.get("/voices/carlo").json()["near"] == ["Carol"]
    assert add(client, "alice").status_code == 201


def test_deleting_frees_the_name_and_hides_the_voice(client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    assert client.delete("/voices/alice").status_code == 204
    for reference in ("alice", voice["id"]):
        assert problem(client.get(f"/voices/{reference}")) == (404, "voice-not-found")
    assert client.get("/voices").json()["data"] == []
    assert add(client, "alice").json()["id"] != voice["id"]


def test_the_clip_comes_back_as_it_was_sent(client: httpx.Client) -> None:
    add(client, "alice")
    clip = client.get("/voices/alice/clip")
    assert clip.content == CLIP
    assert clip.headers["content-type"] == "audio/wav"
    assert clip.headers["x-content-type-options"] == "nosniff"


def test_a_damaged_clip_is_never_given_out(client: httpx.Client, data: DataDir) -> None:
    sha256 = add(client, "alice").json()["clip"]["sha256"]
    data.clip(sha256).write_bytes(b"something else")
    assert problem(client.get("/voices/alice/clip")) == (500, "reference-corrupt")
    assert problem(client.post("/voices/alice/rebuild")) == (500, "reference-corrupt")


def test_speaking_says_where_the_prompt_came_from(client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    first = client.post("/speak", json={"voice": "alice", "text": "Hello", "seed": 7})
    second = client.post("/speak", json={"voice": voice["id"], "text": "Hello", "seed": 7})
    assert [r.headers["x-prompt-cache"] for r in (first, second)] == ["file", "memory"]
    assert first.content == second.content
    assert first.headers["x-voice-id"] == voice["id"]
    assert first.headers["x-voice-version"] == "1"
    assert first.headers["x-seed"] == "7"
    timings = [part.split(";")[0] for part in first.headers["server-timing"].split(", ")]
    assert timings == ["queue", "prompt", "ttfa", "total"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_broken_prompt_is_rebuilt_once_and_said(
    client: httpx.Client, data: DataDir, fake: FakeInference, damage: str
) -> None:
    voice = add(client, "alice").json()
    path = next(data.prompts(voice["id"]).iterdir())
    sound = path.read_bytes()
    broken = {"truncated": sound[:-9], "flipped": bytes([sound[0] ^ 1]) + sound[1:]}
    path.unlink() if damage == "missing" else path.write_bytes(broken[damage])
    assert problem(client.get("/voices/alice/prompt")) == (409, "prompt-not-ready")
    spoken = client.post("/speak", json={"voice": "alice", "text": "Hello"})
    again = client.post("/speak", json={"voice": "alice", "text": "Hello"})
    assert [r.headers["x-prompt-cache"] for r in (spoken, again)] == ["rebuilt", "memory"]
    assert path.read_bytes() == sound
    assert fake.extracted == 2
    assert client.get("/voices/alice/prompt").content == sound


def test_many_callers_of_a_broken_prompt_rebuild_it_once(
    client: httpx.Client, data: DataDir, fake: FakeInference
) -> None:
    voice = add(client, "alice").json()
    next(data.prompts(voice["id"]).iterdir()).unlink()
    replies: list[httpx.Response] = []

    def speak() -> None:
        replies.append(client.post("/speak", json={"voice": "alice", "text": "Hello"}))

    threads = [threading.Thread(target=speak) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.status_code for r in replies} == {200}
    assert fake.extracted == 2


def test_what_a_voice_defaults_to_yields_to_the_request(
    client: httpx.Client, fake: FakeInference
) -> None:
    add(client, "alice", language="english")
    client.patch("/voices/alice", json={"defaults": {"mode": "xvec", "temperature": 0.1}})
    client.post("/speak", json={"voice": "alice", "text": "x"})
    client.post("/speak", json={"voice": "alice", "text": "x", "mode": "icl", "top_k": 5})
    assert [(p.mode, p.temperature, p.top_k) for p in fake.params] == [
        ("xvec", 0.1, None),
        ("icl", 0.1, 5),
    ]


def test_two_voices_never_mix(client: httpx.Client) -> None:
    import io

    import numpy as np
    import soundfile

    for name in ("alice", "bob"):
        voice = add(client, name).json()
        reply = client.post("/speak", json={"voice": name, "text": "ten letters"})
        samples, rate = soundfile.read(io.BytesIO(reply.content))
        peak = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
        assert abs(peak - tone_hz(voice["id"])) < 3


@pytest.mark.parametrize(
    ("kind", "media_type", "start"),
    [("wav", "audio/wav", b"RIFF"), ("flac", "audio/flac", b"fLaC"), ("pcm", "audio/pcm", b"")],
)
def test_formats(client: httpx.Client, kind: str, media_type: str, start: bytes) -> None:
    add(client, "alice")
    reply = client.post("/speak", json={"voice": "alice", "text": "Hello", "format": kind})
    assert reply.headers["content-type"].startswith(media_type)
    assert reply.content.startswith(start)
    assert float(reply.headers["x-audio-seconds"]) == 0.25


def test_a_caller_who_leaves_the_queue_never_starts(data: DataDir, store: VoiceStore) -> None:
    fake = FakeInference(data)
    with serving(create_app(store, fake, Settings(home=data.root))) as client:
        add(client, "alice")
        fake.gate = asyncio.Event()
        with pytest.raises(httpx.ReadTimeout):
            client.post("/speak", json={"voice": "alice", "text": "gone"}, timeout=0.3)
        while client.get("/healthz").status_code != 200:
            pass
        fake.gate = None
        assert client.post("/speak", json={"voice": "alice", "text": "here"}).status_code == 200
    assert fake.started == ["here"]


def test_the_model_may_change_only_on_purpose(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    from registry.files import ModelRef

    add(client, "alice")
    store.choose_model("other", ModelRef("other", "r2"))
    stale = client.get("/voices/alice").json()
    assert stale["prompt"]["state"] == "stale"
    refused = client.post("/speak", json={"voice": "alice", "text": "x"})
    assert problem(refused) == (503, "model-mismatch")
    assert problem(add(client, "bob")) == (503, "model-mismatch")
    fake.model = ModelRef("other", "r2")
    healed = client.post("/speak", json={"voice": "alice", "text": "x"})
    assert healed.headers["x-prompt-cache"] == "rebuilt"
    assert client.get("/voices/alice").json()["prompt"]["state"] == "ready"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/voices/alice", "DELETE, GET, PATCH"),
        ("DELETE", "/voices", "GET, POST"),
        ("GET", "/speak", "POST"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_405_names_every_method(client: httpx.Client, method: str, path: str, allow: str) -> None:
    refused = client.request(method, path)
    assert problem(refused) == (405, "method-not-allowed")
    assert refused.headers["allow"] == allow


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
    fields.setdefault("name", "ok")
    name = fields.pop("name")
    assert problem(add(client, name, **fields)) == (422, code)
    assert client.get("/voices").json()["data"] == []


def test_a_clip_that_is_no_clip_leaves_nothing_behind(client: httpx.Client, data: DataDir) -> None:
    form = {"name": "alice", "transcript": "x"}
    html = client.post("/voices", data=form, files={"audio": ("a.wav", b"<html>no</html>")})
    assert problem(html) == (415, "audio-unsupported")
    empty = client.post("/voices", data=form, files={"audio": ("a.wav", b"")})
    assert problem(empty) == (422, "audio-empty")
    assert list(data.content_files()) == []


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
    add(client, "alice")
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


def test_readiness_asks_nothing_of_the_model(client: httpx.Client, fake: FakeInference) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {
        "status": "ready",
        "model": None,
        "inference": {"state": "warm", "queued": 0, "error": None},
    }
    assert fake.started == []


def test_openapi_describes_every_route_with_an_error_shape(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/voices",
        "/voices/{voice}",
        "/voices/{voice}/clip",
        "/voices/{voice}/prompt",
        "/voices/{voice}/rebuild",
        "/speak",
        "/healthz",
        "/readyz",
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (path, method)
            problems = operation["responses"]["default"]["content"]
            assert list(problems) == ["application/problem+json"], (path, method)
