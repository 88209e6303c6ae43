"""The store and its files against other processes, other enrolments, full disks and kill -9."""

import asyncio
import itertools
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeInference
from faults import (
    FORKS,
    QuickEnroller,
    Trusting,
    add,
    age,
    client_of,
    fill_disk,
    finish,
    noise,
    process,
    quick_app,
    server,
)
from serving import serving
from sqlalchemy import Column, MetaData, String, Table, select
from sqlmodel import Session
from uploading import enrol_bytes

from registry.audio.clips import ReferenceClip
from registry.contract import Deadline, ExtractedPrompt, PromptSource
from registry.errors import EditConflict
from registry.settings import Settings
from registry.storage import queries, stored_voice
from registry.storage.blobs import write_atomically, write_once
from registry.storage.data_dir import DataDir, clip_key, sha256_of
from registry.storage.rows.edits import VoiceEdit
from registry.storage.rows.inserts import NewVoice
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import Voice
from registry.storage.uploads import Upload
from registry.upkeep.doctor import examine

EDITS = 250
SIZE = 1_000_000


def enrol(store: VoiceStore, fake: FakeInference, upload: bytes, *names: str) -> list[str]:
    """Enrol the same bytes under every name at once; the ids."""
    enroller = QuickEnroller(store, fake)

    async def all_at_once() -> list[str]:
        labels = {"count": "0"}
        enrolments = (enrol_bytes(enroller, name, upload, labels=labels) for name in names)
        return [voice.row.id for voice in await asyncio.gather(*enrolments)]

    return asyncio.run(all_at_once())


# Two processes


def count_up(home: Path, times: int) -> None:
    """Read, change, write: what an application does that keeps something in a label."""
    store = VoiceStore(DataDir(home))
    for _ in range(times):
        while True:
            voice = store.get("alice")
            more = {"count": str(int(voice.labels["count"]) + 1)}
            try:
                store.edit("alice", VoiceEdit(labels=more), voice.row.row_version)
            except EditConflict:
                continue
            break
    store.close()


@pytest.mark.slow
def test_two_processes_lose_no_update(store: VoiceStore, fake: FakeInference) -> None:
    enrol(store, fake, noise(random.Random(1)), "alice")
    home = store.data.root
    with process(count_up, home, EDITS) as one, process(count_up, home, EDITS) as other:
        assert finish([one, other]) == [0, 0]
    alice = store.get("alice")
    assert alice.labels == {"count": str(2 * EDITS)}
    assert alice.row.row_version == 1 + 2 * EDITS


def count_up_over_http(url: str, times: int) -> int:
    """Returns how many edits were refused as stale."""
    refused = 0
    with client_of(url) as http:
        while times:
            voice = http.get("/voices/alice")
            more = {"labels": {"count": str(int(voice.json()["labels"]["count"]) + 1)}}
            match = {"If-Match": voice.headers["etag"]}
            status = http.patch("/voices/alice", json=more, headers=match).status_code
            assert status in (200, 412)
            times -= status == 200
            refused += status == 412
    return refused


@pytest.mark.slow
def test_two_servers_of_one_directory_lose_no_update(tmp_path: Path) -> None:
    with server(tmp_path) as (_, one), server(tmp_path) as (_, other), client_of(one) as http:
        add(http, "alice", noise(random.Random(2)), labels='{"count": "0"}')
        with ThreadPoolExecutor() as threads:
            refused = sum(threads.map(count_up_over_http, [one, one, other, other], [30] * 4))
        alice = http.get("/voices/alice").json()
    assert (alice["labels"], alice["row_version"]) == ({"count": "120"}, 121)
    assert refused > 0, "the clients never met: this proves nothing"


# Removal against enrolment


def clean_up_for_ever(home: Path, stop: Any) -> None:
    """A doctor who comes at random moments and takes every clip for an old one."""
    data, rng = DataDir(home), random.Random(4)
    while not stop.wait(rng.uniform(0, 0.02)):
        clean_up(data)


def clean_up(data: DataDir) -> None:
    for path in data.content_files():
        if path.parent.name == "clips":
            os.utime(path, (0, 0))
    examine(data, read_data=False, repair=True)


def race(store: VoiceStore, fake: FakeInference, rounds: int) -> int | None:
    """Enrol clips while they are cleaned up; the round in which a voice lacks its clip."""
    stop, rng = FORKS.Event(), random.Random(3)
    with process(clean_up_for_ever, store.data.root, stop) as cleaner:
        for number in range(rounds):
            upload = noise(rng)
            for voice_id in enrol(store, fake, upload, f"a{number}", f"b{number}"):
                if not store.data.clip(sha256_of(upload)).exists():
                    return number
                store.delete(voice_id, None)
        stop.set()
        assert finish([cleaner]) == [0]
    return None


