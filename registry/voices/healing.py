"""Makes prompt features again from the clip if they are missing, damaged or of another model."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from anyio import to_thread

from registry.contract import Deadline
from registry.errors import PromptBroken
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.enrolment import Enroller

T = TypeVar("T")


class Healer:
    """Rebuilds broken prompt features while someone waits to speak with them, each voice once."""

    def __init__(self, store: VoiceStore, enroller: Enroller) -> None:
        self._store, self._enroller = store, enroller
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    async def healed(
        self,
        voice: StoredVoice,
        client: str,
        deadline: Deadline,
        speak: Callable[[StoredVoice], Awaitable[T]],
    ) -> T:
        """Return what `speak` makes of the stored voice, rebuilt first if it meets PromptBroken.

        Of many callers that meet the damage, the first one heals it: the others wait for its lock.
        """
        lock = self._locks.setdefault(voice.row.id, asyncio.Lock())  # gone with its last holder
        async with lock:
            voice = await to_thread.run_sync(self._store.get, voice.row.id)
            try:
                return await speak(voice)
            except PromptBroken:
                voice = await self._enroller.refresh(voice, client, deadline)
        return await speak(voice)
