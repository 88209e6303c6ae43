"""Deleted voices are kept up to a number, and then forgotten: rows first, then files of nobody."""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Timer
from typing import Any

import httpx
import pytest
from api import problem
from deployments import DEPLOYMENTS, deployed
from fakes import FakeInference
from faults import QuickEnroller, age, noise, quick_app, quick_clip
from serving import serving
from sqlmodel import Session
from uploading import clip_of, enrol_bytes, uploaded

from registry.errors import StorageUnavailable, VoiceNotFound
from registry.settings import Settings
from registry.storage import store as stores
from registry.storage.data_dir import DataDir
from registry.storage.rows.purge import CLOCK_S, Forgotten, forget
from registry.storage.store import VoiceStore
from registry.storage.volume.store import VolumeStore
from registry.upkeep.backup import save_backup, write_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup

NAMES = ("ann", "ben", "cat", "dan", "eve")


@pytest.fixture(params=DEPLOYMENTS[::2])
def deployment(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


Enrol = Callable[..., str]


@pytest.fixture
def enrol(store: VoiceStore, fake: FakeInference) -> Enrol:
    return lambda name, upload=None: enrolled(store, fake, name, upload)


def enrolled(store: VoiceStore, fake: FakeInference, name: str, upload: bytes | None) -> str:
    sound = noise(Random(name)) if upload is None else upload
    enroller = QuickEnroller(store, fake)
    return asyncio.run(enrol_bytes(enroller, name, sound, labels={"use": name})).row.id


def files(store: VoiceStore) -> set[str]:
    """Of voices, by their names in the data directory."""
    root = store.data.root
    folders = (path for path in (root / "prompts").iterdir())
    return {str(path.relative_to(root)) for path in (*store.data.content_files(), *folders)}


def files_of(store: VoiceStore, name: str) -> set[str]:
    voice = store.get(name)
    ref = voice.prompt_ref()
    assert ref is not None
    paths = (
        store.data.clip(voice.enrolment.clip_sha256),
        store.data.conditioned(voice.source),
        store.data.stored_prompt(ref),
        store.data.prompts(voice.row.id),
    )
    return {str(path.relative_to(store.data.root)) for path in paths}


def rows(store: VoiceStore) -> int:
    tables = ("voice", "voice_version", "features", "label", "name_variant")
    with store._db.read() as session:
        asked = (f"SELECT count(*) FROM {table}" for table in tables)
        return sum(session.connection().exec_driver_sql(one).scalar_one() for one in asked)


def faults(store: VoiceStore) -> list[str]:
    if isinstance(store, VolumeStore):
        return [finding.what for finding in store.examine(read_data=True, repair=False)]
    return [finding.what for finding in examine(store.data, read_data=True, repair=False)]


@pytest.mark.slow
def test_the_newest_deleted_voices_are_kept_and_older_ones_leave_nothing(
    store: VoiceStore, enrol: Enrol
) -> None:
    enrol("zoe")
    bare, live = rows(store), files(store)
    for name in NAMES:
        enrol(name)
    kept = {file for name in NAMES[3:] for file in files_of(store, name)}
    for name in NAMES:
        store.delete(name, None)
    assert store.purge_surplus(2) == 3
    assert files(store) == live | kept
    assert store.purge_surplus(2) == 0
    age(store.data)
    assert faults(store) == []
    assert store.purge_surplus(0) == 2
    assert (files(store), rows(store)) == (live, bare)
    assert store.get("zoe").public().labels == {"use": "zoe"}


@pytest.mark.slow
def test_more_than_one_transaction_takes_are_forgotten_too(
    store: VoiceStore, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.storage.rows.purge.MOST", 2)
    for name in NAMES:
        enrol(name)
        store.delete(name, None)
    assert store.purge_surplus(0) == 5
    assert (files(store), rows(store)) == (set(), 0)


def test_a_clip_that_another_voice_names_stays(store: VoiceStore, enrol: Enrol) -> None:
    sound = noise(Random("shared"))
    for name in ("ann", "ben", "cat"):
        enrol(name, sound)
    ben = files_of(store, "ben")
    store.delete("cat", None)  # the oldest that is deleted, and so the first to go
    store.delete("ann", None)
    assert store.purge_surplus(0) == 2
    assert files(store) == ben
    assert clip_of(store, store.get("ben")) == sound
    store.delete("ben", None)
    assert store.purge_surplus(1) == 0
    assert files(store) == ben


def test_only_deleted_voices_are_purged(store: VoiceStore, enrol: Enrol) -> None:
    ids = [enrol("ann"), enrol("ben"), "voice_" + "0" * 32, "../clips"]
    store.delete("ann", None)
    assert store.purge(ids) == 1
    assert store.get("ben").row.id == ids[1] and files(store) == files_of(store, "ben")


def touch(store: VoiceStore, voice_id: str | None = None) -> None:
    """As a copy does, or a restore: every file, or a voice's clip, is as young as can be.

    Later than any row by more than times in rows are rounded by.
    """
    now_s = time.time() + 2 * CLOCK_S
    asked = "SELECT clip_sha256 FROM voice_version WHERE voice_id = ?"
    with store._db.read() as session:
        connection = session.connection()
        clips = [*connection.exec_driver_sql(asked, (voice_id,)).scalars()] if voice_id else None
    for path in store.data.content_files():
        if clips is None or path.name in clips:
            os.utime(path, (now_s, now_s))


@pytest.mark.parametrize("deployment", ["server"])
def test_a_clip_that_is_being_enrolled_again_stays(store: VoiceStore, enrol: Enrol) -> None:
    enrol("ann")
    voice, sound = store.get("ann"), noise(Random("ann"))
    store.delete("ann", None)
    before = rows(store)
    with closing(uploaded(store.data, sound)) as upload:  # as an enrolment does first
        store.keep_clip(voice.source, upload, quick_clip(sound))
    assert store.purge_surplus(0) == 0
    assert store.data.clip(voice.enrolment.clip_sha256).read_bytes() == sound
    assert store.data.conditioned(voice.source).exists()
    assert rows(store) == before, "and nobody knows of the clip any more"


def test_what_is_young_stays_with_its_row_and_goes_when_it_is_old(
    store: VoiceStore, enrol: Enrol
) -> None:
    enrol("zoe")
    bare, live = rows(store), files(store)
    for name in NAMES[:2]:
        enrol(name)
        store.delete(name, None)
    touch(store)
    before = (files(store), rows(store), state(store))
    assert store.purge_surplus(0) == 0
    assert (files(store), rows(store), state(store)) == before
    age(store.data)
    assert store.purge_surplus(0) == 2
    assert (files(store), rows(store)) == (live, bare)


def state(store: VoiceStore) -> int:
    """Of a Volume, how many snapshots there were."""
    return store._db.number if isinstance(store, VolumeStore) else 0


@pytest.mark.parametrize("deployment", ["server"])  # a Volume keeps no newer time alone
def test_a_clip_that_was_touched_since_and_is_old_by_now_goes(
    store: VoiceStore, enrol: Enrol
) -> None:
    enrol("ann")
    store.delete("ann", None)
    with store._db.write() as session:
        session.connection().exec_driver_sql("UPDATE voice SET deleted_at = '2020-01-01T00:00:00Z'")
    age(store.data)  # by two hours
    assert store.purge_surplus(0) == 1
    assert (files(store), rows(store)) == (set(), 0)


@pytest.mark.parametrize("deployment", ["server"])  # a Volume keeps no newer time alone
def test_of_the_voices_of_a_young_clip_the_last_stays(store: VoiceStore, enrol: Enrol) -> None:
    sound = noise(Random("shared"))
    for name in NAMES[:3]:
        enrol(name, sound)
        store.delete(name, None)
    touch(store)
    assert store.purge_surplus(0) == 2
    assert {path.parent.name for path in store.data.content_files()} >= {"clips", "conditioned"}
    assert store.purge_surplus(0) == 0
    age(store.data)
    assert store.purge_surplus(0) == 1
    assert (files(store), rows(store)) == (set(), 0)


def test_what_stays_keeps_nothing_else(
    store: VoiceStore, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.storage.rows.purge.MOST", 1)
    for name in NAMES[:3]:
        enrol(name)
    oldest = store.data.clip(store.get(NAMES[0]).enrolment.clip_sha256)
    for name in NAMES[:3]:
        store.delete(name, None)
    os.utime(oldest)
    assert store.purge_surplus(0) == 2
    assert oldest.exists()


def test_a_clip_of_any_version_goes_with_what_was_made_of_it(
    store: VoiceStore, enrol: Enrol
) -> None:
    enrol("ann")
    voice = store.get("ann")
    older = store.data.conditioned(replace(voice.source, preprocessing="1"))
    store.data.conditioned(voice.source).rename(older)
    os.utime(older, (0, 0))
    store.delete("ann", None)
    store.purge_surplus(0)
    assert not older.exists()


@pytest.mark.parametrize("deployment", ["server"])
def test_what_was_restored_is_purged_whole(store: VoiceStore, enrol: Enrol, tmp_path: Path) -> None:
    """Every file of it is younger than the deletion."""
    for name in NAMES[:2]:
        enrol(name)
    kept = files_of(store, NAMES[1])
    store.delete(NAMES[0], None)
    save_backup(store, tmp_path / "voices.tar")
    with open(tmp_path / "voices.tar", "rb") as tar:
        restore_backup(tar, tmp_path / "restored")
    with closing(VoiceStore(DataDir(tmp_path / "restored"))) as restored:
        forgotten = restored.purge_surplus(0)
        age(restored.data)
        assert forgotten + restored.purge_surplus(0) == 1
        assert files(restored) <= kept and faults(restored) == []


def test_a_clip_that_was_enrolled_between_rows_and_files_stays(
    store: VoiceStore, fake: FakeInference, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol("ann")
    sound = noise(Random("ann"))
    store.delete("ann", None)
    write = store._db.write

    @contextmanager
    def then_enrol(**asked: bool) -> Iterator[Any]:
        with write(**asked) as session:
            yield session
        monkeypatch.setattr(store._db, "write", write)
        enrolled(store, fake, "ben", sound)
        for path in store.data.content_files():
            os.utime(path, (0, 0))  # it was read, but nothing says so any more

    monkeypatch.setattr(store._db, "write", then_enrol)
    assert store.purge_surplus(0) == 1
    assert clip_of(store, store.get("ben")) == sound


@pytest.mark.parametrize("deployment", ["server"])
def test_a_kill_between_rows_and_files_leaves_orphans_for_the_doctor(
    store: VoiceStore, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol("ann")
    enrol("ben")
    store.delete("ann", None)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(stores, "unneeded", die)
        with pytest.raises(KeyboardInterrupt):
            store.purge_surplus(0)
    assert files(store) > files_of(store, "ben")
    age(store.data)
    repaired = examine(store.data, read_data=True, repair=True)
    assert {finding.severity for finding in repaired} == {"repaired"}
    assert files(store) == files_of(store, "ben")


def test_nothing_is_purged_while_a_backup_is_being_made(store: VoiceStore, enrol: Enrol) -> None:
    enrol("ann")
    before = files_of(store, "ann")
    store.delete("ann", None)
    with store.holding_files():
        assert store.purge_surplus(0) == 0
    assert files(store) == before
    assert store.purge_surplus(0) == 1


@pytest.mark.slow
def test_a_backup_holds_the_files_of_its_rows(
    store: VoiceStore, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol("ann")
    enrol("ben")
    store.delete("ann", None)
    read = store.read_blob

    def purge_first(key: str) -> bytes:
        store.purge_surplus(0)
        return read(key)

    monkeypatch.setattr(store, "read_blob", purge_first)
    manifest = write_backup(store, BytesIO())
    assert (manifest.voices, manifest.deleted, manifest.missing) == (1, 1, [])


def test_features_of_a_voice_that_is_gone_are_not_recorded(
    store: VoiceStore, fake: FakeInference, enrol: Enrol
) -> None:
    enrol("ann")
    voice = store.get("ann")
    prompt = asyncio.run(fake.extract_prompt(voice.source))
    store.delete("ann", None)
    store.purge_surplus(0)
    with pytest.raises(VoiceNotFound):
        store.record_features(voice, prompt, [])


def test_an_id_that_is_a_path_removes_nothing(tmp_path: Path) -> None:
    store, fake = deployed("server", tmp_path / "data")
    enrolled(store, fake, "ann", None)
    enrolled(store, fake, "ben", None)
    before = files_of(store, "ben")
    store.delete("ann", None)
    with closing(sqlite3.connect(store.data.database)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        ben = (store.get("ben").row.id,)
        path = f"../prompts/{ben[0]}"
        for column in ("voice.id", "voice_version.voice_id", "label.voice_id"):
            table, name = column.split(".")
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE {name} <> ?", (path, *ben))
        connection.execute("DELETE FROM features WHERE voice_id <> ?", ben)
        connection.execute("UPDATE voice SET deleted_at = 'never' WHERE id = ?", (path,))
        connection.commit()
    age(store.data)
    assert store.purge_surplus(0) == 1
    assert before <= files(store)
    store.close()


@contextmanager
def served(
    home: Path, keep: int, *, is_server: bool = True
) -> Iterator[tuple[httpx.Client, VoiceStore]]:
    store = VoiceStore(DataDir(home))
    settings = Settings(home=home, deleted_keep=keep)
    app = quick_app(store, FakeInference(store.data), settings, is_server=is_server)
    with serving(app) as client:
        yield client, store


def add(client: httpx.Client, name: str) -> None:
    form = {"name": name, "transcript": "hi"}
    made = client.post("/voices", data=form, files={"audio": noise(Random(name))})
    assert made.status_code == 201


def test_enrolling_and_deleting_for_ever_does_not_fill_the_disk(tmp_path: Path) -> None:
    with served(tmp_path, keep=1) as (client, store):
        for name in NAMES:
            add(client, name)
            assert client.delete(f"/voices/{name}").status_code == 204
        assert len(files(store)) == 4  # of the last: clip, conditioned clip, prompt and its folder
    with served(tmp_path, keep=0) as (client, store):
        assert client.get("/voices").json()["data"] == []
        gone_at_last(store)


def gone_at_last(store: VoiceStore) -> None:
    while rows(store) or files(store):
        time.sleep(0.01)


def test_a_command_without_a_server_removes_what_it_deletes_and_no_more(tmp_path: Path) -> None:
    """Its settings may not be those of the server that was told to keep them all."""
    with served(tmp_path, keep=1000) as (client, store):
        for name in NAMES:
            add(client, name)
            assert client.delete(f"/voices/{name}").status_code == 204
        kept = files(store)
    with served(tmp_path, keep=0, is_server=False) as (client, store):
        assert client.get("/voices").json()["data"] == []
        assert files(store) == kept
        add(client, "zoe")
        assert client.delete("/voices/zoe").status_code == 204
        assert len(store.surplus(0)[0]) == len(NAMES) - 1


@pytest.mark.slow
def test_a_server_answers_while_it_removes_deleted_voices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15,000 of them kept it from answering for 12 minutes after its start."""
    monkeypatch.setattr("registry.storage.rows.purge.MOST", 1)
    with served(tmp_path, keep=1000) as (client, _):
        for name in NAMES:
            add(client, name)
            assert client.delete(f"/voices/{name}").status_code == 204
    begun, go_on, purge = threading.Event(), threading.Event(), VoiceStore.purge

    def slowly(store: VoiceStore, voices: Sequence[str], most: int | None) -> int:
        begun.set()
        assert go_on.wait(60)
        return purge(store, voices, most)

    monkeypatch.setattr(VoiceStore, "purge", slowly)
    with served(tmp_path, keep=0) as (client, store):
        assert begun.wait(60)
        assert client.get("/healthz").status_code == client.get("/voices").status_code == 200
        assert rows(store)
        go_on.set()
        gone_at_last(store)
    go_on.clear()
    with served(tmp_path, keep=1000) as (client, store):
        for name in NAMES:
            add(client, name)
            store.delete(name, None)
    begun.clear()
    with served(tmp_path, keep=0) as (client, store):
        assert begun.wait(60)
        Timer(0.5, go_on.set).start()  # it is told to end while it is at work
    with closing(VoiceStore(DataDir(tmp_path))) as store:
        assert len(store.surplus(0)) == len(NAMES) - 1


def test_voices_that_must_stay_for_now_keep_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever enrolled two clips again each hour, and left, kept what all others had deleted."""
    monkeypatch.setattr("registry.api.services.PAUSE_S", 3600)  # a deletion has none
    with served(tmp_path, keep=1000, is_server=False) as (client, store):
        for name in NAMES:
            add(client, name)
            assert client.delete(f"/voices/{name}").status_code == 204
        oldest = store.surplus(0)[0][:2]
    with served(tmp_path, keep=0, is_server=False) as (client, store):
        for voice_id in oldest:
            touch(store, voice_id)
        add(client, "zoe")
        assert client.delete("/voices/zoe").status_code == 204
        [left] = store.surplus(0)
        assert len(left) == len(NAMES) + 1 - 2 and [*left[:2]] == [*oldest]


def test_a_server_removes_later_what_must_stay_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.api.services.PURGE_EVERY_S", 0.02)
    with served(tmp_path, keep=1000) as (client, store):
        for name in NAMES:
            add(client, name)
            assert client.delete(f"/voices/{name}").status_code == 204
    with closing(VoiceStore(DataDir(tmp_path))) as store:
        touch(store)
    with served(tmp_path, keep=0) as (client, store):
        assert client.get("/voices").status_code == 200
        assert len(store.surplus(0)[0]) == len(NAMES)
        age(store.data)
        gone_at_last(store)


def test_no_reference_is_looked_up_for_what_is_forgotten(
    store: VoiceStore, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would look at all near names for each voice that goes: 47 ms at 25,000 voices."""
    looked_up = list[int]()

    def told(session: Session, forgotten: Sequence[Forgotten]) -> None:
        asked = session.connection().exec_driver_sql("PRAGMA foreign_keys")
        looked_up.append(asked.scalar_one())
        forget(session, forgotten)

    monkeypatch.setattr("registry.storage.store.forget", told)
    enrol("ann")
    with store._db.write() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    store.delete("ann", None)
    assert store.purge_surplus(0) == 1 and looked_up == [0]
    assert not rows(store)
    with store._db.write() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_what_can_not_be_purged_hinders_no_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise StorageUnavailable("Not now.")

    with served(tmp_path, keep=0) as (client, store):
        monkeypatch.setattr(store, "purge", refuse)
        add(client, "ann")
        assert client.delete("/voices/ann").status_code == 204
        assert problem(client.get("/voices/ann")) == (404, "voice-not-found")
    assert "Not now." in caplog.text