@pytest.mark.slow
def test_cleaning_up_never_takes_a_clip_that_is_being_enrolled(
    store: VoiceStore, fake: FakeInference
) -> None:
    assert race(store, fake, rounds=40) is None
    assert examine(store.data, read_data=True, repair=False) == []


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_enrolments_keep_their_clips(store: VoiceStore, fake: FakeInference) -> None:
    assert race(store, fake, rounds=500) is None


class CleanedMeanwhile(FakeInference):
    """A doctor comes while the features are made, after the clip was stored and before its row."""

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> object:
        made = await super().extract_prompt(source)
        clean_up(self.data)
        assert not self.data.clip(source.clip_sha256).exists()
        return made


@pytest.mark.parametrize(("kind", "kept"), [(VoiceStore, True), (Trusting, False)])
def test_a_clip_that_is_cleaned_up_before_its_row_is_there_is_stored_again(
    data: DataDir, kind: type[VoiceStore], kept: bool
) -> None:
    """A store that looks only once loses it, which the race above would meet by chance alone."""
    upload = noise(random.Random(5))
    with closing(kind(data)) as store:
        enrol(store, CleanedMeanwhile(data), upload, "alice")
        assert (store.read_blob(clip_key(sha256_of(upload))) == upload) is kept


class Together(FakeInference):
    """Holds every enrolment until all have passed the first look at the name."""

    def __init__(self, data: DataDir, callers: int) -> None:
        super().__init__(data, encoders=callers)
        self.all_here = asyncio.Barrier(callers)

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> object:
        await self.all_here.wait()
        return await super().extract_prompt(source)


def test_of_eight_enrolments_of_one_name_one_succeeds(data: DataDir, store: VoiceStore) -> None:
    clip = noise(random.Random(4))
    app = quick_app(store, Together(data, 8), Settings(home=data.root))
    with serving(app) as http, ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: add(http, "alice", clip), range(8)))
    assert sorted(reply.status_code for reply in replies) == [201] + [409] * 7
    assert len(list((data.root / "prompts").iterdir())) == 1
    age(data)
    assert examine(data, read_data=True, repair=False) == []


CONSENT = Table("consent", MetaData(), Column("voice_id", String, primary_key=True))


class ConsentingEnroller(QuickEnroller):
    """Writes to a table of its own in the transaction of the voice; bob takes it back."""

    def _insert(
        self, new: NewVoice, upload: Upload, clip: ReferenceClip, prompt: ExtractedPrompt
    ) -> StoredVoice:
        with self._store.transaction() as session:
            session.execute(CONSENT.insert(), {"voice_id": new.source.voice_id})
            voice = self._store.insert(session, new, upload, clip, prompt)
            if new.name == "bob":
                raise KeyError(new.name)
            return voice


@pytest.mark.parametrize("deployment", ["server", "volume"])
def test_a_table_of_another_module_joins_the_transaction_of_a_voice(
    store: VoiceStore, fake: FakeInference
) -> None:
    enroller, clip = ConsentingEnroller(store, fake), noise(random.Random(6))
    with store.transaction() as session:
        CONSENT.create(session.connection())
    alice = asyncio.run(enrol_bytes(enroller, "alice", clip))
    with pytest.raises(KeyError, match="bob"):
        asyncio.run(enrol_bytes(enroller, "bob", clip))
    with store.transaction() as session:
        assert session.execute(select(CONSENT.c.voice_id)).scalars().all() == [alice.row.id]
    assert [voice.row.name for voice in store.page(10, None, "", []).voices] == ["alice"]


# Files


@pytest.mark.slow
def test_a_page_of_many_words_is_shorter_and_none_is_left_out(
    store: VoiceStore, fake: FakeInference
) -> None:
    """200 of the largest voices would be 8 MB, made anew for whoever asks."""
    names = [f"v{i:02}" for i in range(60)]
    enrol(store, fake, noise(random.Random(1)), *names)
    emoji = "\U0001f600"
    labels = {f"k{i:02}": emoji * 256 for i in range(32)}
    for name in names:
        store.edit(name, VoiceEdit(description=emoji * 2000, labels=labels), None)
    seen, sizes, after = list[str](), list[int](), None
    while after or not seen:
        page = store.page(200, after, "", ()).public()
        sizes.append(len(page.model_dump_json().encode()))
        seen += [voice.name for voice in page.data]
        after = page.next
    assert seen == names
    assert len(sizes) == 3 and max(sizes) < 1_200_000


