"""Lists models as OpenAI's clients do: the names that they know, and the one that speaks.

`POST /v1/audio/speech` takes any name for it, so that no client has to be told another.
"""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from registry.api import openapi as of
from registry.api.access import any_key
from registry.api.openai.errors import ModelNotFound, OpenAIRoute, problems
from registry.api.services import Services, ServicesDep
from registry.voices.languages import codes_of

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

KNOWN = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # what clients send by default
FORCING = "tts-1-"  # begins the names that force a language: tts-1-de


class Model(BaseModel):
    """A name under which the model speaks."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "voice-registry"


class ModelList(BaseModel):
    """The list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ModelName(BaseModel):
    """A model, by its id alone."""

    id: str


class SpeechModels(BaseModel):
    """The list of models, as Open WebUI reads it."""

    models: list[ModelName]


@router.get(
    "/models",
    name="openai_list_models",
    summary="List the models",
    responses=problems(of.MODEL),
)
@any_key
def list_models(services: ServicesDep) -> ModelList:
    created = _created(services)
    return ModelList(data=[Model(id=name, created=created) for name in _names(services)])


@router.get(
    "/models/{model:path}",
    name="openai_read_model",
    summary="Read a model",
    responses=problems(of.MODEL, of.MODELS),
)
@any_key
def read_model(model: str, services: ServicesDep) -> Model:
    """Read a model; one that forces a language has a name too, `tts-1-de`, but is not listed."""
    names = _names(services)
    if model not in (*names, *_forcing(services)):
        raise ModelNotFound(f"No model {model[:80]!r}. There are {', '.join(names)}.")
    return Model(id=model, created=_created(services))


@router.get(
    "/audio/models",
    name="openai_list_speech_models",
    summary="List the models, as Open WebUI reads them",
    responses=problems(of.MODEL),
)
@any_key
def list_speech_models(services: ServicesDep) -> SpeechModels:
    return SpeechModels(models=[ModelName(id=name) for name in _names(services)])


def _names(services: Services) -> list[str]:
    return [*KNOWN, services.inference.describe().model.id]


def _forcing(services: Services) -> list[str]:
    languages = services.inference.describe().languages
    return [FORCING + code for code in (*languages, *codes_of(languages))]


def _created(services: Services) -> int:
    """Return when the data directory took its model, in seconds since the epoch; 0 before."""
    used = services.store.model_in_use()
    return 0 if used is None else int(datetime.fromisoformat(used.chosen_at).timestamp())
