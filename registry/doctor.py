"""Holds the data directory against itself: database, references to files, files without references.

`repair` does only what loses nothing, and doing it twice changes nothing more. A clip that is gone
or damaged can't be repaired: it is reported, for a backup to mend.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy.exc import DatabaseError
from sqlmodel import Session, col, select

from registry.database import (
    BUSY_TIMEOUT_S,
    NO_DATABASE,
    SCHEMA,
    Database,
    is_damage,
    migrate,
    schema_revision,
)
from registry.files import DataDir, PromptRef, PromptSource, is_settled, sha256_of
from registry.folder_lock import share_folder
from registry.models import Features, NameVariant, Voice, VoiceVersion
from registry.names import name_key, variants
from registry.rows import index_name

Severity = Literal["repairable", "repaired", "loss"]


@dataclass(frozen=True)
class Finding:
    severity: Severity
    what: str


def examine(data: DataDir, *, read_data: bool, repair: bool) -> list[Finding]:
    """All that is wrong; with `read_data` every file is read and its sha256 compared.

    Nothing is repaired while the database itself is damaged: what its rows no longer tell would
    look like files that belong to no voice. Raises SchemaTooNew for a newer program's directory,
    FolderInUse while a backup is being restored.
    """
    try:
        if schema_revision(data.database) is None:
            lost = any(data.content_files())
            return [Finding("loss", f"registry.db: {NO_DATABASE}")] if lost else []
        with share_folder(data.root):
            faults = [Finding("loss", f"registry.db: {fault}") for fault in _database_faults(data)]
            return faults or _examine_files(data, read_data, repair)
    except (sqlite3.DatabaseError, DatabaseError) as error:
        if not is_damage(error):
            raise
        return [Finding("loss", f"registry.db: {str(error).splitlines()[0]}")]


def _database_faults(data: DataDir) -> list[str]:
    migrate(data)
    with closing(sqlite3.connect(data.database, timeout=BUSY_TIMEOUT_S)) as connection:
        rows = [*connection.execute("PRAGMA integrity_check")]
        rows += connection.execute("PRAGMA foreign_key_check")
    return [" ".join(map(str, row)) for row in rows if row[0] != "ok"]


def _examine_files(data: DataDir, read_data: bool, repair: bool) -> list[Finding]:
    database = Database(data.database)
    try:
        return examine_files(data, database, nullcontext(), read_data, repair)
    finally:
        database.close()


def examine_files(
    data: DataDir,
    database: Database,
    files: AbstractContextManager[object],
    read_data: bool,
    repair: bool,
) -> list[Finding]:
    """All but the database itself, which is open. Files are only touched within `files`.

    They are read between two transactions, so that nobody waits for gigabytes to be hashed.
    """
    with database.read() as session:
        named = list(_named_files(data, session))
    sound = set()
    for path, sha256 in named:
        with files:
            if _is_sound(path, sha256, read_data):
                sound.add((path, sha256))
    with database.write() if repair else database.read() as session, files:
        return list(_Examination(data, session, sound, read_data, repair).findings())


def _named_files(data: DataDir, session: Session) -> Iterator[tuple[Path, str]]:
    """The files that rows promise, with the sha256 they must have."""
    for sha256 in session.exec(select(VoiceVersion.clip_sha256).distinct()):
        yield data.clip(sha256), sha256
    for row in session.exec(select(Features)):
        yield data.prompt(PromptRef(row.voice_id, row.fingerprint, row.sha256)), row.sha256


def _is_sound(path: Path, sha256: str, read_data: bool) -> bool:
    if not read_data:
        return path.exists() and path.stat().st_size > 0
    return path.exists() and sha256_of(path.read_bytes()) == sha256


@dataclass(frozen=True)
class _Examination:
    """Under the write lock when it repairs, so that no row can appear for a file it removes."""

    data: DataDir
    session: Session
    sound: set[tuple[Path, str]]
    read_data: bool
    repair: bool

    def findings(self) -> Iterator[Finding]:
        yield from self._clips()
        yield from self._prompts()
        yield from self._near_names()
        yield from self._orphans()

    def _mend(self, what: str) -> Finding:
        return Finding("repaired" if self.repair else "repairable", what)

    def _clips(self) -> Iterator[Finding]:
        for sha256 in sorted(self._clip_hashes()):
            if not self._is_sound(self.data.clip(sha256), sha256):
                yield Finding("loss", f"clips/{sha256} is missing or damaged")

    def _prompts(self) -> Iterator[Finding]:
        """A damaged prompt is forgotten: the voice is stale then, and made anew from its clip."""
        for row in self.session.exec(select(Features)).all():
            path = self.data.prompt(PromptRef(row.voice_id, row.fingerprint, row.sha256))
            if self._is_sound(path, row.sha256):
                continue
            if self.repair:
                self.session.delete(row)
                path.unlink(missing_ok=True)
            yield self._mend(f"prompts/{row.voice_id}/{path.name} is missing or damaged")

    def _near_names(self) -> Iterator[Finding]:
        found = defaultdict[str, set[str]](set)
        for voice_id, variant in self.session.exec(
            select(NameVariant.voice_id, NameVariant.variant)
        ):
            found[voice_id].add(variant)
        live = select(Voice.id, Voice.name).where(col(Voice.deleted_at).is_(None))
        for voice_id, name in self.session.exec(live).all():
            wanted = variants(name_key(name))
            if found[voice_id] == wanted:
                continue
            if self.repair:
                index_name(self.session, voice_id, found[voice_id], wanted)
            yield self._mend(f"the index of near names misses {name!r}")

    def _orphans(self) -> Iterator[Finding]:
        self.session.flush()
        referred = set(self._referred())
        found = (*self.data.content_files(), *self.data.empty_folders())
        orphans = [path for path in found if path not in referred]
        for path in sorted([*orphans, *self.data.leftovers()]):
            if not is_settled(path):
                continue  # an enrolment may be under way
            if self.repair:
                self._remove(path, path.parent not in referred)
            yield self._mend(f"{path.relative_to(self.data.root)} belongs to no voice")

    def _remove(self, path: Path, with_folder: bool) -> None:
        """The prompt folder of an enrolment that got no row goes with its last file."""
        if path.is_dir():
            path.rmdir()
            return
        path.unlink(missing_ok=True)
        if with_folder and path.parent.parent.name == "prompts":
            with suppress(OSError):  # it holds a younger file
                path.parent.rmdir()

    def _clip_hashes(self) -> set[str]:
        return set(self.session.exec(select(VoiceVersion.clip_sha256)))

    def _referred(self) -> Iterator[Path]:
        for sha256 in self._clip_hashes():
            yield self.data.clip(sha256)
            yield self.data.conditioned(PromptSource("", sha256, None))
        for voice_id in self.session.exec(select(Voice.id)):
            yield self.data.prompts(voice_id)
        for row in self.session.exec(select(Features)):
            yield self.data.prompt(PromptRef(row.voice_id, row.fingerprint, row.sha256))

    def _is_sound(self, path: Path, sha256: str) -> bool:
        """Looked at again only if it was not sound, or not named, a moment ago."""
        return (path, sha256) in self.sound or _is_sound(path, sha256, self.read_data)


def summary(data: DataDir) -> dict[str, object]:
    """What a person asks first about a data directory."""
    files = list(data.content_files())
    return {
        "home": str(data.root),
        "schema": _schema(data),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _schema(data: DataDir) -> str:
    try:
        return schema_revision(data.database) or f"none yet (this program makes {SCHEMA})"
    except sqlite3.DatabaseError:
        return "unreadable"
