"""Enrolments that a voice had before: they cost no read, the last few stay, older ones go whole."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deployments import DEPLOYMENTS
from fakes import FakeInference
from faults import QuickEnroller, age, noise
from sqlalchemy import event
from sqlalchemy.pool import Pool
from uploading import clip_of, enrol_bytes

from registry.errors import BackupRefused, StorageUnavailable
from registry.storage import store as stores
from registry.storage.blobs import FolderBlobs
from registry.storage.data_dir import DataDir
from registry.storage.rows import old_versions
from registry.storage.rows.edits import VoiceEdit
from registry.storage.rows.old_versions import KEPT
from registry.storage.store import VoiceStore
from registry.storage.volume.store import VolumeStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup
from registry.voices.enrolment import Change, TranscriptEdit

MANY = 20_000
ALICE = noise(Random("alice"))


@pytest.fixture(params=DEPLOYMENTS[::2])
def deployment(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def enroller(store: VoiceStore, fake: FakeInference) -> QuickEnroller:
    """Of a registry with alice, and with bob, who is never edited, on the same clip."""
    enroller = QuickEnroller(store, fake)
    for name in ("alice", "bob"):
        asyncio.run(enrol_bytes(enroller, name, ALICE, "words 0"))
    return enroller


def say(enroller: QuickEnroller, *transcripts: str | None, name: str = "alice") -> None:
    for transcript in transcripts:
        asyncio.run(enroller.edit(name, Change(words=TranscriptEdit(transcript)), None))


def words(count: int) -> list[str]:
    return [f"words {number}" for number in range(1, count + 1)]


def asked(store: VoiceStore, statement: str) -> list[Any]:
    with store._db.read() as session:
        return [row[0] for row in session.connection().exec_driver_sql(statement)]


def numbers(store: VoiceStore, table: str = "voice_version", name: str = "alice") -> list[Any]:
    column = "number" if table == "voice_version" else "version"
    voice_id = store.get(name).row.id
    return sorted(asked(store, f"SELECT {column} FROM {table} WHERE voice_id = '{voice_id}'"))


def prompts(store: VoiceStore, name: str = "alice") -> set[str]:
    return {path.name for path in store.data.prompts(store.get(name).row.id).iterdir()}


def faults(store: VoiceStore) -> list[str]:
    age(store.data)
    if isinstance(store, VolumeStore):
        return [finding.what for finding in store.examine(read_data=True, repair=False)]
    return [finding.what for finding in examine(store.data, read_data=True, repair=False)]


# Reads


def with_many(data: DataDir, name: str, count: int) -> None:
    """As if the voice had been edited so often, each time to the words that it has."""
    with closing(sqlite3.connect(data.database)) as database, database:
        for table, number, rest in (
            ("voice_version", "number", "clip_sha256, transcript, clip, warnings, created_at"),
            (
                "features",
                "version",
                "fingerprint, sha256, frames, modes, model_id, model_revision, created_at",
            ),
        ):
            database.execute(
                f"INSERT INTO {table} (voice_id, {number}, {rest}) WITH RECURSIVE n(i) AS "
                f"(SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT voice_id, i, "
                f"{rest} FROM {table}, n WHERE i <= {count} AND "
                "voice_id = (SELECT id FROM voice WHERE name = ?)",
                (name,),
            )
        database.execute("UPDATE voice SET version = ? WHERE name = ?", (count, name))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """The rows that statements return within, and SQLite's steps, in hundreds."""
    seen = {"rows": 0, "steps": 0}

    def counting(connection: sqlite3.Connection, *_: object) -> None:
        def row_of(cursor: object, row: tuple[Any, ...]) -> tuple[Any, ...]:
            seen["rows"] += 1
            return row

        def step() -> None:
            seen["steps"] += 1

        connection.row_factory = row_of
        connection.set_progress_handler(step, 100)

    event.listen(Pool, "checkout", counting)
    try:
        yield seen
    finally:
        event.remove(Pool, "checkout", counting)


USES: dict[str, Callable[[VoiceStore], object]] = {
    "show": lambda store: store.get("alice").prompt_ref(),
    "list": lambda store: store.page(50, None, "", ()).public(),
    "edit": lambda store: store.edit("alice", VoiceEdit(description="edited"), None),
}


@pytest.mark.parametrize("use", USES)
def test_a_voice_of_many_enrolments_is_used_like_one_of_one(tmp_path: Path, use: str) -> None:
    costs = []
    for count in (1, MANY):
        store = VoiceStore(DataDir(tmp_path / str(count)))
        enroller = QuickEnroller(store, FakeInference(store.data))
        asyncio.run(enrol_bytes(enroller, "alice", ALICE))
        with_many(store.data, "alice", count)
        with counted() as seen:
            USES[use](store)
            costs.append(dict(seen))
        assert store.get("alice").enrolment.number == count
        assert store.get("alice").prompt_ref() is not None
        store.close()
    one, many = costs
    assert many["rows"] == one["rows"] > 0
    assert many["steps"] <= one["steps"] + 2


