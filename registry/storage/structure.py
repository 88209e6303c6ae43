"""What the tables of a registry look like, as SQLite describes them, and what they should.

Knows no rows. A database may do nothing by itself: no trigger, no view, no generated column.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from sqlalchemy import create_mock_engine
from sqlmodel import SQLModel

import registry.storage.tables  # noqa: F401  registers the tables

Part = tuple[object, ...]
UNLISTED = ("WITHOUT ROWID", "CHECK", "COLLATE", "CONFLICT", "GENERATED", "STRICT")
PRAGMAS = {
    "table_xinfo": "SELECT * FROM pragma_table_xinfo(?)",
    "foreign_key_list": "SELECT * FROM pragma_foreign_key_list(?)",
    "index_list": "SELECT * FROM pragma_index_list(?)",
}
OURS = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name <> 'alembic_version'"


def wanted() -> set[Part]:
    """Every column, key and index that the models ask for."""
    with closing(sqlite3.connect(":memory:")) as connection:
        statements: list[Any] = []
        engine: Any = create_mock_engine("sqlite://", lambda ddl, *_: statements.append(ddl))
        SQLModel.metadata.create_all(engine, checkfirst=False)
        for ddl in statements:
            connection.execute(str(ddl.compile(dialect=engine.dialect)))
        return parts(connection)


def parts(connection: sqlite3.Connection) -> set[Part]:
    query = f"SELECT type, name, sql FROM sqlite_master WHERE {OURS}"  # nosec B608 # a constant
    listed = connection.execute(query)
    found: set[Part] = set()
    for kind, name, sql in listed.fetchall():
        if kind == "table":
            found |= {*_of_a_table(connection, name, sql)}
        else:
            found.add((kind, name, " ".join(str(sql).split())))
    return found


def _of_a_table(connection: sqlite3.Connection, name: str, sql: str) -> Iterator[Part]:
    yield "table", name
    yield "table", name, *map(sql.upper().count, UNLISTED)  # what no pragma tells
    for pragma, query in PRAGMAS.items():
        for row in connection.execute(query, (name,)):
            yield pragma, name, *row[1:]


def faults(connection: sqlite3.Connection) -> list[str]:
    """In words; tables, columns and indexes that a newer program added are none."""
    found, expected = parts(connection), wanted()
    said = [f"{_named(part)} is missing or changed" for part in expected - found]
    added = [part for part in found - expected if part[0] in ("trigger", "view")]
    return sorted(said + [f"{_named(part)} does not belong there" for part in added])


def differences(found: sqlite3.Connection, fresh: sqlite3.Connection) -> list[str]:
    """In words, and to the letter: a constraint can be written in many ways, or hidden there."""
    ours, expected = _statements(found), _statements(fresh)
    said = [f"{_named(part)} is missing or changed" for part in expected - ours]
    names = {part[:2] for part in expected}
    strange = [part for part in ours - expected if part[:2] not in names]
    return sorted(said + [f"{_named(part)} does not belong there" for part in strange])


def _statements(connection: sqlite3.Connection) -> set[Part]:
    listed = connection.execute("SELECT type, name, sql, tbl_name FROM sqlite_master")
    return {(kind, name, " ".join(str(sql).split()), table) for kind, name, sql, table in listed}


def _named(part: Part) -> str:
    if part[0] in ("table", "index", "trigger", "view"):
        return f"the {part[0]} {part[1]!r}"
    if part[0] == "table_xinfo":
        return f"the column {part[2]!r} of the table {part[1]!r}"
    return f"a key of the table {part[1]!r}"
