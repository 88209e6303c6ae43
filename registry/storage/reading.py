"""Reads of a store: rows as of one moment, and files that are compared with their hashes."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sqlmodel import Session

from registry.storage.blobs import BlobStore, StoredContent
from registry.storage.data_dir import DataDir, clip_key, stored_prompt_key
from registry.storage.database import Database
from registry.storage.errors import storage_errors
from registry.storage.queries import Visible, find, find_row, model_in_use, page, refuse_taken
from registry.storage.stored_voice import Page, StoredVoice
from registry.storage.tables import ModelInUse


class StoreReader:
    """Reads a store; the class that opens it says where its files and its database are."""

    data: DataDir
    blobs: BlobStore
    _db: Database
    _files: AbstractContextManager[object] = nullcontext()  # held around all that opens files

    def reading(self) -> AbstractContextManager[Session]:
        """Open a session that reads, whichever module's tables."""
        return self._db.read()

    def state(self) -> object:
        """Return what is equal to an earlier answer unless anybody has written a row since."""
        return self._db.state()

    def get(self, reference: str, only: Visible = None) -> StoredVoice:
        """Return a voice by id or name. Raises VoiceNotFound with the names that look alike.

        With `only`, a voice that is none of these counts as missing.
        """
        with self._db.read() as session:
            return find(session, reference, only)

    def id_of(self, reference: str, only: Visible) -> str:
        """Return the id of a voice, even of a damaged one. Raises VoiceNotFound."""
        with self._db.read() as session:
            return find_row(session, reference, only).id

    def page(
        self,
        limit: int,
        after: str | None,
        search: str,
        labels: Sequence[str],
        only: Visible = None,
    ) -> Page:
        with self._db.read() as session:
            return page(session, limit, after, search, labels, only)

    def refuse_taken(self, name: str) -> None:
        """Raise NameTaken before any work; `insert` checks again under the write lock."""
        with self._db.read() as session:
            refuse_taken(session, name)

    def clip_content(self, voice: StoredVoice) -> StoredContent:
        """Return the reference clip, to be read in parts. ClipDamaged if its bytes have changed."""
        sha256 = voice.enrolment.clip_sha256
        content = self._content(clip_key(sha256), sha256)
        if content is None:
            raise voice.damaged_clip()
        return content

    @contextmanager
    def open_clip(self, voice: StoredVoice) -> Iterator[BinaryIO]:
        """Open the reference clip for a decoder, at its first byte. Raises ClipDamaged."""
        sha256 = voice.enrolment.clip_sha256
        with (
            storage_errors(self.data.root, writing=False),
            self.blobs.open(clip_key(sha256)) as file,
        ):
            if file is None or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise voice.damaged_clip()
            file.seek(0)
            yield file

    def prompt_content(self, voice: StoredVoice) -> StoredContent:
        """Return the prompt file of the model in use; raise PromptNotReady, for it makes none."""
        ref = voice.ready_prompt()
        content = self._content(stored_prompt_key(self.blobs, ref), ref.sha256)
        if content is None:
            raise voice.damaged_prompt()
        return content

    def _content(self, key: str, sha256: str) -> StoredContent | None:
        """Return what is stored; None if there is none, or if its hash is another."""
        with self._files, storage_errors(self.data.root, writing=False):
            found, size = self.blobs.digest(key)
        return StoredContent(size, partial(self._read_part, key)) if found == sha256 else None

    def _read_part(self, key: str, start: int, end: int) -> bytes:
        with self._files, storage_errors(self.data.root, writing=False):
            return self.blobs.read_part(key, start, end)

    def read_blob(self, key: str) -> bytes:
        """Return the bytes of a blob; nothing if there is none."""
        with self._files, storage_errors(self.data.root, writing=False):
            return self.blobs.read(key)

    def database_bytes(self) -> int:
        return self._db.size()

    def copy_database(self, target: Path) -> None:
        """Copy all rows, as of one moment, to a new file."""
        self._db.copy_to(target)

    def model_in_use(self) -> ModelInUse | None:
        with self._db.read() as session:
            return model_in_use(session)
