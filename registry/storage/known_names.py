"""Names for a shell that completes them: read at once, without a model, a lock or a migration."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from registry.names import name_key

BUSY_S = 0.5
LAST_CHARACTER = "\U0010ffff"
BEGINNING_SO = """
    SELECT name FROM voice WHERE deleted_at IS NULL AND name_key >= ? AND name_key < ?
    ORDER BY name_key LIMIT ?"""


def names_beginning(database: Path, beginning: str, most: int) -> list[str]:
    """None of a database that is not there, or can't be read now."""
    key = name_key(beginning)
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=ro", timeout=BUSY_S, uri=True)
        ) as connection:
            rows = connection.execute(BEGINNING_SO, (key, key + LAST_CHARACTER, most))
            return [str(name) for (name,) in rows]
    except sqlite3.Error:
        return []
