"""Makes, lists and deletes voices as OpenAI's clients do; their samples are reference clips."""

from datetime import datetime
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from registry.api import openapi as of
from registry.api.access import VisibleDep, needs
from registry.api.forms import form_body, taken_in
from registry.api.native.voices import ClipWords, ReferenceAudio
from registry.api.openai.errors import OpenAIRoute, ValueUnsupported, problems
from registry.api.preconditions import target_of
from registry.api.requests import DeadlineDep, while_connected
from registry.api.services import LINE, Services, ServicesDep
from registry.api.uploads import client_of
from registry.storage.name_list import ListedVoice, listed
from registry.storage.queries import Visible
from registry.storage.tables import LabelValue, PlainText, VoiceDescription, VoiceName
from registry.threads import to_its_end
from registry.voices.enrolment import Enrolment

router = APIRouter(prefix="/v1/audio/voices", tags=["openai"], route_class=OpenAIRoute)

MOST = 1000
CONSENT = "consent"  # the label that has the id that a client sent


class AudioSampleForm(BaseModel):
    """A voice to make of a sample."""

    model_config = ConfigDict(
        extra="ignore",
        hide_input_in_errors=True,
        json_schema_extra={"additionalProperties": {"type": "string"}},  # none of them twice
    )

    name: VoiceName = Field(examples=["alice"])
    audio_sample: ReferenceAudio
    type: Literal["audio_sample"] = "audio_sample"
    consent: LabelValue | None = Field(
        None, description="Is kept as the label `consent`; nobody checks it."
    )
    ref_text: ClipWords = None
    speaker_description: VoiceDescription | None = Field(
        None, description="Becomes the description."
    )
    language: PlainText | None = Field(None, max_length=32, examples=["en"])

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out what is empty, but for the name, and refuse another type of sample."""
        given = {key: value for key, value in values.items() if value != "" or key == "name"}
        if (kind := given.get("type", "audio_sample")) != "audio_sample":
            raise ValueUnsupported(
                f"A voice is made of an audio_sample here, and not of {str(kind)[:40]!r}.",
                field="type",
            )
        return given


class AudioVoice(BaseModel):
    """A voice, as OpenAI's clients read it."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    name: str
    created_at: int = Field(description="In seconds since the epoch.")
    type: Literal["audio_sample"] = "audio_sample"


class VoiceChoice(BaseModel):
    """A voice for programs that offer a choice of voices: its `id` is what a person types."""

    id: str
    name: str
    voice_id: str


class AudioVoices(BaseModel):
    """A page of voices."""

    object: Literal["list"] = "list"
    data: list[AudioVoice]
    voices: list[VoiceChoice]
    first_id: str | None
    last_id: str | None = Field(description="Pass it as `after` for what follows.")
    has_more: bool


class DeletedVoice(BaseModel):
    """A voice that was deleted."""

    id: str
    deleted: Literal[True] = True
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"


@router.post(
    "",
    name="openai_create_voice",
    summary="Make a voice of a sample",
    openapi_extra=form_body(AudioSampleForm),
    responses=problems(of.BODY, of.VALUES, *of.ENROLLING),
)
@needs("voices:write", all_voices=True)
async def create_voice(
    request: Request, services: ServicesDep, deadline: DeadlineDep
) -> AudioVoice:
    """Enrol a voice; without `ref_text`, the words of the sample, it speaks in x-vector mode."""
    async with taken_in(request, AudioSampleForm, services.uploads) as form:
        asked = Enrolment(
            name=form.name,
            upload=form.audio_sample,
            transcript=form.ref_text,
            description=form.speaker_description or "",
            labels={CONSENT: form.consent} if form.consent else {},
            language=form.language,
            deadline=deadline,
        )
        voice = await while_connected(request, services.enroller.enrol(asked))
    return _shown(ListedVoice.model_validate(voice.row, from_attributes=True))


@router.get(
    "",
    name="openai_list_voices",
    summary="List the voices by name",
    response_model=AudioVoices,
    responses=problems(of.PAGES),
)
@needs("voices:read")
async def list_voices(
    request: Request,
    services: ServicesDep,
    only: VisibleDep,
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
    after: Annotated[
        str | SkipJsonSchema[None],
        Query(
            max_length=256,
            description="The last id of the page before.",
            json_schema_extra={"format": "voice-name"},
        ),
    ] = None,
) -> Response:
    """List the voices twice: in `voices` the id is the name, as several clients read it."""

    async def in_turn() -> str:
        async with services.listings.turn(client_of(request.scope), LINE):
            return await to_its_end(_page, services, limit, after, only)

    content = await while_connected(request, in_turn())
    return Response(content, media_type="application/json")


@router.delete(
    "/{voice}",
    name="openai_delete_voice",
    summary="Delete a voice",
    responses=problems(of.NAMED, of.WRITES),
)
@needs("voices:write")
async def delete_voice(voice: str, services: ServicesDep, only: VisibleDep) -> DeletedVoice:
    """Delete a voice by its id or its name, which is free at once."""
    target = await to_thread.run_sync(target_of, services.store, voice, only)
    deleted = await to_thread.run_sync(services.store.delete, target, None)
    await services.purge_some()
    return DeletedVoice(id=deleted)


def _page(services: Services, limit: int, after: str | None, only: Visible) -> str:
    with services.store.reading() as session:
        found = listed(session, limit, after or None, only)
    data = [_shown(voice) for voice in found.voices]
    return AudioVoices(
        data=data,
        voices=[VoiceChoice(id=one.name, name=one.name, voice_id=one.id) for one in data],
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=found.has_more,
    ).model_dump_json()


def _shown(voice: ListedVoice) -> AudioVoice:
    created_s = datetime.fromisoformat(voice.created_at).timestamp()
    return AudioVoice(id=voice.id, name=voice.name, created_at=int(created_s))
