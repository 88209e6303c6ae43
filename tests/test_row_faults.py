"""Rows that no request could have stored: none is restored, one that is there hides no other."""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from fakes import FakeInference
from faults import QuickEnroller, noise, quick_app
from serving import serving
from uploading import enrol_bytes

from cli.main import cli
from registry.audio.decoding.container import CONTAINERS, FRAMES
from registry.audio.formats import CLIP_ENDINGS
from registry.errors import BackupRefused, DatabaseDamaged
from registry.names import variants
from registry.settings import Settings
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.tables import AUDIO_TYPES
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup

VOICE, VERSION, FEATURES, LABEL = "voice", "voice_version", "features", "label"
SHOWN = {  # what is damaged: the field that is named, and how
    "a page": ("clip.media_type", VERSION, "clip = json_set(clip, '$.media_type', 'text/html')"),
    "two lines": (
        "clip.media_type",
        VERSION,
        "clip = json_set(clip, '$.media_type', 'audio/wav' || char(13, 10))",
    ),
    "sound of no kind": (
        "clip.media_type",
        VERSION,
        "clip = json_set(clip, '$.media_type', 'audio/wav; charset=x')",
    ),
    "no type": ("clip.media_type", VERSION, "clip = json_set(clip, '$.media_type', NULL)"),
    "a size in words": ("clip.bytes", VERSION, "clip = json_set(clip, '$.bytes', 'many')"),
    "a length of NaN": (
        "clip.duration_s",
        VERSION,
        'clip = replace(clip, \'"duration_s":\', \'"duration_s":NaN,"x":\')',
    ),
    **{
        f"{field} of {number}": (
            f"clip.{field}",
            VERSION,
            f"clip = json_set(clip, '$.{field}', {number})",
        )
        for field, numbers in {
            "duration_s": (1e308, 2e9, -5.0, 0.0),
            "speech_s": (1e308, -5.0),
            "peak_dbfs": (1e308, -1e308),
            "rms_dbfs": (1e308, -1e308),
            "gain_db": (1e308, -1e308),
            "sample_rate": (-1, 1e308),
            "channels": (-1, 2**53 + 1),
            "bytes": (-1, 2**53 + 1),
        }.items()
        for number in numbers
    },
    "an edit counter that ends": ("row_version", VOICE, f"row_version = {2**53}"),
    "a clip that is a list": ("clip", VERSION, "clip = '[]'"),
    "a hash of 63 digits": ("clip.sha256", VERSION, "clip_sha256 = substr(clip_sha256, 2)"),
    "a hash that is bytes": ("clip.sha256", VERSION, "clip_sha256 = x'ff00'"),
    "a temperature of 99": ("defaults.temperature", VOICE, """defaults = '{"temperature": 99}'"""),
    "a temperature in words": (
        "defaults.temperature",
        VOICE,
        """defaults = '{"temperature": "1"}'""",
    ),
    "an unknown default": ("defaults.shell", VOICE, """defaults = '{"shell": "rm"}'"""),
    "a language of two lines": (
        "defaults.language",
        VOICE,
        """defaults = '{"language": "a\\u0007"}'""",
    ),
    "JSON cut short": ("defaults", VOICE, """defaults = '{'"""),
    "JSON without end": ("defaults", VOICE, "defaults = replace(hex(zeroblob(50000)), '0', '[')"),
    "JSON that is bytes": ("defaults", VOICE, "defaults = x'ff'"),
    "an edit counter in words": ("row_version", VOICE, "row_version = 'abc'"),
    "an edit counter below 1": ("row_version", VOICE, "row_version = -1"),
    "an edit counter beyond JSON": ("row_version", VOICE, "row_version = 9223372036854775807"),
    "another enrolment": ("version", VOICE, "version = 7"),
    "an enrolment in words": ("version", VOICE, "version = 'one'"),
    "a name that rings": ("name", VOICE, "name = 'alice' || char(27) || ']0;owned' || char(7)"),
    "a name of nothing": ("name", VOICE, "name = ''"),
    "a description with a bell": ("description", VOICE, "description = char(7)"),
    "a description of a book": ("description", VOICE, "description = hex(zeroblob(5000))"),
    "a description that is bytes": ("description", VOICE, "description = x'ff'"),
    "no time": ("created_at", VOICE, "created_at = 'yesterday'"),
    "a time that is no text": ("updated_at", VOICE, "updated_at = CAST(x'ff' AS TEXT)"),
    "a label's key": ("labels.Not a key", LABEL, "'Not a key', 'x'"),
    "a label's value": ("labels.k", LABEL, "'k', char(0)"),
    "words of a book": ("transcript", VERSION, "transcript = hex(zeroblob(1001))"),
    "words of none": ("transcript", VERSION, "transcript = ''"),
    "a warning without end": ("warnings.0", VERSION, "warnings = json_array(hex(zeroblob(1001)))"),
    "warnings without end": (
        "warnings",
        VERSION,
        "warnings = '[' || replace(hex(zeroblob(32)), '0', '\"x\",') || '\"x\"]'",
    ),
    "words with a NUL": ("transcript", VERSION, "transcript = 'a' || char(0) || 'b'"),
    "words that are bytes": ("transcript", VERSION, "transcript = x'ff'"),
    "a warning that is a number": ("warnings.0", VERSION, "warnings = '[1]'"),
    "a warning of half a character": ("warnings.0", VERSION, """warnings = '["\\ud800"]'"""),
    "warnings that are one": ("warnings", VERSION, """warnings = '"x"'"""),
}
HIDDEN = {  # nothing that is shown, but nothing to be believed either
    "a name that is a path": ("name", VOICE, "name = '../x', name_key = '../x'"),
    "a name like an id": ("name", VOICE, "name = 'voice_x', name_key = 'voice_x'"),
    "a name of a direction": ("name", VOICE, "name = 'a' || char(8238), name_key = 'a'"),
    "deleted some day": ("deleted_at", VOICE, "deleted_at = 'some day'"),
    "features of no key": ("features.fingerprint", FEATURES, "fingerprint = '../../x'"),
    "features of no hash": ("features.sha256", FEATURES, "sha256 = 'x'"),
    "features of a mode": ("features.modes.0", FEATURES, """modes = '["html"]'"""),
    "features of four modes": (
        "features.modes",
        FEATURES,
        """modes = '["icl","icl","icl","icl"]'""",
    ),
    "frames below 0": ("features.frames", FEATURES, "frames = -1"),
    "an enrolment of no time": ("enrolment.created_at", VERSION, "created_at = ''"),
    "words without end": ("transcript", VERSION, "transcript = hex(zeroblob(40000))"),
    "a clip of words": ("clip", VERSION, "clip = json_set(clip, '$.x', hex(zeroblob(40000)))"),
    "bytes without end": ("model_id", FEATURES, "model_id = zeroblob(100000000)"),
}
FORMER = {  # names that a former version took: how they were written, and what they are now
    "two spaces": ("ann  lee", "ann lee"),
    "a space of Ogham": ("ann\u1680lee", "ann lee"),
    "a filler": ("ann\u3164lee", "ann lee"),
    "a blank of Braille": ("ann\u2800lee", "ann lee"),
    "blanks of Braille": ("\u2800\u2800", "unnamed"),
    "a selector": ("ann\ufe0f", "ann"),
    "another's name but for a space": ("b\u00a0ob", "b ob"),
    "another's name": ("bob\u2800", "bob 2"),
}
FOREIGN = {
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON voice BEGIN DELETE FROM voice; END",
    "a view": "CREATE VIEW v AS SELECT * FROM voice",
    "a table lost": "DROP TABLE label",
    "an index lost": "DROP INDEX voice_live_name",
    "a column lost": "ALTER TABLE voice DROP COLUMN description",
    "a column renamed": "ALTER TABLE voice RENAME COLUMN updated_at TO changed_at",
}
CLAUSES = {  # after what, and what
    "a check": ("PRIMARY KEY (id)", ", check (length(name) < 6)"),
    "a name for it": ("PRIMARY KEY (id)", ", constraint c check (length(name) < 6)"),
    "replacing": ("PRIMARY KEY (id)", "on conflict replace"),
    "another order": ("name VARCHAR NOT NULL", "collate nocase"),
}
STRANGE = {
    "a table": "CREATE TABLE t (x)",
    "an index": "CREATE INDEX i ON voice (updated_at)",
    "a column": "ALTER TABLE voice ADD COLUMN x",
    "a computed column": "ALTER TABLE voice ADD COLUMN x AS (upper(name))",
    "a search table": "CREATE VIRTUAL TABLE t USING fts5(x)",
}


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """With alice and bob."""
    store = VoiceStore(DataDir(tmp_path / "data"))
    enroller = QuickEnroller(store, FakeInference(store.data))
    for number, name in enumerate(("alice", "bob")):
        clip = noise(random.Random(number))
        asyncio.run(enrol_bytes(enroller, name, clip))
    store.close()
    return store.data


