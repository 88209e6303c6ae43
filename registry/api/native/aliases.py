"""The aliases: other names of voices, for clients that can say no other."""

from http import HTTPStatus

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from registry.api import openapi as of
from registry.api.access import VisibleDep, needs
from registry.api.requests import CheckedRoute
from registry.api.services import ServicesDep
from registry.storage.aliases import AliasPublic, list_aliases, put_alias, remove_alias
from registry.storage.store import VoiceStore
from registry.storage.tables import PlainText, VoiceName

router = APIRouter(prefix="/aliases", tags=["voices"], route_class=CheckedRoute)


class AliasForm(BaseModel):
    """The voice that an alias is to stand for."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"voice": "alice"}]},
    )

    voice: PlainText = Field(min_length=1, max_length=256, description="The voice's name or id.")


class AliasList(BaseModel):
    """All aliases, by name."""

    data: list[AliasPublic]


@router.get("", summary="List the aliases", responses=of.problems())
@needs("voices:read")
def read_aliases(services: ServicesDep, only: VisibleDep) -> AliasList:
    with services.store.reading() as session:
        return AliasList(data=list_aliases(session, only))


@router.put(
    "/{alias}",
    summary="Let an alias stand for a voice",
    responses=of.problems(of.BODY, of.NAMED, of.NAMES, of.WRITES),
)
@needs("voices:write", all_voices=True)
async def set_alias(alias: VoiceName, body: AliasForm, services: ServicesDep) -> AliasPublic:
    """Whatever it stood for. It follows the voice through renames, and goes with it."""
    return await to_thread.run_sync(_put, services.store, alias, body.voice)


@router.delete(
    "/{alias}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    summary="Remove an alias",
    responses=of.problems(of.ALIASES, of.WRITES),
)
@needs("voices:write", all_voices=True)
async def delete_alias(alias: str, services: ServicesDep) -> None:
    await to_thread.run_sync(_remove, services.store, alias)


def _put(store: VoiceStore, alias: str, voice: str) -> AliasPublic:
    with store.transaction() as session:
        return put_alias(session, alias, voice)


def _remove(store: VoiceStore, alias: str) -> None:
    with store.transaction() as session:
        remove_alias(session, alias)