# Edits


@pytest.mark.slow
def test_an_edit_leaves_the_last_enrolments_and_nothing_of_older_ones(
    store: VoiceStore, enroller: QuickEnroller
) -> None:
    others = prompts(store, "bob")
    say(enroller, *words(KEPT - 1))
    assert numbers(store) == [*range(1, KEPT + 1)]
    before = prompts(store)
    assert len(before) == KEPT
    say(enroller, "more words", "still more words")
    kept = [*range(3, KEPT + 3)]
    assert numbers(store) == numbers(store, "features") == kept
    assert len(prompts(store)) == KEPT and len(before - prompts(store)) == 2
    assert prompts(store, "bob") == others and numbers(store, name="bob") == [1]
    alice = store.get("alice")
    assert alice.source.transcript == "still more words"
    assert clip_of(store, alice) == ALICE
    assert store.prompt_content(alice)
    assert faults(store) == []


@pytest.mark.slow
def test_a_prompt_that_a_later_enrolment_names_stays(
    store: VoiceStore, enroller: QuickEnroller
) -> None:
    """To and fro between the same words is the same file each time."""
    say(enroller, *(("words 1", "words 0") * KEPT))
    assert numbers(store) == [*range(KEPT + 2, 2 * KEPT + 2)]
    assert len(prompts(store)) == 2
    assert store.prompt_content(store.get("alice"))
    assert faults(store) == []


@pytest.mark.slow
def test_a_prompt_of_a_former_name_that_a_later_enrolment_names_stays(
    store: VoiceStore, enroller: QuickEnroller
) -> None:
    """Written before its hash was in its name, and made anew since, with the same words."""
    ref = store.get("alice").prompt_ref()
    assert ref is not None
    say(enroller, *words(KEPT - 2), "words 0")
    shutil.move(store.data.prompt(ref), store.data.former_prompt(ref))
    with store._db.write() as session:
        lost = f"UPDATE features SET sha256 = '{'0' * 64}' WHERE version = 1 AND voice_id = "
        session.connection().exec_driver_sql(f"{lost}'{ref.voice_id}'")
    say(enroller, "more words")
    assert numbers(store)[0] == 2
    assert store.data.former_prompt(ref).exists()