def run(data: DataDir, statement: str, *values: str) -> list[tuple[str, ...]]:
    """Past every check."""
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        return database.execute(statement, values).fetchall()


def constrained(clause: str, cased: Callable[[str], str]) -> str:
    """The statement that adds a clause to the table of voices."""
    place, words = CLAUSES[clause]
    longer = f"{place} {cased(words)}"
    return (
        f"UPDATE sqlite_master SET sql = replace(sql, '{place}', '{longer}') WHERE name = 'voice'"
    )


def damage(data: DataDir, table: str, change: str) -> str:
    """In a row of alice; her id."""
    [(voice_id,)] = run(data, "SELECT id FROM voice WHERE name = 'alice'")
    key = "id" if table == VOICE else "voice_id"
    insert, update = f"INSERT INTO label VALUES (?, {change})", f"UPDATE {table} SET {change}"
    run(data, insert if table == LABEL else f"{update} WHERE {key} = ?", voice_id)
    return voice_id


def assert_not_restored(data: DataDir, folder: Path, *said: str) -> None:
    with closing(VoiceStore(data)) as store:
        save_backup(store, folder / "voices.tar")
    with open(folder / "voices.tar", "rb") as tar, pytest.raises(BackupRefused) as error:
        restore_backup(tar, folder / "restored")
    assert not (folder / "restored").exists()
    assert all(word in error.value.detail for word in said), error.value.detail


