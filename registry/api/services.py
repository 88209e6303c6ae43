"""The objects that the routes work with, made once by `create_app`."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request

from registry.api.uploads import Uploads
from registry.contract import Inference
from registry.errors import RegistryError
from registry.keys.keyring import Keyring
from registry.settings import Settings
from registry.storage.store import VoiceStore
from registry.threads import to_its_end
from registry.voices.clone import Cloner
from registry.voices.enrolment import Enroller
from registry.voices.speech import Speaker
from registry.voices.turns import FairTurns

log = logging.getLogger("registry")

PURGE_EVERY_S = 3600.0
TIDY_S = 2.0  # for work that was cut off, at the end of the server
PAUSE_S = 0.05  # between two parts of the deleted voices that are removed
LISTINGS = 2  # pages that are made at once: each is work for Python, which others wait for
LINE = 256  # who wait to have one made: 3 ms for each as a rule, 0.3 s for the largest page


@dataclass(frozen=True)
class Services:
    """The objects that every route may use."""

    settings: Settings
    store: VoiceStore
    inference: Inference
    enroller: Enroller
    speaker: Speaker
    cloner: Cloner
    uploads: Uploads
    keyring: Keyring
    listings: FairTurns = field(default_factory=partial(FairTurns, LISTINGS))

    async def keep_purged(self) -> None:
        """Remove surplus deleted voices now and every hour, as far as they may go then."""
        while True:
            with kept_for_now():
                for part in await self._surplus():
                    await to_its_end(self.store.purge, part, None)
                    await asyncio.sleep(PAUSE_S)
                await to_thread.run_sync(self.store.tidy)
            await asyncio.sleep(PURGE_EVERY_S)

    async def purge_some(self) -> None:
        """Remove two surplus voices: so few that a deletion may wait, and yet they get fewer."""
        with kept_for_now():
            for oldest in (await self._surplus())[:1]:
                await to_its_end(self.store.purge, oldest, 2)

    async def end_unfinished(self) -> None:
        """Wait a moment for work that was cut off to remove its files, then remove the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TIDY_S):
                while self.enroller.is_at_work or self.cloner.is_at_work:
                    await asyncio.sleep(0.01)
        await to_its_end(self.drop_unfinished)

    def drop_unfinished(self) -> None:
        """Remove what the work under way has written, for a process that ends without it."""
        self.uploads.drop_now()
        self.enroller.drop_unfinished()
        self.cloner.drop_now()

    async def _surplus(self) -> list[Sequence[str]]:
        return await to_thread.run_sync(self.store.surplus, self.settings.deleted_keep)


@contextmanager
def kept_for_now() -> Iterator[None]:
    """Log errors of a removal, which must hinder nothing else."""
    try:
        yield
    except (RegistryError, OSError) as error:
        log.warning("Deleted voices are kept for now: %s", error)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
