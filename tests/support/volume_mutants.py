"""Stores over a Volume that are wrong, each in one way, to show that the kill test would notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.pool import NullPool
from sqlmodel import Session

from registry.storage.data_dir import DataDir
from registry.storage.database import Database, migrate
from registry.storage.volume.database import SnapshotDatabase
from registry.storage.volume.snapshots import (
    ABANDONED,
    Ledger,
    Mount,
    Shelf,
    Snapshot,
    _copy,
    digest_of,
)
from registry.storage.volume.store import VolumeDir, VolumeStore


class Uncommitted(Shelf):
    def publish(self, source: Path, snapshot: Snapshot, base: Snapshot) -> None:
        _copy(source, self._folder / snapshot.name)


class EarlyDatabase(SnapshotDatabase):
    """Answers before its commit, which is left to the platform."""

    def _publish(self, draft: Path, snapshot: Snapshot) -> None:
        self._shelf = Uncommitted(self._shelf._mount, self._ledger)
        super()._publish(draft, snapshot)


class AnswersEarly(VolumeStore):
    database = EarlyDatabase


class Trusting(Ledger):
    """Believes that it is alone."""

    def claim(self, number: int) -> bool:
        return True

    def settle(self, number: int, outcome: str) -> str:
        return outcome

    def outcome(self, number: int) -> str | None:
        return None


class UnclaimedDatabase(SnapshotDatabase):
    def __setattr__(self, name: str, value: Any) -> None:
        trusting = Trusting(value._claims) if name == "_ledger" else value
        super().__setattr__(name, trusting)


class NoClaims(VolumeStore):
    database = UnclaimedDatabase


class OneFile(Shelf):
    """Every snapshot has the same name, so a late one replaces a newer one."""

    def _highest(self, above: int) -> Snapshot | None:
        with self._mount.gate:
            path = self._folder / "current.db"
            if not path.exists():
                return None
            digest = digest_of(path)
        number = newest = above
        while (outcome := self._ledger.outcome(number + 1)) is not None:
            number += 1
            newest = newest if outcome == ABANDONED else number
        return Snapshot(newest, digest) if newest > above else None

    def fetch(self, snapshot: Snapshot, target: Path) -> None:
        with self._mount.gate:
            _copy(self._folder / "current.db", target)

    def publish(self, source: Path, snapshot: Snapshot, base: Snapshot) -> None:
        with self._mount.gate:
            _copy(source, self._folder / "current.db")
            self._mount.commit()

    def withdraw(self, snapshot: Snapshot) -> None:
        pass


class OneNameDatabase(SnapshotDatabase):
    def __setattr__(self, name: str, value: Any) -> None:
        one = OneFile(value._mount, value._ledger) if name == "_shelf" else value
        super().__setattr__(name, one)


class OneName(VolumeStore):
    database = OneNameDatabase


class LiveDatabase(Database):
    """The file itself is on the Volume, and is committed after each write."""

    number = 1

    def __init__(self, path: Path, mount: Mount) -> None:
        super().__init__(path)
        self._mount = mount

    def _open(self, path: Path) -> None:
        """Nothing stays open, or no commit would work."""
        super()._open(path)
        self._reading.pool = NullPool(self._reading.pool._creator)

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._mount.gate:
            self._reading.dispose()
            self._mount.reload()
            with super().write() as session:
                yield session
            self._reading.dispose()
            self._mount.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._mount.gate, super().read() as session:
            yield session

    def look_around(self) -> bool:
        return False


class LiveDir(VolumeDir):
    """Clips on their way in stay off the Volume: an open file would fail every commit."""

    @property
    def database(self) -> Path:
        return DataDir(self.root).database


class LiveOnTheMount(VolumeStore):
    def _open(self) -> Any:
        self.data = LiveDir(self._mount.path, self._local / "registry.db")
        migrate(self.data)
        self._mount.commit()
        return LiveDatabase(self.data.database, self._mount)


AT_RANDOM = (AnswersEarly, LiveOnTheMount, NoClaims)  # caught by kills and overlaps
