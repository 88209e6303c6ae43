"""Checks that database, rows and files of a data directory agree with each other.

`repair` does only what loses nothing, and doing it twice changes nothing more. A clip that is gone
or damaged can't be repaired: it is reported, for a backup to mend. What is not ours is left alone.
Works on paths, not keys: it tells of what lies in the folders beside blobs, too.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from sqlmodel import Session, col, select

from registry.contract import PromptRef, PromptSource
from registry.names import is_voice_id, name_key, variants
from registry.storage import sqlite
from registry.storage.blobs import read_part, read_stored
from registry.storage.data_dir import DataDir, is_settled, is_sha256, sha256_of
from registry.storage.database import (
    NO_DATABASE,
    SCHEMA,
    Database,
    database_faults,
    migrate,
    schema_revision,
)
from registry.storage.errors import storage_errors
from registry.storage.folder_lock import share_folder
from registry.storage.queries import model_in_use as of_directory
from registry.storage.rows.inserts import index_name
from registry.storage.rows.renames import rename, renames
from registry.storage.rows.row_faults import RowFault, row_faults
from registry.storage.tables import Features, NameVariant, Voice, VoiceVersion
from registry.storage.uploads import drop_if_abandoned, is_abandoned

GONE = "is missing or damaged"
Severity = Literal["repairable", "repaired", "loss", "foreign", "model"]


@dataclass(frozen=True)
class NamedVoice:
    """A voice by id and name, as a finding shows it."""

    id: str
    name: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, how badly, and with which voices.

    `foreign` is what no program of ours put there; all else may be sound. `model` is a fault of the
    model's files, which can be downloaded again.
    """

    severity: Severity
    what: str
    voices: tuple[NamedVoice, ...] = ()  # those that it concerns


def examine(data: DataDir, *, read_data: bool, repair: bool) -> list[Finding]:
    """Return all that is wrong; with `read_data` every file is read and its SHA-256 compared.

    Nothing is repaired while the database itself is damaged: what its rows no longer tell would
    look like files that belong to no voice. Raises SchemaTooNew for a newer program's directory,
    FolderInUse while a backup is being restored.
    """
    with storage_errors(data.root, writing=repair):
        if faults := _database_faults(data):
            return [Finding("loss", f"registry.db: {fault}") for fault in faults]
        if schema_revision(data.database) is None:
            return []  # never used
        with share_folder(data.root):
            return _examine_files(data, read_data, repair)


def _database_faults(data: DataDir) -> list[str]:
    try:
        if schema_revision(data.database) is None:
            return [NO_DATABASE] if any(data.content_files()) else []
        with share_folder(data.root):
            migrate(data)
            return database_faults(data.database)
    except sqlite.DatabaseError as error:
        if not sqlite.is_damage(error):
            raise
        return [str(error)]


def _examine_files(data: DataDir, read_data: bool, repair: bool) -> list[Finding]:
    with Database(data.database) as database:
        return examine_files(data, database, nullcontext(), read_data, repair)


def examine_files(
    data: DataDir,
    database: Database,
    files: AbstractContextManager[object],
    read_data: bool,
    repair: bool,
    keep: Callable[[Sequence[Path]], None] = lambda paths: None,
) -> list[Finding]:
    """Examine all but the database itself, which is open, and return the findings.

    Files are only touched within `files`; `keep` is told of those that will be removed.

    Rows are read in a copy, and files after it, so that nobody waits meanwhile. The kinds of fault
    that were found are looked for again, for things may have changed: in another copy, or, to
    repair them, within a transaction.
    """
    with database.copy() as session:
        renamed = {one.voice_id for one in renames(session)}
        faulty = [f for f in row_faults(session) if f.field != "name" or f.voice_id not in renamed]
        faults = dict[tuple[Path, str], str]()
        for path, sha256 in _named_files(data, session):
            with files:
                faults[path, sha256] = _fault(path, sha256, read_data)
        with files:
            found = _Examination(data, session, faults, read_data, False, keep).findings(KINDS)
    wrong = [k for k, told in found.items() if any(one.severity != "foreign" for one in told)]
    if wrong:
        with database.write() if repair else database.copy() as session, files:
            again = _Examination(data, session, faults, read_data, repair, keep).findings(wrong)
        for kind, told in again.items():
            found[kind] = [one for one in told if repair or one in found[kind]]
    return [*map(_unbelieved, faulty), *chain.from_iterable(found.values())]


