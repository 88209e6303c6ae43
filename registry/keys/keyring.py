"""Keeps a server's keys in memory, and says at every request what its key allows.

The first request LOOK_S after the last look looks whether any row has been written since, so a key
that another process revokes is refused within a second. What was asked for before goes on.
"""

import asyncio
import hmac
import logging
import time

from anyio import CapacityLimiter, to_thread

from registry.errors import RegistryError
from registry.key_errors import KeyInvalid
from registry.keys.grant import Grant
from registry.keys.secret import PresentedKey, presented
from registry.storage.keys import KeyRow, key_rows, note_use, sound_keys
from registry.storage.store import VoiceStore
from registry.storage.tables import utc_now
from registry.threads import to_its_end

log = logging.getLogger("registry")

LOOK_S = 0.25
NOTE_EVERY_S = 60.0  # when a key was used is written by then
TYPO = "This is no whole key: it begins with vr_, and a character of this one is wrong or missing."
UNKNOWN = "This key is not known here: it may be another server's, revoked or past its time."


class Keyring:
    """The keys of a server, as its requests need them."""

    def __init__(self, store: VoiceStore) -> None:
        self._store = store
        self._keys: dict[str, KeyRow] = {}
        self._state: object = None
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        self._thread = CapacityLimiter(1)  # of its own: no request of another kind waits before it
        self._used: dict[str, str] = {}  # and when, by id, until it is written

    async def grant(self, key: str) -> Grant:
        """Return the rights of a key. Raises KeyInvalid, and what the storage refuses."""
        given = presented(key)
        if given is None:
            raise KeyInvalid(TYPO)
        row = await self._found(given, LOOK_S) or await self._found(given, 0)
        if row is None:
            raise KeyInvalid(UNKNOWN)
        self._used[row.id] = utc_now()
        return Grant(
            row.id,
            frozenset(row.scopes),
            None if row.voices is None else frozenset(row.voices),
        )

    def look_again(self) -> None:
        """Look again at the next request, for this process has changed a key."""
        self._looked_s = float("-inf")

    async def _found(self, given: PresentedKey, after_s: float) -> KeyRow | None:
        """Find a key, as of `after_s` ago at most; a new key so needs no waiting."""
        await self._look(time.monotonic() - after_s)
        row = self._keys.get(given.id)
        return row if row and _opens(row, given.secret_sha256, utc_now()) else None

    async def _look(self, unless_since_s: float) -> None:
        if self._looked_s >= unless_since_s:
            return
        async with self._looking:
            if self._looked_s < unless_since_s:
                since_s = time.monotonic()
                await to_thread.run_sync(self._read, limiter=self._thread)
                self._looked_s = since_s

    def _read(self) -> None:
        state = self._store.state()
        if state != self._state:
            with self._store.reading() as session:
                self._keys = {row.id: row for row in sound_keys(key_rows(session))}
            self._state = state  # of before the rows were read, so what came meanwhile is seen

    async def keep_noting(self) -> None:
        """Write when keys were used, for as long as the server runs."""
        while True:
            await asyncio.sleep(NOTE_EVERY_S)
            await self.note_use()

    async def note_use(self) -> None:
        """Write when keys were used, unless that was written not long ago."""
        latest = utc_now(-self._store.use_noted_s)
        due = {
            key_id: at
            for key_id, at in self._used.items()
            if (row := self._keys.get(key_id)) and (row.last_used_at or "") < latest
        }
        if due:
            await to_its_end(self._write_use, due)
            self._used = {k: at for k, at in self._used.items() if due.get(k) != at}

    def _write_use(self, due: dict[str, str]) -> None:
        try:
            with self._store.transaction() as session:
                note_use(session, due)
        except (RegistryError, OSError) as error:
            log.warning("When keys were last used is not written for now: %s", error)


def _opens(row: KeyRow, secret_sha256: str, now: str) -> bool:
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return False
    taken = [row.secret_sha256]
    if row.former_sha256 is not None and row.former_until is not None and now < row.former_until:
        taken.append(row.former_sha256)
    return any([hmac.compare_digest(secret_sha256, one) for one in taken])
