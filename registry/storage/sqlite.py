"""All that is SQLite's own: opening, locking, copying and checking a file, and its errors.

The rest of the storage says what it wants; tests hold that no other module says how. Knows no table
of ours. SQLAlchemy is imported where an engine is made, because a shell that completes names needs
none.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import sqlalchemy
    from sqlalchemy import Engine, TextClause
    from sqlmodel import Session, SQLModel

Error = sqlite3.Error
DatabaseError = sqlite3.DatabaseError
Connection = sqlite3.Connection
BUSY_TIMEOUT_S = 15.0
# Bytes that are no UTF-8 are read as escapes, so that one such row hides no other.
TEXT = partial(str, encoding="utf-8", errors="backslashreplace")
WITHOUT_ROWID = {"sqlite_with_rowid": False}  # for a table that is its own index
SETTINGS = (  # docs/storage.md has the promises
    "journal_mode=TRUNCATE",  # with FULL it survives a power cut without side files
    "synchronous=FULL",
    "trusted_schema=OFF",
    "secure_delete=ON",  # what is removed is not left in free pages
)

# Opening


@contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """Open a plain sqlite3 connection, for use before the schema is known."""
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
        yield connection


@contextmanager
def at_rest(path: Path) -> Iterator[Connection]:
    """Open a connection within one read transaction: nobody commits between its reads."""
    with opened(path) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN")
        yield connection


@contextmanager
def read_only(path: Path, wait_s: float) -> Iterator[Connection]:
    """Open a connection that neither makes nor changes the file or a journal."""
    uri = f"file:{quote(str(path))}?mode=ro"
    with closing(sqlite3.connect(uri, timeout=wait_s, uri=True)) as connection:
        yield connection


class Watch:
    """Tells whether anybody has written to a file, without reading any of it but its head."""

    def __init__(self, path: Path) -> None:
        waits = BUSY_TIMEOUT_S
        self._connection = sqlite3.connect(path, timeout=waits, check_same_thread=False)

    def version(self) -> int:
        """Return a number that stays the same until another connection commits."""
        (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(number)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def in_memory() -> Iterator[Connection]:
    """Open an empty database in memory."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        yield connection


def engine(path: Path) -> "Engine":
    """Make an SQLAlchemy engine of a file, whose transactions only read until they write."""
    from sqlalchemy import URL, create_engine, event

    url = URL.create("sqlite", database=str(path))  # a path is no URL: `?` and `%` mean themselves
    waits = {"timeout": BUSY_TIMEOUT_S}
    # The number of threads bounds that of connections: nobody waits for one.
    made = create_engine(url, connect_args=waits, hide_parameters=True, max_overflow=-1)
    event.listen(made, "connect", _configure)
    event.listen(made, "begin", _begin)
    return made


def memory_engine(memory: Connection) -> "Engine":
    """Make an SQLAlchemy engine of a database in memory."""
    from sqlalchemy import StaticPool, create_engine, event

    made = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
    event.listen(made, "connect", _configure)
    return made


def writing(reading: "Engine", *, references: bool = True) -> "Engine":
    """Derive an engine whose transactions hold the write lock from their beginning.

    So two processes that read, change and write lose no update. Without `references` SQLite checks
    none.
    """
    foreign_keys = "ON" if references else "OFF"
    return reading.execution_options(begin="BEGIN IMMEDIATE", foreign_keys=foreign_keys)


def _configure(connection: Connection, _: object) -> None:
    connection.text_factory = TEXT
    connection.isolation_level = None  # BEGIN is ours to send, or DDL would escape the transaction
    for setting in SETTINGS:
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: "sqlalchemy.Connection") -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA foreign_keys={options.get('foreign_keys', 'ON')}")
    connection.exec_driver_sql(options.get("begin", "BEGIN"))


# Statements


def only_where(condition: "TextClause") -> dict[str, Any]:
    """Return the arguments that limit an Index to the rows for which this is true."""
    return {"sqlite_where": condition}


def add_missing(
    session: "Session", table: type["SQLModel"], rows: Sequence[Mapping[str, object]]
) -> None:
    """Insert rows; those that are there already stay as they are."""
    from sqlalchemy.dialects.sqlite import insert

    session.connection().execute(insert(table).on_conflict_do_nothing(), rows)


# Copies


def copy(session: "Session", target: Connection) -> None:
    """Replace all pages of the target by those of the session's database, as of one moment."""
    source = session.connection().connection.driver_connection
    assert isinstance(source, Connection)
    source.backup(target)


def copy_to_file(session: "Session", target: Path) -> None:
    """Copy the session's database to a file, without anything that was deleted."""
    with opened(target) as connection:
        copy(session, connection)
        connection.execute("VACUUM")


@contextmanager
def copied(path: Path) -> Iterator[Connection]:
    """Copy a database into memory, so that no writer waits for whoever examines it."""
    with in_memory() as memory:
        with opened(path) as connection:
            connection.backup(memory)
        yield memory


def vacuum(path: Path) -> None:
    """Rewrite a database, so that nothing of removed rows is left in free pages."""
    with opened(path) as connection:
        connection.execute("VACUUM")


