"""A transcript that can't be that of its clip is told, and it can be put right."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import clips
import httpx
import pytest
from api import add, problem
from fakes import FakeInference
from faults import QuickEnroller
from serving import serving
from uploading import enrol_bytes

from registry.api.etags import voice_tag
from registry.app import create_app
from registry.contract import Deadline, PromptRef, PromptSource
from registry.errors import (
    EditConflict,
    ExtractionFailed,
    ModeUnavailable,
    SpeechFailed,
    TranscriptMismatch,
    VoiceNotFound,
)
from registry.settings import Settings
from registry.speech.local import NoInference
from registry.storage.blobs import write_atomically
from registry.storage.data_dir import sha256_of
from registry.storage.rows.edits import VoiceEdit
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import SpeakDefaults
from registry.upkeep.doctor import examine
from registry.voices.enrolment import Change, TranscriptEdit
from registry.voices.transcript import refuse_absurd, transcript_warnings

SIXTEEN = "Good morning, my name is Alice, and I live in a small house by the sea."
CHINESE = "大家早上好，我的名字叫小明，我住在海边的一座小房子里。"  # noqa: RUF001
JAPANESE = "おはようございます。私の名前は花子です。海の近くの小さな家に住んでいます。"
KOREAN = "안녕하세요, 제 이름은 앨리스이고 바닷가의 작은 집에 살고 있습니다."
ARABIC = "صباح الخير، اسمي أليس وأعيش في منزل صغير بجانب البحر."
OTHER = "hello you there"


# Whether words can be those of a clip


@pytest.mark.parametrize(
    ("transcript", "speech_s"),
    [
        (SIXTEEN, 4.2),
        (SIXTEEN, 3.0),
        (SIXTEEN, 9.0),
        (CHINESE, 5.0),
        (JAPANESE, 5.5),
        (KOREAN, 5.5),
        (ARABIC, 5.0),
        ("In 1984 there were 2,500 of them.", 4.0),
        ("Hi, I am Bob.", 1.0),
    ],
)
def test_words_at_the_pace_of_people_are_no_matter(transcript: str, speech_s: float) -> None:
    refuse_absurd(transcript, speech_s)
    assert transcript_warnings(transcript, speech_s) == []


@pytest.mark.parametrize(
    ("transcript", "speech_s", "said"),
    [
        (f"{SIXTEEN} {SIXTEEN}", 4.2, "32 words for 4.2 s of speech, about 2.4 times as fast"),
        (f"{CHINESE}{CHINESE}", 5.0, "54 characters for 5.0 s of speech, about 2.2 times as fast"),
        (SIXTEEN, 2.0, "16 words for 2.0 s of speech, about 2.5 times as fast"),
        ("Good morning, all", 4.2, "3 words for 4.2 s of speech, about 3.5 times as slow"),
        ("Hello.", 4.0, "1 word for 4.0 s of speech, about 9.3 times as slow"),
    ],
)
def test_a_suspicious_pace_is_told_with_figures(
    transcript: str, speech_s: float, said: str
) -> None:
    refuse_absurd(transcript, speech_s)
    [warning] = transcript_warnings(transcript, speech_s)
    assert said in warning and warning.endswith("all of them and no others.")


@pytest.mark.parametrize(
    ("transcript", "speech_s"),
    [("word " * 390, 1.9), (SIXTEEN, 1.0), (CHINESE * 5, 5.0), ("Hi.", 30.0), ("嗨", 10.0)],
)
def test_an_absurd_pace_is_refused(transcript: str, speech_s: float) -> None:
    with pytest.raises(TranscriptMismatch, match=r"for .* s of speech, about .* times as"):
        refuse_absurd(transcript, speech_s)


@pytest.mark.slow
def test_enrolment_refuses_what_is_absurd_and_keeps_what_is_suspicious(
    client: httpx.Client, fake: FakeInference
) -> None:
    refused = add(client, "alice", transcript="word " * 390)
    assert problem(refused) == (422, "transcript-mismatch")
    assert "390 words for 2.0 s of speech" in refused.json()["detail"]
    assert fake.extracted == 0 and client.get("/voices").json()["data"] == []
    [*_, warning] = add(client, "alice", transcript=SIXTEEN).json()["warnings"]
    assert "16 words for 2.0 s" in warning
    assert client.get("/voices/alice").json()["warnings"][-1] == warning
    assert client.post("/voices/alice/rebuild").json()["warnings"][-1] == warning


@pytest.mark.slow
def test_words_that_leave_no_room_for_a_text_are_refused(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    fake.room = 99
    refused = add(client, "alice")
    assert problem(refused) == (422, "transcript-mismatch")
    assert "2 words for 2.0 s of speech, and leaves room for 99 tokens" in refused.json()["detail"]
    assert not list(store.data.root.glob("prompts/*"))
    fake.room = 100
    before = add(client, "alice").json()
    fake.room = 0
    assert problem(edit(client, {"transcript": OTHER})) == (422, "transcript-mismatch")
    assert client.get("/voices/alice").json() == before
    assert add(client, "bob", transcript="<absent>").status_code == 201


def test_rebuilding_tells_what_was_not_known_when_the_voice_was_enrolled(
    client: httpx.Client, store: VoiceStore
) -> None:
    add(client, "alice")
    with closing(sqlite3.connect(store.data.database)) as rows, rows:
        rows.execute("UPDATE voice_version SET transcript = ?", ("word " * 390,))
    rebuilt = client.post("/voices/alice/rebuild")
    assert rebuilt.status_code == 200
    assert "390 words" in rebuilt.json()["warnings"][-1]
    assert client.get("/voices/alice").json() == rebuilt.json()


# Putting it right


def edit(client: httpx.Client, patch: dict[str, Any], tag: str | None = None) -> httpx.Response:
    headers = {} if tag is None else {"If-Match": tag}
    return client.patch("/voices/alice", json=patch, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["server", "socket", "volume"])
def test_another_transcript_is_another_version_of_the_same_voice(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    before = add(client, "alice", transcript=SIXTEEN, description="calm").json()
    edited = edit(client, {"transcript": OTHER, "labels": {"mended": "yes"}})
    after = edited.json()
    assert (edited.status_code, edited.headers["etag"]) == (200, voice_tag(before["id"], 2))
    assert (after["id"], after["version"], after["row_version"]) == (before["id"], 2, 2)
    assert (after["transcript"], after["labels"]) == (OTHER, {"mended": "yes"})
    assert after["prompt"]["state"] == "ready"
    assert after["prompt"]["fingerprint"] != before["prompt"]["fingerprint"]
    assert after["clip"] == before["clip"] and after["description"] == "calm"
    assert not any("16 words" in warning for warning in after["warnings"])
    assert client.get("/voices/alice").json() == after
    spoken = client.post("/speak", json={"voice": "alice", "text": "Hi"})
    assert spoken.headers["x-voice-version"] == "2"
    assert spoken.headers["x-prompt-cache"] == "file"
    assert fake.extracted == 2


@pytest.mark.slow
def test_the_words_are_kept_as_at_enrolment(client: httpx.Client) -> None:
    add(client, "alice")
    assert (
        edit(client, {"transcript": "  Zoe\u0308 said\r\nso. "}).json()["transcript"]
        == (add(client, "bob", transcript="  Zoe\u0308 said\r\nso. ").json()["transcript"])
    )


@pytest.mark.parametrize(
    ("transcript", "code"),
    [
        ("", "text-invalid"),
        ("***", "text-invalid"),
        ("a\0b", "text-invalid"),
        ("x" * 2001, "text-too-long"),
        ("word " * 390, "transcript-mismatch"),
        (5, "request-invalid"),
        (["hello"], "request-invalid"),
    ],
)
def test_words_that_enrolment_refuses_are_refused_and_change_nothing(
    client: httpx.Client, transcript: object, code: str
) -> None:
    before = add(client, "alice").json()
    refused = edit(client, {"transcript": transcript, "description": "new"})
    assert problem(refused) == (422, code)
    assert client.get("/voices/alice").json() == before


def test_the_same_words_are_no_work(client: httpx.Client, fake: FakeInference) -> None:
    before = add(client, "alice", transcript="hello there").json()
    for same in ("hello there", " hello there\n", "hello\u200b  there"):
        assert edit(client, {"transcript": same}).json() == before
    assert fake.extracted == 1


@pytest.mark.slow
def test_words_can_be_taken_away_and_given_again(client: httpx.Client, store: VoiceStore) -> None:
    first = add(client, "alice").json()
    without = edit(client, {"transcript": None}).json()
    assert (without["modes"], without["transcript"], without["version"]) == (["xvec"], None, 2)
    assert any("x-vector" in warning for warning in without["warnings"])
    again = edit(client, {"transcript": first["transcript"]}).json()
    assert (again["modes"], again["version"]) == (["icl", "xvec"], 3)
    assert again["prompt"] == first["prompt"] and again["warnings"] == first["warnings"]
    assert examine(store.data, read_data=True, repair=False) == []


@pytest.mark.slow
def test_versions_with_the_same_words_each_name_a_file_that_is_sound(
    client: httpx.Client, store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU need not compute the same bits twice."""
    add(client, "alice", transcript="hello there")
    edit(client, {"transcript": OTHER})
    extract = fake.extract_prompt

    async def other_bits(source: PromptSource, deadline: Deadline | None) -> Any:
        found = await extract(source)
        path = store.data.prompt(PromptRef(source.voice_id, found.fingerprint, found.sha256))
        content = path.read_bytes() + b"!"
        found.sha256 = sha256_of(content)
        ref = PromptRef(source.voice_id, found.fingerprint, found.sha256)
        write_atomically(store.data.prompt(ref), content)
        return found

    monkeypatch.setattr(fake, "extract_prompt", other_bits)
    assert edit(client, {"transcript": "hello there"}).json()["version"] == 3
    assert examine(store.data, read_data=True, repair=False) == []
    assert client.post("/speak", json={"voice": "alice", "text": "Hi"}).status_code == 200


