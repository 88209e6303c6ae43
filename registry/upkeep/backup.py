"""Backups: one tar of the rows and the files they name. restore.py has the way back.

Rows first, then files: files are written once, so those that a copy of the rows names are there
afterwards. Conditioned clips are left out, for they are made anew from the clips. It knows nothing
of HTTP or the command line; docs/storage.md has the format.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session, col, func, select

from registry.contract import PromptRef
from registry.errors import BackupRefused
from registry.storage import private, sqlite
from registry.storage.blobs import whole_file
from registry.storage.data_dir import clip_key, former_prompt_key, prompt_key, sha256_of
from registry.storage.database import Database, schema_revision
from registry.storage.store import VoiceStore
from registry.storage.tables import (
    STORED,
    Count,
    Counter,
    Features,
    Instant,
    Sha256,
    Voice,
    VoiceVersion,
    utc_now,
)
from registry.upkeep.kept_keys import forget_keys

FORMAT, VERSION = "voices-backup", 1
DATABASE, MANIFEST = "registry.db", "manifest.json"
MIB = 2**20
QUOTED = 300  # characters
LAYOUT = (  # every name that a member may have, and its largest size
    (re.compile(r"registry\.db"), 8 * 2**30 - 1),  # the most that a tar of the plain kind holds
    (re.compile(r"clips/[0-9a-f]{64}"), 20 * MIB),
    (re.compile(r"prompts/voice_[0-9a-f]{32}/[0-9a-f]{64}(-[0-9a-f]{16})?\.safetensors"), MIB),
    (re.compile(r"manifest\.json"), 256 * MIB),
)

MOST_FILES = 500_000  # as many as a manifest of the largest size can list
MOST_VALUES = 3 * MOST_FILES + 100  # of JSON in a manifest


Revision = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_]{1,32}$")]


class BackupFile(BaseModel):
    """The hash and size of one file in a backup."""

    model_config = STORED | ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: Count


class Manifest(BaseModel):
    """Lists what a backup holds. It is the last member, so a backup that was cut off has none.

    A restore trusts nothing in it: restore.py compares it with the files and the rows.
    """

    model_config = STORED | ConfigDict(frozen=True, extra="forbid")

    schema_revision: Revision
    created_at: Instant
    voices: Count
    deleted: Count  # voices that are marked so; their rows and files are in the backup too
    files: dict[str, BackupFile]
    missing: list[str]  # what rows name, but was missing or damaged where the backup was made

    @property
    def lost(self) -> list[str]:
        """The missing files that can't be made again from others: clips."""
        return [name for name in self.missing if name.startswith("clips/")]

    @property
    def size(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


@dataclass(frozen=True)
class Promised:
    """A file that a row names; its former name is where it may lie, or be in older backups."""

    sha256: str
    former_name: str


class _Sealed(BaseModel):
    """The manifest as it is written, with its hash; another version may have more fields."""

    model_config = STORED | ConfigDict(extra="allow")  # those of another version

    format: Literal["voices-backup"]
    version: Counter
    sha256: Sha256
    manifest: dict[str, Any]


def read_manifest(content: bytes) -> Manifest:
    """Parse a manifest; raise BackupRefused unless it is as it was written.

    Whether it tells the truth is not checked here.
    """
    try:
        sealed = _Sealed.model_validate(_parsed(content))
        if sealed.version != VERSION:
            raise BackupRefused(
                f"The backup is of format {sealed.version}; this program reads format {VERSION}."
            )
        if sealed.model_extra or sha256_of(_canonical(sealed.manifest)) != sealed.sha256:
            raise BackupRefused(f"{MANIFEST} in the backup is damaged.")
        manifest = Manifest.model_validate(sealed.manifest)
        if any(most_bytes(name) is None for name in manifest.files):
            raise ValueError("a name that no file of a backup has")
    except (ValueError, RecursionError) as error:
        raise BackupRefused(f"{MANIFEST} in the backup is damaged, or not ours.") from error
    return manifest


def _parsed(content: bytes) -> object:
    """Parse JSON; raise ValueError or RecursionError if it is bad or has too many values.

    Values are counted first, for they take far more memory than their text.
    """
    if sum(content.count(before) for before in (b"[", b"{", b",")) > MOST_VALUES:
        raise ValueError("more values than a manifest has")
    return json.loads(content.decode(), object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _packed(manifest: Manifest) -> bytes:
    content = manifest.model_dump()
    seal = sha256_of(_canonical(content))
    whole = {"format": FORMAT, "version": VERSION, "sha256": seal, "manifest": content}
    return json.dumps(whole, indent=1).encode()


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def most_bytes(name: str) -> int | None:
    """Return the largest size of a member; None for a name that none may have."""
    return next((most for pattern, most in LAYOUT if pattern.fullmatch(name)), None)


# Making one


def save_backup(store: VoiceStore, target: Path) -> Manifest:
    """Write a backup to a file that only its owner may read, and that is whole or not there.

    Replaces a file of that name. Raises BackupRefused, or OSError if it can't be written.
    """
    with whole_file(target.resolve()) as out:
        return write_backup(store, out)


def write_backup(store: VoiceStore, out: BinaryIO) -> Manifest:
    """Stream a backup to `out` while the store may be at work. BackupRefused if its rows are bad.

    A file that is missing or damaged is left out and named in the manifest: one bad clip must not
    keep all others from being saved.
    """
    with (
        store.holding_files(),
        tempfile.TemporaryDirectory(prefix="voices-") as folder,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        copy = Path(folder, DATABASE)
        _refuse_small_folder(store, copy.parent)
        store.copy_database(copy)
        forget_keys(copy)
        refuse_damaged(copy)
        promised = promised_files(copy)
        _refuse_too_much(copy, len(promised))
        return _write_members(store, copy, promised, tar)


def _refuse_small_folder(store: VoiceStore, folder: Path) -> None:
    """Refuse a folder too small for the copy, and for the same without what was deleted."""
    needed, free = 3 * store.database_bytes(), shutil.disk_usage(folder).free
    if needed > free:
        raise BackupRefused(
            f"The temporary folder {folder.parent} has {free:,} bytes free; a copy of the database "
            f"needs {needed:,}. Name a larger one in TMPDIR."
        )


def _refuse_too_much(copy: Path, files: int) -> None:
    """Refuse before the work what a restore could not take, and would refuse too late."""
    if files > MOST_FILES:
        raise BackupRefused(
            f"The voices here have {files:,} files; a backup holds at most {MOST_FILES:,}. Copy "
            "the data directory while no program uses it."
        )
    size, most = copy.stat().st_size, most_bytes(DATABASE) or 0
    if size > most:
        raise BackupRefused(f"{DATABASE} has {size:,} bytes; a backup holds at most {most:,}.")


def _write_members(
    store: VoiceStore, copy: Path, promised: Mapping[str, Promised], tar: tarfile.TarFile
) -> Manifest:
    missing: list[str] = []
    with copy.open("rb") as file:
        files = {DATABASE: _pack(tar, DATABASE, file)}
    for name, file_ in sorted(promised.items()):
        if (content := _content(store, name, file_)) is not None:
            files[name] = _pack(tar, name, BytesIO(content))
        else:
            missing.append(name)
    manifest = Manifest(
        schema_revision=schema_revision(copy) or "",
        created_at=utc_now(),
        files=files,
        missing=missing,
        **counts(copy),
    )
    _pack(tar, MANIFEST, BytesIO(_packed(manifest)))
    return manifest


def _content(store: VoiceStore, name: str, promised: Promised) -> bytes | None:
    """Return the bytes of a file; None if it is missing or damaged."""
    for at in (name, promised.former_name):
        content = store.read_blob(at)
        if sha256_of(content) == promised.sha256:
            return content
    return None


def _pack(tar: tarfile.TarFile, name: str, file: BytesIO | BufferedReader) -> BackupFile:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = (
        file.seek(0, os.SEEK_END),
        private.FILE,
        int(time.time()),
    )
    file.seek(0)
    tar.addfile(member, file)
    return BackupFile(sha256=digest, bytes=member.size)


def promised_files(database: Path) -> dict[str, Promised]:
    """Return the files that rows name, those of deleted voices too, by their names."""
    found: dict[str, Promised] = {}
    with rows_of(database) as session:
        for sha256 in session.exec(select(VoiceVersion.clip_sha256).distinct()):
            name = clip_key(str(sha256))
            found[name] = Promised(str(sha256), name)
        for row in session.exec(select(Features.voice_id, Features.fingerprint, Features.sha256)):
            ref = PromptRef(*map(str, row))
            found[prompt_key(ref)] = Promised(ref.sha256, former_prompt_key(ref))
    return found


def counts(database: Path) -> dict[str, int]:
    """Count live and deleted voices, as the manifest tells them."""
    with rows_of(database) as session:
        live = func.count(col(Voice.id)).filter(col(Voice.deleted_at).is_(None))
        voices, both = session.exec(select(live, func.count(col(Voice.id)))).one()
    return {"voices": voices, "deleted": both - voices}


@contextmanager
def rows_of(path: Path) -> Iterator[Session]:
    with Database(path) as database, database.read() as session:
        yield session


def refuse_damaged(path: Path) -> None:
    """Refuse a database with bad pages or references, or that does things by itself.

    It may be of any schema: its tables are checked once it is migrated.
    """
    if faults := sqlite.strange_faults(path, MIB):
        raise BackupRefused(f"{DATABASE} is damaged: {beginning(faults[0])}.")


def beginning(said: object) -> str:
    """Cut what a stranger's file may have written to as much as a person reads."""
    text = str(said)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]} …"
