"""VolumeStore: the store over a Volume that containers share, as Modal has them.

Files are written once and committed before anyone is told their names; rows are in snapshots.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

from registry.audio.clips import ReferenceClip
from registry.contract import PromptSource
from registry.errors import ClipDamaged, StorageUnavailable, VoiceNotFound
from registry.storage.blobs import StoredContent, make_folder
from registry.storage.data_dir import DataDir
from registry.storage.database import migrate
from registry.storage.queries import Visible
from registry.storage.rows.purge import is_named
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.uploads import Upload
from registry.storage.volume.database import SnapshotDatabase
from registry.storage.volume.removed import RemovedClips
from registry.storage.volume.snapshots import Claims, Mount
from registry.upkeep.doctor import Finding, examine_files
from registry.upkeep.kept_keys import put_keys, stored_keys


@dataclass(frozen=True)
class VolumeDir(DataDir):
    """A data directory on the Volume, whose database file is on the container's own disk."""

    file: Path

    @property
    def database(self) -> Path:
        return self.file

    @property
    def backups(self) -> Path:
        return self.file.parent / "backups"

    @property
    def uploads(self) -> Path:
        """The folder of uploads; not on the Volume, which can't be committed with a file open."""
        return self.file.parent / "uploads"

    def create(self) -> None:
        """Make only the folder of the database: writers make theirs, and a Volume is never full."""
        make_folder(self.file.parent)


@dataclass(frozen=True)
class SharedVolume:
    """A modal.Volume, or what acts like one; `failures` are what its calls may raise."""

    volume: Any
    failures: tuple[type[Exception], ...]

    def commit(self) -> None:
        with said(self.failures):
            self.volume.commit()

    def reload(self) -> None:
        with said(self.failures):
            self.volume.reload()


@dataclass(frozen=True)
class SharedDict:
    """A modal.Dict, or what acts like one.

    `lineage` is the Volume's own id: claims on another Volume, that once had its name, are not
    claims on this one.
    """

    entries: Any
    lineage: str
    failures: tuple[type[Exception], ...]

    def put(self, key: str, value: str, *, skip_if_exists: bool) -> bool:
        with said(self.failures):
            name = f"{self.lineage} {key}"
            return bool(self.entries.put(name, value, skip_if_exists=skip_if_exists))

    def get(self, key: str) -> Any:
        with said(self.failures):
            return self.entries.get(f"{self.lineage} {key}")


