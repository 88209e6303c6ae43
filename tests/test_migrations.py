"""The schema: made, upgraded, refused and interrupted on real files; and how transactions begin."""

import asyncio
import importlib
import io
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from fakes import FakeInference
from faults import FORKS, QuickEnroller, finish, noise, process, upgrade_by, upgrade_to
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlmodel import SQLModel
from uploading import enrol_bytes

import migrations
from registry.errors import BackupRefused, SchemaTooNew
from registry.storage import sqlite
from registry.storage.data_dir import DataDir
from registry.storage.database import SCHEMA, Database, migrate, schema_revision
from registry.storage.rows.edits import VoiceEdit
from registry.storage.store import VoiceStore
from registry.storage.tables import Label
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup

VERSIONS = Path(migrations.__file__).parent / "versions"
FIRST = next(VERSIONS.glob("*0001*.py"))
STEPS = FIRST.read_text().count("    op.create_")
ANCIENT = '''"""A schema from before the first."""
revision, down_revision = "0000", None
'''


def structure(connection: Connection) -> set[tuple[object, ...]]:
    """Every column, key and index of a database, as SQLite itself describes them."""
    run = connection.exec_driver_sql
    listed = run("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
    found: set[tuple[object, ...]] = set()
    for table, sql in listed:
        found.add((table, "WITHOUT ROWID" in sql, "CHECK" in sql))
        for pragma in ("table_info", "foreign_key_list", "index_list"):
            found |= {(table, pragma, *row[1:]) for row in run(f"PRAGMA {pragma}({table})")}
    indexes = run("SELECT name, sql FROM sqlite_master WHERE type = 'index'").all()
    for name, sql in indexes:
        found.add((name, " ".join(str(sql).split())))
    return found


@pytest.fixture
def head(data: DataDir) -> Iterator[Connection]:
    migrate(data)
    engine = sqlite.engine(data.database)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_the_models_are_what_the_migrations_make(head: Connection) -> None:
    context = MigrationContext.configure(head, opts={"compare_type": True})
    assert compare_metadata(context, SQLModel.metadata) == []
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        SQLModel.metadata.create_all(connection)
        modelled = structure(connection)
    engine.dispose()
    made = {item for item in structure(head) if "alembic" not in str(item)}
    assert made == modelled


def test_the_comparison_notices_a_missing_index(head: Connection) -> None:
    before = structure(head)
    head.exec_driver_sql("DROP INDEX label_value")
    context = MigrationContext.configure(head)
    assert compare_metadata(context, SQLModel.metadata) != []
    assert structure(head) != before


def test_the_schema_of_the_code_is_the_last_migration(data: DataDir) -> None:
    assert ScriptDirectory(str(VERSIONS.parent)).get_heads() == [SCHEMA]
    migrate(data)
    assert schema_revision(data.database) == SCHEMA
    assert not data.backups.exists(), "there was nothing to save"


def test_a_newer_schema_is_refused_and_left_alone(data: DataDir) -> None:
    migrate(data)
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("PRAGMA user_version = 9999")
    before = data.database.read_bytes()
    for use in (VoiceStore, lambda data: examine(data, read_data=False, repair=True)):
        with pytest.raises(SchemaTooNew, match=f"9999, which a newer .* up to {SCHEMA}"):
            use(data)
    assert data.database.read_bytes() == before


def open_store(home: Path) -> None:
    VoiceStore(DataDir(home)).close()


def test_processes_that_start_at_once_all_find_the_schema(tmp_path: Path) -> None:
    starters = [FORKS.Process(target=open_store, args=(tmp_path,)) for _ in range(4)]
    for starter in starters:
        starter.start()
    assert finish(starters) == [0] * 4
    assert examine(DataDir(tmp_path), read_data=True, repair=False) == []


@pytest.mark.slow
def test_a_first_start_that_is_killed_does_not_hinder_the_second(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(15):
        home = tmp_path / str(number)
        with process(open_store, home) as starter:
            starter.join(rng.uniform(0.02, 0.2))
        open_store(home)
        assert schema_revision(DataDir(home).database) == SCHEMA


# From an older schema: the real migration, with one before it


@pytest.fixture
def older(data: DataDir) -> DataDir:
    """A database of schema 0000, with something in it."""
    with closing(sqlite3.connect(data.database)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('0000')")
        database.execute("CREATE TABLE ancient (name)")
        database.execute("INSERT INTO ancient VALUES ('alice')")
    return data


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A copy of the migrations in which 0000 comes first, and each step may be the last."""
    folder = tmp_path / "scripts"
    copy = shutil.copytree(VERSIONS.parent, folder / "migrations") / "versions"
    (copy / "0000_ancient.py").write_text(ANCIENT + "\n\ndef upgrade():\n    pass\n")
    first = copy / FIRST.name
    script = first.read_text().replace("down_revision = None", 'down_revision = "0000"')
    first.write_text(script.replace("    op.create_", "    step()\n    op.create_") + KILLER)
    return folder


KILLER = """

def step():
    import os, signal
    os.environ["STEPS_LEFT"] = left = str(int(os.environ["STEPS_LEFT"]) - 1)
    if left == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        names = database.execute("SELECT name FROM ancient").fetchall()
    return [sorted(name for (name,) in tables), names]


def test_an_upgrade_saves_the_old_file_first(older: DataDir, scripts: Path) -> None:
    before = contents(older.database)
    with process(upgrade_by, scripts, older.root, STEPS + 1) as upgrading:
        assert finish([upgrading]) == [0]
    assert schema_revision(older.database) == SCHEMA
    assert contents(older.database)[1] == [("alice",)]
    (backup,) = older.backups.iterdir()
    assert schema_revision(backup) == "0000"
    assert contents(backup) == before


def test_an_upgrade_killed_at_any_step_leaves_the_old_schema(older: DataDir, scripts: Path) -> None:
    before = contents(older.database)
    assert STEPS >= 9
    for steps in range(1, STEPS + 1):
        with process(upgrade_by, scripts, older.root, steps) as upgrading:
            assert finish([upgrading]) == [-signal.SIGKILL]
        assert schema_revision(older.database) == "0000"
        assert contents(older.database) == before
    with process(upgrade_by, scripts, older.root, STEPS + 1) as upgrading:
        assert finish([upgrading]) == [0]
    VoiceStore(older).close()


# A newer schema, by real migrations of a future program

EXPANDING = '''"""Adds: pronouns of voices, and a table of plays."""
import sqlalchemy as sa
from alembic import op

revision, down_revision, oldest_program = "0004", "0003", "0003"


def upgrade():
    op.add_column("voice", sa.Column("pronouns", sa.String, nullable=False, server_default=""))
    op.create_index("voice_pronouns", "voice", ["pronouns"])
    op.create_table("play", sa.Column("voice_id", sa.String, sa.ForeignKey("voice.id")))
'''
CONTRACTING = '''"""Removes what programs of 0003 still write."""
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade():
    op.drop_column("voice", "description")
'''


@pytest.fixture
def future(tmp_path: Path) -> Path:
    """Of each future schema, the migrations of its program."""
    for schema, scripts in (("0004", [EXPANDING]), ("0005", [EXPANDING, CONTRACTING])):
        copy = shutil.copytree(VERSIONS.parent, tmp_path / "future" / schema / "migrations")
        for number, script in enumerate(scripts, start=4):
            (copy / "versions" / f"v{number:04}_new.py").write_text(script)
    return tmp_path / "future"


def after(schema: str, future: Path, home: Path) -> DataDir:
    """Alice was enrolled by this program before a newer one came by."""
    store = VoiceStore(DataDir(home))
    add_voice(store, "alice")
    store.close()
    with process(upgrade_to, future / schema, home, schema) as upgrading:
        assert finish([upgrading]) == [0]
    assert schema_revision(DataDir(home).database) == schema
    return store.data


def add_voice(store: VoiceStore, name: str) -> None:
    enroller = QuickEnroller(store, FakeInference(store.data))
    clip = noise(random.Random(name))
    asyncio.run(enrol_bytes(enroller, name, clip))


def test_a_schema_that_only_adds_is_used_by_the_older_program(future: Path, tmp_path: Path) -> None:
    data = after("0004", future, tmp_path / "home")
    with closing(VoiceStore(data)) as store:
        add_voice(store, "bob")
        store.edit("alice", VoiceEdit(name="carol", description="Renamed."), None)
        store.delete("bob", None)
        assert [voice.row.name for voice in store.page(9, None, "", []).voices] == ["carol"]
    assert examine(data, read_data=True, repair=True) == []
    assert schema_revision(data.database) == "0004"
    assert [path.name for path in data.backups.iterdir()] == ["registry-before-0004-from-0003.db"]


def test_a_schema_that_takes_away_stops_the_older_program(future: Path, tmp_path: Path) -> None:
    data = after("0005", future, tmp_path / "home")
    before = data.database.read_bytes()
    with pytest.raises(SchemaTooNew, match="0005"):
        VoiceStore(data)
    assert data.database.read_bytes() == before


def test_a_backup_of_a_newer_schema_is_not_restored(future: Path, tmp_path: Path) -> None:
    data = after("0004", future, tmp_path / "home")
    with closing(VoiceStore(data)) as store:
        save_backup(store, tmp_path / "voices.tar")
    with open(tmp_path / "voices.tar", "rb") as tar, pytest.raises(BackupRefused, match="0004"):
        restore_backup(tar, tmp_path / "new")


# Other databases


def test_no_index_means_another_thing_to_postgresql() -> None:
    """What one dialect is not told it leaves out without a word."""
    dialects = sqlite_dialect.dialect(), postgresql.dialect()
    for table in SQLModel.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialects[1]))
        for index in table.indexes:
            one, other = (str(CreateIndex(index).compile(dialect=d)) for d in dialects)
            assert one.replace('"', "") == other.replace('"', "")


def test_the_migrations_make_the_same_indexes_on_postgresql() -> None:
    said = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": said}
    )
    with Operations.context(context):
        for step in sorted(VERSIONS.glob("v*.py")):
            importlib.import_module(f"migrations.versions.{step.stem}").upgrade()
    made = {" ".join(line.rstrip(";").split()) for line in said.getvalue().splitlines()}
    for index in chain.from_iterable(table.indexes for table in SQLModel.metadata.sorted_tables):
        assert str(CreateIndex(index).compile(dialect=postgresql.dialect())) in made


