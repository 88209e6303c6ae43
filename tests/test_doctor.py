"""The doctor on real damage: each kind is named, what can be mended is, nothing else is touched.

`loss` is what only a backup mends; everything else is gone after one repair.
"""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fakes import FakeInference
from faults import add, age, noise, quick_app, quick_clip
from serving import serving

from registry.database import is_damage
from registry.doctor import Finding, examine, summary
from registry.errors import DatabaseLost
from registry.files import TMP_PREFIX, DataDir, PromptRef, PromptSource, sha256_of
from registry.settings import Settings
from registry.store import VoiceStore

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


def whole(data: DataDir, repair: bool = False) -> list[Finding]:
    return examine(data, read_data=True, repair=repair)


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
    quick = examine(data, read_data=False, repair=False)
    assert quick == (loss if damage in FOUND_WITHOUT_READING else [])


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
    return data.prompt(PromptRef("voice_" + "0" * 32, "f" * 64, ""))


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


def test_a_second_prompt_of_a_voice_that_no_row_knows_is_removed_alone(
    data: DataDir, prompt: Path
) -> None:
    extra = prompt.with_stem("f" * 64)
    extra.write_bytes(b"nobody's")
    age(data)
    assert_mended_once(data, f"{extra.relative_to(data.root)} belongs to no voice")
    assert list(prompt.parent.iterdir()) == [prompt]


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
    store.keep_clip(source, CLIP, quick_clip(CLIP))
    age(data)
    store.keep_clip(source, CLIP, quick_clip(CLIP))
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
