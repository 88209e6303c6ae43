"""A database whose truth is a row of numbered snapshots: see snapshots.py.

Every state is a file of its own on the container's disk. A write claims the next number, changes a
copy of the newest state, publishes that copy under its number, and counts only once the number is
settled in its favour; only then do readers see it.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlmodel import Session

from registry.errors import DatabaseLost, RegistryError, StorageUnavailable
from registry.storage import private, sqlite
from registry.storage.database import Database
from registry.storage.volume.snapshots import (
    NOTHING,
    Claims,
    Ledger,
    Mount,
    Shelf,
    Snapshot,
    digest_of,
)

PATIENCE_S = 45.0  # how long one write waits for another container's
EXPIRY_S = 20.0  # until a claim without an outcome is given up: several times what a write takes
LOOK_S = 0.2  # between two looks at another's claim
FRESH_S = 5.0  # for so long reads don't ask whether another container has written
MOST_ABANDONED = 16  # numbers above the newest state: each is asked about at every look


class SnapshotDatabase(Database):
    """A database that reads a local copy; a write is in every later snapshot once it returns."""

    def __init__(
        self, folder: Path, mount: Mount, claims: Claims, prepare: Callable[[Path], None]
    ) -> None:
        """Start with the newest snapshot; `folder` must be of this container alone.

        `prepare` brings a database file to the schema of this program, or makes it. Raises
        DatabaseLost for what only a backup mends, and StorageUnavailable.
        """
        self._local, self._prepare = folder, prepare
        self._ledger = Ledger(claims)
        self._shelf = Shelf(mount, self._ledger)
        self._stuck: tuple[int, float] = 0, 0.0  # a number someone claims, and since when we know
        self._looked_s = time.monotonic()
        self._base = self._shelf.newest(NOTHING)  # what reads see
        if self._base != NOTHING:
            self._shelf.fetch(self._base, self._file(self._base))
            _check(self._file(self._base))
        prepare(self._file(self._base))
        super().__init__(self._file(self._base))
        self._seal()

    @property
    def number(self) -> int:
        """The number of the snapshot that reads see; 0 before there is any."""
        return self._base.number

    @contextmanager
    def read(self) -> Iterator[Session]:
        self.look_around(FRESH_S)
        with super().read() as session:
            yield session

    def state(self) -> object:
        """Return the state that reads see; another container's writes are seen in FRESH_S."""
        self.look_around(FRESH_S)
        return self._base

    def look_around(self, after_s: float = 0.0) -> bool:
        """Fetch what other containers wrote, unless that was done less than `after_s` ago.

        Returns True if there was something new.
        """
        if time.monotonic() - self._looked_s < after_s or not self._turn.acquire(blocking=False):
            return False
        before = self._base
        try:
            self._looked_s = time.monotonic()
            with suppress(StorageUnavailable):  # then reads go on with what is known
                number = self._ledger.following(before.number)
                if self._ledger.outcome(number) is not None:
                    self._catch_up()
                elif self._ledger.is_claimed(number):
                    self._has_come(number)
            self._seal()
        finally:
            self._turn.release()
        return self._base != before

    @contextmanager
    def write(self, *, references: bool = True) -> Iterator[Session]:
        """Begin a transaction on a copy, which readers see once it is published.

        Raises StorageUnavailable if it can't be published.
        """
        with self._draft() as draft, _writing(draft, references) as session:
            yield session

    def replace(self, source: Path, in_turn: Callable[[Path], None]) -> None:
        """Publish another database in place of this one. Snapshots before it stay for a while.

        `in_turn` is called when no other write can come before it any more, with a copy of the
        state that is replaced.
        """
        with self._draft() as draft:
            in_turn(draft)
            shutil.copyfile(source, draft)
            self._prepare(draft)

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """Yield a copy of the newest state to change; publish it on leaving, or forget it."""
        with self._turn_to_write(-1):
            try:
                with self._in_turn() as draft:
                    yield draft
            except RegistryError as error:
                if not isinstance(error, StorageUnavailable):
                    self._seal()  # the client is told of the newest state
                raise

    @contextmanager
    def _in_turn(self) -> Iterator[Path]:
        """Do as `_draft` does, for a caller whose turn it is to write."""
        number, base = self._claimed(), self._base
        draft = self._local / "draft.db"
        private.touch(draft)
        shutil.copyfile(self._file(base), draft)
        tried = published = False
        try:
            yield draft
            snapshot = Snapshot(number, digest_of(draft))
            tried = True
            self._publish(draft, snapshot)
            published = True
        finally:
            if not published:
                with suppress(StorageUnavailable):  # else the next writer waits for EXPIRY_S
                    self._ledger.abandon(number, late=tried)
        self._take(snapshot, draft)

    def _seal(self) -> None:
        """Publish the newest state once more if a snapshot that was abandoned may come late.

        When a week without use has emptied the ledger, the highest snapshot counts: that must not
        be one of which clients were told, or saw, that it does not.
        """
        with suppress(StorageUnavailable):
            above = range(self._base.number + 1, self._ledger.following(self._base.number))
            if len(above) > MOST_ABANDONED or any(map(self._ledger.is_late, above)):
                with self._in_turn():
                    pass

    # Before a write: its number, and the newest state

    def _claimed(self) -> int:
        """Claim a number, all before which are in the newest state or abandoned; return it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            base, number = self._base, self._ledger.following(self._base.number)
            if self._ledger.claim(number):
                self._catch_up()  # the claims may be younger than the snapshots: look at both
                if self._base == base:
                    return number
                self._ledger.abandon(number, late=False)
            elif not self._has_come(number):
                if time.monotonic() > deadline_s:
                    raise StorageUnavailable(
                        "Another container is writing. Nothing was stored; try again."
                    )
                time.sleep(LOOK_S)

    def _has_come(self, number: int) -> bool:
        """See what came of a number that someone has claimed; when nothing does, abandon it.

        Returns False as long as it may still come.
        """
        self._catch_up()
        if self._base.number >= number:
            return True
        now_s = time.monotonic()
        if self._stuck[0] != number:
            self._stuck = number, now_s
        if now_s - self._stuck[1] <= EXPIRY_S and not self._ledger.is_mine(number):
            return False
        self._ledger.abandon(number, late=True)
        return True

    def _catch_up(self) -> None:
        newest = self._shelf.newest(self._base)
        if newest != self._base:
            fetched = self._local / "fetched.db"
            self._shelf.fetch(newest, fetched)
            _check(fetched)
            self._prepare(fetched)
            self._take(newest, fetched)

    # After a write

    def _publish(self, draft: Path, snapshot: Snapshot) -> None:
        """Publish a snapshot; raise unless it counts, whatever errors came on the way."""
        failed: StorageUnavailable | None = None
        try:
            self._shelf.publish(draft, snapshot, self._base)
        except StorageUnavailable as error:
            failed = error
        outcome = self._settled(snapshot, counts=failed is None)
        if outcome != snapshot.name:
            self._take_back(snapshot)
            reason = failed.detail if failed else "Another container took over."
            raise StorageUnavailable(f"Nothing was stored; try again. {reason}")

    def _take_back(self, snapshot: Snapshot) -> None:
        """Withdraw a snapshot that does not count.

        Raises StorageUnavailable if it may stay, and so count once the ledger is forgotten.
        """
        try:
            self._shelf.withdraw(snapshot)
        except StorageUnavailable as error:
            raise _not_known(error) from error

    def _settled(self, snapshot: Snapshot, *, counts: bool) -> str:
        try:
            if counts:
                return self._ledger.settle(snapshot.number, snapshot.name)
            return self._ledger.abandon(snapshot.number, late=True)
        except StorageUnavailable as error:
            raise _not_known(error) from error

    def _take(self, snapshot: Snapshot, file: Path) -> None:
        """Let readers see the new state from here on; those at work in the old one can finish."""
        old, new = self._file(self._base), self._file(snapshot)
        os.replace(file, new)
        self._base = snapshot
        self.reopen(new)
        for path in self._local.glob("state-*.db"):
            if path not in (old, new):  # a reader may be about to open the old one
                path.unlink()

    def _file(self, snapshot: Snapshot) -> Path:
        return self._local / f"state-{snapshot.number}.db"


def _not_known(error: StorageUnavailable) -> StorageUnavailable:
    return StorageUnavailable(
        f"It is not known whether this was stored: look, then repeat. {error.detail}"
    )


@contextmanager
def _writing(path: Path, references: bool) -> Iterator[Session]:
    with Database(path) as database, database.write(references=references) as session:
        yield session


def _check(path: Path) -> None:
    """Raise DatabaseLost for a file that is no sound database."""
    try:
        with sqlite.opened(path) as connection:
            faults = sqlite.quick_faults(connection, path)
    except sqlite.DatabaseError as error:
        faults = [str(error)]
    if faults:
        raise DatabaseLost(f"The newest snapshot is damaged: {faults[0]}. Restore a backup.")