def _unbelieved(fault: RowFault) -> Finding:
    voices = (NamedVoice(fault.voice_id, fault.name),) if fault.voice_id else ()
    return Finding("loss", f"{fault.field} in a row is not valid: {fault.why}", voices)


def _named_files(data: DataDir, session: Session) -> Iterator[tuple[Path, str]]:
    """Yield the files that rows promise, with the SHA-256 that they must have."""
    for sha256 in filter(is_sha256, session.exec(select(VoiceVersion.clip_sha256).distinct())):
        yield data.clip(sha256), sha256
    for row in session.exec(select(Features)):
        if _names_a_file(row):
            yield data.stored_prompt(_ref(row)), row.sha256


def _names_a_file(row: Features) -> bool:
    """Tell whether a row can name a file; if not, the row itself is reported."""
    return is_sha256(row.fingerprint) and is_sha256(row.sha256) and is_voice_id(row.voice_id)


def _ref(row: Features) -> PromptRef:
    return PromptRef(row.voice_id, row.fingerprint, row.sha256)


def _fault(path: Path, sha256: str, read_data: bool) -> str:
    """Return why a file is not what it should be; nothing if it is."""
    try:
        if read_data:
            sound = sha256_of(read_stored(path)) == sha256
        else:
            sound = len(read_part(path, 0, 1)) > 0
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return "" if sound else GONE


