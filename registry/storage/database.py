"""The SQLite file: how it is opened, how transactions begin, how its schema is brought up to date.

TRUNCATE + FULL survives a power cut without side files; writes begin IMMEDIATE, so that two
processes that read, change and write never lose an update. docs/storage.md has the promises.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, StaticPool, event
from sqlmodel import Session, create_engine

from registry.errors import (
    DatabaseDamaged,
    DatabaseLost,
    Overloaded,
    SchemaTooNew,
)
from registry.storage import private, structure
from registry.storage.blobs import make_folder, sync_folder
from registry.storage.data_dir import DataDir
from registry.storage.errors import damaged, storage_errors

SCHEMA = "0001"
BUSY_TIMEOUT_S = 15.0
WRITERS = 16  # of one process that may wait: each holds a thread that requests share
PLACE_S = 3.0  # for one of those places, which are free at once where nothing holds the database
# What is no UTF-8 is read as what it looks like: one such row hides no other.
TEXT = partial(str, encoding="utf-8", errors="backslashreplace")
CHECKED_BYTES = 64 * 1024 * 1024  # about 20,000 voices, 0.3 s
NO_DATABASE = "missing or empty, but files of voices are here"


class Database:
    """One engine, until it is left; `read()` and `write()` are the only ways to a session.

    Both raise what the storage refuses as errors of the registry's own. Once something is found
    damaged, nothing is written any more: DatabaseDamaged.
    """

    def __init__(self, path: Path) -> None:
        self._places, self._turn = threading.BoundedSemaphore(WRITERS), threading.Lock()
        self._open(path)

    def _open(self, path: Path) -> None:
        self._reading = sqlite_engine(path)
        self._writing = {
            references: self._reading.execution_options(
                begin="BEGIN IMMEDIATE", foreign_keys="ON" if references else "OFF"
            )
            for references in (True, False)
        }
        self._home, self._damage = path.parent, ""

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._noticing(writing=False), Session(self._reading) as session:
            yield session

    @contextmanager
    def copy(self) -> Iterator[Session]:
        """All rows as of now, in memory: a read that takes long keeps writers from committing."""
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
            with self.read() as session:
                copy_to(session, memory)
            engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
            event.listen(engine, "connect", _configure)
            with self._noticing(writing=False), Session(engine) as session:
                yield session

    @contextmanager
    def write(self, *, references: bool = True) -> Iterator[Session]:
        """A transaction that no other writer can slip into; commits on leaving, or rolls back.

        Without `references` SQLite looks up none, of which each costs a look at all near names:
        whoever removes a row removes what refers to it.
        Raises Overloaded after BUSY_TIMEOUT_S, or where WRITERS wait for longer than PLACE_S.
        """
        if self._damage:
            raise DatabaseDamaged(self._damage)
        with (
            self._turn_to_write(BUSY_TIMEOUT_S),
            self._noticing(writing=True),
            Session(self._writing[references], expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # BEGIN IMMEDIATE now, not at the first statement
            yield session

    @contextmanager
    def _turn_to_write(self, wait_s: float) -> Iterator[None]:
        """One at a time, in this process; less than no time to wait is all that it takes."""
        if not self._places.acquire(timeout=PLACE_S):
            raise Overloaded(f"{WRITERS} changes wait to be stored. Try again later.", 1)
        try:
            if not self._turn.acquire(timeout=wait_s):
                raise Overloaded("Other changes take long to be stored.", 1)
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()

    @contextmanager
    def _noticing(self, *, writing: bool) -> Iterator[None]:
        try:
            with storage_errors(self._home, writing=writing):
                yield
        except DatabaseDamaged as error:
            self._damage = error.detail
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._reading.dispose()

    def reopen(self, path: Path) -> None:
        """Another file from here on; sessions that are open end with the one they have."""
        before = self._reading
        self._open(path)
        before.dispose()


def copy_to(session: Session, target: sqlite3.Connection) -> None:
    source = session.connection().connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    source.backup(target)


def refuse_damage(path: Path) -> None:
    """DatabaseDamaged if pages or tables are not sound.

    The pages of a large file are left to the doctor, and to the first read that meets the damage:
    at 100,000 voices (316 MB) a look at all of them takes 1.5 s.
    """
    with storage_errors(path.parent, writing=False), closing(connect(path)) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN")  # nobody writes meanwhile
        small = path.stat().st_size <= CHECKED_BYTES
        found = _page_faults(connection, path) if small else []
        found = found or structure.faults(connection)
    if found:
        raise damaged(path.parent, found[0])


def _page_faults(connection: sqlite3.Connection, path: Path) -> list[str]:
    rows = connection.execute("PRAGMA quick_check(1)").fetchall()
    said = [row[0].splitlines()[-1] for row in rows if row[0] != "ok"]  # after a heading
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    if path.stat().st_size % page_bytes:
        said.append("its last page is cut short")
    return said


def database_faults(path: Path) -> list[str]:
    """All that is wrong with pages, references and tables; takes 7 s at 100,000 voices.

    They are looked at in a copy of the pages, so that no writer waits.
    """
    with closing(sqlite3.connect(":memory:")) as copy:
        with closing(connect(path)) as connection:
            connection.backup(copy)
        rows = [*copy.execute("PRAGMA integrity_check")]
        rows += copy.execute("PRAGMA foreign_key_check")
        found = [" ".join(map(str, row)) for row in rows if row[0] != "ok"]
        found = found or _page_faults(copy, path)
        return found or structure.faults(copy)


def connect(path: Path) -> sqlite3.Connection:
    """Past SQLAlchemy, for what is asked before the tables are known to be there."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)


