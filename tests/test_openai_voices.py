"""Voices made, listed and deleted as OpenAI's clients do, and what they are told of what fails."""

import time
from collections.abc import Callable

import httpx
import pytest
from api import CLIP, add
from test_openai_models import told

from registry.contract import PromptSource
from registry.names import new_voice_id
from registry.storage.rows.inserts import NewVoice, voice_row
from registry.storage.store import VoiceStore
from registry.storage.tables import SpeakDefaults

VOICES = "/v1/audio/voices"
SAMPLE = ("sample.wav", CLIP, "audio/x-wav")


def make(client: httpx.Client, name: str, **fields: str) -> httpx.Response:
    return client.post(VOICES, data={"name": name} | fields, files={"audio_sample": SAMPLE})


def test_a_sample_becomes_a_voice(client: httpx.Client) -> None:
    words = {"ref_text": "hello there", "speaker_description": "calm", "language": "en"}
    made = make(client, "alice", consent="cons_1", type="audio_sample", **words)
    assert made.status_code == 200 and "x-ignored-fields" not in made.headers
    voice = made.json()
    stored = client.get(f"/voices/{voice['id']}").json()
    assert stored["transcript"] == "hello there" and stored["description"] == "calm"
    assert stored["defaults"]["language"] == "english"
    assert stored["labels"] == {"consent": "cons_1"} and stored["modes"] == ["icl", "xvec"]
    assert time.time() - voice.pop("created_at") < 60
    assert voice == {"id": stored["id"], "object": "audio.voice", "name": "alice"} | {
        "type": "audio_sample"
    }


def test_what_is_empty_was_not_given(client: httpx.Client) -> None:
    empty = {"ref_text": "", "language": "", "type": "", "consent": "", "speaker_description": ""}
    assert make(client, "alice", **empty).status_code == 200
    stored = client.get("/voices/alice").json()
    assert stored["modes"] == ["xvec"] and stored["labels"] == {} and not stored["description"]


def test_parts_that_are_not_known_are_passed_over_and_named(client: httpx.Client) -> None:
    made = make(client, "alice", model="tts-1", script_hint="x" * 70_000)
    assert made.status_code == 200 and made.headers["x-ignored-fields"] == "model, script_hint"
    files = [("audio_sample", SAMPLE), ("cover", ("cover.png", b"\x89PNG" * 20_000, "image/png"))]
    made = client.post(VOICES, data={"name": "bob"}, files=files)
    assert made.status_code == 200 and made.headers["x-ignored-fields"] == "cover"


def many(count: int) -> list[tuple[str, tuple[None, str]]]:
    return [(f"field{number}", (None, "x")) for number in range(count)]


