"""The SQLite file: how it is opened, how transactions begin, how its schema is brought up to date.

TRUNCATE + FULL survives a power cut without side files; writes begin IMMEDIATE, so that two
processes that read, change and write never lose an update. docs/storage.md has the promises.
"""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlmodel import Session, create_engine

from registry.errors import DatabaseLost, SchemaTooNew
from registry.files import DataDir, make_folder, sync_folder

SCHEMA = "0001"
BUSY_TIMEOUT_S = 15.0
NO_DATABASE = "missing or empty, but files of voices are here"


class Database:
    """One engine; `read()` and `write()` are the only ways to a session."""

    def __init__(self, path: Path) -> None:
        self._open(path)

    def _open(self, path: Path) -> None:
        self._reading = sqlite_engine(path)
        self._writing = self._reading.execution_options(begin="BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that no other writer can slip into; commits on leaving, or rolls back."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            session.connection()  # BEGIN IMMEDIATE now, not at the first statement
            yield session

    def close(self) -> None:
        self._reading.dispose()

    def reopen(self, path: Path) -> None:
        """Another file from here on; sessions that are open end with the one they have."""
        before = self._reading
        self._open(path)
        before.dispose()


def is_damage(error: Exception) -> bool:
    """True for what only a broken file says: neither busy nor full nor unreadable for now."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def is_disk_full(error: Exception) -> bool:
    return "database or disk is full" in str(error)


def sqlite_engine(path: Path) -> Engine:
    url = URL.create("sqlite", database=str(path))  # a path is no URL: `?` and `%` mean themselves
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # BEGIN is ours to send, or DDL would escape the transaction
    for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def schema_revision(path: Path) -> str | None:
    """The Alembic revision recorded in the file, or None for a new or empty one."""
    if not path.exists():
        return None
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name='alembic_version'")
        if tables.fetchone() is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])
    finally:
        connection.close()


def migrate(data: DataDir) -> None:
    """Bring the schema to SCHEMA: a backup first, each step one transaction, one process at a time.

    Raises SchemaTooNew if a newer program has written the file, DatabaseLost if it is gone.
    """
    if schema_revision(data.database) == SCHEMA:
        return
    with _migration_lock(data):
        found = schema_revision(data.database)
        if found == SCHEMA:
            return
        _refuse_unknown(found, data)
        _refuse_lost(found, data)
        if found is not None:
            _back_up(data, found)
        _upgrade(data.database)


def _refuse_unknown(found: str | None, data: DataDir) -> None:
    if found is not None and found not in _known_revisions():
        raise SchemaTooNew(
            f"{data.database} has schema {found}, which a newer voice-registry wrote; this one "
            f"knows schemas up to {SCHEMA}. Install the newer program, or restore a backup from "
            f"{data.backups}."
        )


def _refuse_lost(found: str | None, data: DataDir) -> None:
    """A new database beside old files would make them look like files that belong to no voice."""
    if found is None and any(data.content_files()):
        raise DatabaseLost(
            f"{data.database} is {NO_DATABASE}. Put back a copy of registry.db, or move the folder "
            "away to start anew."
        )


@contextmanager
def _migration_lock(data: DataDir) -> Iterator[None]:
    make_folder(data.database.parent)
    with open(data.database.parent / "migrate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _back_up(data: DataDir, revision: str) -> None:
    make_folder(data.backups)
    target = data.backups / f"registry-before-{SCHEMA}-from-{revision}.db"
    target.unlink(missing_ok=True)
    connection = sqlite3.connect(data.database, timeout=BUSY_TIMEOUT_S)
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    sync_folder(data.backups)


def _alembic_config() -> Any:
    from alembic.config import Config  # Alembic costs 0.2 s, and most starts need no migration

    import migrations

    config = Config()
    folder = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))  # Alembic interpolates
    return config


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {s.revision for s in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}


def _upgrade(path: Path) -> None:
    from alembic import command

    config = _alembic_config()
    engine = sqlite_engine(path)
    config.attributes["engine"] = engine.execution_options(begin="BEGIN IMMEDIATE")
    try:
        command.upgrade(config, "head")
    finally:
        engine.dispose()
