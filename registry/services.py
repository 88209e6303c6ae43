"""What the routes work with, made once by `create_app`."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from registry.clone import Cloner
from registry.enrol import Enroller
from registry.errors import RegistryError
from registry.inference_client import Inference
from registry.settings import Settings
from registry.speech import Speaker
from registry.store import VoiceStore
from registry.turns import FairTurns
from registry.uploads import Uploads

log = logging.getLogger("registry")

LISTINGS = 2  # pages that are made at once: each is work for Python, which others wait for
LINE = 64  # who wait to have one made; the largest page takes 0.3 s


@dataclass(frozen=True)
class Services:
    settings: Settings
    store: VoiceStore
    inference: Inference
    enroller: Enroller
    speaker: Speaker
    cloner: Cloner
    uploads: Uploads
    listings: FairTurns = field(default_factory=partial(FairTurns, LISTINGS))

    def purge_surplus(self) -> None:
        """Hinders nothing: what can't be removed now is removed later."""
        try:
            self.store.purge_surplus(self.settings.deleted_keep)
        except (RegistryError, OSError) as error:
            log.warning("Deleted voices are kept for now: %s", error)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
