"""VolumeStore: the same store over a Volume that containers share, as Modal has them.

Files are written once and committed before anyone is told their names; rows are in snapshots.
"""

from dataclasses import dataclass
from pathlib import Path

from registry.audio import ReferenceClip
from registry.database import Database, migrate
from registry.files import DataDir, PromptSource, make_folder
from registry.snapshots import Claims, Mount, SnapshotDatabase
from registry.store import VoiceStore


@dataclass(frozen=True)
class VolumeDir(DataDir):
    """Files on the Volume, the live database on the container's own disk."""

    local: Path

    @property
    def database(self) -> Path:
        return self.local / "registry.db"

    @property
    def backups(self) -> Path:
        return self.local / "backups"

    def create(self) -> None:
        """Only the local folder: writers make theirs on the Volume, which is never full."""
        make_folder(self.local)


class VolumeStore(VoiceStore):
    def __init__(self, mount: Mount, claims: Claims, local: Path) -> None:
        """`local` is a folder of this container alone. DatabaseLost, StorageUnavailable."""
        self._mount, self._claims, self._files = mount, claims, mount.gate
        super().__init__(VolumeDir(mount.path, local))

    def _open(self) -> Database:
        database = SnapshotDatabase(
            self.data.database, self._mount, self._claims, lambda: migrate(self.data)
        )
        if database.number == 0:  # the first start: from here on, no snapshot means a loss
            with database.write():
                pass
        return database

    def keep_clip(self, source: PromptSource, upload: bytes, clip: ReferenceClip) -> bool:
        with self._mount.gate:
            written = super().keep_clip(source, upload, clip)
            if written:
                self._mount.commit()
            return written