def vacuum_into(path: Path, target: Path) -> None:
    """Write a copy into an empty file."""
    with opened(path) as connection:
        # As bytes, for a path need not be UTF-8.
        connection.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(target),))


# What a file is


def size(session: "Session") -> int:
    """Return the size of the database in bytes."""
    asked = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    return int(session.connection().exec_driver_sql(asked).scalar_one())


def user_version(connection: Connection) -> int:
    """Return the number that SQLite keeps for programs that use it."""
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return int(number)


def has_table(connection: Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,))
    return found.fetchone() is not None


def schema(connection: Connection) -> list[tuple[str, str, str | None, str]]:
    """Return kind, name, statement and table of all that is in the database."""
    listed = connection.execute("SELECT type, name, sql, tbl_name FROM sqlite_master")
    return listed.fetchall()


def named_schema(connection: Connection) -> list[tuple[str, str, str]]:
    """Return kind, name and statement of all that is not SQLite's own."""
    ours = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    listed = connection.execute(f"SELECT type, name, sql FROM sqlite_master WHERE {ours}")  # nosec B608 # a constant
    return listed.fetchall()


DESCRIPTIONS = {
    "column": "SELECT * FROM pragma_table_xinfo(?)",
    "key": "SELECT * FROM pragma_foreign_key_list(?)",
    "list of indexes": "SELECT * FROM pragma_index_list(?)",
}


def described(connection: Connection, table: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield the columns, keys and indexes of a table, each with what SQLite says of it."""
    for kind, query in DESCRIPTIONS.items():
        for row in connection.execute(query, (table,)):
            yield kind, row[1:]


# Whether it is sound


def quick_faults(connection: Connection, path: Path) -> list[str]:
    """Return the first fault of the database's pages, and whether its last one is cut short."""
    rows = connection.execute("PRAGMA quick_check(1)").fetchall()
    said = [row[0].splitlines()[-1] for row in rows if row[0] != "ok"]  # the line after a heading
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    if path.stat().st_size % page_bytes:
        said.append("its last page is cut short")
    return said


def all_faults(connection: Connection) -> list[str]:
    """Return every fault of the database's pages and references."""
    rows = connection.execute("PRAGMA integrity_check").fetchall()
    rows += connection.execute("PRAGMA foreign_key_check").fetchall()
    return [" ".join(map(str, row)) for row in rows if row[0] != "ok"]


def strange_faults(path: Path, most_bytes: int) -> list[str]:
    """Return every fault of a stranger's file, and what in it acts by itself, as triggers.

    While it is checked, no value larger than `most_bytes` may come to be.
    """
    try:
        with opened(path) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most_bytes)
            connection.execute("PRAGMA trusted_schema = OFF")
            faults = all_faults(connection)
            active = [row for row in schema(connection) if row[0] not in ("table", "index")]
            return faults + [str(name) for _, name, _, _ in active]
    except DatabaseError as error:
        return [str(error)]


# What its errors mean


class DatabaseFault(Enum):
    """The kinds of fault of a file that errors of SQLite tell of."""

    MOVED = auto()  # the file was moved while it was open
    CUT_OFF = auto()  # a write was, and can't be undone where nothing can be written
    FULL = auto()
    BUSY = auto()
    READ_ONLY = auto()
    UNOPENED = auto()
    UNREADABLE = auto()
    DAMAGED = auto()


REFUSALS = {
    sqlite3.SQLITE_READONLY_DBMOVED: DatabaseFault.MOVED,
    sqlite3.SQLITE_READONLY_ROLLBACK: DatabaseFault.CUT_OFF,
    sqlite3.SQLITE_FULL: DatabaseFault.FULL,
    sqlite3.SQLITE_BUSY: DatabaseFault.BUSY,
    sqlite3.SQLITE_LOCKED: DatabaseFault.BUSY,
    sqlite3.SQLITE_READONLY: DatabaseFault.READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: DatabaseFault.UNOPENED,
    sqlite3.SQLITE_PERM: DatabaseFault.UNREADABLE,
    sqlite3.SQLITE_IOERR: DatabaseFault.UNREADABLE,
    sqlite3.SQLITE_CORRUPT: DatabaseFault.DAMAGED,
    sqlite3.SQLITE_NOTADB: DatabaseFault.DAMAGED,
}
NOT_OUR_SCHEMA = ("no such table", "no such column", "has no column")


def refusal(error: Exception) -> DatabaseFault | None:
    """Tell what an error of SQLite or SQLAlchemy means for the file; None if nothing."""
    code = _code(error)
    found = REFUSALS.get(code) or REFUSALS.get(code & 0xFF)
    if found is None and reason(error).startswith(NOT_OUR_SCHEMA):
        return DatabaseFault.DAMAGED
    return found


def reason(error: Exception) -> str:
    """Return SQLite's own words, which are inside an error of SQLAlchemy."""
    return str(getattr(error, "orig", error))


def is_damage(error: Exception) -> bool:
    """Tell whether only a broken file raises this: neither busy, full nor unreadable for now."""
    plain = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return _code(error) & 0xFF in plain


def _code(error: Exception) -> int:
    """Return SQLite's extended result code; SQLITE_ERROR for an error that has none."""
    code: int = getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code
