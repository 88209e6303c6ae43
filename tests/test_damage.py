"""A damaged database: seen when it is opened or first read, and not written to from then on."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fakes import FakeInference
from faults import add, noise, quick_app
from serving import serving

from registry.errors import DatabaseDamaged, DatabaseLost, RegistryError
from registry.settings import Settings
from registry.storage import database
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceEdit, VoiceStore
from registry.upkeep.doctor import examine

PAGE = 4096


@pytest.fixture
def http(data: DataDir) -> Iterator[httpx.Client]:
    """A server with three voices; what is damaged later is read from the file again."""
    store = VoiceStore(data)
    with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
        for number in range(3):
            answer = add(http, f"voice {number}", noise(random.Random(number)))
            assert answer.status_code == 201
        yield http


def page_of(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as opened:
        asked = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return int(opened.execute(asked, (name,)).fetchone()[0])


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """As another program or a disk would: past SQLite, with a new time."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def forget_pages(path: Path) -> None:
    """A change by another program: whoever has the file open reads its pages anew."""
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("PRAGMA application_id = 7")


def zero_page(name: str) -> Callable[[Path], None]:
    return lambda path: overwrite(path, (page_of(path, name) - 1) * PAGE, bytes(PAGE))


def garble_page(name: str) -> Callable[[Path], None]:
    noise = random.Random(1).randbytes(PAGE)
    return lambda path: overwrite(path, (page_of(path, name) - 1) * PAGE, noise)


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the second half is zero": lambda path: overwrite(
        path, path.stat().st_size // 2, bytes(path.stat().st_size // 2)
    ),
    "the first page is zero": lambda path: overwrite(path, 0, bytes(PAGE)),
    "another header": lambda path: overwrite(path, 0, b"SQLite format 9\0"),
    "a page of odd size": lambda path: overwrite(path, 16, b"\x12\x34"),
    "the last page is gone": lambda path: cut(path, path.stat().st_size - PAGE),
    "the last byte is gone": lambda path: cut(path, path.stat().st_size - 1),
    "half of it is gone": lambda path: cut(path, path.stat().st_size // 2),
    "all but the header is gone": lambda path: cut(path, 100),
    "voices are zero": zero_page("voice"),
    "voices are noise": garble_page("voice"),
    "names are zero": zero_page("voice_live_name"),
    "names are noise": garble_page("voice_live_name"),
    "enrolments are zero": zero_page("voice_version"),
    "a page of text": lambda path: path.write_text("<html>\n" * 10_000),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_database_is_not_opened(http: httpx.Client, data: DataDir, what: str) -> None:
    DAMAGE[what](data.database)
    before = data.database.read_bytes()
    with pytest.raises(DatabaseDamaged) as refused:
        VoiceStore(data)
    for word in (str(data.root), "voices doctor", "voices restore"):
        assert word in refused.value.detail
    found = examine(data, read_data=True, repair=True)
    assert found and {finding.severity for finding in found} == {"loss"}
    assert data.database.read_bytes() == before, "what is left may still be read by an expert"


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in DAMAGE if what != "the last byte is gone"])
def test_a_server_stops_writing_at_the_first_sign(
    http: httpx.Client, data: DataDir, what: str
) -> None:
    """And answers in words. A byte that is gone reads as 0: no read of a page notices that."""
    forget_pages(data.database)
    DAMAGE[what](data.database)
    asked = [http.get("/voices"), http.get("/voices/voice 1"), http.get("/voices/voice 9")]
    asked.append(http.patch("/voices/voice 1", json={"description": "x"}))
    codes = {reply.json()["code"] for reply in asked if reply.status_code >= 500}
    assert codes == {"database-damaged"}
    before = data.database.read_bytes()
    for refused in (
        add(http, "bob", noise(random.Random(9))),
        http.patch("/voices/voice 2", json={"description": "x"}),
        http.delete("/voices/voice 2"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (503, "database-damaged")
    assert data.database.read_bytes() == before


def test_damage_that_is_met_once_stops_all_writing(http: httpx.Client, data: DataDir) -> None:
    """Also of rows that are whole."""
    with closing(VoiceStore(data)) as store:
        forget_pages(data.database)
        zero_page("label_value")(data.database)
        with pytest.raises(DatabaseDamaged):
            store.page(10, None, "", ["key"])
        assert store.get("voice 1").row.name == "voice 1", "what is whole is still read"
        with pytest.raises(DatabaseDamaged):
            store.edit("voice 1", VoiceEdit(description="x"), None)


def test_an_index_that_disagrees_is_found_by_the_doctor(http: httpx.Client, data: DataDir) -> None:
    """At the start only pages are looked at, which takes a fifth of the time."""
    with closing(sqlite3.connect(data.database)) as opened, opened:
        opened.execute("PRAGMA writable_schema = ON")
        opened.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'deleted_at IS NULL', 'name_key = 1') "
            "WHERE name = 'voice_live_name'"
        )
    with closing(sqlite3.connect(data.database)) as opened, opened:
        opened.execute("REINDEX")
        opened.execute("PRAGMA writable_schema = ON")
        opened.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'name_key = 1', 'deleted_at IS NULL') "
            "WHERE name = 'voice_live_name'"
        )
    found = examine(data, read_data=False, repair=True)
    assert {finding.severity for finding in found} == {"loss"}
    assert any("voice_live_name" in finding.what for finding in found)


def test_a_large_database_is_opened_without_reading_all_of_it(
    http: httpx.Client, data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    garble_page("label_value")(data.database)
    monkeypatch.setattr(database, "CHECKED_BYTES", PAGE)
    with closing(VoiceStore(data)) as store:
        with pytest.raises(RegistryError) as refused:
            store.page(10, None, "", ["key"])
        assert refused.value.code == "database-damaged"


def test_the_database_of_another_program_is_left_alone(data: DataDir) -> None:
    with closing(sqlite3.connect(data.database)) as opened, opened:
        opened.execute("CREATE TABLE bookmarks (url)")
    before = data.database.read_bytes()
    with pytest.raises(DatabaseLost, match="another program"):
        VoiceStore(data)
    assert data.database.read_bytes() == before
