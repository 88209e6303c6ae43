"""The voices over HTTP: the real app and database, and a stand-in for the model."""

import sys
from typing import Any

import httpx
import pytest
from api import CLIP, add, problem
from deployments import DEPLOYMENTS
from fakes import FakeInference

from registry.api.etags import voice_tag
from registry.audio import clips
from registry.storage.store import VoiceStore

pytestmark = pytest.mark.parametrize("deployment", DEPLOYMENTS)


def test_a_voice_is_enrolled_and_read_by_name_and_id(client: httpx.Client) -> None:
    created = add(client, "Alice", description="calm", labels='{"use": "demo"}', language="english")
    assert created.status_code == 201
    voice = created.json()
    assert created.headers["location"] == f"/voices/{voice['id']}"
    assert created.headers["etag"] == voice_tag(voice["id"], 1)
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


def test_a_server_that_cannot_open_clips_says_why_and_stores_nothing(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    refused = add(client, "alice")
    assert problem(refused) == (503, "decoder-unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert "No such file or directory" in refused.json()["detail"]
    assert client.get("/voices").json()["data"] == []
    monkeypatch.undo()
    assert add(client, "alice").status_code == 201


TAKEN_OVER = """import sys
from ast import literal_eval
sys.path[:] = literal_eval(sys.argv.pop(1))
from registry.audio import decoder as decode
report_of = decode.asdict
decode.asdict = lambda report: report_of(report) | {forged}
decode.main(sys.argv[1:])"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "forged",
    [
        '{"media_type": "text/html"}',
        '{"peak_dbfs": -float("inf")}',
        '{"notes": ["a\\x1b[2J"]}',
        '{"sample_rate": "24000"}',
        '{"code": "voice-not-found", "message": "No."}',
        '{"sha256": "0" * 64}',
    ],
)
def test_what_a_child_that_was_taken_over_says_is_not_stored(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, forged: str
) -> None:
    monkeypatch.setattr(clips, "START", TAKEN_OVER.format(forged="{}"))
    assert add(client, "alice").status_code == 201
    monkeypatch.setattr(clips, "START", TAKEN_OVER.format(forged=forged))
    assert problem(add(client, "bob")) == (422, "audio-undecodable")
    assert [voice["name"] for voice in client.get("/voices").json()["data"]] == ["alice"]


def test_names_are_taken_whatever_their_case_and_width(client: httpx.Client) -> None:
    add(client, "Strasse")
    assert problem(add(client, "STRAßE")) == (409, "name-taken")
    assert "Strasse" in add(client, "STRAßE").json()["detail"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_search_is_a_part_of_the_name_and_labels_all_hold(client: httpx.Client) -> None:
    wide = "\uff26\uff55\uff4c\uff4c Straße"  # in letters of full width
    add(client, "Anna", labels='{"use": "book"}')
    add(client, "anton", labels='{"use": "game"}')
    add(client, "Bert_100%", labels='{"use": "book", "x": "1"}')
    add(client, wide)

    def names(**query: str | list[str]) -> list[str]:
        return [v["name"] for v in client.get("/voices", params=query).json()["data"]]

    assert names(search="AN") == ["Anna", "anton"]
    assert names(search="nn") == ["Anna"]
    assert names(search="LL STRASSE") == [wide]
    assert (
        names(search="\uff25\uff32\uff34")
        == names(search="_1")
        == names(search="%")
        == ["Bert_100%"]
    )
    assert names(search="*") == names(search="_n") == names(search="'") == []
    assert names(label="use=book") == ["Anna", "Bert_100%"]
    assert names(label="x") == ["Bert_100%"]
    assert names(label="use=book", search="b") == ["Bert_100%"]
    assert names(label=["use=book", "x"]) == names(label=["x=1", "", "x"]) == ["Bert_100%"]
    assert names(label=["use=book", "use=game"]) == []
    assert problem(client.get("/voices", params={"label": ["a"] * 33}))[0] == 422


def test_edits_replace_what_they_name_and_count(client: httpx.Client) -> None:
    voice = add(client, "alice", description="old", labels='{"a": "1"}').json()
    patch = {"description": "new", "defaults": {"temperature": 0.5}}
    match = {"If-Match": voice_tag(voice["id"], 1)}
    edited = client.patch("/voices/alice", json=patch, headers=match)
    assert edited.headers["etag"] == voice_tag(voice["id"], 2)
    assert edited.json()["description"] == "new"
    assert edited.json()["labels"] == {"a": "1"}
    assert edited.json()["defaults"]["temperature"] == 0.5
    assert client.get(f"/voices/{voice['id']}").json() == edited.json()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        '"1-ID"',
        '"2"',
        '"2-00000000"',
        "2-ID",
        "garbage",
        '"99"',
        'W/"2-ID"',
        '"1-ID", "3-ID"',
        "",
        '"2-ID',
        "*, *",
        "'2-ID'",
    ],
)
def test_a_stale_or_foreign_etag_changes_nothing(client: httpx.Client, sent: str) -> None:
    add(client, "alice")
    before = client.patch("/voices/alice", json={"description": "theirs"}).json()
    assert before["row_version"] == 2
    match = {"If-Match": sent.replace("ID", before["id"][-8:])}
    stale = client.patch("/voices/alice", json={"description": "mine"}, headers=match)
    assert problem(stale) == (412, "edit-conflict")
    assert f"its ETag is {voice_tag(before['id'], 2)}" in stale.json()["detail"]
    assert stale.json()["row_version"] == 2
    gone = client.delete("/voices/alice", headers=match)
    assert problem(gone) == (412, "edit-conflict")
    assert client.get("/voices/alice").json() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", ['"1-ID"', "*", '"0-ID", "1-ID"', '"1-ID","2-ID"', ', W/"1-ID" , "1-ID",']
)
def test_an_edit_goes_by_the_etag_that_was_read(client: httpx.Client, sent: str) -> None:
    voice = add(client, "alice").json()
    match = {"If-Match": sent.replace("ID", voice["id"][-8:])}
    edited = client.patch("/voices/alice", json={"description": "x"}, headers=match)
    assert edited.status_code == 200
    assert edited.headers["etag"] == voice_tag(voice["id"], 2)
    missing = client.patch("/voices/bob", json={"description": "x"}, headers=match)
    assert problem(missing) == (404, "voice-not-found")


@pytest.mark.slow
def test_an_etag_is_of_the_voice_that_was_read_not_of_its_name(client: httpx.Client) -> None:
    read = add(client, "zed").headers["etag"]
    assert client.delete("/voices/zed").status_code == 204
    other = add(client, "zed").json()
    match = {"If-Match": read}
    edited = client.patch("/voices/zed", json={"description": "x"}, headers=match)
    assert problem(edited) == (412, "edit-conflict")
    assert problem(client.delete("/voices/zed", headers=match)) == (412, "edit-conflict")
    assert client.get("/voices/zed").json() == other


def test_a_matched_voice_is_edited_though_its_name_goes_to_another_meanwhile(
    client: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at If-Match and the edit itself."""
    created = add(client, "zed")
    other, mine = add(client, "other").json(), created.json()
    edit = store.edit

    def swapped(*of: Any, **named: Any) -> Any:
        monkeypatch.setattr(store, "edit", edit)
        assert client.patch("/voices/zed", json={"name": "old"}).status_code == 200
        assert client.patch("/voices/other", json={"name": "zed"}).status_code == 200
        return edit(*of, **named)

    monkeypatch.setattr(store, "edit", swapped)
    match = {"If-Match": created.headers["etag"]}
    edited = client.patch("/voices/zed", json={"description": "x"}, headers=match)
    assert problem(edited) == (412, "edit-conflict")
    assert client.get(f"/voices/{other['id']}").json()["description"] == ""
    assert client.get(f"/voices/{mine['id']}").json()["description"] == ""


def test_if_match_may_come_in_several_lines(client: httpx.Client) -> None:
    tag = add(client, "alice").headers["etag"]
    lines = [("If-Match", '"7"'), ("If-Match", tag)]
    assert client.delete("/voices/alice", headers=lines).status_code == 204


@pytest.mark.parametrize(
    "patch", [{"transcript": ""}, {"name": ""}, {"name": "a/b"}, {"defaults": {"top_k": 0}}, [None]]
)
def test_an_edit_that_nobody_could_make_is_invalid_before_it_is_stale(
    client: httpx.Client, patch: object
) -> None:
    add(client, "alice")
    refused = client.patch("/voices/alice", json=patch, headers={"If-Match": '"7"'})
    assert problem(refused)[0] == 422
    assert problem(client.patch("/voices/bob", json=patch))[0] == 422


@pytest.mark.slow
@pytest.mark.parametrize(
    "defaults", [{"temperature": "0.5"}, {"top_k": "3"}, {"top_k": True}, {"top_k": 3.5}]
)
def test_defaults_are_numbers_and_no_words(client: httpx.Client, defaults: object) -> None:
    add(client, "alice")
    assert problem(client.patch("/voices/alice", json={"defaults": defaults}))[0] == 422
    whole = client.patch("/voices/alice", json={"defaults": {"top_k": 3.0}})
    assert whole.json()["defaults"]["top_k"] == 3


@pytest.mark.slow
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


def test_a_damaged_clip_is_never_given_out(client: httpx.Client, store: VoiceStore) -> None:
    sha256 = add(client, "alice").json()["clip"]["sha256"]
    store.data.clip(sha256).write_bytes(b"something else")
    assert problem(client.get("/voices/alice/clip")) == (500, "reference-corrupt")
    assert problem(client.post("/voices/alice/rebuild")) == (500, "reference-corrupt")


def test_readiness_asks_nothing_of_the_model(client: httpx.Client, fake: FakeInference) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {
        "status": "ready",
        "model": None,
        "inference": {
            "state": "warm",
            "queued": 0,
            "running": 0,
            "slots": 8,
            "queue_limit": 1000,
            "error": None,
        },
    }
    assert fake.started == []


def test_openapi_describes_every_route_with_an_error_shape(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    native = {path: found for path, found in paths.items() if not path.startswith("/v1/")}
    assert set(native) == {
        "/voices",
        "/voices/{voice}",
        "/voices/{voice}/clip",
        "/voices/{voice}/prompt",
        "/voices/{voice}/rebuild",
        "/speak",
        "/clone",
        "/aliases",
        "/aliases/{alias}",
        "/keys",
        "/keys/{key_id}",
        "/keys/{key_id}/rotate",
        "/healthz",
        "/readyz",
    }
    for path, operations in native.items():
        for method, operation in operations.items():
            assert operation["summary"], (path, method)
            problems = operation["responses"]["default"]["content"]
            assert list(problems) == ["application/problem+json"], (path, method)


@pytest.mark.slow
@pytest.mark.parametrize("unseen", "\u3164\u2800\ufe0f\u034f\u115f\u202e\U000e0041\U000e0100")
def test_what_nobody_sees_is_refused_in_names_and_label_keys(
    client: httpx.Client, unseen: str
) -> None:
    assert add(client, "alice").status_code == 201
    for name in (f"al{unseen}ice", unseen):
        for refused in (
            add(client, name),
            client.patch("/voices/alice", json={"name": name}),
        ):
            assert problem(refused) == (422, "name-invalid")
            assert f"U+{ord(unseen):04X}" in refused.json()["detail"]
    for key in (f"us{unseen}e", unseen):
        edited = client.patch("/voices/alice", json={"labels": {key: "demo"}})
        assert problem(edited)[0] == 422 and f"U+{ord(unseen):04X}" in edited.json()["detail"]
    assert [voice["name"] for voice in client.get("/voices").json()["data"]] == ["alice"]
