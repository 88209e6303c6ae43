"""Numbered snapshots in a folder that containers share, and the ledger that says which count.

docs/storage.md has the steps of a write, and why the newest snapshot holds all that was
acknowledged. Knows nothing of SQL or voices.
"""

import hashlib
import os
import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from registry.errors import DatabaseLost
from registry.storage import private
from registry.storage.blobs import replacing

NAME = re.compile(r"(\d{12})-([0-9a-f]{16})\.db")
ABANDONED = "abandoned"
KEPT = 5  # snapshots


class Volume(Protocol):
    """The part of modal.Volume that is used; its methods raise StorageUnavailable."""

    def commit(self) -> None: ...
    def reload(self) -> None: ...


class Claims(Protocol):
    """The part of modal.Dict that is used; its methods raise StorageUnavailable."""

    def put(self, key: str, value: str, *, skip_if_exists: bool) -> bool: ...
    def get(self, key: str) -> Any: ...


class Mount:
    """The folder of a Volume, and the lock around all use of its files.

    Whoever opens files in it holds `gate`, and has closed them on leaving: a commit or reload fails
    over an open file, and meanwhile the folder may look empty.
    """

    def __init__(self, path: Path, volume: Volume) -> None:
        self.path, self._volume = path, volume
        self.gate = threading.RLock()
        self.dirty = False  # something was written that no commit is known to hold

    def commit(self) -> None:
        """Publish what was written: everyone who reloads from now on sees it."""
        with self.gate:
            self._volume.commit()
            self.dirty = False

    def reload(self) -> None:
        with self.gate:
            self._volume.reload()


@dataclass(frozen=True, order=True)
class Snapshot:
    """A whole database; its name says which number it has and what its bytes must be."""

    number: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.number:012d}-{self.digest}.db"


NOTHING = Snapshot(0, "")


class Ledger:
    """Records for each number who alone may try it, and its one outcome, which never changes."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._owner = secrets.token_hex(8)

    def claim(self, number: int) -> bool:
        """Claim a number; return True for the first who does."""
        return self._claims.put(f"claim {number}", self._owner, skip_if_exists=True)

    def is_claimed(self, number: int) -> bool:
        return self._claims.get(f"claim {number}") is not None

    def is_mine(self, number: int) -> bool:
        return bool(self._claims.get(f"claim {number}") == self._owner)

    def abandon(self, number: int, *, late: bool) -> str:
        """Settle a number as abandoned, and return its outcome, which may be another.

        `late` says that its snapshot may come to the Volume yet.
        """
        if late:  # before the outcome, so that whoever sees that sees this
            self._claims.put(f"late {number}", self._owner, skip_if_exists=True)
        return self.settle(number, ABANDONED)

    def is_late(self, number: int) -> bool:
        return self._claims.get(f"late {number}") is not None

    def settle(self, number: int, outcome: str) -> str:
        """Settle the outcome of a number unless it has one, and return what it is."""
        if self._claims.put(f"outcome {number}", outcome, skip_if_exists=True):
            return outcome
        return str(self._claims.get(f"outcome {number}"))

    def outcome(self, number: int) -> str | None:
        """Return the outcome of a number: a snapshot's name, ABANDONED, or None for now."""
        found = self._claims.get(f"outcome {number}")
        return None if found is None else str(found)

    def following(self, number: int) -> int:
        """Return the first number after this one that is not abandoned."""
        while self.outcome(number + 1) == ABANDONED:
            number += 1
        return number + 1


class Shelf:
    """The folder of snapshots that containers share; decides with the ledger which count."""

    def __init__(self, mount: Mount, ledger: Ledger) -> None:
        self._mount, self._ledger = mount, ledger

    @property
    def _folder(self) -> Path:
        return self._mount.path / "snapshots"

    def newest(self, known: Snapshot) -> Snapshot:
        """Reload, and return the highest snapshot that counts, or `known` if none above it does.

        An unsettled one is settled to count. DatabaseLost if one that counts is damaged or gone.
        """
        before = None
        while True:
            self._mount.reload()
            found = self._highest(known.number) or known
            following = self._ledger.following(found.number)
            if self._ledger.outcome(following) is None:
                self._withdraw_abandoned(found)
                return found
            if found == before:  # settled before this reload, which did not show it
                raise DatabaseLost(f"Snapshot {following} is gone. Restore a backup.")
            before = found

    def _highest(self, above: int) -> Snapshot | None:
        with self._mount.gate:
            present = sorted((s for s in self._present() if s.number > above), reverse=True)
            return next(filter(self._counts, present), None)

    def fetch(self, snapshot: Snapshot, target: Path) -> None:
        with self._mount.gate:
            private.touch(target)
            shutil.copyfile(self._folder / snapshot.name, target)

    def publish(self, source: Path, snapshot: Snapshot, base: Snapshot) -> None:
        """Commit a snapshot under its name; files come before the rows that name them."""
        with self._mount.gate:
            if self._mount.dirty:
                self._mount.commit()
            self._mount.dirty = True
            _copy(source, self._folder / snapshot.name)
            self._prune(base)
            self._mount.commit()

    def withdraw(self, *snapshots: Snapshot) -> None:
        """Remove snapshots that do not count, lest they do when the ledger has forgotten them."""
        with self._mount.gate:
            for snapshot in snapshots:
                (self._folder / snapshot.name).unlink(missing_ok=True)
            self._mount.commit()

    def _withdraw_abandoned(self, newest: Snapshot) -> None:
        """Remove what was abandoned above the newest that counts; its writer may be dead.

        An error here is the caller's: whoever goes on tells someone that those writes did not
        happen, and the ledger remembers that for a week only.
        """
        with self._mount.gate:
            above = [s for s in self._present() if s.number > newest.number]
            # One that nobody has settled is of a writer who is at it, and came with a reload since.
            abandoned = [s for s in above if self._ledger.outcome(s.number) not in (None, s.name)]
            if abandoned:
                self.withdraw(*abandoned)

    def _present(self) -> set[Snapshot]:
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        return {Snapshot(int(m[1]), m[2]) for m in map(NAME.fullmatch, names) if m}

    def _counts(self, snapshot: Snapshot) -> bool:
        outcome = self._ledger.outcome(snapshot.number)
        if outcome in (None, snapshot.name):
            if digest_of(self._folder / snapshot.name) != snapshot.digest:
                raise DatabaseLost(f"Snapshot {snapshot.name} is damaged. Restore a backup.")
            outcome = outcome or self._ledger.settle(snapshot.number, snapshot.name)
        return outcome == snapshot.name

    def _prune(self, base: Snapshot) -> None:
        """Remove old snapshots below one that counts; which of those above will count is open."""
        below = sorted(snapshot for snapshot in self._present() if snapshot.number < base.number)
        for snapshot in below[: -(KEPT - 2)]:
            (self._folder / snapshot.name).unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that whoever looks finds `target` whole or absent."""
    with open(source, "rb") as original, replacing(target) as made:
        shutil.copyfileobj(original, made)