Ask = Callable[[httpx.Client], httpx.Response]
REFUSED: dict[str, tuple[Ask, tuple[int, str, str | None]]] = {
    "another kind": (
        lambda http: make(http, "bob", type="prompt"),
        (400, "unsupported_value", "type"),
    ),
    "another kind without a sample": (
        lambda http: http.post(VOICES, files={"type": (None, "prompt"), "name": (None, "b")}),
        (400, "unsupported_value", "type"),
    ),
    "a kind of nobody's": (
        lambda http: make(http, "bob", type="x" * 999),
        (400, "unsupported_value", "type"),
    ),
    "a name that is taken": (lambda http: make(http, "ALICE"), (400, "name_taken", "name")),
    "no name": (
        lambda http: http.post(VOICES, files={"audio_sample": SAMPLE}),
        (400, "request_invalid", "name"),
    ),
    "an empty name": (lambda http: make(http, ""), (400, "name_invalid", "name")),
    "a name like an id": (lambda http: make(http, "voice_1"), (400, "name_invalid", "name")),
    "no sample": (
        lambda http: http.post(VOICES, files={"name": (None, "bob")}),
        (400, "request_invalid", "audio_sample"),
    ),
    "an empty sample": (
        lambda http: http.post(VOICES, data={"name": "b"}, files={"audio_sample": ("a", b"")}),
        (400, "audio_empty", None),
    ),
    "a sample that is no sound": (
        lambda http: http.post(VOICES, data={"name": "b"}, files={"audio_sample": b"MZ" * 999}),
        (415, "audio_unsupported", None),
    ),
    "a name twice": (
        lambda http: http.post(
            VOICES, files=[("name", (None, "b")), ("name", (None, "c")), ("audio_sample", SAMPLE)]
        ),
        (400, "request_invalid", "name"),
    ),
    "an unknown part twice": (
        lambda http: http.post(VOICES, files=[("x", (None, "b")), ("x", (None, "c"))]),
        (400, "request_invalid", "x"),
    ),
    "a name in another charset": (
        lambda http: http.post(
            VOICES, files=[("name", (None, b"\xff\xfe")), ("audio_sample", SAMPLE)]
        ),
        (400, "request_invalid", "name"),
    ),
    "too many unknown parts": (
        lambda http: http.post(VOICES, files=many(65)),
        (400, "request_malformed", None),
    ),
    "an unknown language": (
        lambda http: make(http, "bob", language="klingon"),
        (400, "language_unsupported", "language"),
    ),
    "words that no clip can say": (
        lambda http: make(http, "bob", ref_text="word " * 300),
        (400, "transcript_mismatch", "ref_text"),
    ),
    "words with control characters": (
        lambda http: make(http, "bob", ref_text="a\x07b"),
        (400, "text_invalid", "input"),
    ),
    "a long consent": (
        lambda http: make(http, "bob", consent="c" * 257),
        (400, "request_invalid", "consent"),
    ),
    "JSON": (
        lambda http: http.post(VOICES, json={"name": "bob", "type": "prompt"}),
        (415, "content_type_unsupported", None),
    ),
    "a form without a boundary": (
        lambda http: http.post(
            VOICES, content=b"x", headers={"content-type": "multipart/form-data"}
        ),
        (400, "request_malformed", None),
    ),
    "a form that is cut short": (
        lambda http: http.post(
            VOICES,
            content=b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nbob',
            headers={"content-type": "multipart/form-data; boundary=b"},
        ),
        (400, "request_malformed", None),
    ),
    "a page of none": (
        lambda http: http.get(f"{VOICES}?limit=0"),
        (400, "request_invalid", "limit"),
    ),
    "a page of all": (
        lambda http: http.get(f"{VOICES}?limit=1001"),
        (400, "request_invalid", "limit"),
    ),
    "a page of some": (
        lambda http: http.get(f"{VOICES}?limit=some"),
        (400, "request_invalid", "limit"),
    ),
    "a page after nobody": (
        lambda http: http.get(f"{VOICES}?after=voice_{'0' * 32}"),
        (400, "cursor_invalid", "after"),
    ),
    "a page after too much": (
        lambda http: http.get(f"{VOICES}?after={'x' * 257}"),
        (400, "request_invalid", "after"),
    ),
    "a voice that is not there": (
        lambda http: http.delete(f"{VOICES}/alcie"),
        (404, "voice_not_found", "voice"),
    ),
    "a name of OpenAI's": (
        lambda http: http.delete(f"{VOICES}/alloy"),
        (404, "voice_not_found", "voice"),
    ),
    "a path that is no text": (
        lambda http: http.delete(f"{VOICES}/%FF"),
        (404, "not_found", None),
    ),
    "a voice to read": (
        lambda http: http.get(f"{VOICES}/alice"),
        (405, "method_not_allowed", None),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_is_refused_with_its_field(client: httpx.Client, what: str) -> None:
    assert add(client, "alice").status_code == 201
    ask, expected = REFUSED[what]
    refused = ask(client)
    assert told(refused) == expected
    assert refused.headers["x-should-retry"] == "false"
    assert [one["name"] for one in client.get("/voices").json()["data"]] == ["alice"]


def test_the_list_has_each_voice_by_id_and_by_name(client: httpx.Client) -> None:
    assert client.get(VOICES).json() == {
        "object": "list",
        "data": [],
        "voices": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = {name: make(client, name).json()["id"] for name in ("bob", "Ändi", "alice")}
    listed = client.get(VOICES).json()
    names = ["alice", "bob", "Ändi"]
    assert [one["name"] for one in listed["data"]] == names
    assert [one["id"] for one in listed["data"]] == [ids[name] for name in names]
    assert listed["voices"] == [{"id": name, "name": name, "voice_id": ids[name]} for name in names]
    assert (listed["first_id"], listed["last_id"]) == (ids["alice"], ids["Ändi"])


def test_pages_follow_each_other_whoever_comes_or_goes(client: httpx.Client) -> None:
    for name in ("a", "b", "c", "d"):
        assert make(client, name).status_code == 200
    page = client.get(VOICES, params={"limit": 2}).json()
    assert [one["name"] for one in page["data"]] == ["a", "b"] and page["has_more"]
    assert client.delete(f"{VOICES}/b").status_code == 200
    for after in (page["last_id"], "b"):
        rest = client.get(VOICES, params={"limit": 2, "after": after}).json()
        assert [one["name"] for one in rest["data"]] == ["c", "d"] and not rest["has_more"]


def test_a_row_that_is_damaged_hides_no_other(client: httpx.Client, store: VoiceStore) -> None:
    for name in ("a", "b", "c"):
        assert make(client, name).status_code == 200
    with store.transaction() as session:
        row = session.get_one(type(store.get("b").row), store.get("b").row.id)
        row.created_at = "yesterday"
        session.add(row)
    page = client.get(VOICES, params={"limit": 1}).json()
    assert page["has_more"] and page["last_id"]
    rest = client.get(VOICES, params={"limit": 1, "after": page["last_id"]}).json()
    assert [one["name"] for one in rest["data"]] == ["c"] and not rest["has_more"]


def test_a_voice_is_deleted_once(client: httpx.Client) -> None:
    made = make(client, "alice").json()["id"]
    gone = {"id": made, "deleted": True, "object": "audio.voice.deleted"}
    assert client.delete(f"{VOICES}/{made}").json() == gone
    assert told(client.delete(f"{VOICES}/{made}"))[:2] == (404, "voice_not_found")
    assert make(client, "alice").status_code == 200
    assert client.delete(f"{VOICES}/ALICE").json()["deleted"] is True


def test_ten_thousand_voices_are_listed_soon(client: httpx.Client, store: VoiceStore) -> None:
    with store.transaction() as session:
        for number in range(10_000):
            source = PromptSource(new_voice_id(), "0" * 64, None)
            new = NewVoice(source, f"voice {number:05}", "", {}, SpeakDefaults(), [])
            session.add(voice_row(new, 1, "2026-11-28T00:00:00.000Z"))
    seen, after = [], None
    begun_s = time.perf_counter()
    while True:
        page = client.get(VOICES, params={} if after is None else {"after": after}).json()
        seen += [one["name"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == [f"voice {number:05}" for number in range(10_000)]
    assert time.perf_counter() - begun_s < 10