def test_without_a_model_words_stay_and_the_rest_is_edited(
    store: VoiceStore, fake: FakeInference
) -> None:
    asyncio.run(enrolled(QuickEnroller(store, fake)))
    settings = Settings(home=store.data.root, inference="off")
    with serving(create_app(store, NoInference(), settings)) as client:
        assert problem(edit(client, {"transcript": OTHER})) == (503, "inference-off")
        assert problem(edit(client, {"transcript": None})) == (503, "inference-off")
        patch = {"transcript": "hello there", "defaults": {"language": "en-US"}}
        assert edit(client, patch).json()["defaults"]["language"] == "english"


# While the features are made


CLIP = clips.file(clips.tone(), 24_000)


async def enrolled(enroller: QuickEnroller) -> StoredVoice:
    return await enrol_bytes(enroller, "alice", CLIP, "hello there")


def meanwhile(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any]
) -> Callable[[Change, int | None], StoredVoice]:
    """Edits alice; `do` happens while her features are made anew."""
    enroller = QuickEnroller(store, fake)
    asyncio.run(enrolled(enroller))
    extract: Callable[[PromptSource], Awaitable[Any]] = fake.extract_prompt

    async def slowly(source: PromptSource, deadline: Deadline | None) -> Any:
        found = await extract(source)
        monkeypatch.undo()
        do()
        return found

    monkeypatch.setattr(fake, "extract_prompt", slowly)
    return lambda change, expected: asyncio.run(enroller.edit("alice", change, expected))