# Connections and transactions


@pytest.fixture
def database(data: DataDir) -> Iterator[Database]:
    migrate(data)
    with Database(data.database) as database:
        yield database


def test_every_connection_is_safe_against_power_cuts(database: Database) -> None:
    wanted = {"journal_mode": "truncate", "synchronous": 2, "foreign_keys": 1}
    for session_of in (database.read, database.write):
        with session_of() as session:
            run = session.connection().exec_driver_sql
            assert {name: run(f"PRAGMA {name}").scalar() for name in wanted} == wanted


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(Label(voice_id="voice_nobody", key="a", value="b"))


def test_a_write_holds_the_lock_from_its_first_moment(database: Database, data: DataDir) -> None:
    other = sqlite3.connect(data.database, timeout=0, isolation_level=None)
    with closing(other), database.write():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM voice").fetchone() == (0,), "readers go on"


def test_a_second_writer_waits_and_then_writes(database: Database) -> None:
    wrote = Event()

    def write() -> None:
        with database.write() as session:
            session.execute(text("DELETE FROM label"))
        wrote.set()

    second = Thread(target=write)
    with database.write():
        second.start()
        assert not wrote.wait(0.3)
    assert wrote.wait(15)
    second.join()


def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    insert = "INSERT INTO model_in_use VALUES (1, 'a', 'b', 'c', 'd')"
    with pytest.raises(KeyError), database.write() as session:
        session.execute(text(insert))
        raise KeyError
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM model_in_use")).scalar() == 0
