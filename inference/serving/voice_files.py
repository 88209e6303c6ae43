"""The files of voices: conditioned clips to read, prompt files to read and to keep. No torch."""

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.prompts.clips import read_conditioned
from inference.prompts.features import FILE_LIMIT_BYTES
from registry.contract import PromptRef, PromptSource
from registry.errors import PromptCorrupt, PromptMissing, StorageUnavailable
from registry.storage.blobs import BlobStore
from registry.storage.data_dir import (
    DataDir,
    conditioned_key,
    prompt_key,
    sha256_of,
    stored_prompt_key,
)


class VoiceFiles:
    """Reads and writes the files of a data directory of this machine."""

    def __init__(self, data: DataDir) -> None:
        self.blobs: BlobStore = data.blobs

    def clip(self, source: PromptSource) -> NDArray[np.float32]:
        """Read the conditioned clip, (N,) at 24 kHz; ExtractionFailed."""
        return read_conditioned(self.blobs, conditioned_key(source))

    def prompt(self, ref: PromptRef) -> bytes:
        """Read the prompt file as it is; PromptMissing, or PromptCorrupt if it can't be read."""
        key = stored_prompt_key(self.blobs, ref)
        if self.blobs.written_s(key) is None:
            raise PromptMissing(f"There are no prompt features for {ref.voice_id}.")
        try:
            return self.blobs.read(key, FILE_LIMIT_BYTES)
        except OSError as error:
            raise PromptCorrupt(
                f"The prompt file of {ref.voice_id} can't be read: {error}"
            ) from error

    def keep(self, ref: PromptRef, data: bytes) -> None:
        self.blobs.replace(prompt_key(ref), data)


class VolumeHandle(Protocol):
    """The part of modal.Volume that is used."""

    def commit(self) -> None: ...
    def reload(self) -> None: ...


class VolumeFiles(VoiceFiles):
    """Does it on a Volume that others write too: what is missing is looked for again, reloaded.

    Commit and reload fail over an open file, and may show an empty folder meanwhile, so that all
    who use the Volume here take turns. What is kept is committed before anyone hears of it.
    """

    def __init__(
        self, data: DataDir, volume: VolumeHandle, failures: tuple[type[Exception], ...]
    ) -> None:
        """`failures` are what commit and reload may raise; each becomes a StorageUnavailable."""
        super().__init__(data)
        self._volume, self._failures = volume, failures
        self._turn = threading.Lock()

    def clip(self, source: PromptSource) -> NDArray[np.float32]:
        with self._turn:
            if not self.blobs.exists(conditioned_key(source)):
                self._reload()
            return super().clip(source)

    def prompt(self, ref: PromptRef) -> bytes:
        with self._turn:
            try:
                data = super().prompt(ref)
            except (PromptMissing, PromptCorrupt):
                data = b""
            if sha256_of(data) == ref.sha256:
                return data
            self._reload()
            return super().prompt(ref)

    def keep(self, ref: PromptRef, data: bytes) -> None:
        with self._turn:
            super().keep(ref, data)
            try:
                self._volume.commit()
            except self._failures as error:
                raise StorageUnavailable(
                    f"The prompt file of {ref.voice_id} was not stored ({error!r})."
                ) from error

    def _reload(self) -> None:
        try:
            self._volume.reload()
        except self._failures as error:
            raise StorageUnavailable(
                f"The voices' Volume can't be read now ({error!r})."
            ) from error