NEW = Change(description="mine", words=TranscriptEdit(OTHER))


def test_an_edit_made_meanwhile_is_not_overwritten(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = VoiceEdit(labels={"theirs": "1"})
    change = meanwhile(store, fake, monkeypatch, lambda: store.edit("alice", other, 1))
    with pytest.raises(EditConflict):
        change(NEW, 1)
    alice = store.get("alice")
    assert (alice.row.row_version, alice.row.version, alice.row.description) == (2, 1, "")
    assert (alice.labels, alice.enrolment.transcript) == ({"theirs": "1"}, "hello there")


def test_without_if_match_both_edits_hold(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = VoiceEdit(labels={"theirs": "1"})
    change = meanwhile(store, fake, monkeypatch, lambda: store.edit("alice", other, 1))
    edited = change(NEW, None)
    assert (edited.labels, edited.row.description) == ({"theirs": "1"}, "mine")
    assert (edited.row.row_version, edited.row.version) == (3, 2)


def test_a_voice_that_takes_the_name_meanwhile_is_not_edited(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced() -> None:
        store.delete("alice", None)
        with ThreadPoolExecutor(1) as beside:
            beside.submit(asyncio.run, enrolled(QuickEnroller(store, fake))).result()

    change = meanwhile(store, fake, monkeypatch, replaced)
    with pytest.raises(VoiceNotFound):
        change(NEW, None)
    assert store.get("alice").row.row_version == 1


def test_icl_by_default_set_meanwhile_keeps_the_words(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    icl = VoiceEdit(defaults=SpeakDefaults(mode="icl"))
    change = meanwhile(store, fake, monkeypatch, lambda: store.edit("alice", icl, None))
    with pytest.raises(ModeUnavailable):
        change(Change(words=TranscriptEdit(None)), None)
    assert store.get("alice").modes == ["icl", "xvec"]


def test_two_transcripts_at_once_are_two_versions_and_the_last_stays(
    store: VoiceStore, fake: FakeInference
) -> None:
    enroller = QuickEnroller(store, fake)
    words = [f"hello there {n}" for n in range(4)]

    async def all_at_once() -> list[StoredVoice]:
        await enrolled(enroller)
        changes = [Change(words=TranscriptEdit(text)) for text in [*words, words[0]]]
        return await asyncio.gather(*(enroller.edit("alice", c, None) for c in changes))

    versions = {voice.row.version for voice in asyncio.run(all_at_once())}
    alice = store.get("alice")
    assert versions >= {2, 3, 4, 5} and alice.row.version == max(versions)
    assert alice.enrolment.transcript in words and alice.features is not None
    assert examine(store.data, read_data=True, repair=False) == []


def test_of_two_edits_of_what_was_read_one_wins(store: VoiceStore, fake: FakeInference) -> None:
    enroller = QuickEnroller(store, fake)

    async def both() -> list[StoredVoice | BaseException]:
        await enrolled(enroller)
        changes = [Change(words=TranscriptEdit(f"hello there {n}")) for n in range(2)]
        edits = (enroller.edit("alice", change, 1) for change in changes)
        return await asyncio.gather(*edits, return_exceptions=True)

    outcomes = asyncio.run(both())
    assert sorted(isinstance(outcome, EditConflict) for outcome in outcomes) == [False, True]
    assert store.get("alice").row.version == 2


def test_features_that_can_t_be_made_change_nothing(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> None:
        raise ExtractionFailed("The encoders failed.")

    change = meanwhile(store, fake, monkeypatch, breaks)
    before = store.get("alice")
    with pytest.raises(SpeechFailed):
        change(NEW, None)
    assert store.get("alice").public() == before.public()


def test_whoever_leaves_meanwhile_changes_nothing(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroller = QuickEnroller(store, fake)

    async def leaves() -> StoredVoice:
        before = await enrolled(enroller)
        reached = asyncio.Event()

        async def never(source: PromptSource, deadline: Deadline | None) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(fake, "extract_prompt", never)
        left = asyncio.create_task(enroller.edit("alice", NEW, None))
        await reached.wait()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        return before

    assert asyncio.run(leaves()).public() == store.get("alice").public()


# What is so already


@pytest.mark.parametrize(
    "patch",
    [
        {},
        {"name": None, "description": None, "labels": None, "defaults": None},
        {"name": "Alice"},
        {"name": " Alice "},
        {"description": "calm"},
        {"labels": {"b": "2", "a": "1"}},
        {"defaults": {"language": "english"}},
        {"defaults": {"language": "EN-us", "temperature": None}},
        {"transcript": "hello there"},
    ],
)
def test_a_patch_that_says_what_is_so_changes_nothing(
    client: httpx.Client, patch: dict[str, Any]
) -> None:
    labels = '{"a": "1", "b": "2"}'
    before = add(client, "Alice", description="calm", labels=labels, language="english").json()
    assert edit(client, patch, voice_tag(before["id"], 1)).json() == before
    assert problem(edit(client, patch, '"2"')) == (412, "edit-conflict")
    assert client.get("/voices/alice").json() == before


@pytest.mark.parametrize("patch", [{"name": "ALICE"}, {"labels": {}}, {"defaults": {}}])
def test_a_patch_that_says_something_else_is_counted(
    client: httpx.Client, patch: dict[str, Any]
) -> None:
    add(client, "Alice", labels='{"a": "1"}', language="english")
    assert edit(client, patch).json()["row_version"] == 2


# The default mode


def test_icl_is_no_default_of_a_voice_without_a_transcript(client: httpx.Client) -> None:
    before = add(client, "alice", transcript="<absent>").json()
    refused = edit(client, {"defaults": {"mode": "icl"}})
    assert problem(refused) == (422, "mode-unavailable")
    assert "needs a transcript" in refused.json()["detail"]
    assert client.get("/voices/alice").json() == before
    both = edit(client, {"defaults": {"mode": "icl"}, "transcript": "hello there"}).json()
    assert (both["defaults"]["mode"], both["modes"]) == ("icl", ["icl", "xvec"])


def test_a_transcript_is_not_taken_from_a_voice_that_speaks_icl_by_default(
    client: httpx.Client, fake: FakeInference
) -> None:
    add(client, "alice")
    before = edit(client, {"defaults": {"mode": "icl"}}).json()
    assert problem(edit(client, {"transcript": None})) == (422, "mode-unavailable")
    assert client.get("/voices/alice").json() == before and fake.extracted == 1
    both = edit(client, {"transcript": None, "defaults": {"mode": "xvec"}}).json()
    assert (both["defaults"]["mode"], both["modes"]) == ("xvec", ["xvec"])


def test_such_a_voice_of_before_can_still_be_edited(
    client: httpx.Client, store: VoiceStore
) -> None:
    add(client, "alice", transcript="<absent>")
    with closing(sqlite3.connect(store.data.database)) as rows, rows:
        rows.execute("""UPDATE voice SET defaults = '{"mode": "icl"}'""")
    assert edit(client, {"description": "new"}).json()["description"] == "new"
    assert edit(client, {"defaults": {}}).json()["defaults"]["mode"] is None
