"""Restores a backup: it is unpacked beside the directory, checked whole, then swapped in at once.

A backup is not trusted: neither its names and sizes nor its rows. backup.py has the format.
"""

import ctypes
import hashlib
import os
import secrets
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from sqlalchemy.exc import DatabaseError

from registry.errors import BackupRefused, DatabaseDamaged, SchemaTooNew
from registry.names import variants
from registry.storage import private, sqlite
from registry.storage.blobs import make_folder, sync_folder
from registry.storage.data_dir import DataDir
from registry.storage.database import SCHEMA, Database, migrate, schema_revision
from registry.storage.folder_lock import own_folder
from registry.storage.rows import structure
from registry.storage.rows.old_versions import forget_all_old_versions
from registry.storage.rows.renames import rename, renames
from registry.storage.rows.row_faults import row_faults
from registry.storage.tables import utc_now
from registry.upkeep.backup import (
    DATABASE,
    MANIFEST,
    MIB,
    MOST_FILES,
    BackupFile,
    Manifest,
    beginning,
    counts,
    most_bytes,
    promised_files,
    read_manifest,
    refuse_damaged,
    rows_of,
)
from registry.upkeep.kept_keys import forget_keys, keys_left, put_keys

BLOCK = tarfile.BLOCKSIZE
PART_BYTES = MIB
SPARE_BYTES = 16 * MIB  # on the disk, beside what is unpacked
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2 (Linux); renamex_np (macOS) has the same 2


@dataclass(frozen=True)
class Restored:
    """The manifest of a restored backup, and where the directory from before it is."""

    manifest: Manifest
    before: Path | None  # where the directory is now that was there before
    keys_lost: bool = False  # those that were there before can't be read


# Reading one


def unpack_backup(file: BinaryIO, root: Path) -> Manifest:
    """Unpack into a new folder, and check all that can be checked; `file` is only read forward.

    The folder is a data directory then, of this program's schema, and on the disk. Raises
    BackupRefused, which names what is wrong; OSError, of a full disk for example.
    """
    unpacked: dict[str, BackupFile] = {}
    members = _members(file)
    for name, size in members:
        if name == MANIFEST:
            manifest = read_manifest(b"".join(_parts(file, name, size)))
            break
        unpacked[name] = _unpack(file, name, size, root / name)
    else:
        raise BackupRefused("The backup ends before its manifest: it was cut off, or is none.")
    if next(members, None) is not None:
        raise BackupRefused("Something follows the manifest of the backup.")
    _refuse_differences(unpacked, manifest.files)
    _refuse_bad_rows(DataDir(root), manifest)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        sync_folder(folder)
    return manifest


