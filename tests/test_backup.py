"""Backups: made while others write, refused for any flaw, and put back in one step or not at all.

Every store is the real one; only the model is a stand-in, and in the test of the command line not
even that.
"""

import asyncio
import fcntl
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from clips import file, tone
from fakes import FakeInference
from faults import (
    FORKS,
    QuickEnroller,
    add,
    client_of,
    fill_disk,
    finish,
    noise,
    process,
    quick_app,
    server,
)
from modal_volume import Cloud
from serving import serving
from uploading import clip_of, enrol_bytes
from volume_faults import Site

from cli.main import cli
from registry.contract import Deadline, ModelRef
from registry.errors import BackupRefused, DatabaseLost, FolderInUse, RegistryError
from registry.settings import Settings
from registry.storage.data_dir import DataDir, sha256_of
from registry.storage.database import SCHEMA
from registry.storage.folder_lock import share_folder
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.upkeep import backup, restore
from registry.upkeep.backup import save_backup, write_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import leftovers, restore_backup

STRANGER = "clips/" + "f" * 64
OTHER = ModelRef("other", "r2")
CLIPS = [noise(random.Random(seed)) for seed in range(3)]


def enrol(
    store: VoiceStore, name: str, clip: bytes, model: ModelRef = FakeInference.model
) -> StoredVoice:
    enroller = QuickEnroller(store, FakeInference(store.data, model))
    return asyncio.run(enrol_bytes(enroller, name, clip, labels={"k": "v"}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three voices, one deleted, one with the features of two models, two of the same clip."""
    folder = tmp_path_factory.mktemp("made")
    store = VoiceStore(DataDir(folder / "data"))
    enrol(store, "alice", CLIPS[0])
    enrol(store, "bob", CLIPS[1])
    store.delete("bob", None)
    other = FakeInference(store.data, OTHER)
    store.choose_model("other", other.model)
    asyncio.run(QuickEnroller(store, other).refresh(store.get("alice"), "", Deadline()))
    enrol(store, "carol", CLIPS[0], OTHER)
    save_backup(store, folder / "voices.tar")
    store.close()
    return folder


@pytest.fixture
def full(made: Path, tmp_path: Path) -> Iterator[VoiceStore]:
    shutil.copytree(made / "data", tmp_path / "data")
    store = VoiceStore(DataDir(tmp_path / "data"))
    yield store
    store.close()


@pytest.fixture
def tar(made: Path, tmp_path: Path) -> Path:
    return shutil.copy(made / "voices.tar", tmp_path / "voices.tar")


def restored(tar: Path, home: Path) -> restore.Restored:
    with tar.open("rb") as opened:
        return restore_backup(opened, home)


def refusal(tar: Path, home: Path, kind: type[RegistryError] = BackupRefused) -> str:
    """What a restore of it says; nothing has changed and nothing is left over."""
    before = everything(home.parent)
    with pytest.raises(kind) as refused:
        restored(tar, home)
    assert everything(home.parent) == before
    return refused.value.detail


def everything(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path.read_bytes()) if path.is_file() else ""
        for path in folder.rglob("*")
    }


def rows(data: DataDir) -> list[str]:
    with closing(sqlite3.connect(data.database)) as database:
        return list(database.iterdump())


def content(data: DataDir) -> dict[str, bytes]:
    found = (*data.root.glob("clips/*"), *data.root.glob("prompts/*/*"))
    return {path.relative_to(data.root).as_posix(): path.read_bytes() for path in found}


# A whole one


def test_what_is_restored_is_what_was_saved(full: VoiceStore, tar: Path, tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    manifest = restored(tar, home).manifest
    data = DataDir(home)
    assert rows(data) == rows(full.data)
    assert content(data) == content(full.data)
    assert examine(data, read_data=True, repair=False) == []
    assert (manifest.voices, manifest.deleted, manifest.missing) == (2, 1, [])
    assert len(manifest.files) == len(content(data)) + 1 == 2 + 4 + 1
    assert leftovers(home) == []


def test_voices_speak_and_are_rebuilt_without_conditioned_clips(tar: Path, tmp_path: Path) -> None:
    restored(tar, tmp_path / "home")
    store = VoiceStore(DataDir(tmp_path / "home"))
    assert list(store.data.root.glob("conditioned/*")) == []
    fake = FakeInference(store.data, OTHER)
    app = quick_app(store, fake, Settings(home=store.data.root))
    with serving(app) as http:
        spoken = http.post("/speak", json={"voice": "alice", "text": "Hello"})
        assert (spoken.status_code, fake.extracted) == (200, 0)
        assert http.post("/voices/carol/rebuild").status_code == 200
        assert http.get("/voices/alice/clip").content == CLIPS[0]


def test_a_backup_is_a_plain_tar_in_one_order_for_its_owner_alone(
    full: VoiceStore, tar: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.tar"
    save_backup(full, again)
    with tarfile.open(tar) as one, tarfile.open(again) as other:
        names = one.getnames()
        assert names == other.getnames()
        assert {member.type for member in one} == {tarfile.REGTYPE}
    assert names[0] == "registry.db" and names[-1] == "manifest.json"
    assert names[1:-1] == sorted(names[1:-1])
    assert tar.stat().st_mode & 0o777 == 0o600
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_erased_from_the_rows_is_not_in_a_backup(full: VoiceStore, tar: Path) -> None:
    with closing(sqlite3.connect(full.data.database)) as database:
        database.execute("PRAGMA secure_delete = OFF")
        for description in ("hex(zeroblob(9000)) || 'canary'", "''"):
            database.execute(f"UPDATE voice SET description = {description}")
            database.commit()
    assert b"canary" in full.data.database.read_bytes()
    save_backup(full, tar)
    assert b"canary" not in tar.read_bytes()


def test_a_damaged_file_is_left_out_and_named(full: VoiceStore, tmp_path: Path) -> None:
    alice = full.get("alice")
    ref = alice.prompt_ref()
    assert ref is not None
    full.data.prompt(ref).write_bytes(b"damaged")
    full.data.clip(sha256_of(CLIPS[1])).unlink()
    manifest = save_backup(full, tmp_path / "voices.tar")
    assert manifest.lost == [f"clips/{sha256_of(CLIPS[1])}"]
    assert len(manifest.missing) == 2
    assert restored(tmp_path / "voices.tar", tmp_path / "home").manifest == manifest
    found = examine(DataDir(tmp_path / "home"), read_data=True, repair=False)
    assert sorted(finding.severity for finding in found) == ["loss", "repairable"]


# While others write


def add_for_ever(home: Path, ready: Any) -> None:
    store = VoiceStore(DataDir(home))
    rng = random.Random(7)
    for number in range(10_000):
        enrol(store, f"voice {number:04}", noise(rng))
        ready.set()


@pytest.mark.slow
def test_a_backup_under_load_is_a_state_that_was(store: VoiceStore, tmp_path: Path) -> None:
    """The voices that were there at one moment, each with its files; no later one before them."""
    ready = FORKS.Event()
    counts = []
    with process(add_for_ever, store.data.root, ready):
        assert ready.wait(30)
        for number in range(6):
            path = tmp_path / f"{number}.tar"
            assert save_backup(store, path).missing == []
            restored(path, tmp_path / f"{number}")
            counts.append(contiguous(DataDir(tmp_path / f"{number}")))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0], "nobody wrote meanwhile: this proves nothing"


def contiguous(data: DataDir) -> int:
    with closing(sqlite3.connect(data.database)) as database:
        names = [row[0] for row in database.execute("SELECT name FROM voice ORDER BY name")]
    assert names == [f"voice {number:04}" for number in range(len(names))]
    return len(names)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the stand-in needs /proc")
def test_the_voices_of_a_shared_volume_are_saved_and_restored_here(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "cloud")
    one, other = Site.start(cloud), Site.start(cloud)
    voice = asyncio.run(enrol_bytes(one.enroller, "alice", CLIPS[0]))
    asyncio.run(enrol_bytes(one.enroller, "bob", CLIPS[1]))
    one.store.delete("bob", None)
    assert other.store.get("alice").row.id == voice.row.id
    manifest = save_backup(other.store, tmp_path / "voices.tar")
    assert (manifest.voices, manifest.deleted, manifest.missing) == (1, 1, [])
    restored(tmp_path / "voices.tar", tmp_path / "home")
    store = VoiceStore(DataDir(tmp_path / "home"))
    assert clip_of(store, store.get("alice")) == CLIPS[0]
    assert examine(store.data, read_data=True, repair=False) == []


# Flawed ones


def test_one_byte_that_changed_is_found_and_its_member_named(tar: Path, tmp_path: Path) -> None:
    home = tmp_path / "there" / "home"
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        members = opened.getmembers()
    for previous, member in zip([None, *members], members, strict=False):
        for at in (0, member.size // 2, member.size - 1):
            tar.write_bytes(flipped(whole, member.offset_data + at))
            assert member.name in refusal(tar, home) or (at > 0 and member.name == "manifest.json")
        for at in (0, 100, 124, 156, 257):  # name, mode, size, type, magic
            tar.write_bytes(flipped(whole, member.offset + at))
            assert (previous.name if previous else "its beginning") in refusal(tar, home)


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def test_one_that_was_cut_off_is_refused(tar: Path, tmp_path: Path) -> None:
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    end = last.offset_data + last.size
    for length in (0, 1, 511, 512, 700, *range(0, end, end // 20), end - 1):
        tar.write_bytes(whole[:length])
        assert "cut off" in (said := refusal(tar, tmp_path / "home")) or "damaged" in said


def foreign(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


NOT_BACKUPS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"hello\n" * 500,
    "zeros": lambda whole: bytes(10_240),
    "compressed": lambda whole: __import__("gzip").compress(whole),
    "another tar": lambda whole: foreign({"README": b"hello"}),
    "a long name": lambda whole: foreign({"a" * 90 + "/" + "b" * 90: b"hello"}),
    "an empty manifest": lambda whole: foreign({"manifest.json": b"{}"}),
}


@pytest.mark.parametrize("kind", NOT_BACKUPS)
def test_what_is_no_backup_is_refused_by_a_sentence(tar: Path, tmp_path: Path, kind: str) -> None:
    tar.write_bytes(NOT_BACKUPS[kind](tar.read_bytes()))
    assert refusal(tar, tmp_path / "home").endswith(".")


# Hostile ones


@dataclass
class Forged:
    """A sound backup taken apart; what a test changes is sealed and packed anew."""

    members: dict[str, bytes]

    @classmethod
    def of(cls, tar: Path) -> "Forged":
        with tarfile.open(tar) as opened:
            read = {member.name: opened.extractfile(member) for member in opened}
        with tarfile.open(tar) as opened:
            return cls({name: opened.extractfile(name).read() for name in read})  # type: ignore[union-attr]

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.members["manifest.json"])["manifest"]
        return found

    def put(self, name: str, content: bytes) -> None:
        """With an entry in the manifest that says the same."""
        entry = {"sha256": sha256_of(content), "bytes": len(content)}
        last = self.members.pop("manifest.json")
        self.members |= {name: content, "manifest.json": last}
        self.seal(self.manifest | {"files": self.manifest["files"] | {name: entry}})

    def seal(self, manifest: dict[str, Any], version: int = 1) -> None:
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        seal = {"format": "voices-backup", "version": version, "sha256": sha256_of(canonical)}
        self.members["manifest.json"] = json.dumps(seal | {"manifest": manifest}).encode()

    def run(self, *statements: str) -> None:
        """Change the rows."""
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(self.members["registry.db"])
            database.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                database.execute(statement)
            database.commit()
            self.put("registry.db", database.serialize())

    def write(self, tar: Path) -> Path:
        first = {"registry.db": self.members.pop("registry.db")}
        tar.write_bytes(foreign(first | self.members))
        return tar


@pytest.fixture
def forged(tar: Path) -> Forged:
    return Forged.of(tar)


def test_a_forged_backup_that_is_sound_is_restored(
    forged: Forged, tar: Path, tmp_path: Path
) -> None:
    """So that the refusals below are for what they say."""
    forged.run("UPDATE voice SET description = 'other'")
    assert restored(forged.write(tar), tmp_path / "home").manifest.voices == 2


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/etc/evil", "clips/../../evil", "clips", "clips/", STRANGER + "/x", ""),
        *("registry.db-journal", "backups/x.db", "clips/.tmp-0", "./" + STRANGER, "clips/ü"),
    ],
)
def test_a_name_that_no_backup_has_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, name: str
) -> None:
    forged.put(name, b"evil")
    assert "does not belong" in refusal(forged.write(tar), tmp_path / "there" / "home")


@pytest.mark.parametrize(
    ("place", "clause"),
    [
        ("PRIMARY KEY (id)", ", check (length(name) < 6)"),
        ("PRIMARY KEY (id)", "on conflict replace"),
        ("PRIMARY KEY (id)", "/* ours */"),
        ("name VARCHAR NOT NULL", "collate nocase"),
        ("name VARCHAR NOT NULL", "DEFAULT (randomblob(1000000000))"),
    ],
)
def test_a_table_with_a_clause_of_its_own_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, place: str, clause: str
) -> None:
    """However it is written: it would make later enrolments fail, or replace voices by others."""
    longer = f"'{place}', '{place} {clause}'"
    forged.run(f"UPDATE sqlite_master SET sql = replace(sql, {longer}) WHERE name = 'voice'")
    assert "the table 'voice' is missing" in refusal(forged.write(tar), tmp_path / "home")


@pytest.mark.parametrize(
    "check",
    [
        "length(hex(zeroblob(450000000))) > 0",
        "length(replace(hex(zeroblob(500000)), ''0'', hex(zeroblob(500)))) > 0",
    ],
)
def test_what_a_table_asks_for_is_not_made(
    forged: Forged, tar: Path, tmp_path: Path, check: str
) -> None:
    """It would be gigabytes, before the table is found to be none of ours."""
    changed = f"replace(sql, 'PRIMARY KEY (id)', 'PRIMARY KEY (id), CHECK ({check})')"
    forged.run(f"UPDATE sqlite_master SET sql = {changed} WHERE name = 'voice'")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "is damaged: string or blob too big" in refusal(forged.write(tar), tmp_path / "home")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200 * 1024


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON alembic_version BEGIN SELECT 1; END",
        "CREATE TABLE more (x)",
        "CREATE VIEW more AS SELECT * FROM voice",
        "CREATE VIRTUAL TABLE more USING fts5(x)",
        "ANALYZE",
    ],
)
def test_what_is_more_than_our_tables_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, statement: str
) -> None:
    forged.run(statement)
    assert refusal(forged.write(tar), tmp_path / "home").startswith("registry.db")


def test_a_file_that_no_row_names_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    forged.put(STRANGER, b"evil")
    assert STRANGER in refusal(forged.write(tar), tmp_path / "home")


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
KINDS += [tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME]
KINDS += [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.AREGTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_are_unpacked(tar: Path, tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo(STRANGER)
    member.type, member.linkname = kind, "/etc/passwd"
    tar.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + tar.read_bytes())
    said = refusal(tar, tmp_path / "there" / "home")
    assert STRANGER in said and "does not belong" in said


@pytest.mark.parametrize("size", [20 * 2**20 + 1, 8 * 2**30 - 1, 2**62, -1])
def test_a_size_that_no_file_has_is_refused(tar: Path, tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo(STRANGER)
    member.size = size
    tar.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + tar.read_bytes())
    assert f"{STRANGER} says" in refusal(tar, tmp_path / "there" / "home")


def test_a_backup_larger_than_the_disk_is_not_begun(tar: Path, tmp_path: Path) -> None:
    os.truncate(tar, shutil.disk_usage(tmp_path).free + 2**20)  # it takes no room itself
    assert "bytes free" in refusal_of_sparse(tar, tmp_path / "home")


def refusal_of_sparse(tar: Path, home: Path) -> str:
    with pytest.raises(BackupRefused) as refused:
        restored(tar, home)
    assert not home.exists() and leftovers(home) == []
    return refused.value.detail


@pytest.mark.parametrize("again", ["registry.db", f"clips/{sha256_of(CLIPS[0])}"])
def test_a_member_that_comes_twice_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, again: str
) -> None:
    whole = foreign({name: forged.members[name] for name in forged.members})
    first = foreign({again: forged.members[again]})
    padded = len(forged.members[again]) + -len(forged.members[again]) % 512
    tar.write_bytes(first[: 512 + padded] + whole)
    assert f"{again} is in the backup twice" in refusal(tar, tmp_path / "home")


def test_nothing_may_follow_the_manifest(forged: Forged, tar: Path, tmp_path: Path) -> None:
    tar.write_bytes(foreign(forged.members | {STRANGER: b"evil"}))
    assert "follows the manifest" in refusal(tar, tmp_path / "home")


def test_manifest_and_members_must_agree(forged: Forged, tar: Path, tmp_path: Path) -> None:
    clip = f"clips/{sha256_of(CLIPS[0])}"
    kept = forged.members.pop(clip)
    assert f"{clip} is listed" in refusal(forged.write(tar), tmp_path / "home")
    forged = Forged(forged.members | {clip: kept})
    manifest = forged.manifest
    del manifest["files"][clip]
    forged.members["registry.db"] = Forged.of(tar).members["registry.db"]
    forged.members["manifest.json"] = forged.members.pop("manifest.json")
    forged.seal(manifest)
    assert f"{clip} is in the backup, but" in refusal(forged.write(tar), tmp_path / "home")


def test_another_format_or_schema_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    forged.seal(forged.manifest, version=2)
    assert "format 2" in refusal(forged.write(tar), tmp_path / "home")


def test_a_newer_schema_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    forged.run("UPDATE alembic_version SET version_num = '9999'")
    forged.seal(forged.manifest | {"schema_revision": "9999"})
    assert f"up to {SCHEMA}" in refusal(forged.write(tar), tmp_path / "home")


HOSTILE_ROWS = {
    "a voice id that is a path": [
        "INSERT INTO voice SELECT '../../evil', 'e', 'e', '', '{}', 1, 1, '', '', ''"
    ],
    "a clip that is a path": ["UPDATE voice_version SET clip_sha256 = '../../evil'"],
    "a row of nobody": ["INSERT INTO label VALUES ('voice_nobody', 'key', 'value')"],
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON voice BEGIN DELETE FROM voice; END"],
    "another schema than said": ["DROP TABLE alembic_version"],
    "another type": ["UPDATE voice_version SET clip_sha256 = zeroblob(3)"],
    "no text": ["UPDATE voice_version SET clip_sha256 = CAST(x'ff' AS TEXT)"],
    "another sha256": ["UPDATE features SET sha256 = ''"],
    "a table lost": ["PRAGMA foreign_keys = OFF", "DROP TABLE features"],
}


@pytest.mark.parametrize("what", HOSTILE_ROWS)
def test_rows_that_no_registry_has_are_refused(
    forged: Forged, tar: Path, tmp_path: Path, what: str
) -> None:
    forged.run(*HOSTILE_ROWS[what])
    assert refusal(forged.write(tar), tmp_path / "there" / "home").endswith(".")


CAROL = "SELECT id FROM voice WHERE name = 'carol'"


CAROL = "SELECT id FROM voice WHERE name = 'carol'"


def test_a_path_among_the_missing_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    forged.run(f"UPDATE voice_version SET clip_sha256 = '../e' WHERE voice_id = ({CAROL})")
    forged.seal(forged.manifest | {"missing": ["clips/../e"]})
    assert "the clip.sha256 of the voice 'carol'" in refusal(
        forged.write(tar), tmp_path / "there" / "home"
    )


def test_a_database_that_is_none_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    forged.put("registry.db", b"not a database, but long enough" * 400)
    assert "registry.db is damaged" in refusal(forged.write(tar), tmp_path / "home")


def test_a_damaged_database_is_not_saved(full: VoiceStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(full.data.database)) as database, database:
        database.execute("INSERT INTO label VALUES ('voice_nobody', 'key', 'value')")
    with pytest.raises(BackupRefused, match="label"):
        save_backup(full, tmp_path / "voices.tar")
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".tmp-*"))


# Limits


def test_too_many_files_are_refused_before_the_work(
    full: VoiceStore, tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both sides at the same number, which is 6 here."""
    for most, refused in ((6, False), (5, True)):
        monkeypatch.setattr(backup, "MOST_FILES", most)
        monkeypatch.setattr(restore, "MOST_FILES", most)
        if refused:
            written = io.BytesIO()
            with pytest.raises(BackupRefused, match="have 6 files; a backup holds at most 5"):
                write_backup(full, written)
            assert b"clips/" not in written.getvalue()
            assert "more than 5 files" in refusal(tar, tmp_path / "home")
        else:
            save_backup(full, tar)
            assert restored(tar, tmp_path / "there").manifest.voices == 2


def test_a_manifest_can_tell_of_the_most_files() -> None:
    name = f"prompts/voice_{'0' * 32}/{'0' * 64}-{'0' * 16}.safetensors"
    entry = backup.BackupFile(sha256="0" * 64, bytes=10**6)
    few = 1000
    manifest = backup.Manifest(
        schema_revision=SCHEMA,
        created_at="2026-11-22T19:16:33.987Z",
        voices=few,
        deleted=0,
        files={f"{number:06}{name}": entry for number in range(few)},
        missing=[],
    )
    size = len(backup._packed(manifest)) / few
    assert size * backup.MOST_FILES < (backup.most_bytes("manifest.json") or 0)


def test_a_temporary_folder_that_is_too_small_is_named(
    full: VoiceStore, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    fill_disk(small_disk)
    with pytest.raises(BackupRefused, match=f"{small_disk} has .* TMPDIR"):
        save_backup(full, tmp_path / "voices.tar")
    assert not (tmp_path / "voices.tar").exists()


# The swap


def test_what_was_there_is_moved_aside_whole(tar: Path, tmp_path: Path) -> None:
    home = tmp_path / "other"
    store = VoiceStore(DataDir(home))
    enrol(store, "zoe", CLIPS[2])
    store.close()
    home.chmod(0o750)
    before = everything(home)
    aside = restored(tar, home).before
    assert aside is not None and everything(aside) == before
    assert aside.name.startswith("other.before-restore-")
    assert [path.stat().st_mode & 0o777 for path in (home, aside)] == [0o700, 0o700]
    assert VoiceStore(DataDir(home)).get("alice")


def test_a_directory_that_a_server_has_open_is_refused(tar: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server(home) as (first, url), server(home) as (_, other), client_of(url) as http:
        assert add(http, "zoe", CLIPS[2]).status_code == 201
        with client_of(other) as beside:
            assert beside.get("/voices/zoe").is_success
        with closing(VoiceStore(DataDir(home))) as store:
            assert store.get("zoe")
        first.terminate()
        first.join()
        assert "Stop the server" in refusal(tar, home, FolderInUse)
    assert restored(tar, home).before is not None
    assert state(home) == "alice carol"


def test_a_store_that_did_not_open_hinders_no_restore(tar: Path, tmp_path: Path) -> None:
    clip = tmp_path / "home" / "clips" / ("a" * 64)
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"a clip without a database")
    with pytest.raises(DatabaseLost):
        VoiceStore(DataDir(tmp_path / "home"))
    assert restored(tar, tmp_path / "home").before is not None


@pytest.mark.slow
@pytest.mark.parametrize("occupied", [True, False])
def test_nobody_opens_a_directory_while_a_backup_is_restored_to_it(
    tar: Path, tmp_path: Path, occupied: bool
) -> None:
    home, content = tmp_path / "home", tar.read_bytes()
    if occupied:
        VoiceStore(DataDir(home)).close()
    environ = os.environ | {"VOICES_HOME": str(home)}
    line = [sys.executable, "-m", "cli.main", "restore", "-"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, env=environ) as restoring:
        assert restoring.stdin is not None
        restoring.stdin.write(content[:5000])
        restoring.stdin.flush()
        while not leftovers(home):
            assert restoring.poll() is None
        for verb in ["list"], ["restore", str(tar)], ["doctor"] if occupied else ["list"]:
            refused = CliRunner().invoke(cli, verb, env=environ)
            assert refused.exit_code == 1
            assert f" {home}. " in refused.stderr.splitlines()[-1]
        restoring.stdin.write(content[5000:])
        restoring.stdin.close()
        assert restoring.wait() == 0
    assert state(home) == "alice carol"
    VoiceStore(DataDir(home)).close()


def test_a_folder_that_is_exchanged_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, flock = tmp_path / "home", fcntl.flock
    home.mkdir()

    def late(descriptor: int, kind: int) -> None:
        home.rename(tmp_path / "before")
        home.mkdir()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FolderInUse), share_folder(home):
        pass


def test_a_system_that_can_not_exchange_changes_nothing(
    full: VoiceStore, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.close()
    monkeypatch.setattr(restore, "EXCHANGE", 1 << 20)  # a flag that no system knows
    assert "yourself" in refusal(tar, full.data.root)


def test_an_error_after_the_exchange_removes_nothing(
    full: VoiceStore, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*paths: Path) -> None:
        raise OSError("the disk is gone")

    full.close()
    before = everything(full.data.root)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="gone"):
        restored(tar, full.data.root)
    assert [everything(folder) for folder in leftovers(full.data.root)] == [before]
    assert state(full.data.root) == "alice carol"


def restore_and_die(tar: Path, home: Path, steps: int) -> None:
    """Killed before the step after so many: a sync, a rename, the exchange, or a removal."""
    left = iter(range(steps))

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return step

    for module, name in ((os, "fsync"), (os, "rename"), (restore, "_exchange"), (shutil, "rmtree")):
        setattr(module, name, dying(getattr(module, name)))
    restored(tar, home)


def die_at_every_step(tar: Path, old: Path, folder: Path) -> None:
    """Each death in a home of its own, which is a copy of `old`, until one restore is through."""
    for steps in range(100):
        home = folder / f"{steps:02}" / "home"
        home.parent.mkdir(parents=True)
        if old.exists():
            shutil.copytree(old, home)
        child = os.fork()
        if child == 0:
            restore_and_die(tar, home, steps)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("occupied", [True, False])
def test_a_kill_leaves_the_old_or_the_new_and_loses_neither(
    tar: Path, tmp_path: Path, occupied: bool
) -> None:
    old = tmp_path / "old"
    if occupied:
        store = VoiceStore(DataDir(old))
        enrol(store, "zoe", CLIPS[2])
        store.close()
    with process(die_at_every_step, tar, old, tmp_path / "deaths") as child:
        assert finish([child]) == [0]
    homes = sorted((tmp_path / "deaths").iterdir())
    outcomes = [state(death / "home") for death in homes]
    assert len(outcomes) > 15
    first, second = ("zoe" if occupied else ""), "alice carol"
    assert outcomes == sorted(outcomes, key=[first, second].index), "old, then new, and no other"
    assert {first, second} == set(outcomes)
    for death in homes if occupied else []:
        assert "zoe" in {state(folder) for folder in death.iterdir()}, "the old one is gone"
    assert leftovers(homes[-1] / "home") == []
    for death in (homes[0], homes[len(homes) // 2]):
        assert leftovers(death / "home") != []
        restored(tar, death / "home")  # what one left does not hinder the next
        assert state(death / "home") == second


def state(home: Path) -> str:
    """The names of the voices here, all of them whole; nothing for no or an unfinished folder."""
    data = DataDir(home)
    if not data.database.exists() or (home.name.startswith("home.restoring") and not sound(data)):
        return ""
    assert sound(data)
    with closing(sqlite3.connect(data.database)) as database:
        names = database.execute("SELECT name FROM voice WHERE deleted_at IS NULL ORDER BY name")
        return " ".join(name for (name,) in names)


def sound(data: DataDir) -> bool:
    return examine(data, read_data=True, repair=False) == []


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_backup(full: VoiceStore, small_disk: Path) -> None:
    room = bytes(200 * 1024)
    (small_disk / "filler").write_bytes(room)
    (small_disk / "voices.tar").write_bytes(b"the one before")
    with pytest.raises(OSError, match="No space left"):
        save_backup(full, small_disk / "voices.tar")
    assert everything(small_disk) == {
        "filler": sha256_of(room),
        "voices.tar": sha256_of(b"the one before"),
    }


def test_a_disk_that_fills_up_leaves_no_half_directory(
    tar: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "bytes free" in refusal(tar, small_disk / "home")
    monkeypatch.setattr(restore, "SPARE_BYTES", -(2**20))  # as a pipe, whose length nobody knows
    (small_disk / "filler").write_bytes(bytes(200 * 1024))
    with pytest.raises(OSError, match="No space left"):
        restored(tar, small_disk / "home")
    assert list(everything(small_disk)) == ["filler"]


# The command line


@pytest.fixture
def voices(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    for name, value in {"MODEL": str(checkpoint), "THREADS": "1", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"VOICES_{name}", value)
    (tmp_path / "ref.wav").write_bytes(file(tone(), 24_000))

    def run(home: str, *arguments: str, code: int = 0, input: bytes | None = None) -> Result:
        environ = {"VOICES_HOME": str(tmp_path / home)}
        result = CliRunner().invoke(cli, arguments, env=environ, input=input)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.mark.slow
def test_voices_move_to_another_machine_and_speak_the_same(voices: Callable[..., Result]) -> None:
    voices("one", "add", "alice", "ref.wav", "hello there")
    voices("one", "speak", "alice", "Hello", "--seed", "3", "-o", "before.wav")
    said = voices("one", "backup", "-o", "voices.tar").stderr
    assert said.startswith("Wrote voices.tar: 1 voice, 0.") and said.endswith(" MB.\n")
    assert "Restored 1 voice" in voices("two", "restore", "voices.tar").stderr
    listed = json.loads(voices("two", "list", "--json").stdout)
    assert [voice["name"] for voice in listed] == ["alice"]
    voices("two", "speak", "alice", "Hello", "--seed", "3", "-o", "after.wav")
    assert Path("after.wav").read_bytes() == Path("before.wav").read_bytes()
    voices("two", "rebuild", "alice")
    voices("two", "doctor", "--read-data")


def test_nothing_is_replaced_unless_asked(voices: Callable[..., Result], full: VoiceStore) -> None:
    data = full.data.root.name
    written = voices(data, "backup")
    name = written.stderr.split()[1].rstrip(":")
    assert Path(name).exists() and name.startswith("voices-20")
    assert "--force" in voices(data, "backup", "-o", name, code=1).stderr
    voices(data, "backup", "-o", name, "--force")
    assert "--force" in voices(data, "restore", name, code=1).stderr
    full.close()
    said = voices(data, "restore", "--force", name).stderr
    assert "before is in" in said and "1 deleted" in said


def test_a_backup_passes_through_pipes(voices: Callable[..., Result], full: VoiceStore) -> None:
    whole = voices(full.data.root.name, "backup", "-o", "-").stdout_bytes
    Path("voices.tar").write_bytes(whole)
    assert "Restored 2 voices" in voices("two", "restore", "voices.tar").stderr
    with open("/dev/full", "wb") as no_room, pytest.raises(OSError, match="No space left"):
        write_backup(full, no_room)


def test_what_is_lost_is_said_and_fails_the_command(
    voices: Callable[..., Result], full: VoiceStore
) -> None:
    full.data.clip(sha256_of(CLIPS[1])).unlink()
    said = voices(full.data.root.name, "backup", "-o", "voices.tar", code=1).stderr
    assert "it is lost" in said
    assert "it is lost" in voices("two", "restore", "voices.tar").stderr


def test_errors_are_sentences(voices: Callable[..., Result]) -> None:
    assert "does not exist" in voices("none", "backup", code=1).stderr
    assert not Path("none").exists()
    Path("text").write_bytes(b"hello" * 500)
    assert "or is none" in voices("none", "restore", "text", code=1).stderr
    assert "Is a directory" in voices("none", "restore", ".", code=2).stderr
    assert "No such file" in voices("none", "restore", "gone.tar", code=2).stderr
    Path("none.restoring-0").mkdir()
    assert "was cut off. Delete it" in voices("none", "restore", "text", code=1).stderr