@pytest.fixture
def http(data: DataDir) -> Iterator[httpx.Client]:
    store = VoiceStore(data)
    with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
        yield http


@pytest.mark.slow
@pytest.mark.parametrize("what", SHOWN)
def test_a_voice_that_is_damaged_hides_no_other(
    data: DataDir, tmp_path: Path, http: httpx.Client, what: str
) -> None:
    field, table, change = SHOWN[what]
    voice_id = damage(data, table, change)
    listed = http.get("/voices")
    assert (listed.status_code, listed.json()["damaged"]) == (200, [voice_id])
    assert [voice["name"] for voice in listed.json()["data"]] == ["bob"]
    shown = http.get(f"/voices/{voice_id}")
    assert (shown.status_code, shown.json()["code"]) == (500, "voice-damaged"), shown.text
    assert voice_id in shown.json()["detail"]
    clip = http.get(f"/voices/{voice_id}/clip")
    assert (clip.status_code == 200) == (field not in ("clip.sha256", "version"))
    assert clip.headers["content-type"] != "text/html"
    found = examine(data, read_data=False, repair=False)
    assert any(field in f.what and f.voices and f.voices[0].id == voice_id for f in found), found
    assert_not_restored(data, tmp_path, field, voice_id)
    assert http.delete(f"/voices/{voice_id}").status_code == 204


def test_the_command_line_tells_of_voices_that_it_cannot_list(
    data: DataDir, http: httpx.Client
) -> None:
    _, table, change = SHOWN["duration_s of 1e+308"]
    damage(data, table, change)
    line = ["--url", str(http.base_url), "list"]
    listed = CliRunner().invoke(cli, line)
    assert listed.exit_code == 0 and "bob" in listed.stdout and "alice" not in listed.stdout
    assert "Note: 1 voice is damaged and can't be shown; `voices doctor`" in listed.stderr
    assert http.delete("/voices/bob").status_code == 204
    alone = CliRunner().invoke(cli, line)
    assert (alone.exit_code, alone.stdout) == (0, "")
    assert alone.stderr.startswith("Note: 1 voice is damaged")


@pytest.mark.slow
@pytest.mark.parametrize("what", HIDDEN)
def test_what_is_not_shown_is_not_believed_either(data: DataDir, tmp_path: Path, what: str) -> None:
    field, table, change = HIDDEN[what]
    voice_id = damage(data, table, change)
    found = examine(data, read_data=False, repair=False)
    assert any(field in f.what and f.voices and f.voices[0].id == voice_id for f in found), found
    assert_not_restored(data, tmp_path, field, voice_id)


