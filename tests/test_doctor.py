"""The doctor on real damage: each kind is named, what can be mended is, nothing else is touched.

`loss` is what only a backup mends; everything else is gone after one repair.
"""

import os
import random
import shutil
import socket
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fakes import FakeInference
from faults import add, age, noise, quick_app, quick_clip
from serving import serving
from sqlmodel import Session
from uploading import uploaded

from registry.contract import PromptRef, PromptSource
from registry.errors import DatabaseLost
from registry.names import variants
from registry.settings import Settings
from registry.storage.blobs import TMP_PREFIX
from registry.storage.data_dir import GRACE_S, DataDir, sha256_of
from registry.storage.rows.edits import VoiceEdit
from registry.storage.rows.row_faults import RowFault, row_faults
from registry.storage.sqlite import is_damage
from registry.storage.store import VoiceStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import Finding, NamedVoice, examine, summary

CLIP = noise(random.Random(1))


@pytest.fixture
def http(data: DataDir, store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    """A server with one voice, alice."""
    with serving(quick_app(store, fake, Settings(home=data.root))) as http:
        assert add(http, "alice", CLIP).status_code == 201
        yield http


@pytest.fixture
def prompt(http: httpx.Client, data: DataDir) -> Path:
    return next(data.prompts(http.get("/voices/alice").json()["id"]).iterdir())


def flip(path: Path) -> None:
    """One bit in the middle; size and times tell nothing."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
}
FOUND_WITHOUT_READING = ("missing", "emptied")


def whole(data: DataDir, repair: bool = False, read_data: bool = True) -> list[Finding]:
    """Without the voices that are named."""
    found = examine(data, read_data=read_data, repair=repair)
    return [replace(finding, voices=()) for finding in found]


def assert_mended_once(data: DataDir, what: str) -> None:
    """Found, mended, and not found again."""
    assert whole(data) == [Finding("repairable", what)]
    assert whole(data, repair=True) == [Finding("repaired", what)]
    assert whole(data, repair=True) == []


@pytest.mark.usefixtures("http")
def test_a_sound_directory_has_no_findings(data: DataDir) -> None:
    age(data)
    files = sorted(data.content_files())
    assert whole(data) == whole(data, repair=True) == []
    assert sorted(data.content_files()) == files


def test_a_directory_never_used_has_no_findings(tmp_path: Path) -> None:
    assert whole(DataDir(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
    assert "none yet" in str(summary(DataDir(tmp_path))["schema"])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.usefixtures("http")
def test_a_damaged_clip_is_a_loss_that_no_repair_hides(data: DataDir, damage: str) -> None:
    DAMAGE[damage](data.clip(sha256_of(CLIP)))
    loss = [Finding("loss", f"clips/{sha256_of(CLIP)} is missing or damaged")]
    assert whole(data) == whole(data, repair=True) == whole(data) == loss
    quick = whole(data, read_data=False)
    assert quick == (loss if damage in FOUND_WITHOUT_READING else [])


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_prompt_is_forgotten_and_rebuilt_by_speaking(
    http: httpx.Client, data: DataDir, prompt: Path, damage: str
) -> None:
    sound = prompt.read_bytes()
    DAMAGE[damage](prompt)
    assert_mended_once(data, f"{prompt.relative_to(data.root)} is missing or damaged")
    assert http.get("/voices/alice").json()["prompt"]["state"] == "stale"
    spoken = http.post("/speak", json={"voice": "alice", "text": "Hello"})
    assert spoken.headers["x-prompt-cache"] == "rebuilt"
    assert prompt.read_bytes() == sound
    assert whole(data) == []


def orphan_prompt(data: DataDir) -> Path:
    return data.prompt(PromptRef("voice_" + "0" * 32, "f" * 64, "e" * 64))


ORPHANS: dict[str, Callable[[DataDir], Path]] = {
    "clip": lambda data: data.clip("0" * 64),
    "conditioned clip": lambda data: data.conditioned(PromptSource("", "0" * 64, None)),
    "prompt": orphan_prompt,
    "temporary clip": lambda data: data.clip(f"{TMP_PREFIX}00"),
    "temporary prompt": lambda data: orphan_prompt(data).with_name(f"{TMP_PREFIX}00"),
    "temporary file": lambda data: data.root / f"{TMP_PREFIX}00",
}


@pytest.mark.parametrize("kind", ORPHANS)
@pytest.mark.usefixtures("http")
def test_an_orphan_is_removed_once_it_is_old(data: DataDir, kind: str) -> None:
    files = sorted(data.content_files())
    orphan = ORPHANS[kind](data)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"nobody's")
    assert whole(data, repair=True) == [], "it may belong to an enrolment under way"
    assert orphan.exists()
    age(data)
    assert_mended_once(data, f"{orphan.relative_to(data.root)} belongs to no voice")
    assert sorted(data.content_files()) == files
    assert list(data.leftovers()) == []
    assert not orphan_prompt(data).parent.exists()


@pytest.mark.usefixtures("http")
def test_the_folder_of_an_enrolment_killed_early_is_removed(data: DataDir) -> None:
    folder = orphan_prompt(data).parent
    folder.mkdir()
    assert whole(data) == []
    age(data)
    assert_mended_once(data, f"prompts/{folder.name} belongs to no voice")


@pytest.mark.slow
def test_a_second_prompt_of_a_voice_that_no_row_knows_is_removed_alone(
    data: DataDir, prompt: Path
) -> None:
    extra = prompt.with_stem("f" * 64)
    extra.write_bytes(b"nobody's")
    age(data)
    assert_mended_once(data, f"{extra.relative_to(data.root)} belongs to no voice")
    assert list(prompt.parent.iterdir()) == [prompt]


@pytest.mark.slow
def test_a_deleted_voice_keeps_its_files(http: httpx.Client, data: DataDir, prompt: Path) -> None:
    assert http.delete("/voices/alice").status_code == 204
    age(data)
    assert whole(data, repair=True) == []
    assert prompt.exists()
    assert data.clip(sha256_of(CLIP)).read_bytes() == CLIP


def test_the_index_of_near_names_is_mended(http: httpx.Client, data: DataDir) -> None:
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("DELETE FROM name_variant WHERE variant = 'alic'")
    assert_mended_once(data, "the index of near names misses 'alice'")
    assert http.get("/voices/alicx").json()["near"] == ["alice"]


@pytest.mark.usefixtures("http")
def test_a_row_that_refers_to_nothing_is_a_loss(data: DataDir) -> None:
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("INSERT INTO label VALUES ('voice_nobody', 'key', 'value')")
    found = whole(data, repair=True)
    assert [finding.severity for finding in found] == ["loss"]
    assert "label" in found[0].what


def alter_schema(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(statement)


def empty_index(path: Path) -> None:
    """An index that has lost its entries, and that the doctor would read clips from."""
    where = "WHERE name = 'ix_voice_version_clip_sha256'"
    alter_schema(path, f"UPDATE sqlite_master SET sql = sql || ' WHERE 0' {where}")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("REINDEX")
    alter_schema(path, f"UPDATE sqlite_master SET sql = replace(sql, ' WHERE 0', '') {where}")


DATABASE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "not a database": lambda path: path.write_bytes(b"not a database, but long enough" * 400),
    "pages lost": lambda path: path.write_bytes(path.read_bytes()[:4096]),
    "pages zeroed": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(40960)),
    "table lost": lambda path: alter_schema(
        path, "DELETE FROM sqlite_master WHERE tbl_name = 'voice_version'"
    ),
    "index emptied": empty_index,
    "gone": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DATABASE_DAMAGE)
def test_a_damaged_database_is_a_loss_and_costs_no_file(
    http: httpx.Client, data: DataDir, damage: str
) -> None:
    age(data)
    files = sorted(data.content_files())
    DATABASE_DAMAGE[damage](data.database)
    found = whole(data, repair=True)
    assert [finding.severity for finding in found].count("loss") >= 1
    assert "registry.db" in found[0].what
    assert sorted(data.content_files()) == files


def test_repair_spares_an_enrolment_that_began_before_it(
    data: DataDir, store: VoiceStore, fake: FakeInference
) -> None:
    """An old orphan clip is taken over: from that moment it is young."""
    source = PromptSource("", sha256_of(CLIP), None)
    with closing(uploaded(data, CLIP)) as upload:
        store.keep_clip(source, upload, quick_clip(CLIP))
        age(data)
        store.keep_clip(source, upload, quick_clip(CLIP))
    assert whole(data, repair=True) == []
    assert data.clip(source.clip_sha256).exists()
    assert data.conditioned(source).exists()


def test_a_busy_database_is_not_a_damaged_one(data: DataDir, store: VoiceStore) -> None:
    connect = sqlite3.connect
    with closing(connect(data.database)) as one, closing(connect(data.database, timeout=0)) as two:
        one.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as busy:
            two.execute("SELECT * FROM voice")
    assert not is_damage(busy.value)


def test_an_empty_database_of_a_killed_first_start_is_sound(data: DataDir) -> None:
    data.create()
    data.database.touch()
    assert whole(data, repair=True) == []


def test_no_new_database_is_made_beside_old_files(http: httpx.Client, data: DataDir) -> None:
    data.database.unlink()
    with pytest.raises(DatabaseLost, match="Put back a copy"):
        VoiceStore(data)
    assert not data.database.exists()


# Whose it is


def test_a_finding_names_the_voices_that_it_is_about(http: httpx.Client, data: DataDir) -> None:
    assert add(http, "bob", CLIP).status_code == 201
    ids = {name: http.get(f"/voices/{name}").json()["id"] for name in ("alice", "bob")}
    data.clip(sha256_of(CLIP)).unlink()
    next(data.prompts(ids["bob"]).iterdir()).unlink()
    [clip, prompt] = examine(data, read_data=False, repair=False)
    assert clip.voices == tuple(NamedVoice(ids[name], name) for name in ("alice", "bob"))
    assert prompt.voices == (NamedVoice(ids["bob"], "bob"),)


# What is not ours


def socket_at(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as made, chdir(path.parent):
        made.bind(path.name)  # a whole path may be too long


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def sparse(path: Path) -> None:
    """A file that says it is a terabyte."""
    with path.open("wb") as file:
        file.truncate(2**40)


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "folder": folder_with_a_file,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a folder": lambda path: path.symlink_to("/"),
    "link to a file": lambda path: path.symlink_to(__file__),
}
NAMES = (".DS_Store", "lost+found", "a b", "\n", os.fsdecode(b"\xff"), "A" * 64, "0" * 63, "0" * 64)
PLACES = ("clips", "conditioned", "prompts", f"prompts/voice_{'0' * 32}")


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_named_and_left_alone(
    http: httpx.Client, data: DataDir, kind: str
) -> None:
    for place in PLACES:
        (data.root / place).mkdir(exist_ok=True)
        ODD[kind](data.root / place / ("0" * 64))
    for path in data.strangers():
        os.utime(path, (0, 0), follow_symlinks=False)
    found = whole(data, repair=True)
    assert [finding.severity for finding in found] == ["foreign"] * len(PLACES)
    assert all(f"{place}/{'0' * 64}" in str(found) for place in PLACES)
    assert len([*data.strangers()]) == len(PLACES)
    assert summary(data)["files"] == 3
    assert http.get("/voices/alice/clip").status_code == 200


@pytest.mark.usefixtures("http")
def test_files_of_other_names_are_left_alone(data: DataDir) -> None:
    made = [data.root / place / name for place in PLACES[:3] for name in NAMES[:-1]]
    for path in made:
        path.write_bytes(b"someone's")
        os.utime(path, (0, 0))
    found = whole(data, repair=True)
    assert [finding.severity for finding in found] == ["foreign"] * len(made)
    assert all(path.exists() for path in made)
    assert all(finding.what.isascii() and finding.what.isprintable() for finding in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ODD, "sparse"])
def test_what_stands_in_the_place_of_a_file_is_not_read(
    http: httpx.Client, data: DataDir, prompt: Path, kind: str
) -> None:
    """Neither waited for, nor followed to where nobody knows what is."""
    clip = data.clip(sha256_of(CLIP))
    for path in (clip, prompt):
        path.unlink()
        {**ODD, "sparse": sparse}[kind](path)
    age(data)
    severities = {finding.severity for finding in whole(data)}
    assert severities >= {"loss", "repairable"}
    damaged = http.get("/voices/alice/clip")
    assert (damaged.status_code, damaged.json()["code"]) == (500, "reference-corrupt")
    assert http.get("/voices/alice/prompt").status_code == 409
    with closing(VoiceStore(data)) as store:
        manifest = save_backup(store, data.root.parent / "voices.tar")
    assert len(manifest.missing) == 2


def test_a_clip_that_is_a_link_is_not_followed(http: httpx.Client, data: DataDir) -> None:
    """Not even to the right content: a link may lead anywhere by the next time."""
    clip = data.clip(sha256_of(CLIP))
    clip.rename(data.root.parent / "elsewhere")
    clip.symlink_to(data.root.parent / "elsewhere")
    for read_data in (True, False):
        assert {found.severity for found in whole(data, read_data=read_data)} == {"loss", "foreign"}
    refused = http.get("/voices/alice/clip")
    assert (refused.status_code, refused.json()["code"]) == (500, "reference-corrupt")


def test_all_clips_may_be_on_another_disk(http: httpx.Client, data: DataDir) -> None:
    (data.root / "clips").rename(data.root.parent / "disk")
    (data.root / "clips").symlink_to(data.root.parent / "disk")
    assert whole(data) == []
    assert http.get("/voices/alice/clip").content == CLIP


def in_place_of(path: Path, kind: str) -> None:
    path.unlink()
    ODD[kind](path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "link to a device", "link to a file"])
def test_what_is_no_file_in_the_place_of_one_is_neither_waited_for_nor_read(
    http: httpx.Client, prompt: Path, data: DataDir, kind: str
) -> None:
    """Serve, read, speak, rebuild, back up, examine and start again."""
    conditioned = next((data.root / "conditioned").iterdir())
    outside = data.root.parent / "outside"
    for path in (prompt, conditioned):
        shutil.copy(path, outside)
        in_place_of(path, kind)
    assert http.get("/voices/alice/prompt").status_code == 409
    assert whole(data, read_data=False) != [] != whole(data)
    rebuilt = http.post("/voices/alice/rebuild")
    spoken = http.post("/speak", json={"voice": "alice", "text": "Hello"})
    if kind == "folder":  # nothing of anybody's is removed for it
        assert (rebuilt.status_code, rebuilt.json()["code"]) == (503, "storage-unreadable")
    else:
        assert rebuilt.status_code == spoken.status_code == 200
        assert stat.S_ISREG(prompt.lstat().st_mode) and stat.S_ISREG(conditioned.lstat().st_mode)
    clip = data.clip(sha256_of(CLIP))
    in_place_of(clip, kind)
    for verb, path in (("GET", "/voices/alice/clip"), ("POST", "/voices/alice/rebuild")):
        refused = http.request(verb, path)
        assert (refused.status_code, refused.json()["code"]) == (500, "reference-corrupt")
    with closing(VoiceStore(data)) as store:
        assert f"clips/{clip.name}" in save_backup(store, data.root.parent / "saved.tar").missing
    age(data)
    assert "loss" in {finding.severity for finding in whole(data, repair=True)}
    assert outside.read_bytes()


def test_the_folder_of_a_voice_is_no_way_out(
    http: httpx.Client, prompt: Path, data: DataDir
) -> None:
    outside = data.root.parent / "outside"
    prompt.parent.rename(outside)
    prompt.parent.symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in outside.iterdir()}
    assert http.get("/voices/alice/prompt").status_code == 409
    refused = http.post("/voices/alice/rebuild")
    assert (refused.status_code, refused.json()["code"]) == (503, "storage-unreadable")
    assert whole(data) != []
    whole(data, repair=True)
    assert {path: path.stat().st_mtime_ns for path in outside.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [-10 * GRACE_S, 10 * GRACE_S, 10 * 365 * 86_400])
@pytest.mark.usefixtures("http")
def test_an_orphan_is_removed_whichever_way_the_clock_jumped(data: DataDir, jump_s: float) -> None:
    orphan = data.clip("0" * 64)
    orphan.write_bytes(b"nobody's")
    then = time.time() + jump_s
    os.utime(orphan, (then, then))
    assert_mended_once(data, f"clips/{orphan.name} belongs to no voice")


@pytest.mark.slow
@pytest.mark.usefixtures("http")
@pytest.mark.parametrize("repair", [False, True])
def test_nobody_waits_for_the_doctor_to_look_at_rows(
    data: DataDir, store: VoiceStore, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    """At 25,000 voices each change waited for 8 s, and beyond 45,000 it was refused."""
    monkeypatch.setattr("registry.storage.sqlite.BUSY_TIMEOUT_S", 0.0)

    def edited_meanwhile(session: Session) -> list[RowFault]:
        store.edit("alice", VoiceEdit(description="edited"), None)
        return row_faults(session)

    monkeypatch.setattr("registry.upkeep.doctor.row_faults", edited_meanwhile)
    assert whole(data, repair=repair) == []
    assert store.get("alice").row.description == "edited"


@pytest.mark.usefixtures("http")
def test_nobody_waits_where_something_is_wrong(
    data: DataDir, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.storage.sqlite.BUSY_TIMEOUT_S", 0.0)
    orphan = data.clip("0" * 64)
    orphan.write_bytes(b"nobody's")
    then = time.time() - 2 * GRACE_S
    os.utime(orphan, (then, then))
    looked, leftovers = list[int](), DataDir.leftovers

    def edited_meanwhile(data: DataDir) -> Iterator[Path]:
        looked.append(
            store.edit("alice", VoiceEdit(description=f"{len(looked)}"), None).row.row_version
        )
        return leftovers(data)

    monkeypatch.setattr(DataDir, "leftovers", edited_meanwhile)
    assert whole(data) == [Finding("repairable", f"clips/{orphan.name} belongs to no voice")]
    assert len(looked) == 2


@pytest.mark.usefixtures("http")
def test_only_kinds_that_were_found_are_looked_for_again(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the transaction of a repair everybody waits: 14 s for all of 25,000 voices."""
    orphan = data.clip("0" * 64)
    orphan.write_bytes(b"nobody's")
    then = time.time() - 2 * GRACE_S
    os.utime(orphan, (then, then))
    asked = list[str]()

    def counted(key: str) -> set[str]:
        asked.append(key)
        return variants(key)

    monkeypatch.setattr("registry.upkeep.doctor.variants", counted)
    assert len(whole(data, repair=True)) == 1 and not orphan.exists()
    assert asked == ["alice"]


@pytest.mark.usefixtures("http")
@pytest.mark.parametrize("repair", [False, True])
def test_a_voice_that_goes_meanwhile_is_no_fault(
    data: DataDir, store: VoiceStore, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    def gone_meanwhile(session: Session) -> list[RowFault]:
        if store.page(1, None, "", ()).voices:
            store.delete("alice", None)
            assert store.purge_surplus(0) == 1
        return row_faults(session)

    monkeypatch.setattr("registry.upkeep.doctor.row_faults", gone_meanwhile)
    assert whole(data, repair=repair) == []
    assert not store.page(1, None, "", ()).voices
