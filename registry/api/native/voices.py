"""The voices: enrol, list, read, edit, delete, and give back what they were made from."""

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema

from registry.api import openapi as of
from registry.api.access import VisibleDep, needs
from registry.api.etags import voice_tag
from registry.api.file_answers import answer, clip_file, prompt_file
from registry.api.forms import form_body, taken_in
from registry.api.preconditions import IfMatches
from registry.api.requests import (
    CheckedRoute,
    DeadlineDep,
    parse_json,
    while_connected,
)
from registry.api.services import LINE, ServicesDep
from registry.api.uploads import client_of
from registry.errors import FieldInvalid, RequestMalformed
from registry.key_errors import KeyLimited
from registry.storage.schemas import VoicePage, VoicePublic
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import (
    MAX_LABELS,
    GivenTranscript,
    Labels,
    PlainText,
    SpeakDefaults,
    VoiceDescription,
    VoiceName,
)
from registry.storage.uploads import Upload
from registry.threads import to_its_end
from registry.voices.enrolment import Change, Enrolment, TranscriptEdit

router = APIRouter(prefix="/voices", tags=["voices"], route_class=CheckedRoute)

VOICE: of.Responses = {200: {"headers": of.headers(of.ETAG)}}
LABELS = TypeAdapter(Labels)

LabelQuery = Annotated[str, StringConstraints(max_length=320)]

ReferenceAudio = Annotated[
    InstanceOf[Upload],
    WithJsonSchema({"type": "string", "format": "binary"}),
    Field(
        description="1 to 60 s of one speaker (3 to 30 s are best): wav, flac, mp3, ogg, m4a, webm."
    ),
]
ClipWords = Annotated[
    GivenTranscript | None,
    Field(description="The words of the clip. Without them: x-vector mode only."),
]


class EnrolmentForm(BaseModel):
    """A voice to enrol."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: VoiceName = Field(examples=["alice"])
    audio: ReferenceAudio
    transcript: ClipWords = None
    language: PlainText | None = Field(None, max_length=32, examples=["english"])
    description: VoiceDescription = ""
    labels: Annotated[str, WithJsonSchema(LABELS.json_schema())] = Field(
        "{}",
        description="A JSON object of strings.",
        examples=[{"use": "demo"}],
        json_schema_extra={"default": {}},
    )


class VoicePatch(BaseModel):
    """The fields to change; `labels` and `defaults` replace what was there.

    A `transcript` makes the prompt features anew from the clip, as version + 1; null leaves none.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"description": "A calm narrator."}]},
    )

    name: VoiceName | None = None
    description: VoiceDescription | None = None
    labels: Labels | None = None
    defaults: SpeakDefaults | None = None
    transcript: GivenTranscript | None = Field(
        None, description="The words of the clip, or null for none."
    )

    def change(self) -> Change:
        words = TranscriptEdit(self.transcript) if "transcript" in self.model_fields_set else None
        return Change(self.name, self.description, self.labels, self.defaults, words)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Enrol a voice",
    openapi_extra=form_body(EnrolmentForm),
    responses=of.problems(of.BODY, *of.ENROLLING)
    | {201: {"headers": of.headers(of.ETAG | of.LOCATION)}},
)
@needs("voices:write", all_voices=True)
async def create_voice(
    request: Request,
    response: Response,
    services: ServicesDep,
    deadline: DeadlineDep,
) -> VoicePublic:
    """Decode and check the clip, compute the prompt features once, keep both."""
    async with taken_in(request, EnrolmentForm, services.uploads) as form:
        asked = Enrolment(
            name=form.name,
            upload=form.audio,
            transcript=form.transcript,
            description=form.description,
            labels=_labels(form.labels),
            language=form.language,
            deadline=deadline,
        )
        voice = await while_connected(request, services.enroller.enrol(asked))
    response.headers["Location"] = f"/voices/{voice.row.id}"
    return _shown(response, voice)


@router.get(
    "",
    summary="List the voices by name",
    response_model=VoicePage,
    responses=of.problems(of.PAGES),
)
@needs("voices:read")
async def list_voices(
    request: Request,
    services: ServicesDep,
    only: VisibleDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[
        str | SkipJsonSchema[None],
        Query(
            max_length=512,
            description="The `next` of the page before.",
            json_schema_extra={"format": "cursor"},
        ),
    ] = None,
    search: Annotated[str, Query(max_length=64, description="A part of the name.")] = "",
    label: Annotated[
        list[LabelQuery],
        Query(max_length=MAX_LABELS, description="`key` or `key=value`; all that are given hold."),
    ] = [],  # noqa: B006
) -> Response:
    """A page of voices that hold many words is shorter; `next` tells whether there are more."""

    def made() -> str:
        page = services.store.page(limit, after, search, [one for one in label if one], only)
        return page.public().model_dump_json()

    async def in_turn() -> str:
        client = client_of(request.scope)
        async with services.listings.turn(client, LINE):
            return await to_its_end(made)

    content = await while_connected(request, in_turn())
    return Response(content, media_type="application/json")