@pytest.mark.slow
@pytest.mark.parametrize("what", FORMER)
def test_a_name_of_a_former_version_is_written_anew(
    data: DataDir, tmp_path: Path, what: str
) -> None:
    """By the doctor, and on the way back from a backup: none is lost, and none hides another."""
    former, now = FORMER[what]
    voice_id = damage(data, VOICE, f"name = '{former}', name_key = '{former}'")
    with closing(VoiceStore(data)) as store:
        save_backup(store, tmp_path / "voices.tar")
    with open(tmp_path / "voices.tar", "rb") as tar:
        restore_backup(tar, tmp_path / "restored")
    assert {f.severity for f in examine(data, read_data=False, repair=False)} == {"repairable"}
    found = examine(data, read_data=False, repair=True)
    assert {finding.severity for finding in found} == {"repaired"}
    for mended in (data, DataDir(tmp_path / "restored")):
        assert examine(mended, read_data=False, repair=False) == []
        with closing(VoiceStore(mended)) as store:
            assert store.get(now).row.id == voice_id
            assert store.get("bob").row.id != voice_id


def test_keys_that_were_exchanged_are_made_anew(data: DataDir) -> None:
    run(data, "UPDATE voice SET name_key = 'x' WHERE name = 'alice'")
    run(data, "UPDATE voice SET name_key = 'alice' WHERE name = 'bob'")
    run(data, "UPDATE voice SET name_key = 'bob' WHERE name = 'alice'")
    assert {f.severity for f in examine(data, read_data=False, repair=True)} == {"repaired"}
    with closing(VoiceStore(data)) as store:
        assert [store.get(name).row.name for name in ("alice", "bob")] == ["alice", "bob"]


@pytest.mark.parametrize("what", FOREIGN)
def test_tables_that_are_not_ours_stop_the_program(data: DataDir, what: str) -> None:
    run(data, FOREIGN[what])
    with pytest.raises(DatabaseDamaged, match="voices doctor"):
        VoiceStore(data)
    found = examine(data, read_data=False, repair=True)
    assert {finding.severity for finding in found} == {"loss"}
    assert all(finding.what.startswith("registry.db: ") for finding in found)


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize("cased", [str.lower, str.upper, str.title])
def test_a_constraint_that_is_not_ours_stops_the_program(
    data: DataDir, clause: str, cased: Callable[[str], str]
) -> None:
    """It would make a later enrolment an error, or replace a voice by another."""
    run(data, constrained(clause, cased))
    with pytest.raises(DatabaseDamaged, match="'voice' is missing or changed"):
        VoiceStore(data)


def test_near_names_are_indexed_anew(data: DataDir, tmp_path: Path) -> None:
    """Of a backup's index nothing is believed: alice is no zelda, and bob is nobody's."""
    run(data, "DELETE FROM name_variant")
    run(data, "INSERT INTO name_variant SELECT 'zelda', id FROM voice WHERE name = 'alice'")
    with closing(VoiceStore(data)) as store:
        save_backup(store, tmp_path / "voices.tar")
    with open(tmp_path / "voices.tar", "rb") as tar:
        restore_backup(tar, tmp_path / "restored")
    restored = DataDir(tmp_path / "restored")
    names = {"alice": run(data, "SELECT id FROM voice WHERE name = 'alice'")[0][0]}
    names["bob"] = run(data, "SELECT id FROM voice WHERE name = 'bob'")[0][0]
    found = {*run(restored, "SELECT variant, voice_id FROM name_variant")}
    assert found == {(variant, names[name]) for name in names for variant in variants(name)}


@pytest.mark.parametrize("what", STRANGE)
def test_tables_that_are_more_than_ours_are_used_but_not_restored(
    data: DataDir, tmp_path: Path, what: str
) -> None:
    run(data, STRANGE[what])
    assert_not_restored(data, tmp_path, "is no registry's: the ")


def test_the_types_that_are_believed_are_those_that_are_enrolled() -> None:
    assert {media_type for *_, media_type in CONTAINERS + FRAMES} == AUDIO_TYPES
    assert set(CLIP_ENDINGS) == AUDIO_TYPES
