"""The database: whose turn it is to write, when it becomes read-only, how its schema is migrated.

sqlite.py has how it is opened and locked, docs/storage.md the promises.
"""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlmodel import Session

from registry.errors import (
    DatabaseDamaged,
    DatabaseLost,
    Overloaded,
    SchemaTooNew,
)
from registry.storage import private, sqlite
from registry.storage.blobs import make_folder, sync_folder
from registry.storage.data_dir import DataDir
from registry.storage.errors import damaged, storage_errors
from registry.storage.rows import structure

SCHEMA = "0003"
WRITERS = 16  # the most that wait in one process: each holds a thread that requests share
PLACE_S = 3.0  # to wait for a place among them; there is one at once if nothing holds the database
CHECKED_BYTES = 64 * 1024 * 1024  # the most that a start checks: about 20,000 voices, 0.3 s
NO_DATABASE = "missing or empty, but files of voices are here"


class Database:
    """Gives sessions on one database file, by `read()` and `write()` alone, until it is closed.

    Both raise what the storage refuses as errors of the registry's own. Once damage was found,
    `write()` raises DatabaseDamaged and nothing is written any more.
    """

    def __init__(self, path: Path) -> None:
        self._places, self._turn = threading.BoundedSemaphore(WRITERS), threading.Lock()
        self._watching = threading.Lock()
        self._open(path)

    _watch: sqlite.Watch | None

    def _open(self, path: Path) -> None:
        self._reading = sqlite.engine(path)
        self._writing = {
            references: sqlite.writing(self._reading, references=references)
            for references in (True, False)
        }
        self._home, self._damage = path.parent, ""
        self._path, self._watch = path, None

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._noticing(writing=False), Session(self._reading) as session:
            yield session

    @contextmanager
    def copy(self) -> Iterator[Session]:
        """Copy all rows into memory and read there: a long read of the file would block commits."""
        with sqlite.in_memory() as memory:
            with self.read() as session:
                sqlite.copy(session, memory)
            with self._noticing(writing=False), Session(sqlite.memory_engine(memory)) as session:
                yield session

    def copy_to(self, target: Path) -> None:
        """Copy all rows, as of one moment, to a new file."""
        private.touch(target)
        with self.read() as session:
            sqlite.copy_to_file(session, target)

    def state(self) -> object:
        """Equal to what it was before unless anybody has written since, in whatever process."""
        with self._watching, self._noticing(writing=False):
            self._watch = self._watch or sqlite.Watch(self._path)
            return self._watch.version()

    def size(self) -> int:
        """Return its size in bytes."""
        with self.read() as session:
            return sqlite.size(session)

    @contextmanager
    def write(self, *, references: bool = True) -> Iterator[Session]:
        """Begin a transaction that no other writer can slip into; commit on leaving, or roll back.

        Without `references` SQLite checks none, each of which costs a look at all near names:
        whoever removes a row then removes what refers to it.

        Raises Overloaded after BUSY_TIMEOUT_S, or where WRITERS wait for longer than PLACE_S.
        """
        if self._damage:
            raise DatabaseDamaged(self._damage)
        with (
            self._turn_to_write(sqlite.BUSY_TIMEOUT_S),
            self._noticing(writing=True),
            Session(self._writing[references], expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # begins now, not at the first statement
            yield session

    @contextmanager
    def _turn_to_write(self, wait_s: float) -> Iterator[None]:
        """Wait for this process's turn to write, `wait_s` seconds or, if negative, for ever."""
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
        """Raise the registry's own errors, and remember damage, which ends all writing."""
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
        with self._watching:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def reopen(self, path: Path) -> None:
        """Use another file from here on; open sessions end with the one they have."""
        before = self._reading
        self._open(path)
        before.dispose()


def refuse_damage(path: Path) -> None:
    """Raise DatabaseDamaged if pages or tables are not sound.

    The pages of a large file are left to the doctor, and to the first read that meets the damage:
    at 100,000 voices (316 MB) a look at all of them takes 1.5 s.
    """
    with storage_errors(path.parent, writing=False), sqlite.at_rest(path) as connection:
        small = path.stat().st_size <= CHECKED_BYTES
        found = sqlite.quick_faults(connection, path) if small else []
        found = found or structure.faults(connection)
    if found:
        raise damaged(path.parent, found[0])


def database_faults(path: Path) -> list[str]:
    """Return all faults of pages, references and tables; takes 7 s at 100,000 voices.

    A copy of the pages is checked, so that no writer waits.
    """
    with sqlite.copied(path) as copy:
        return sqlite.all_faults(copy) or sqlite.quick_faults(copy, path) or structure.faults(copy)


def schema_revision(path: Path) -> str | None:
    """Return the Alembic revision recorded in the file; None for a new or empty one."""
    if not path.exists():
        return None
    with sqlite.opened(path) as connection:
        if not sqlite.has_table(connection, structure.MIGRATED):
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
    """Tell whether its schema is this program's, or a newer one that it may still use.

    A migration that only adds leaves the number of the oldest schema whose programs get along with
    it in the file's `user_version`.
    """
    found = schema_revision(path)
    if found is None or found < SCHEMA:
        return False
    with sqlite.opened(path) as connection:
        oldest = sqlite.user_version(connection)
    return found == SCHEMA or 0 < oldest <= int(SCHEMA)


def _refuse_unknown(found: str | None, data: DataDir) -> None:
    if found is not None and found not in _known_revisions():
        raise SchemaTooNew(
            f"{data.database} has schema {found}, which a newer voice-registry wrote; this one "
            f"knows schemas up to {SCHEMA}, and may not use that one. Install the newer program, "
            f"or restore a backup from {data.backups}."
        )


def _refuse_lost(found: str | None, data: DataDir) -> None:
    """Raise DatabaseLost beside old files: with a new database they would belong to no voice."""
    if found is None and any(data.content_files()):
        raise DatabaseLost(
            f"{data.database} is {NO_DATABASE}. Put back a copy of registry.db, or move the folder "
            "away to start anew."
        )
    if found is None and data.database.exists():
        with sqlite.opened(data.database) as connection:
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
    sqlite.vacuum_into(data.database, target)
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
    engine = sqlite.engine(path)
    config.attributes["engine"] = sqlite.writing(engine)
    try:
        command.upgrade(config, "head")
    finally:
        engine.dispose()
