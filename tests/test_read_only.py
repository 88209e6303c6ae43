"""A data directory that can't be written or read: what can be read is, and the rest is said."""

import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import FakeInference
from faults import add, noise, quick_app
from serving import serving
from unprivileged import open_folder, set_modes, unprivileged

from cli.main import cli
from registry.errors import RegistryError, StorageReadOnly, StorageUnreadable
from registry.settings import Settings
from registry.storage.data_dir import DataDir, sha256_of
from registry.storage.store import VoiceEdit, VoiceStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import Finding, examine

CLIP = noise(random.Random(1))
SPEAK = {"voice": "alice", "text": "Hello"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory with one voice, alice."""
    with open_folder() as folder:
        data = DataDir(folder / "data")
        store = VoiceStore(data)
        with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
            assert add(http, "alice", CLIP).status_code == 201
        yield data.root


def readable_only(home: Path) -> None:
    set_modes(home, 0o500, 0o400)


def no_new_files(home: Path) -> None:
    """The journal is gone, as after another journal mode, and can't be made."""
    (home / "registry.db-journal").unlink(missing_ok=True)
    set_modes(home, 0o500, 0o600)


def as_restored(home: Path) -> None:
    """Neither conditioned clips nor a ballast, nor the folder for them."""
    shutil.rmtree(home / "conditioned")
    (home / "ballast").unlink()
    readable_only(home)


HOW = {"readable only": readable_only, "no new files": no_new_files, "as restored": as_restored}


def answers(home: Path) -> dict[str, tuple[int, str]]:
    """The status and the sentence of every verb, by someone without privileges or not."""
    data = DataDir(home)
    store = VoiceStore(data)
    with serving(quick_app(store, FakeInference(data), Settings(home=home))) as http:
        replies = {
            "list": http.get("/voices"),
            "show": http.get("/voices/alice"),
            "clip": http.get("/voices/alice/clip"),
            "prompt": http.get("/voices/alice/prompt"),
            "speak": http.post("/speak", json=SPEAK),
            "add": add(http, "bob", noise(random.Random(2))),
            "add the same clip": add(http, "carol", CLIP),
            "edit": http.patch("/voices/alice", json={"description": "New."}),
            "rename": http.patch("/voices/alice", json={"name": "bob"}),
            "remove": http.delete("/voices/alice"),
            "rebuild": http.post("/voices/alice/rebuild"),
            "list again": http.get("/voices"),
        }
    return {verb: (reply.status_code, reply.text) for verb, reply in replies.items()}


READING = ("list", "show", "clip", "prompt", "speak", "list again")


def assert_only_reading(said: dict[str, tuple[int, str]], home: Path) -> None:
    assert {verb: said[verb][0] for verb in READING} == dict.fromkeys(READING, 200)
    for verb in said.keys() - {*READING}:
        status, text = said[verb]
        assert (status, "storage-read-only" in text, str(home) in text) == (507, True, True), text
    assert said["list"] == said["list again"]


@pytest.mark.parametrize("how", HOW)
def test_what_can_not_be_written_is_read_and_every_change_is_refused(home: Path, how: str) -> None:
    HOW[how](home)
    assert_only_reading(unprivileged(answers, home), home)


def test_a_mount_that_is_read_only_is_read(home: Path) -> None:
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        mounted = subprocess.run(["mount", *options, home, home], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"mounting needs root: {mounted.stderr.strip()}")
    try:
        assert_only_reading(answers(home), home)
    finally:
        subprocess.run(["umount", "--lazy", home], check=True)


def verbs(home: Path) -> dict[str, tuple[int, str]]:
    """What the command line says, and how it exits."""
    told = {}
    for line in ("list", "show alice", "edit alice --description x", "rm alice --yes", "doctor"):
        run = CliRunner().invoke(cli, line.split(), env={"VOICES_HOME": str(home)})
        expected = run.exception is None or isinstance(run.exception, SystemExit)
        told[line.split()[0]] = (run.exit_code if expected else -1, run.output)
    return told


@pytest.mark.slow
def test_the_command_line_says_a_sentence(home: Path) -> None:
    readable_only(home)
    told = unprivileged(verbs, home)
    assert [told[verb][0] for verb in ("list", "show", "doctor")] == [0, 0, 0], told
    for verb in ("edit", "rm"):
        status, said = told[verb]
        assert (status, f"can't write to {home}" in said) == (1, True), said


def opened(home: Path) -> tuple[type, str]:
    try:
        VoiceStore(DataDir(home)).close()
    except RegistryError as error:
        return type(error), error.detail
    return type(None), ""


def test_a_directory_that_can_not_be_made_is_named() -> None:
    with open_folder() as folder:
        readable_only(folder)
        kind, said = unprivileged(opened, folder / "data")
        assert kind is StorageReadOnly and str(folder) in said


@pytest.mark.slow
def test_an_older_schema_that_can_not_be_migrated_is_said(home: Path) -> None:
    with closing(sqlite3.connect(home / "registry.db")) as database, database:
        database.execute("DELETE FROM alembic_version")
    readable_only(home)
    kind, said = unprivileged(opened, home)
    assert kind is StorageReadOnly and str(home) in said


DENIED = {
    "database": lambda data: data.database,
    "directory": lambda data: data.root,
}


@pytest.mark.parametrize("what", DENIED)
def test_what_may_not_be_read_at_all_is_said(home: Path, what: str) -> None:
    DENIED[what](DataDir(home)).chmod(0)
    kind, said = unprivileged(opened, home)
    assert kind in (StorageReadOnly, StorageUnreadable) and str(home) in said


def one_clip_denied(home: Path) -> tuple[dict[str, tuple[int, str]], list[Finding]]:
    return answers(home), examine(DataDir(home), read_data=True, repair=False)


def test_a_part_that_may_not_be_read_is_named_and_the_rest_goes_on(home: Path) -> None:
    set_modes(home, 0o777, 0o666)
    clip = DataDir(home).clip(sha256_of(CLIP))
    clip.chmod(0)
    said, found = unprivileged(one_clip_denied, home)
    status, text = said["clip"]
    assert (status, "storage-unreadable" in text, clip.name in text) == (503, True, True), text
    assert (said["speak"][0], said["add"][0], said["edit"][0]) == (200, 201, 200)
    assert [clip.name in finding.what for finding in found] == [True]


def backed_up(home: Path) -> tuple[type, str]:
    with closing(VoiceStore(DataDir(home))) as store:
        try:
            save_backup(store, home.parent / "voices.tar")
        except RegistryError as error:
            return type(error), error.detail
    return type(None), ""


def test_a_backup_is_not_made_of_the_part_that_may_be_read(home: Path) -> None:
    """Run as the owner it has all: a file that is there is not one that is lost."""
    clip = DataDir(home).clip(sha256_of(CLIP))
    clip.chmod(0)
    kind, said = unprivileged(backed_up, home)
    assert kind is StorageUnreadable and clip.name in said
    assert not (home.parent / "voices.tar").exists()


def test_a_database_that_is_moved_away_is_said(home: Path) -> None:
    """What is written to it then would be lost."""
    with closing(VoiceStore(DataDir(home))) as store:
        store.get("alice")
        (home / "registry.db").rename(home / "elsewhere.db")
        with pytest.raises(RegistryError, match="moved or removed") as refused:
            store.edit("alice", VoiceEdit(description="x"), None)
    assert refused.value.code == "storage-unreadable"
