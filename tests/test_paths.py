"""A path means itself, whatever characters are in it: it is no URL, no pattern and no option."""

import asyncio
import os
import random
import re
import shutil
import sqlite3
import string
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeInference
from faults import QuickEnroller, noise
from uploading import enrol_bytes

from registry.storage.data_dir import DataDir
from registry.storage.database import migrate
from registry.storage.store import VoiceEdit, VoiceStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import leftovers, restore_backup

ROOT = Path(__file__).parent.parent
CLIP = noise(random.Random(1))
PRINTABLE = [chr(code) for code in range(0x20, 0x7F) if chr(code) != "/"]
BEYOND = ["é", "e\u0301", "声", "😂", "\u200b", "\u202e", "\u00a0", "\n", "\t", "\x01", "\x7f"]
MEANING = [
    *("who?1", "a%20b", "%s", "%(here)s", "[a]", "[!a]*", "file:x?mode=memory", ":memory:", "{0}"),
    *("a:b", "a;b", "~root", "$HOME", "-rf", "' OR 1=1 --", "https:host", "x?uri=true&mode=ro#y"),
    string.punctuation.replace("/", ""),
]
NO_UTF8 = [os.fsdecode(b"\xff"), os.fsdecode(b"latin \xe9")]


def add(store: VoiceStore, name: str) -> None:
    enroller = QuickEnroller(store, FakeInference(store.data))
    asyncio.run(enrol_bytes(enroller, name, CLIP))


def names(home: Path) -> list[str]:
    with closing(VoiceStore(DataDir(home))) as store:
        return [voice.row.name for voice in store.page(10, None, "", ()).voices]


def make(folder: Path) -> Path:
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system has no such name: {error}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTABLE + BEYOND + MEANING + NO_UTF8, ids=ascii)
def test_voices_live_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / f"who{name}")
    home = folder / f"1{name}"
    with closing(VoiceStore(DataDir(home))) as store:
        add(store, "alice")
        store.edit("alice", VoiceEdit(name="bob"), None)
        save_backup(store, folder / f"{name}.tar")
    with open(folder / f"{name}.tar", "rb") as tar:
        restore_backup(tar, folder / f"2{name}")
    assert names(home) == names(folder / f"2{name}") == ["bob"]
    assert examine(DataDir(home), read_data=True, repair=True) == []
    assert {path.name for path in folder.iterdir()} == {f"1{name}", f"2{name}", f"{name}.tar"}
    assert [*tmp_path.iterdir()] == [folder]


def test_folders_that_differ_in_what_a_url_drops_do_not_mix(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("who", "who?1", "who?2", "who#1", "who%3F1")]
    for number, home in enumerate(homes):
        with closing(VoiceStore(DataDir(home))) as store:
            add(store, f"voice {number}")
    assert [names(home) for home in homes] == [[f"voice {number}"] for number in range(len(homes))]
    assert sorted(tmp_path.iterdir()) == sorted(homes)


@pytest.mark.parametrize("name", ["[ab]", "[!x]", "*", "?", "a[", "**"])
def test_what_killed_restores_left_is_found_by_name_not_by_pattern(
    tmp_path: Path, name: str
) -> None:
    home, left = tmp_path / name, tmp_path / f"{name}.restoring-12345678"
    for folder in (home, left, tmp_path / "a.restoring-12345678"):
        folder.mkdir()
    assert leftovers(home) == [left]


@pytest.mark.parametrize("name", MEANING + NO_UTF8, ids=ascii)
def test_an_older_schema_is_saved_before_it_is_migrated_in_a_folder_of_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataDir(make(tmp_path / name))
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('0000')")
    monkeypatch.setattr("registry.storage.database._known_revisions", lambda: {"0000"})
    monkeypatch.setattr("registry.storage.database._upgrade", lambda path: None)
    migrate(data)
    [saved] = data.backups.iterdir()
    assert re.fullmatch(r"registry-before-\d{4}-from-0000\.db", saved.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a%20b", "%(here)s", "who?1", "[a]", "é", "a b", "#x"], ids=ascii)
def test_the_program_may_be_installed_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """Alembic takes the folder of the migrations from a configuration that interpolates."""
    program = tmp_path / name
    for package in ("registry", "migrations"):
        shutil.copytree(ROOT / package, program / package)
    code = "import sys, registry.storage.database as d, registry.storage.data_dir as f\n"
    code += "from pathlib import Path\n"
    code += "assert d.__file__.startswith(sys.argv[1]); d.migrate(f.DataDir(Path(sys.argv[2])))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(program), str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": str(program)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
