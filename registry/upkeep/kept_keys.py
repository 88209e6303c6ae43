"""Keeps keys with their server when voices come or go: no backup has them, none is restored.

Whoever has a key of one server is no friend of another, and what was revoked since a backup was
made must not come back with it.
"""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.exc import DatabaseError

from registry.errors import RegistryError
from registry.storage import sqlite
from registry.storage.database import Database
from registry.storage.keys import ApiKey, KeyRow, key_rows, sound_keys


def forget_keys(database: Path) -> None:
    """Remove all keys from a copy of the database; what is removed is overwritten."""
    with Database(database) as opened, opened.write() as session:
        session.exec(delete(ApiKey))


def stored_keys(database: Path) -> Sequence[KeyRow]:
    """Return the sound keys of a database that nobody changes meanwhile."""
    with Database(database) as opened, opened.read() as session:
        return sound_keys(key_rows(session))


def keys_left(database: Path) -> Sequence[KeyRow] | None:
    """Return the sound keys of a database; none of a missing or older one, None if unreadable."""
    if not database.exists():
        return []
    try:
        with sqlite.opened(database) as connection:
            if not sqlite.has_table(connection, "api_key"):
                return []
        return stored_keys(database)
    except (sqlite.DatabaseError, DatabaseError, RegistryError):
        return None


def put_keys(database: Path, keys: Sequence[KeyRow]) -> None:
    """Put these keys in place of all that are there."""
    with Database(database) as opened, opened.write() as session:
        session.exec(delete(ApiKey))
        session.add_all(ApiKey(**key.model_dump()) for key in keys)