@dataclass(frozen=True)
class _Examination:
    """Examines one kind of fault after another, with what was found of each file before.

    To repair, it needs the write lock, so that no row can appear for a file that it removes.
    """

    data: DataDir
    session: Session
    faults: Mapping[tuple[Path, str], str]  # as they were a moment ago
    read_data: bool
    repair: bool
    keep: Callable[[Sequence[Path]], None]

    def findings(self, kinds: Iterable["Examiner"]) -> dict["Examiner", list[Finding]]:
        return {kind: [*kind(self)] for kind in kinds}

    def names(self) -> Iterator[Finding]:
        found = renames(self.session)
        if self.repair:
            rename(self.session, found)
        for one in found:
            yield self._mend(
                str(one), NamedVoice(one.voice_id, one.new if self.repair else one.old)
            )

    def _mend(self, what: str, *voices: NamedVoice) -> Finding:
        return Finding("repaired" if self.repair else "repairable", what, voices)

    def clips(self) -> Iterator[Finding]:
        for sha256 in sorted(self._clip_hashes()):
            if fault := self._fault(self.data.clip(sha256), sha256):
                yield Finding("loss", f"clips/{sha256} {fault}", tuple(self._enrolled_with(sha256)))

    def _enrolled_with(self, sha256: str) -> Iterator[NamedVoice]:
        of_clip = col(VoiceVersion.clip_sha256) == sha256
        joined = select(Voice.id, Voice.name).join(VoiceVersion).where(of_clip).distinct()
        yield from (NamedVoice(*row) for row in self.session.exec(joined.order_by(Voice.name)))

    def prompts(self) -> Iterator[Finding]:
        """Find damaged prompts. A repair forgets them: they are made anew from their clips."""
        joined = select(Features, Voice.name).join(Voice, col(Voice.id) == Features.voice_id)
        for row, name in self.session.exec(joined).all():
            if not _names_a_file(row):
                continue
            path, voice = self.data.stored_prompt(_ref(row)), NamedVoice(row.voice_id, name)
            fault = self._fault(path, row.sha256)
            if fault == GONE:
                if self.repair:
                    self.session.delete(row)
                    if path.is_file() and not path.parent.is_symlink():
                        path.unlink()
                yield self._mend(f"prompts/{row.voice_id}/{path.name} {fault}", voice)
            elif fault:
                yield Finding("loss", f"prompts/{row.voice_id}/{path.name} {fault}", (voice,))

    def near_names(self) -> Iterator[Finding]:
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
            what = f"the index of near names misses {name!r}"
            yield self._mend(what, NamedVoice(voice_id, name))

    def orphans(self) -> Iterator[Finding]:
        self.session.flush()
        referred = set(self._referred())
        found = (
            *self.data.content_files(),
            *self.data.empty_folders(),
            *self.data.transients(),
        )
        orphans = [path for path in found if path not in referred]
        orphans = [*filter(self._is_left, sorted([*orphans, *self.data.leftovers()]))]
        if self.repair:
            self.keep(orphans)
        for path in orphans:  # none of an enrolment under way
            if self.repair:
                self._remove(path, path.parent not in referred)
            yield self._mend(f"{path.relative_to(self.data.root)} belongs to no voice")

    def _is_left(self, path: Path) -> bool:
        """Tell whether no work under way can need it; an upload's lock tells at once."""
        return is_abandoned(path) if path.parent == self.data.uploads else is_settled(path)

    def _remove(self, path: Path, with_folder: bool) -> None:
        """Remove a file or folder, and the prompt folder of an enrolment with its last file."""
        if path.parent.name == "transient":
            return shutil.rmtree(path)
        if path.parent == self.data.uploads:
            return drop_if_abandoned(path)
        if path.is_dir():
            return path.rmdir()
        path.unlink(missing_ok=True)
        if with_folder and path.parent.parent.name == "prompts":
            with suppress(OSError):  # it holds a younger file
                path.parent.rmdir()

    def _clip_hashes(self) -> set[str]:
        return {*filter(is_sha256, self.session.exec(select(VoiceVersion.clip_sha256)))}

    def _referred(self) -> Iterator[Path]:
        for sha256 in self._clip_hashes():
            yield self.data.clip(sha256)
            yield self.data.conditioned(PromptSource("", sha256, None))
        for voice_id in filter(is_voice_id, self.session.exec(select(Voice.id))):
            yield self.data.prompts(voice_id)
        for row in filter(_names_a_file, self.session.exec(select(Features))):
            yield self.data.stored_prompt(_ref(row))

    def strangers(self) -> Iterator[Finding]:
        for path in sorted(self.data.strangers()):
            where = str(path.relative_to(self.data.root))
            yield Finding("foreign", f"{ascii(where)[1:-1]} is no file of ours, and left alone")

    def _fault(self, path: Path, sha256: str) -> str:
        """Examine a file again only if it was not sound, or not named, a moment ago."""
        if self.faults.get((path, sha256)) == "":
            return ""
        return _fault(path, sha256, self.read_data)


Examiner = Callable[[_Examination], Iterator[Finding]]
KINDS: tuple[Examiner, ...] = (
    _Examination.names,
    _Examination.clips,
    _Examination.prompts,
    _Examination.near_names,
    _Examination.orphans,
    _Examination.strangers,
)


def model_in_use(data: DataDir) -> tuple[str, str] | None:
    """Return the name and revision of the voices' model; None before any was used."""
    if not data.database.exists() or schema_revision(data.database) is None:
        return None
    with Database(data.database) as database, database.read() as session:
        row = of_directory(session)
        return None if row is None else (row.source, row.revision)


def summary(data: DataDir) -> dict[str, object]:
    """Return what a person asks first about a data directory: place, schema, files, bytes."""
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
    except sqlite.DatabaseError:
        return "unreadable"