def sqlite_engine(path: Path) -> Engine:
    url = URL.create("sqlite", database=str(path))  # a path is no URL: `?` and `%` mean themselves
    waits = {"timeout": BUSY_TIMEOUT_S}
    # Threads are what bounds the connections: nobody waits for one.
    engine = create_engine(url, connect_args=waits, hide_parameters=True, max_overflow=-1)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.text_factory = TEXT
    connection.isolation_level = None  # BEGIN is ours to send, or DDL would escape the transaction
    for pragma in (
        "journal_mode=TRUNCATE",
        "synchronous=FULL",
        "trusted_schema=OFF",
        "secure_delete=ON",  # what is removed is not left in free pages
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA foreign_keys={options.get('foreign_keys', 'ON')}")
    connection.exec_driver_sql(options.get("begin", "BEGIN"))


def schema_revision(path: Path) -> str | None:
    """The Alembic revision recorded in the file, or None for a new or empty one."""
    if not path.exists():
        return None
    with closing(connect(path)) as connection:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name='alembic_version'")
        if tables.fetchone() is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def migrate(data: DataDir) -> None:
    """Bring the schema to SCHEMA: a backup first, each step one transaction, one process at a time.

    Raises SchemaTooNew if a newer program has written the file and this one may not use it,
    DatabaseLost if it is gone.
    """
    if is_usable(data.database):
        return
    with _migration_lock(data):
        if is_usable(data.database):
            return
        found = schema_revision(data.database)
        _refuse_unknown(found, data)
        _refuse_lost(found, data)
        if found is not None:
            _back_up(data, found)
        private.touch(data.database)
        _upgrade(data.database)


def is_usable(path: Path) -> bool:
    """True if its schema is this program's, or a newer one that this program may still use.

    A migration that only adds leaves the number of the oldest schema whose programs get along
    with it in SQLite's `user_version`.
    """
    found = schema_revision(path)
    if found is None or found < SCHEMA:
        return False
    with closing(connect(path)) as connection:
        (oldest,) = connection.execute("PRAGMA user_version").fetchone()
    return found == SCHEMA or 0 < oldest <= int(SCHEMA)


def _refuse_unknown(found: str | None, data: DataDir) -> None:
    if found is not None and found not in _known_revisions():
        raise SchemaTooNew(
            f"{data.database} has schema {found}, which a newer voice-registry wrote; this one "
            f"knows schemas up to {SCHEMA}, and may not use that one. Install the newer program, "
            f"or restore a backup from {data.backups}."
        )


def _refuse_lost(found: str | None, data: DataDir) -> None:
    """A new database beside old files would make them look like files that belong to no voice."""
    if found is None and any(data.content_files()):
        raise DatabaseLost(
            f"{data.database} is {NO_DATABASE}. Put back a copy of registry.db, or move the folder "
            "away to start anew."
        )
    if found is None and data.database.exists():
        with closing(connect(data.database)) as connection:
            if structure.parts(connection):
                raise DatabaseLost(
                    f"{data.database} has tables, but none of a registry: is it another program's? "
                    "Move it away, or name another data directory."
                )


@contextmanager
def _migration_lock(data: DataDir) -> Iterator[None]:
    make_folder(data.database.parent)
    with open(data.database.parent / "migrate.lock", "w", opener=private.opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _back_up(data: DataDir, revision: str) -> None:
    make_folder(data.backups)
    target = data.backups / f"registry-before-{SCHEMA}-from-{revision}.db"
    target.unlink(missing_ok=True)
    private.touch(target)
    with closing(connect(data.database)) as connection:
        # As bytes, for a path need not be UTF-8.
        connection.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(target),))
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
