"""Removes files that were written for a row if that row does not come.

Knows which work of this process needs the same files; the store knows which a row names.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from weakref import WeakValueDictionary

from anyio import to_thread

from registry.contract import PromptSource
from registry.errors import DatabaseDamaged, RegistryError, StorageReadOnly
from registry.storage.store import VoiceStore

WAITS_S = (0.0, 0.2, 1.0, 5.0)  # before each try to remove: many may wait to write

log = logging.getLogger("registry")


class Unfinished:
    """Tracks the files of enrolments under way, and removes those of work that failed."""

    def __init__(self, store: VoiceStore) -> None:
        self._store = store
        self._needed = Counter[object]()  # clips, and sources of prompt files
        self._dropping = set[asyncio.Future[None]]()
        self._locks = WeakValueDictionary[str, asyncio.Lock]()  # locks of clips

    @property
    def is_at_work(self) -> bool:
        """True until the files of all that failed are gone."""
        return bool(self._needed or self._dropping)

    @asynccontextmanager
    async def work(self, source: PromptSource) -> AsyncIterator[None]:
        """Track what the block writes; remove it if the block fails, unless others need it.

        No thread may write on when the block ends.
        """
        clip = source.clip_sha256
        lock, needed = self._locks.setdefault(clip, asyncio.Lock()), Counter[object]([clip, source])
        async with lock:  # nobody removes the clip from here on
            self._needed += needed
        finished = False
        try:
            yield
            finished = True
        finally:
            self._needed -= needed
            if not finished:
                dropping = asyncio.ensure_future(self._drop(source, lock))
                self._dropping.add(dropping)
                dropping.add_done_callback(self._dropping.discard)
                await asyncio.shield(dropping)

    def drop_now(self) -> None:
        """Remove what the work under way has written, for a process that ends without it.

        Call it from any thread but that of the work.
        """
        for source in [one for one in [*self._needed] if isinstance(one, PromptSource)]:
            with suppress(RegistryError, OSError):
                self._store.drop_unfinished(source, clip=True)

    async def _drop(self, source: PromptSource, lock: asyncio.Lock) -> None:
        async with lock:
            if source in self._needed:
                return  # the last to need them drops them
            drop = partial(self._store.drop_unfinished, clip=source.clip_sha256 not in self._needed)
            for wait_s in WAITS_S:
                await asyncio.sleep(wait_s)
                try:
                    return await to_thread.run_sync(drop, source)
                except (DatabaseDamaged, StorageReadOnly) as error:
                    said = str(error)
                    break  # trying again does not help
                except (RegistryError, OSError) as error:
                    said = str(error)
            log.warning("Files without a row are left to `voices doctor --repair`: %s", said)