def _members(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield name and size of each member; read its bytes before asking for the next.

    Headers are read here one by one, not by a TarFile, so that none can mean more than it says: no
    links, no devices, no sparse files, no names and sizes from other headers.
    """
    seen: set[str] = set()
    last = "its beginning"
    while any(block := file.read(BLOCK)):
        name, size = _header(block, last)
        if name in seen:
            raise BackupRefused(f"{name} is in the backup twice.")
        if len(seen) > MOST_FILES + 1:  # the database and the manifest beside them
            raise BackupRefused(f"The backup holds more than {MOST_FILES:,} files.")
        yield name, size
        file.read(-size % BLOCK)
        seen.add(name)
        last = name


def _header(block: bytes, last: str) -> tuple[str, int]:
    try:
        member = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
    except tarfile.TarError as error:
        raise BackupRefused(f"The backup is damaged, or is none: after {last}, {error}.") from error
    if member.type != tarfile.REGTYPE or (most := most_bytes(member.name)) is None:
        raise BackupRefused(f"{member.name!r} does not belong into a backup of voices.")
    if not 0 <= member.size <= most:
        raise BackupRefused(
            f"{member.name} says that it has {member.size:,} bytes, which it can't."
        )
    return member.name, member.size


def _parts(file: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    while size:
        part = file.read(min(size, PART_BYTES))
        if not part:
            raise BackupRefused(f"The backup ends within {name}: it was cut off.")
        size -= len(part)
        yield part


def _unpack(file: BinaryIO, name: str, size: int, target: Path) -> BackupFile:
    make_folder(target.parent)
    digest = hashlib.sha256()
    with open(target, "xb", opener=private.opener) as out:
        for part in _parts(file, name, size):
            digest.update(part)
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    return BackupFile(sha256=digest.hexdigest(), bytes=size)


def _refuse_differences(
    unpacked: Mapping[str, BackupFile], listed: Mapping[str, BackupFile]
) -> None:
    for name in sorted(unpacked.keys() | listed.keys()):
        if name not in unpacked:
            raise BackupRefused(f"{name} is listed in the backup's manifest, but not there.")
        if name not in listed:
            raise BackupRefused(f"{name} is in the backup, but not listed in its manifest.")
        if unpacked[name] != listed[name]:
            raise BackupRefused(f"{name} in the backup is damaged.")


def _refuse_bad_rows(data: DataDir, manifest: Manifest) -> None:
    """Refuse rows unless they are a registry's, sound, and name just the files that are here."""
    refuse_damaged(data.database)
    if schema_revision(data.database) != manifest.schema_revision:
        raise BackupRefused(f"{DATABASE} in the backup is of another schema than listed.")
    try:
        migrate(data)
        if schema_revision(data.database) != SCHEMA:  # usable, but what is in it can't be judged
            raise SchemaTooNew("")
        _refuse_other_tables(data.database)
        forget_keys(data.database)
        _name_anew(data.database)
        _refuse_unbelieved_rows(data.database)
        _refuse_untrue_counts(data.database, manifest)
        _refuse_strange_files(data.database, manifest)
        _index_names_anew(data.database)
        forget_all_old_versions(data)
    except SchemaTooNew as error:
        raise BackupRefused(
            f"The backup has schema {manifest.schema_revision}, which a newer voice-registry "
            f"wrote; this one knows schemas up to {SCHEMA}. Install the newer program."
        ) from error
    except (DatabaseError, DatabaseDamaged) as error:
        raise BackupRefused(
            f"{DATABASE} in the backup is no registry's: {beginning(error)}."
        ) from error


def _refuse_other_tables(database: Path) -> None:
    with TemporaryDirectory(dir=database.parent) as folder:
        fresh = DataDir(Path(folder))
        migrate(fresh)
        faults = structure.differences(database, fresh.database)
    if faults:
        raise BackupRefused(f"{DATABASE} in the backup is no registry's: {beginning(faults[0])}.")


def _refuse_unbelieved_rows(database: Path) -> None:
    """Refuse rows that no request could have made: a backup is checked like an upload."""
    with rows_of(database) as session:
        if fault := next(row_faults(session), None):
            raise BackupRefused(f"The backup can't be believed: {beginning(fault)}.")


def _name_anew(database: Path) -> None:
    """Rename what an older version took and this one would not; a key follows from its name."""
    with Database(database) as opened, opened.write() as session:
        rename(session, renames(session))


def _index_names_anew(database: Path) -> None:
    """Make the index of near names from the names; that in the backup is not looked at."""
    with sqlite.opened(database) as connection, connection:
        connection.execute("DELETE FROM name_variant")
        live = connection.execute("SELECT id, name_key FROM voice WHERE deleted_at IS NULL")
        rows = ((variant, id_) for id_, key in live.fetchall() for variant in variants(key))
        connection.executemany("INSERT INTO name_variant (variant, voice_id) VALUES (?, ?)", rows)


def _refuse_untrue_counts(database: Path, manifest: Manifest) -> None:
    said = {"voices": manifest.voices, "deleted": manifest.deleted}
    if (found := counts(database)) != said:
        raise BackupRefused(
            f"The backup's manifest tells of {said['voices']:,} voices and {said['deleted']:,} "
            f"deleted ones; {found['voices']:,} and {found['deleted']:,} are in its rows."
        )


def _refuse_strange_files(database: Path, manifest: Manifest) -> None:
    """Refuse unless the files are those that rows name, but for ones told to be missing."""
    stored = {name: entry.sha256 for name, entry in manifest.files.items() if name != DATABASE}
    missing = {*manifest.missing}
    promised = promised_files(database)
    if len(promised) > MOST_FILES:
        raise BackupRefused(f"The rows of the backup name more than {MOST_FILES:,} files.")
    for name, file in promised.items():
        names = {name, file.former_name}
        found = {stored[name] for name in names & stored.keys()}
        is_so = not found if names & missing else found == {file.sha256}
        if most_bytes(name) is None or not is_so:
            raise BackupRefused(f"{name!r}: the backup's rows and files contradict each other.")
    known = promised.keys() | {file.former_name for file in promised.values()}
    if unnamed := stored.keys() - known:
        raise BackupRefused(f"{min(unnamed)!r} is in the backup, but no row of it names it.")
    if len(missing) < len(manifest.missing):
        raise BackupRefused(f"{MANIFEST} in the backup names a missing file twice.")
    if unnamed := missing - known:
        raise BackupRefused(
            f"{beginning(min(unnamed))!r} is told to be missing, but no row names it."
        )


# Putting one back


def holds_voices(home: Path) -> bool:
    """Tell whether a directory has files of voices."""
    return any(DataDir(home).content_files())


def restore_backup(file: BinaryIO, home: Path) -> Restored:
    """Make `home` what the backup holds, in one step, after all of it was checked; its keys stay.

    A directory that is there stays, under the name in the answer. Raises BackupRefused, FolderInUse
    while a store is open there, OSError.
    """
    home = home.resolve()
    if home.is_mount():
        raise BackupRefused(f"{home} is a mount and can't be moved: restore to a folder inside it.")
    make_folder(home.parent)
    _refuse_small_disk(file, home.parent)
    with own_folder(home), _new_folder(_beside(home, "restoring", secrets.token_hex(4))) as new:
        manifest = unpack_backup(file, new)
        keys = keys_left(DataDir(home).database)
        put_keys(DataDir(new).database, keys or [])
        return Restored(manifest, before=_swap(new, home), keys_lost=keys is None)


def leftovers(home: Path) -> list[Path]:
    """Return what killed restores have left: what they had unpacked, or the old directory."""
    home = home.resolve()
    beginning = _beside(home, "restoring", "").name
    beside = home.parent.iterdir() if home.parent.is_dir() else ()
    return sorted(path for path in beside if path.name.startswith(beginning))


def _beside(home: Path, what: str, which: str) -> Path:
    return home.with_name(f"{home.name}.{what}-{which}")


def _refuse_small_disk(file: BinaryIO, folder: Path) -> None:
    """Refuse a disk with less room than the tar's size; that of a pipe is not known."""
    needed, free = os.fstat(file.fileno()).st_size + SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise BackupRefused(f"The disk has {free:,} bytes free; the backup needs {needed:,}.")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Make a folder, and remove it on leaving unless a swap has given its name to another."""
    private.make(path)
    made = path.stat().st_ino
    try:
        yield path
    finally:
        if path.exists() and path.stat().st_ino == made:
            shutil.rmtree(path)


def _swap(new: Path, home: Path) -> Path | None:
    """Put `new` in place of `home` by one rename, so that `home` is never missing or half.

    Returns where the folder from before is now, if it held anything.
    """
    before = None
    if any(home.iterdir()):
        _exchange(new, home)
        sync_folder(home.parent)
        before = _beside(home, "before-restore", utc_now().replace(":", ""))
        _close(new)
        os.rename(new, before)
    else:
        os.rename(new, home)
    sync_folder(home.parent)
    return before


def _close(folder: Path) -> None:
    """Close the folder from before to others: it holds voices, and nobody gets past this folder."""
    with suppress(PermissionError):  # another account's, which is its own to close
        folder.chmod(private.FOLDER)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders in one step of the file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, EXCHANGE)
    else:
        failed = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE)
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise BackupRefused(
            f"This system can't exchange two folders ({reason}). Move {other} away yourself, then "
            "restore again."
        )