@contextmanager
def said(failures: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise StorageUnavailable in place of these failures."""
    try:
        yield
    except failures as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageUnavailable(f"The storage failed. Try again later. ({reason})") from error


class VolumeStore(VoiceStore):
    """A VoiceStore whose files are on a Volume and whose rows are in snapshots on it."""

    database: type[SnapshotDatabase] = SnapshotDatabase
    _db: SnapshotDatabase
    _moves_uploads = False  # no file on a Volume is open when it is committed
    use_noted_s = 3600.0  # every write is a copy of the whole database

    def __init__(self, mount: Mount, claims: Claims, local: Path) -> None:
        """Open the Volume; `local` must be a folder of this container alone.

        Raises DatabaseLost and StorageUnavailable.
        """
        self._mount, self._claims, self._local, self._files = mount, claims, local, mount.gate
        data = VolumeDir(mount.path, local / "registry.db")
        self._removed = RemovedClips(mount, data)
        super().__init__(data)

    def _share(self) -> AbstractContextManager[object]:
        return nullcontext()  # a Volume is never exchanged, and a folder that is open blocks it

    def _open(self) -> SnapshotDatabase:
        database = self.database(self._local, self._mount, self._claims, self._migrate)
        if database.number == 0:  # the first start: from here on, no snapshot means a loss
            with database.write():
                pass
        return database

    def _migrate(self, path: Path) -> None:
        migrate(VolumeDir(self._mount.path, path))

    def get(self, reference: str, only: Visible = None) -> StoredVoice:
        """Return a voice; look again if another container may have written it a moment ago."""
        try:
            return super().get(reference, only)
        except VoiceNotFound:
            if not self._db.look_around():
                raise
        return super().get(reference, only)

    def clip_content(self, voice: StoredVoice) -> StoredContent:
        try:
            return super().clip_content(voice)
        except ClipDamaged:
            if not self._put_back(voice.enrolment.clip_sha256):
                raise
        return super().clip_content(voice)

    @contextmanager
    def open_clip(self, voice: StoredVoice) -> Iterator[BinaryIO]:
        """Copy the clip to the container's own disk: the Volume must not wait for a decoder."""
        with TemporaryFile(dir=self._local) as copy:
            try:
                self._copy_clip(voice, copy)
            except ClipDamaged:
                if not self._put_back(voice.enrolment.clip_sha256):
                    raise
                self._copy_clip(voice, copy)
            copy.seek(0)
            yield copy

    def _copy_clip(self, voice: StoredVoice, copy: IO[bytes]) -> None:
        with self._mount.gate, super().open_clip(voice) as clip:
            shutil.copyfileobj(clip, copy)

    def _put_back(self, sha256: str) -> bool:
        """Put back a clip whose removal never counted; return whether a row names it."""
        if not self._removed.has(sha256):
            return False
        with self.transaction() as session:
            if named := is_named(session, sha256):
                self._removed.put_back(sha256)
            return named

    def keep_clip(self, source: PromptSource, upload: Upload | None, clip: ReferenceClip) -> bool:
        """Store the clip; every container can read the files once this returns."""
        with self._mount.gate:
            known, self._mount.dirty = self._mount.dirty, True
            written = super().keep_clip(source, upload, clip)
            if known or written:
                self._mount.commit()
            self._mount.dirty = False
            return written

    def keep_transient(self, source: PromptSource, clip: ReferenceClip) -> None:
        with self._mount.gate:
            super().keep_transient(source, clip)
            self._mount.commit()

    def drop_transient(self, voice_id: str) -> None:
        """Remove a transient voice; reload first, for inference wrote in another container."""
        with self._mount.gate:
            self._mount.reload()
            super().drop_transient(voice_id)
            self._mount.commit()

    def drop_unfinished(self, source: PromptSource, *, clip: bool) -> None:
        """Remove unfinished work; reload first, for inference wrote in another container."""
        self._mount.reload()
        super().drop_unfinished(source, clip=clip)

    @contextmanager
    def _removing(self) -> Iterator[None]:
        """Leave removals uncommitted: the snapshot of the transaction around them commits them."""
        with super()._removing():
            self._mount.dirty = True
            yield

    def _remove(self, keys: Sequence[str]) -> None:
        self._removed.keep(map(self.data.blobs.path, keys))
        self._mount.dirty = True
        super()._remove(keys)

    def tidy(self) -> None:
        """Remove leftovers, and also put right, or finish, what removals have left."""
        with self._mount.gate:
            self._mount.reload()
            if self.data.drop_dead_transients():
                self._mount.commit()
        if self._removed.is_any():
            with self.transaction() as session:
                self._removed.finish(partial(is_named, session))

    def _held(self) -> Path:
        """Return a local folder: a backup in another container has the files of its last reload."""
        return self._local  # a backup in another container has the files of its last reload

    def restore(self, unpacked: DataDir) -> None:
        """Make the voices here those of a backup that was unpacked and checked; keys stay.

        Files of the voices before stay until `examine` finds that they belong to none.
        """
        root = unpacked.root
        keys = [path.relative_to(root).as_posix() for path in unpacked.content_files()]

        def put(missing_alone: bool) -> None:
            with self._mount.gate:
                self._mount.dirty = True
                for key in keys:
                    if not (missing_alone and self.blobs.exists(key)):
                        self.blobs.put(key, unpacked.blobs.read(key))

        def in_turn(replaced: Path) -> None:
            put(missing_alone=True)  # with a number of ours, no purge takes what was there already
            put_keys(unpacked.database, stored_keys(replaced))

        put(missing_alone=False)
        self._mount.commit()
        self._db.replace(unpacked.database, in_turn)

    def examine(self, *, read_data: bool, repair: bool) -> list[Finding]:
        """Return what `voices doctor` finds in a local directory, once this one is tidy."""
        self.tidy()
        keep = self._removed.keep
        return examine_files(self.data, self._db, self._files, read_data, repair, keep)
