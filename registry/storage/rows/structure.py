"""Compares the tables, columns, keys and indexes of a database with those that a registry has.

Knows no rows. A database may do nothing by itself: no trigger, no view, no generated column.
"""

from collections.abc import Iterator
from pathlib import Path

from sqlmodel import SQLModel

import registry.storage.keys
import registry.storage.tables  # noqa: F401  registers the tables, as does .keys
from registry.storage import sqlite

SchemaPart = tuple[object, ...]
UNLISTED = ("WITHOUT ROWID", "CHECK", "COLLATE", "CONFLICT", "GENERATED", "STRICT")
MIGRATED = "alembic_version"  # Alembic's own table


def wanted() -> set[SchemaPart]:
    """Return every column, key and index that the models ask for."""
    with sqlite.in_memory() as memory:
        SQLModel.metadata.create_all(sqlite.memory_engine(memory), checkfirst=False)
        return parts(memory)


def parts(connection: sqlite.Connection) -> set[SchemaPart]:
    found: set[SchemaPart] = set()
    for kind, name, sql in sqlite.named_schema(connection):
        if kind == "table" and name != MIGRATED:
            found |= {*_of_a_table(connection, name, sql)}
        elif kind != "table":
            found.add((kind, name, " ".join(str(sql).split())))
    return found


def _of_a_table(connection: sqlite.Connection, name: str, sql: str) -> Iterator[SchemaPart]:
    yield "table", name
    yield "table", name, *map(sql.upper().count, UNLISTED)  # what no description tells
    for kind, described in sqlite.described(connection, name):
        yield kind, name, *described


def faults(connection: sqlite.Connection) -> list[str]:
    """Describe what is missing or changed; what a newer program added is no fault.

    Triggers and views are faults always.
    """
    found, expected = parts(connection), wanted()
    said = [f"{_named(part)} is missing or changed" for part in expected - found]
    added = [part for part in found - expected if part[0] in ("trigger", "view")]
    return sorted(said + [f"{_named(part)} does not belong there" for part in added])


def differences(found: Path, fresh: Path) -> list[str]:
    """Describe where the statements of the schema differ, letter by letter.

    So strict, because a constraint can be written in many ways, or be hidden in a statement.
    """
    ours, expected = _statements(found), _statements(fresh)
    said = [f"{_named(part)} is missing or changed" for part in expected - ours]
    names = {part[:2] for part in expected}
    strange = [part for part in ours - expected if part[:2] not in names]
    return sorted(said + [f"{_named(part)} does not belong there" for part in strange])


def _statements(path: Path) -> set[SchemaPart]:
    with sqlite.opened(path) as connection:
        listed = sqlite.schema(connection)
    return {(kind, name, " ".join(str(sql).split()), table) for kind, name, sql, table in listed}


def _named(part: SchemaPart) -> str:
    if part[0] in ("table", "index", "trigger", "view"):
        return f"the {part[0]} {part[1]!r}"
    if part[0] == "column":
        return f"the column {part[2]!r} of the table {part[1]!r}"
    return f"a key of the table {part[1]!r}"
