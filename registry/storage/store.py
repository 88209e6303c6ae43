"""VoiceStore: a row and its files as one unit. Synchronous; it knows nothing about HTTP or models.

Files are written first, then the row: a crash leaves an orphan file, never a voice without files.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from sqlmodel import Session

from registry.audio.clips import ReferenceClip
from registry.contract import ExtractedPrompt, ModelRef, PromptSource
from registry.errors import RegistryError, StorageFull
from registry.storage.blobs import make_folder
from registry.storage.data_dir import (
    DataDir,
    clip_key,
    conditioned_key,
    voice_prefix,
)
from registry.storage.database import Database, migrate, refuse_damage
from registry.storage.errors import storage_errors
from registry.storage.folder_lock import hold_files, may_remove, share_folder
from registry.storage.queries import find, find_row, refuse_taken
from registry.storage.reading import StoreReader
from registry.storage.rows.edits import VoiceEdit, apply, mark_deleted, record, refuse_stale
from registry.storage.rows.inserts import (
    NewVoice,
    add_voice,
    adopt_model,
    model_row,
)
from registry.storage.rows.old_versions import (
    ForgottenVersions,
    forget_old_versions,
    forgotten_files,
)
from registry.storage.rows.purge import (
    Forgotten,
    forget,
    forgettable,
    surplus,
    unfinished,
    unneeded,
)
from registry.storage.stored_voice import StoredVoice
from registry.storage.uploads import Upload, drop_abandoned

log = logging.getLogger("registry")


class VoiceStore(StoreReader):
    """Stores voices in a data directory: rows in its database, clips and prompts as blobs."""

    _moves_uploads = True  # the open file of an upload may itself become the clip
    use_noted_s = 60.0  # how exactly a key's last use is told

    def __init__(self, data: DataDir) -> None:
        """Open a directory, and keep restores from replacing it; raise FolderInUse during one.

        A directory that can't be written is opened too, if its schema is this program's.
        """
        self.data = data
        self.blobs = data.blobs
        with storage_errors(data.root, writing=True), ExitStack() as opening:
            opening.enter_context(self._share())
            data.create()
            drop_abandoned(data.uploads)
            self._db = opening.enter_context(self._open())
            self._opened = opening.pop_all()

    def _share(self) -> AbstractContextManager[object]:
        make_folder(self.data.root)
        return share_folder(self.data.root)

    def _open(self) -> Database:
        migrate(self.data)
        refuse_damage(self.data.database)
        return Database(self.data.database)

    def close(self) -> None:
        self._opened.close()

    # Writing

    def keep_clip(self, source: PromptSource, upload: Upload | None, clip: ReferenceClip) -> bool:
        """Store the clip, and what inference reads of it; return False if both were there.

        Without an `upload` the clip is that of a stored voice, and stays as it is.
        """
        with self._files, storage_errors(self.data.root, writing=True):
            moved = upload is not None and upload.keep(
                self.blobs, clip_key(source.clip_sha256), move=self._moves_uploads
            )
            return self.blobs.put(conditioned_key(source), clip.conditioned_wav) or moved

    def keep_transient(self, source: PromptSource, clip: ReferenceClip) -> None:
        """Store what inference reads of a clip not enrolled, until `drop_transient`."""
        with self._files:
            self.blobs.replace(conditioned_key(source), clip.conditioned_wav)

    def drop_transient(self, voice_id: str) -> None:
        with self._files:
            self.blobs.delete_all(voice_prefix(voice_id))

    def drop_unfinished(self, source: PromptSource, *, clip: bool) -> None:
        """Remove the prompt files, and the clip if `clip`, of work that got no row.

        What another row names stays. `insert` writes anew what goes meanwhile.
        """
        with self._db.read() as session, self._files:  # a write may be work for nothing
            if not unfinished(self.blobs, session, source, clip=clip):
                return
        with self.transaction() as session, self._removing():
            self._remove(unfinished(self.blobs, session, source, clip=clip))

    def transaction(self) -> AbstractContextManager[Session]:
        """Begin a write: what the block writes, to any table, is stored together or not at all.

        Nobody else writes meanwhile; rows follow files, so files come first in it.
        """
        return self._db.write()

    def insert(
        self,
        session: Session,
        new: NewVoice,
        upload: Upload,
        clip: ReferenceClip,
        prompt: ExtractedPrompt,
    ) -> StoredVoice:
        """Add a voice, last in the caller's transaction; raise NameTaken if its name is in use.

        Its files are written once more: now that nobody else writes, no clean-up can take them.
        """
        refuse_taken(session, new.name)
        self.keep_clip(new.source, upload, clip)
        add_voice(session, new, clip, prompt)
        return find(session, new.source.voice_id)

    def edit(self, reference: str, edit: VoiceEdit, expected: int | None) -> StoredVoice:
        """Edit a voice. Raises EditConflict if `expected` is given and is not its row_version.

        A new version makes the oldest go, unless a backup is being made: then the next one does.
        """
        with ExitStack() as held:
            forgotten = None
            with self.transaction() as session:
                voice = find(session, reference)
                refuse_stale(voice.row, expected)
                if edit.version is not None:  # as in `insert`: no clean-up can take these files now
                    self.keep_clip(edit.version.source, None, edit.version.clip)
                apply(session, voice, edit)
                session.flush()
                edited = find(session, voice.row.id)
                edited.public()  # what stays damaged is said, and nothing is changed
                if edit.version and held.enter_context(may_remove(self._held())):
                    forgotten = forget_old_versions(session, edited.row)
            if forgotten is not None:
                self._drop_forgotten(forgotten)
        return edited

    def _drop_forgotten(self, forgotten: ForgottenVersions) -> None:
        """Remove files of forgotten enrolments; log errors, for the edit is stored already."""
        try:
            with self._db.read() as session, self._files:  # a write may be work for nothing
                if not forgotten_files(self.blobs, session, forgotten):
                    return
            with self.transaction() as session, self._removing():
                self._remove(forgotten_files(self.blobs, session, forgotten))
        except (RegistryError, OSError) as error:
            log.warning("Files without a row are left to `voices doctor --repair`: %s", error)

    def delete(self, reference: str, expected: int | None) -> str:
        """Mark as deleted: the name is free at once, files and enrolments stay until `purge`.

        Works on a full disk too: the journal finds its room where the ballast was.
        """
        try:
            return self._delete(reference, expected)
        except StorageFull:
            if not self.data.drop_ballast():
                raise
            return self._delete(reference, expected)

    def _delete(self, reference: str, expected: int | None) -> str:
        with self.transaction() as session:
            row = find_row(session, reference)
            refuse_stale(row, expected)
            mark_deleted(session, row)
            return row.id

    def purge_surplus(self, keep: int) -> int:
        """Forget deleted voices, but for the last `keep`; return how many were forgotten."""
        return sum(map(self.purge, self.surplus(keep)))

    def surplus(self, keep: int) -> list[Sequence[str]]:
        """Return the ids that `purge_surplus` forgets, oldest first, one transaction a list."""
        with self._db.read() as session:
            return surplus(session, keep)

    def purge(self, voices: Sequence[str], most: int | None = None) -> int:
        """Remove deleted voices for good, rows first, then files; return how many were removed.

        At most the first `most` of those that may go; none during a backup, which needs their
        files.
        """
        with may_remove(self._held()) as free:
            with self._db.read() as session:  # a write is work for nothing where all must stay
                if not free or not self._forgettable(session, voices):
                    return 0
            with self._db.write(references=False) as session:
                forgotten = self._forgettable(session, voices)[:most]
                forget(session, forgotten)
            with self.transaction() as session, self._removing():
                self._remove(unneeded(self.blobs, session, forgotten))
        return len(forgotten)

    def _forgettable(self, session: Session, voices: Sequence[str]) -> list[Forgotten]:
        with self._files, storage_errors(self.data.root, writing=False):
            return forgettable(self.blobs, session, voices)

    @contextmanager
    def _removing(self) -> Iterator[None]:
        """Hold the files for a removal, in a transaction that keeps rows from appearing."""
        with self._files, storage_errors(self.data.root, writing=True):
            yield

    def _remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.blobs.delete(key)

    def tidy(self) -> None:
        """Remove what dead servers left of voices for one speech, an hour later."""
        with self._files, storage_errors(self.data.root, writing=True):
            self.data.drop_dead_transients()

    def holding_files(self) -> AbstractContextManager[None]:
        """Keep the files of all rows that are there when the block begins."""
        return hold_files(self._held())

    def _held(self) -> Path:
        return self.data.root / "clips"

    def record_features(
        self, voice: StoredVoice, prompt: ExtractedPrompt, warnings: Sequence[str]
    ) -> StoredVoice:
        """Record features made anew, and the warnings about clip and transcript found with them.

        Raises VoiceNotFound if the voice was deleted meanwhile, StorageUnavailable if it was edited
        so often that its enrolment is gone.
        """
        with self.transaction() as session:
            find_row(session, voice.row.id)
            record(session, voice, prompt, warnings)
        return self.get(voice.row.id)

    # The model in use

    def adopt_model(self, source: str, model: ModelRef) -> None:
        """Record the model at first use; raise ModelMismatch if the directory has another."""
        known = self.model_in_use()
        if known is not None and ModelRef(known.model_id, known.revision) == model:
            return
        with self.transaction() as session:
            adopt_model(session, source, model)

    def choose_model(self, source: str, model: ModelRef) -> None:
        """Change the model on purpose; every voice of another model is stale from now on."""
        with self.transaction() as session:
            session.merge(model_row(source, model))
