"""POST /speak: a voice and a text in, audio out, whole or as it is spoken."""

from dataclasses import fields
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from registry.api import openapi as of
from registry.api.access import VisibleDep, needs
from registry.api.requests import CheckedRoute, DeadlineDep
from registry.api.services import ServicesDep
from registry.api.speech_response import OF_SPEECH, OF_VOICE, SpeechReply, audio, sending
from registry.api.uploads import client_of
from registry.audio.encoding.rendering import Rendering
from registry.audio.formats import FORMATS, format_named
from registry.contract import Deadline, Mode, SpeakParams, SpeechRequest
from registry.settings import Settings
from registry.storage.tables import PlainText, Seed, Temperature, TopK, TopP, Words
from registry.text import clean_text

router = APIRouter(tags=["speak"], route_class=CheckedRoute)

EXAMPLE: dict[str, JsonValue] = {
    "voice": "alice",
    "text": "Enrol a voice once, speak with it by name.",
}


def _known(name: str) -> str:
    """Raise ValueError with what there is if it is no format."""
    return str(format_named(name))


FormatName = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": [*FORMATS]})]
Speed = Annotated[float, Field(ge=0.25, le=4)]
Loudness = Annotated[float, Field(ge=-40, le=-12)]


class SpeechFields(BaseModel):
    """The text to say, and how; not in whose voice."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    text: Words = Field(
        description="Up to 333 tokens of the model, of a few letters each: some 800 characters of"
        " English, never more than 5,000. A refusal says how many of the text fit."
    )
    language: PlainText | None = Field(
        None, max_length=32, description="Default: the voice's own, else found from the text."
    )
    mode: Mode | None = None
    format: FormatName = Field(
        "wav", description="At the model's sample rate, or with its rates: mp3_44100_128."
    )
    stream: bool = Field(False, description="Send the audio while it is spoken.")
    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="sse streams it as server-sent events, as does Accept."
    )
    speed: Speed = Field(1, description="How fast, at the same pitch.")
    loudness: Loudness | None = Field(
        None, description="LUFS, to which a stream glides. Default: as spoken."
    )
    seed: Seed | None = Field(
        None, description="The same seed gives the same audio. Default: random."
    )
    temperature: Temperature | None = Field(None, description="0 is greedy.")
    top_k: TopK | None = None
    top_p: TopP | None = None

    def rendering(self) -> Rendering:
        return Rendering(format_named(self.format), self.speed, self.loudness)

    def params(self) -> SpeakParams:
        return SpeakParams(**self.model_dump(include={one.name for one in fields(SpeakParams)}))


class SpeakRequest(SpeechFields):
    """The text to say, how, and in which voice."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    voice: PlainText = Field(min_length=1, max_length=256, description="The voice's name or id.")


@router.post(
    "/speak",
    summary="Speak with a voice",
    response_class=Response,
    responses=of.problems(*of.SPEAKING) | audio(OF_VOICE | OF_SPEECH),
)
@needs("speak")
async def speak(
    request: Request,
    body: SpeakRequest,
    services: ServicesDep,
    deadline: DeadlineDep,
    only: VisibleDep,
) -> Response:
    """A speech that can't be heard is made again with other seeds, and then in x-vector mode.

    Then `X-Retries` and `X-Fallback` say so. In a mode that the request or the voice asks for by
    its name, what can't be heard is an error instead.
    """

    asked, reply = asked_for(request, services.settings, body, deadline)
    return await reply.of(partial(services.speaker.speak, body.voice, asked, only=only))


def asked_for(
    request: Request, settings: Settings, body: SpeechFields, deadline: Deadline
) -> tuple[SpeechRequest, SpeechReply]:
    """Return the speech that `body` asks for, and the reply that answers with it."""
    text = clean_text(body.text, settings.max_text)
    how = sending(request, stream=body.stream, events=body.stream_format == "sse")
    reply = SpeechReply(request, body.rendering(), how, settings.answer_s)
    deadline = reply.deadline(text, deadline)
    return SpeechRequest(text, body.params(), client_of(request.scope), deadline), reply