@pytest.mark.slow
def test_a_page_reads_no_more_voices_than_it_shows(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"v{i:02}" for i in range(12)]
    enrol(store, fake, noise(random.Random(1)), *names)
    for name in names:
        store.edit(name, VoiceEdit(description="a" * 100), None)
    loaded, load = list[int](), queries._load

    def counted(session: Session, rows: Sequence[Voice]) -> list[StoredVoice]:
        loaded.append(len(rows))
        return load(session, rows)

    monkeypatch.setattr(queries, "_load", counted)
    monkeypatch.setattr(queries, "BLOCK", 5)
    assert store.page(200, None, "", ()).next is None and loaded == [5, 5, 2]
    loaded.clear()
    most = int(2.5 * store.get("v00").characters())
    monkeypatch.setattr(stored_voice, "PAGE_CHARACTERS", most)
    seen, after = list[str](), None
    while after or not seen:
        page = store.page(200, after, "", ()).public()
        assert 2 <= len(page.data) <= 3
        seen += [voice.name for voice in page.data]
        after = page.next
    assert seen == names and max(loaded) == 5 and sum(loaded) < 3 * len(names)


def write_in_place(path: Path, content: bytes) -> None:
    """Wrong: what most programs do."""
    path.write_bytes(content)


def write_for_ever(write: Callable[[Path, bytes], None], path: Path, begun: Any) -> None:
    for letter in itertools.cycle(b"ab"):
        write(path, bytes([letter]) * SIZE)
        begun.set()


def leaves_a_half(write: Callable[[Path, bytes], None], path: Path, kills: int) -> bool:
    """True as soon as a kill leaves a file that is neither the old nor the new one.

    The time is counted from the first whole file: before it there is nothing to tear, and a
    process may take longer to begin than any time that is waited here.
    """
    rng = random.Random(5)
    path.write_bytes(b"a" * SIZE)
    for _ in range(kills):
        begun = FORKS.Event()
        with process(write_for_ever, write, path, begun) as writer:
            assert begun.wait(60)
            writer.join(rng.uniform(0.0, 0.02))
        if path.read_bytes() not in (b"a" * SIZE, b"b" * SIZE):
            return True
    return False


@pytest.mark.slow
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(data: DataDir) -> None:
    assert not leaves_a_half(write_atomically, data.clip("0"), kills=25)


def test_the_kills_notice_a_writer_that_writes_in_place(data: DataDir) -> None:
    """Kills fall into a write as often as the writer is in one: 7 times of 10 and more. Then 100
    of them all miss it with a chance of 1e-52, and it would be 1e-9 at 2 times of 10."""
    assert leaves_a_half(write_in_place, data.clip("0"), kills=100)


def test_a_failed_write_leaves_no_temporary_file(data: DataDir) -> None:
    target = data.clip("0")
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(target, b"content")
    assert list(data.leftovers()) == []


def test_a_stored_file_is_read_before_it_is_trusted(data: DataDir) -> None:
    path = data.clip("0")
    path.write_bytes(b"cont\0\0\0")
    write_once(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_sound_file_is_kept_and_made_young(data: DataDir) -> None:
    path = data.clip("0")
    write_once(path, b"content")
    inode = path.stat().st_ino
    age(data)
    write_once(path, b"content")
    assert path.stat().st_ino == inode
    assert time.time() - path.stat().st_mtime < 60


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def full(small_disk: Path) -> Iterator[tuple[httpx.Client, DataDir]]:
    """A server with one voice, on a disk that is full by now."""
    data = DataDir(small_disk / "home")
    store = VoiceStore(data)
    with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
        assert add(http, "alice", noise(random.Random(6))).status_code == 201
        fill_disk(small_disk)
        yield http, data


def test_a_full_disk_refuses_new_voices_and_keeps_the_old(
    full: tuple[httpx.Client, DataDir],
) -> None:
    http, data = full
    files = sorted(data.content_files())
    refused = add(http, "bob", noise(random.Random(7)))
    assert (refused.status_code, refused.json()["code"]) == (507, "storage-full")
    assert [v["name"] for v in http.get("/voices").json()["data"]] == ["alice"]
    assert http.post("/speak", json={"voice": "alice", "text": "Hello"}).status_code == 200
    assert http.get("/voices/alice/clip").status_code == 200
    assert list(data.leftovers()) == []
    assert sorted(data.content_files()) == files


def test_an_edit_on_a_full_disk_is_refused_whole(full: tuple[httpx.Client, DataDir]) -> None:
    http, _ = full
    before = http.get("/voices/alice").json()
    long = {"labels": {f"key{i}": "x" * 250 for i in range(32)}}
    refused = http.patch("/voices/alice", json=long)
    assert (refused.status_code, refused.json()["code"]) == (507, "storage-full")
    assert http.get("/voices/alice").json() == before


def test_a_full_disk_still_deletes(full: tuple[httpx.Client, DataDir]) -> None:
    http, data = full
    assert http.delete("/voices/alice").status_code == 204
    assert http.get("/voices").json()["data"] == []
    assert not data.ballast.exists()


def test_room_made_on_a_full_disk_is_used_at_once(full: tuple[httpx.Client, DataDir]) -> None:
    http, data = full
    assert add(http, "bob", noise(random.Random(8))).status_code == 507
    (data.root.parent / "filler").unlink()
    assert add(http, "bob", noise(random.Random(8))).status_code == 201
    assert examine(data, read_data=True, repair=False) == []
