"""The voices: enrol, list, read, edit, delete, and give back what they were made from."""

from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from registry.enrol import Change, Enrolment, Words
from registry.errors import EditConflict, FieldInvalid, RequestMalformed
from registry.forms import MEDIA_TYPE as FORM
from registry.forms import form_body, read_form
from registry.models import (
    Description,
    Labels,
    PlainText,
    SpeakDefaults,
    VoicePage,
    VoiceShape,
)
from registry.queries import StoredVoice
from registry.requests import (
    PATIENCE,
    CheckedRoute,
    parse_json,
    refuse_other_type,
    while_connected,
)
from registry.services import ServicesDep

router = APIRouter(prefix="/voices", tags=["voices"], route_class=CheckedRoute)

FILE: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file."}
}
LABELS = TypeAdapter(Labels)

IfMatch = Annotated[
    str | None, Header(description="The ETag you read; a stale one answers 412.", examples=['"3"'])
]


class EnrolmentForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(examples=["alice"])
    audio: bytes = Field(
        description="1 to 60 s of one speaker (3 to 30 s are best): wav, flac, mp3, ogg, m4a, webm."
    )
    transcript: str | None = Field(
        None, description="The words of the clip. Without them: x-vector mode only."
    )
    language: PlainText | None = Field(None, max_length=32, examples=["english"])
    description: Description = ""
    labels: str = Field("{}", description="A JSON object of strings.", examples=['{"use": "demo"}'])


async def enrolment_form(request: Request) -> EnrolmentForm:
    refuse_other_type(request, FORM)
    return await read_form(request, EnrolmentForm)


class VoicePatch(BaseModel):
    """What is left out stays; `labels` and `defaults` replace what was there.

    A `transcript` makes the prompt features anew from the clip, as version + 1; null leaves none.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"description": "A calm narrator."}]}
    )

    name: str | None = None
    description: Description | None = None
    labels: Labels | None = None
    defaults: SpeakDefaults | None = None
    transcript: str | None = Field(None, description="The words of the clip, or null for none.")

    def change(self) -> Change:
        words = Words(self.transcript) if "transcript" in self.model_fields_set else None
        return Change(self.name, self.description, self.labels, self.defaults, words)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Enrol a voice",
    dependencies=[PATIENCE],
    openapi_extra=form_body(EnrolmentForm),
)
async def create(
    request: Request,
    response: Response,
    services: ServicesDep,
    form: Annotated[EnrolmentForm, Depends(enrolment_form)],
) -> VoiceShape:
    """Decodes and checks the clip, computes the prompt features once, keeps both."""
    asked = Enrolment(
        name=form.name,
        upload=form.audio,
        transcript=form.transcript,
        description=form.description,
        labels=_labels(form.labels),
        language=form.language,
    )
    voice = await while_connected(request, services.enroller.enrol(asked))
    response.headers["Location"] = f"/voices/{voice.row.id}"
    return _shown(response, voice)


@router.get("", summary="List the voices by name")
def list_voices(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[
        str | None, Query(max_length=512, description="The `next` of the page before.")
    ] = None,
    search: Annotated[str, Query(max_length=64, description="The beginning of the name.")] = "",
    label: Annotated[str, Query(max_length=320, description="`key` or `key=value`.")] = "",
) -> VoicePage:
    page = services.store.page(limit, after, search, label)
    return VoicePage(data=[voice.shape() for voice in page.voices], next=page.next)


@router.get("/{voice}", summary="Read a voice")
def read(voice: str, response: Response, services: ServicesDep) -> VoiceShape:
    """`voice` is a name or an id. A 404 offers the names that look alike."""
    return _shown(response, services.store.get(voice))


@router.patch("/{voice}", summary="Rename or edit a voice", dependencies=[PATIENCE])
async def edit(
    voice: str,
    patch: VoicePatch,
    request: Request,
    response: Response,
    services: ServicesDep,
    if_match: IfMatch = None,
) -> VoiceShape:
    """All of it or nothing. A patch that says what is so already changes nothing."""
    work = services.enroller.edit(voice, patch.change(), _expected(if_match))
    return _shown(response, await while_connected(request, work))


@router.delete(
    "/{voice}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    summary="Delete a voice",
)
def delete(voice: str, services: ServicesDep, if_match: IfMatch = None) -> None:
    """The voice is marked as deleted and its name is free at once."""
    services.store.delete(voice, _expected(if_match))


@router.get("/{voice}/clip", summary="The reference clip, as uploaded", responses=FILE)
def clip(voice: str, services: ServicesDep) -> Response:
    found = services.store.get(voice)
    return _file(services.store.clip(found), str(found.enrolment.clip["media_type"]))


@router.get("/{voice}/prompt", summary="The prompt features, as safetensors", responses=FILE)
def prompt(voice: str, services: ServicesDep) -> Response:
    found = services.store.get(voice)
    return _file(services.store.prompt(found), "application/octet-stream")


@router.post(
    "/{voice}/rebuild",
    summary="Compute the prompt features anew from the clip",
    dependencies=[PATIENCE],
)
async def rebuild(
    voice: str, request: Request, response: Response, services: ServicesDep
) -> VoiceShape:
    found = await to_thread.run_sync(services.store.get, voice)
    return _shown(response, await while_connected(request, services.enroller.rebuild(found)))


def _shown(response: Response, voice: StoredVoice) -> VoiceShape:
    response.headers["ETag"] = f'"{voice.row.row_version}"'
    return voice.shape()


def _file(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


def _labels(text: str) -> dict[str, str]:
    try:
        return LABELS.validate_python(parse_json(text.encode()))
    except RequestMalformed as error:
        reason = 'is no JSON. Send an object of strings, such as {"use": "books"}'
        raise FieldInvalid(f"`labels` {reason}.", field="labels") from error
    except FieldInvalid as error:
        raise FieldInvalid(f"In `labels`: {error.detail}", field="labels") from error
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise FieldInvalid(
            f"`labels` is not a JSON object of strings: {reason}.", field="labels"
        ) from error


def _expected(if_match: str | None) -> int | None:
    """The row_version of an If-Match header; `*` asks only that the voice exists."""
    if if_match is None or if_match.strip() == "*":
        return None
    tag = if_match.strip().strip('"')
    if not tag.isdecimal():
        raise EditConflict(f"If-Match: {if_match!r} is not the ETag of any voice here.")
    return int(tag[:18])