@pytest.mark.slow
def test_many_from_before_this_rule_go_at_the_next_edit(
    store: VoiceStore, enroller: QuickEnroller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(old_versions, "KEPT", 1000)
        say(enroller, *words(3 * KEPT))
    assert len(prompts(store)) == len(numbers(store)) == 3 * KEPT + 1
    store.edit("alice", VoiceEdit(description="edited"), None)
    assert len(numbers(store)) == 3 * KEPT + 1
    say(enroller, "more words")
    assert len(prompts(store)) == len(numbers(store)) == KEPT
    assert faults(store) == []


@pytest.mark.slow
def test_nothing_goes_while_a_backup_is_made(store: VoiceStore, enroller: QuickEnroller) -> None:
    say(enroller, *words(KEPT - 1))
    with store.holding_files():
        say(enroller, "more words")
        assert len(prompts(store)) == len(numbers(store)) == KEPT + 1
    say(enroller, "still more words")
    assert len(prompts(store)) == len(numbers(store)) == KEPT


@pytest.mark.slow
def test_an_edit_that_can_not_remove_files_is_stored(
    store: VoiceStore,
    enroller: QuickEnroller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As if it were killed between the two: rows go first, so no voice misses a file."""

    def failing(*_: object) -> None:
        raise StorageUnavailable("The storage failed.")

    say(enroller, *words(KEPT - 1))
    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "delete", failing)
        say(enroller, "more words")
    assert store.get("alice").source.transcript == "more words"
    assert "left to `voices doctor --repair`" in caplog.text
    assert (len(numbers(store)), len(prompts(store))) == (KEPT, KEPT + 1)
    if not isinstance(store, VolumeStore):  # its reload makes files young
        [left] = faults(store)
        assert left.endswith("belongs to no voice")


@pytest.mark.slow
def test_an_edit_that_is_not_stored_removes_nothing(
    store: VoiceStore, enroller: QuickEnroller, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(enroller, *words(KEPT - 1))
    before = prompts(store)
    removed = stores.forget_old_versions

    def failing(*args: Any) -> object:
        removed(*args)
        raise StorageUnavailable("The storage failed.")

    monkeypatch.setattr(stores, "forget_old_versions", failing)
    with pytest.raises(StorageUnavailable):
        say(enroller, "more words")
    assert (numbers(store), prompts(store)) == ([*range(1, KEPT + 1)], before)


@pytest.mark.parametrize("young", [True, False])
@pytest.mark.parametrize("deployment", ["server"])  # a reload of the Volume makes files young
def test_a_clip_that_only_older_enrolments_name_goes_once_it_is_old(
    store: VoiceStore, enroller: QuickEnroller, young: bool
) -> None:
    """No request makes such a voice."""
    asyncio.run(enrol_bytes(enroller, "carol", noise(Random("carol"))))
    clip = store.data.clip(store.get("carol").enrolment.clip_sha256)
    with store._db.write() as session:
        changed = f"UPDATE voice_version SET clip_sha256 = '{clip.name}' WHERE voice_id = "
        session.connection().exec_driver_sql(f"{changed}'{store.get('alice').row.id}'")
    ids = [store.get("carol").row.id]
    say(enroller, *words(KEPT - 1))
    with store._db.write() as session:
        session.connection().exec_driver_sql(
            "UPDATE voice_version SET clip_sha256 = "
            f"'{store.get('bob').enrolment.clip_sha256}' WHERE number > 1"
        )
    store.delete("carol", None)
    age(store.data)
    store.purge(ids)
    assert clip.exists()
    if young:
        clip.touch()
    say(enroller, "more words")
    assert clip.exists() == young
    assert store.data.clip(store.get("bob").enrolment.clip_sha256).exists()


@pytest.mark.slow
def test_a_rebuild_of_an_enrolment_that_is_gone_is_told_to_come_again(
    store: VoiceStore,
    enroller: QuickEnroller,
    fake: FakeInference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And leaves no file."""
    voice, extract = store.get("alice"), fake.extract_prompt

    async def edited_meanwhile(source: object, deadline: object) -> object:
        monkeypatch.setattr(fake, "extract_prompt", extract)
        other = QuickEnroller(store, fake)  # of another server: here the encoders are taken
        for transcript in words(KEPT):
            await other.edit("alice", Change(words=TranscriptEdit(transcript)), None)
        return await extract(voice.source)

    monkeypatch.setattr(fake, "extract_prompt", edited_meanwhile)
    with pytest.raises(StorageUnavailable, match="'alice' was edited many times"):
        asyncio.run(enroller.rebuild(voice, ""))
    assert len(prompts(store)) == len(numbers(store)) == KEPT
    assert faults(store) == []


# Backups


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VoiceStore]:
    """A directory from before this rule: alice, and bob, who is deleted, were edited often."""
    store = VoiceStore(DataDir(tmp_path / "data"))
    enroller = QuickEnroller(store, FakeInference(store.data))
    with monkeypatch.context() as patch:
        patch.setattr(old_versions, "KEPT", 1000)
        for name in ("alice", "bob"):
            asyncio.run(enrol_bytes(enroller, name, noise(Random(name)), "words 0"))
            say(enroller, *words(2 * KEPT), name=name)
    store.delete("bob", None)
    yield store
    store.close()


def restored(store: VoiceStore, folder: Path) -> VoiceStore:
    save_backup(store, folder / "voices.tar")
    with open(folder / "voices.tar", "rb") as tar:
        restore_backup(tar, folder / "restored")
    return VoiceStore(DataDir(folder / "restored"))


@pytest.mark.slow
def test_a_backup_with_more_enrolments_is_restored_without_them(
    crowded: VoiceStore, tmp_path: Path
) -> None:
    assert len(numbers(crowded)) == 2 * KEPT + 1
    with closing(restored(crowded, tmp_path)) as store:
        assert numbers(store) == [*range(KEPT + 2, 2 * KEPT + 2)]
        assert len(asked(store, "SELECT 1 FROM voice_version")) == 2 * KEPT
        assert len(asked(store, "SELECT 1 FROM features")) == 2 * KEPT
        assert asked(store, "PRAGMA freelist_count") == [0]
        assert len([*store.data.root.rglob("*.safetensors")]) == 2 * KEPT
        alice = store.get("alice")
        assert alice.public() == crowded.get("alice").public()
        assert store.prompt_content(alice) and clip_of(store, alice) == noise(Random("alice"))
        assert faults(store) == []


@pytest.mark.slow
def test_tens_of_thousands_of_enrolments_are_not_believed(
    crowded: VoiceStore, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(crowded.data.database)) as database, database:
        database.execute("DELETE FROM features")
        database.execute("DELETE FROM voice_version WHERE number > 1")
    with_many(crowded.data, "alice", MANY)
    with_many(crowded.data, "bob", MANY)
    with closing(restored(crowded, tmp_path)) as store:
        assert numbers(store) == [*range(MANY - KEPT + 1, MANY + 1)]
        assert store.data.database.stat().st_size < 1_000_000


@pytest.mark.slow
def test_an_enrolment_after_the_current_one_is_not_believed(
    crowded: VoiceStore, tmp_path: Path
) -> None:
    """The next edit could not be stored beside it."""
    with closing(sqlite3.connect(crowded.data.database)) as database, database:
        database.execute("UPDATE voice SET version = version - 1 WHERE name = 'alice'")
    said = f"there is an enrolment {2 * KEPT + 1} after the current one"
    assert any(said in what for what in faults(crowded))
    with pytest.raises(BackupRefused, match=said):
        restored(crowded, tmp_path)
