"""A SQLite database whose truth is a row of numbered snapshots in a folder that containers share.

The live file is on the container's own disk. A write claims the next number, changes the live file,
publishes a copy of it under that number, and counts only once the number is settled in its favour.
docs/storage.md has the steps, and why the newest snapshot holds all that was acknowledged. Knows
nothing of voices; the folder is shared by a Volume, the claims by a Dict, of Modal or alike.
"""

import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlmodel import Session

from registry.database import Database
from registry.errors import DatabaseLost, StorageUnavailable
from registry.files import TMP_PREFIX, make_folder, sync_folder

NAME = re.compile(r"(\d{12})-([0-9a-f]{16})\.db")
ABANDONED = "abandoned"
KEPT = 5  # snapshots
WRITERS = 16  # that may wait for their turn
PATIENCE_S = 30.0  # of one write, for another container's
EXPIRY_S = 20.0  # of a claim that nothing comes of: several times what a write takes
LOOK_S = 0.2


class Volume(Protocol):
    """What of modal.Volume is used; both raise StorageUnavailable."""

    def commit(self) -> None: ...
    def reload(self) -> None: ...


class Claims(Protocol):
    """What of modal.Dict is used; both raise StorageUnavailable."""

    def put(self, key: str, value: str, *, skip_if_exists: bool) -> bool: ...
    def get(self, key: str) -> Any: ...


class Mount:
    """A Volume's folder. Whoever opens files in it holds `gate`, and has closed them on leaving:
    a commit or reload fails over an open file, and meanwhile the folder may look empty."""

    def __init__(self, path: Path, volume: Volume) -> None:
        self.path, self._volume = path, volume
        self.gate = threading.RLock()

    def commit(self) -> None:
        """Everyone who reloads from now on sees what was written here."""
        with self.gate:
            self._volume.commit()

    def reload(self) -> None:
        with self.gate:
            self._volume.reload()


@dataclass(frozen=True, order=True)
class Snapshot:
    """A whole database; its name says what its bytes must be."""

    number: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.number:012d}-{self.digest}.db"


NOTHING = Snapshot(0, "")


