"""Names for a shell that completes them, read at once, without a model, a lock or a migration."""

from pathlib import Path

from registry.names import name_key
from registry.storage import sqlite

BUSY_S = 0.5
LAST_CHARACTER = "\U0010ffff"
BEGINNING_SO = """
    SELECT name FROM voice WHERE deleted_at IS NULL AND name_key >= ? AND name_key < ?
    ORDER BY name_key LIMIT ?"""


def names_beginning(database: Path, beginning: str, most: int) -> list[str]:
    """Return up to `most` names, by name; none if the database is missing or unreadable now."""
    key = name_key(beginning)
    try:
        with sqlite.read_only(database, BUSY_S) as connection:
            rows = connection.execute(BEGINNING_SO, (key, key + LAST_CHARACTER, most))
            return [str(name) for (name,) in rows]
    except sqlite.Error:
        return []
