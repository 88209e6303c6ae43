"""What the routes work with, made once by `create_app`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from registry.clone import Cloner
from registry.enrol import Enroller
from registry.inference_client import Inference
from registry.settings import Settings
from registry.speech import Speaker
from registry.store import VoiceStore
from registry.uploads import Uploads


@dataclass(frozen=True)
class Services:
    settings: Settings
    store: VoiceStore
    inference: Inference
    enroller: Enroller
    speaker: Speaker
    cloner: Cloner
    uploads: Uploads


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