class Ledger:
    """Whose numbers are: one owner may try a number, and one outcome is settled for ever."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._owner = secrets.token_hex(8)

    def claim(self, number: int) -> bool:
        """True for the first who asks."""
        return self._claims.put(f"claim {number}", self._owner, skip_if_exists=True)

    def is_mine(self, number: int) -> bool:
        return bool(self._claims.get(f"claim {number}") == self._owner)

    def settle(self, number: int, outcome: str) -> str:
        """The outcome of a number: this one if none was settled before."""
        if self._claims.put(f"outcome {number}", outcome, skip_if_exists=True):
            return outcome
        return str(self._claims.get(f"outcome {number}"))

    def outcome(self, number: int) -> str | None:
        found = self._claims.get(f"outcome {number}")
        return None if found is None else str(found)


class SnapshotDatabase(Database):
    """Reads are local. A write that returns is in every snapshot from then on."""

    def __init__(
        self, path: Path, mount: Mount, claims: Claims, prepare: Callable[[], None]
    ) -> None:
        """Starts with the newest snapshot, which is copied to `path`; DatabaseLost if it is broken.

        `prepare` brings the file at `path` to the schema of this program, or makes it.
        """
        super().__init__(path)
        self._path, self._base_path = path, path.with_suffix(".base")
        self._mount, self._ledger, self._prepare = mount, Ledger(claims), prepare
        self._base = NOTHING  # the snapshot that the live file equals between writes
        self._turns = threading.BoundedSemaphore(WRITERS)
        self._turn = threading.Lock()
        self._stuck: tuple[int, float] = 0, 0.0  # a number someone claims, and since when we know
        self._adopt(self._newest())
        self._prepare()

    @property
    def number(self) -> int:
        """Of the snapshot that reads see; 0 before there is any."""
        return self._base.number

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is published before this returns, or undone. StorageUnavailable."""
        with self._queued(), self._turn:
            number, published = self._claimed(), False
            try:
                with super().write() as session:
                    yield session
                self._publish(number)
                published = True
            finally:
                if not published:
                    self._undo(number)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise StorageUnavailable(f"{WRITERS} changes wait to be stored. Try again later.")
        try:
            yield
        finally:
            self._turns.release()

    # Before a write: its number, and the newest state

    def _claimed(self) -> int:
        """A number of ours alone, all before which are in the live file or abandoned."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            base, number = self._base, self._next()
            if self._ledger.claim(number):
                self._catch_up()  # the claims may be younger than the snapshots: look at both
                if self._base == base:
                    return number
                self._ledger.settle(number, ABANDONED)
            else:
                self._outwait(number, deadline_s)

    def _next(self) -> int:
        """The first number after the live file's that is not abandoned."""
        number = self._base.number + 1
        while self._ledger.outcome(number) == ABANDONED:
            number += 1
        return number

    def _outwait(self, number: int, deadline_s: float) -> None:
        """Someone has claimed `number`: see what came of it, or abandon it when nothing does."""
        self._catch_up()
        if self._base.number >= number:
            return
        now_s = time.monotonic()
        if self._stuck[0] != number:
            self._stuck = number, now_s
        if now_s > deadline_s:
            raise StorageUnavailable("Another container is writing. Nothing was stored; try again.")
        if now_s - self._stuck[1] > EXPIRY_S or self._ledger.is_mine(number):
            self._ledger.settle(number, ABANDONED)
        else:
            time.sleep(LOOK_S)

    def _catch_up(self) -> None:
        self._mount.reload()
        self._adopt(self._newest())

    def _newest(self) -> Snapshot:
        """The highest snapshot that counts; one that nobody has settled is settled to count."""
        with self._mount.gate:
            found = {Snapshot(int(m[1]), m[2]) for m in map(NAME.fullmatch, self._names()) if m}
            for snapshot in sorted(found, reverse=True):
                if snapshot.number <= self._base.number:
                    break
                if self._counts(snapshot):
                    return snapshot
        return self._base

    def _counts(self, snapshot: Snapshot) -> bool:
        outcome = self._ledger.outcome(snapshot.number)
        whole = digest_of(self._folder / snapshot.name) == snapshot.digest
        if outcome is None and whole:
            outcome = self._ledger.settle(snapshot.number, snapshot.name)
        if outcome == snapshot.name and not whole:
            raise DatabaseLost(f"Snapshot {snapshot.name} is damaged; restore a backup.")
        return outcome == snapshot.name

    def _adopt(self, snapshot: Snapshot) -> None:
        """Make the live file equal to a snapshot that counts."""
        if snapshot == self._base:
            return
        with self._mount.gate:
            shutil.copyfile(self._folder / snapshot.name, self._base_path)
        check(self._base_path)
        self._restore()
        self._base = snapshot

    # After it

    def _publish(self, number: int) -> None:
        """Raises unless the live file's state is on the Volume and its number is settled so."""
        made = self._path.with_suffix(".made")
        made.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("VACUUM INTO ?", (str(made),))
        snapshot = Snapshot(number, digest_of(made))
        with self._mount.gate:
            copy(made, self._folder / snapshot.name)
            self._prune()
            self._mount.commit()
        if self._ledger.settle(number, snapshot.name) != snapshot.name:
            raise StorageUnavailable("Another container took over. Nothing was stored; try again.")
        os.replace(made, self._base_path)
        self._base = snapshot

    def _undo(self, number: int) -> None:
        """Back to the last snapshot, and nobody waits for this number if that can be said."""
        if self._base != NOTHING:
            self._restore()
        with suppress(StorageUnavailable):
            if self._ledger.settle(number, ABANDONED) == ABANDONED:
                self._remove(name for name in self._names() if name.startswith(f"{number:012d}-"))

    def _restore(self) -> None:
        """The live file is what the base is; readers see the one or the other."""
        base = sqlite3.connect(self._base_path)
        live = sqlite3.connect(self._path, timeout=PATIENCE_S)
        with closing(base), closing(live):
            base.backup(live)
        self._prepare()

    def _prune(self) -> None:
        self._remove(sorted(filter(NAME.fullmatch, self._names()))[:-KEPT])

    def _remove(self, names: Iterable[str]) -> None:
        with self._mount.gate:
            for name in names:
                (self._folder / name).unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self._mount.path / "snapshots"

    def _names(self) -> list[str]:
        return os.listdir(self._folder) if self._folder.is_dir() else []


def digest_of(path: Path) -> str:
    """The beginning of a file's sha256; empty if there is no file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except FileNotFoundError:
        return ""


def copy(source: Path, target: Path) -> None:
    """`target` is whole or absent, to whoever looks."""
    make_folder(target.parent)
    temporary = target.parent / f"{TMP_PREFIX}{secrets.token_hex(8)}"
    try:
        with open(source, "rb") as original, open(temporary, "xb") as made:
            shutil.copyfileobj(original, made)
            made.flush()
            os.fsync(made.fileno())
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def check(path: Path) -> None:
    """Raises DatabaseLost for a file that is no sound database."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise DatabaseLost(f"The newest snapshot is damaged: {verdict}. Restore a backup.")