@router.get("/{voice}", summary="Read a voice", responses=of.problems(of.NAMED) | VOICE)
@needs("voices:read")
def read_voice(
    voice: str, response: Response, services: ServicesDep, only: VisibleDep
) -> VoicePublic:
    """Read a voice by name or id. A 404 offers the names that look alike."""
    return _shown(response, services.store.get(voice, only))


@router.patch(
    "/{voice}",
    summary="Rename or edit a voice",
    responses=of.problems(
        of.BODY,
        of.NAMED,
        of.NAMES,
        of.EDITS,
        of.WORDS,
        of.MODES,
        of.TRANSCRIPTS,
        of.CLIPS,
        of.KEPT_CLIPS,
        of.FEATURES,
        of.MODEL,
        of.GPU,
        of.WRITES,
    )
    | VOICE,
)
@needs("voices:write")
async def edit_voice(
    voice: str,
    patch: VoicePatch,
    request: Request,
    response: Response,
    services: ServicesDep,
    precondition: IfMatches,
    deadline: DeadlineDep,
    only: VisibleDep,
) -> VoicePublic:
    """Change all or nothing. A patch that says what is so already changes nothing."""
    if patch.name is not None and only is not None:
        raise KeyLimited
    change = patch.change().checked()
    target, expected = await to_thread.run_sync(precondition.target, services.store, voice, only)
    client = client_of(request.scope)
    work = services.enroller.edit(target, change, expected, client, deadline)
    return _shown(response, await while_connected(request, work))


@router.delete(
    "/{voice}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    summary="Delete a voice",
    responses=of.problems(of.NAMED, of.EDITS, of.WRITES),
)
@needs("voices:write")
async def delete_voice(
    voice: str, services: ServicesDep, precondition: IfMatches, only: VisibleDep
) -> None:
    """The voice is marked as deleted and its name is free at once.

    It is kept until VOICES_DELETED_KEEP others have been deleted after it.
    """
    target, expected = await to_thread.run_sync(precondition.target, services.store, voice, only)
    await to_thread.run_sync(services.store.delete, target, expected)
    await services.purge_some()


@router.get(
    "/{voice}/clip",
    summary="The reference clip, as uploaded",
    response_class=Response,
    responses=of.problems(of.NAMED, of.RANGES, of.KEPT_CLIPS) | of.CLIP_FILE,
)
@needs("voices:read")
def read_clip(voice: str, request: Request, services: ServicesDep, only: VisibleDep) -> Response:
    """Send the clip, in ranges too. The ETag is the SHA-256 of the clip."""
    found = services.store.get(voice, only)
    sha256, media_type = found.enrolment.clip_sha256, found.clip_type
    content = partial(services.store.clip_content, found)
    return answer(request, clip_file(found.row.name, sha256, media_type, content))


@router.get(
    "/{voice}/prompt",
    summary="The prompt features, as safetensors",
    response_class=Response,
    responses=of.problems(of.NAMED, of.RANGES, of.KEPT_PROMPTS) | of.PROMPT_FILE,
)
@needs("voices:read")
def read_prompt(voice: str, request: Request, services: ServicesDep, only: VisibleDep) -> Response:
    """Send the file, in ranges too. The ETag is the SHA-256 of the file."""
    found = services.store.get(voice, only)
    content = partial(services.store.prompt_content, found)
    return answer(request, prompt_file(found.row.name, found.ready_prompt().sha256, content))


@router.post(
    "/{voice}/rebuild",
    summary="Compute the prompt features anew from the clip",
    responses=of.problems(
        of.NAMED, of.CLIPS, of.KEPT_CLIPS, of.FEATURES, of.MODEL, of.GPU, of.WRITES
    )
    | VOICE,
)
@needs("voices:write")
async def rebuild_voice(
    voice: str,
    request: Request,
    response: Response,
    services: ServicesDep,
    deadline: DeadlineDep,
    only: VisibleDep,
) -> VoicePublic:
    found = await to_thread.run_sync(services.store.get, voice, only)
    work = services.enroller.rebuild(found, client_of(request.scope), deadline)
    return _shown(response, await while_connected(request, work))


def _shown(response: Response, voice: StoredVoice) -> VoicePublic:
    response.headers["ETag"] = voice_tag(voice.row.id, voice.row.row_version)
    return voice.public()


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
