"""POST /v1/audio/speech: as OpenAI's clients ask for it, with what is ours as further keys."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from registry.api import openapi as of
from registry.api.access import VisibleDep, needs
from registry.api.ignored import ignore
from registry.api.native.speak import FormatName, Speed
from registry.api.openai.errors import OpenAIRoute, fields_of, problems
from registry.api.openai.models import FORCING
from registry.api.problems import of_error
from registry.api.requests import DeadlineDep
from registry.api.services import ServicesDep
from registry.api.speech_response import OF_SPEECH, OF_VOICE, SpeechReply, audio, sending
from registry.api.uploads import client_of
from registry.audio.encoding.rendering import Renderer, Rendering
from registry.audio.formats import format_named
from registry.contract import Mode, SpeakParams, SpeechRequest
from registry.errors import RegistryError
from registry.storage.tables import PLAIN, PlainText, Seed, Temperature, TopK, TopP, Words
from registry.text import clean_text
from registry.voices.languages import known_language
from registry.voices.takes import Spoken

router = APIRouter(prefix="/v1/audio", tags=["openai"], route_class=OpenAIRoute)

FRAME_S = 0.08  # of sound, which the model makes at a time: its tokens of output
EXAMPLE: dict[str, JsonValue] = {
    "model": "tts-1",
    "voice": "alice",
    "input": "Enrol a voice once, speak with it by name.",
}


class VoiceReference(BaseModel):
    """A voice by its name or id, as an object."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    id: PlainText = Field(min_length=1, max_length=256)


def _reference(voice: object) -> object:
    return {"id": voice} if isinstance(voice, str) else voice


REFERENCE = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": PLAIN}
VOICE = {
    "anyOf": [
        REFERENCE,
        {"type": "object", "properties": {"id": REFERENCE}, "required": ["id"]},
    ]
}


class SpeechBody(BaseModel):
    """The text to speak, the voice and the format; every key that may be left out may be null.

    Other keys are passed over, `instructions` too.
    """

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [EXAMPLE]},
    )

    input: Words
    voice: Annotated[VoiceReference, BeforeValidator(_reference), WithJsonSchema(VOICE)] = Field(
        description="The voice's name or id; also as an object with its `id`."
    )
    model: PlainText | None = Field(
        None, max_length=256, description="Any; `tts-1-de` and its like force a language."
    )
    response_format: FormatName | None = Field(None, description="Default: mp3.")
    speed: Speed | None = Field(None, description="Default: 1.")
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="Default: audio, in chunks as it is spoken."
    )
    stream: bool | None = Field(None, description="false sends the audio whole.")
    language: PlainText | None = Field(None, max_length=32)
    mode: Mode | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None

    def rendering(self) -> Rendering:
        return Rendering(format_named(self.response_format or "mp3"), self.speed or 1)

    def params(self) -> SpeakParams:
        given = self.model_dump(include={one.name for one in fields(SpeakParams)})
        return SpeakParams(**given | {"language": self.language or self._forced()})

    def ignored(self) -> Iterator[str]:
        """Yield the names that were given and are not known."""
        yield from (key for key, value in self._others(self).items() if value is not None)
        yield from (f"voice.{key}" for key in self._others(self.voice))

    def _forced(self) -> str | None:
        model = self.model or ""
        is_forcing = model.startswith(FORCING)
        return known_language(model.removeprefix(FORCING)) if is_forcing else None

    @staticmethod
    def _others(model: BaseModel) -> dict[str, Any]:
        return model.model_extra or {}


class OpenAIReply(SpeechReply):
    """Answers a speech with OpenAI's usage and errors in its events."""

    def summary(self, spoken: Spoken, made: Renderer) -> Mapping[str, object]:
        """Count what was used, as the model does; null where an older one does not say."""
        tokens, frames = spoken.speech.text_tokens, round(spoken.chunks.length_s / FRAME_S)
        total = None if tokens is None else tokens + frames
        return {"usage": {"input_tokens": tokens, "output_tokens": frames, "total_tokens": total}}

    def failure(self, error: RegistryError) -> Mapping[str, object]:
        return fields_of(of_error(error))


@router.post(
    "/speech",
    name="openai_speak",
    summary="Speak with a voice",
    response_class=Response,
    responses=problems(*of.SPEAKING) | audio(OF_VOICE | OF_SPEECH),
)
@needs("speak")
async def speak(
    request: Request,
    body: SpeechBody,
    services: ServicesDep,
    deadline: DeadlineDep,
    only: VisibleDep,
) -> Response:
    """Speak a text; the audio is sent in chunks while it is spoken, unless `stream` is false."""
    ignore(request, body.ignored())
    settings = services.settings
    text = clean_text(body.input, settings.max_text)
    how = sending(request, stream=body.stream is not False, events=body.stream_format == "sse")
    reply = OpenAIReply(request, body.rendering(), how, settings.answer_s)
    deadline = reply.deadline(text, deadline)
    asked = SpeechRequest(text, body.params(), client_of(request.scope), deadline)
    return await reply.of(partial(services.speaker.speak, body.voice.id, asked, only=only))
