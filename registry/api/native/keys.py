"""Makes, lists, rotates and revokes the keys of the server. A secret is in one answer, once."""

from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from registry.api import openapi as of
from registry.api.access import needs
from registry.api.requests import CheckedRoute
from registry.api.services import Services, ServicesDep
from registry.keys import issuing
from registry.keys.issuing import Issued, KeyRequest
from registry.storage.keys import MOST_VOICES, KeyName, KeyPublic, Scopes
from registry.storage.tables import PlainText, whole

router = APIRouter(prefix="/keys", tags=["keys"], route_class=CheckedRoute)

DAY_S = 86_400
GRACE_S = DAY_S
MOST_GRACE_S = 30 * DAY_S
MOST_LIFE_S = 3650 * DAY_S
NO_STORE = {"Cache-Control": "no-store"}
SECRET = {"Cache-Control": "`no-store`: the answer has the key."}

Lifetime = Annotated[int, Field(ge=60, le=MOST_LIFE_S), BeforeValidator(whole)]
Grace = Annotated[int, Field(ge=0, le=MOST_GRACE_S), BeforeValidator(whole)]
NameOrId = Annotated[PlainText, StringConstraints(min_length=1, max_length=256)]


class KeyForm(BaseModel):
    """A key to make."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"name": "web shop", "scopes": ["voices:read", "speak"]}]},
    )

    name: KeyName = Field(description="For whom or what it is.")
    scopes: Scopes
    voices: list[NameOrId] | None = Field(
        None,
        min_length=1,
        max_length=MOST_VOICES,
        description="Names or ids of the voices that it is for. Default: all of them.",
    )
    expires_in_s: Lifetime | None = Field(None, description="Default: never.")


class RotationForm(BaseModel):
    """How to give a key another secret."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    grace_s: Grace = Field(
        GRACE_S, description="How long the secret before is taken as well; 0: not from now on."
    )


class KeyIssued(KeyPublic):
    """A key with its secret."""

    key: str = Field(description="The key itself. It is told this once.")


class KeyList(BaseModel):
    """The keys of the server."""

    data: list[KeyPublic]


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Make a key",
    responses=of.problems(of.BODY, of.NAMED, of.NEW_KEYS, of.WRITES)
    | {201: {"headers": of.headers(SECRET)}},
)
@needs("admin")
async def create_key(body: KeyForm, response: Response, services: ServicesDep) -> KeyIssued:
    """Make a key; one with the scope `admin` may do everything, and is for all voices."""
    asked = KeyRequest(body.name, body.scopes, body.voices, body.expires_in_s)
    issued = await to_thread.run_sync(issuing.create_key, services.store, asked)
    return _shown(response, services, issued)


@router.get("", summary="List the keys", responses=of.problems())
@needs("admin")
def list_keys(services: ServicesDep) -> KeyList:
    """List keys, the newest first, and the last 100 that are revoked. None tells its secret."""
    return KeyList(data=issuing.list_keys(services.store))


@router.post(
    "/{key_id}/rotate",
    summary="Give a key another secret",
    responses=of.problems(of.BODY, of.KEYS, of.WRITES) | {200: {"headers": of.headers(SECRET)}},
)
@needs("admin")
async def rotate_key(
    key_id: str, body: RotationForm, response: Response, services: ServicesDep
) -> KeyIssued:
    """Give a key another secret; its id, scopes and voices stay. A grace under way ends."""
    issued = await to_thread.run_sync(issuing.rotate_key, services.store, key_id, body.grace_s)
    return _shown(response, services, issued)


@router.delete(
    "/{key_id}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    summary="Revoke a key",
    responses=of.problems(of.KEYS, of.WRITES),
)
@needs("admin")
async def revoke_key(key_id: str, services: ServicesDep) -> None:
    """Revoke a key at once and for good. What was asked for with it before goes on."""
    await to_thread.run_sync(issuing.revoke_key, services.store, key_id)
    services.keyring.look_again()


def _shown(response: Response, services: Services, issued: Issued) -> KeyIssued:
    services.keyring.look_again()
    response.headers.update(NO_STORE)
    return KeyIssued(**issued.public.model_dump(), key=issued.text)
