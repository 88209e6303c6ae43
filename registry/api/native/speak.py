"""POST /speak: a voice and a text in, audio out, whole or as it is spoken.

Every refusal comes before the first byte. A stream that breaks has its connection cut.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import fields
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from registry.api import openapi as of
from registry.api.events import EVENT_HEADERS, MEDIA_TYPE, accepted, audio_events, delta
from registry.api.problems import ClientGone, asked, log
from registry.api.requests import PATIENCE, CheckedRoute, while_connected
from registry.api.services import Services, ServicesDep
from registry.api.uploads import client_of
from registry.audio.encoders import Encoder, encoder, media_type
from registry.audio.formats import SPEECH, SpeechFormat
from registry.contract import SpeakParams, is_transient
from registry.errors import RegistryError, SpeechUnfinished
from registry.speech.local import patience
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import Mode, PlainText, Seed, TopK, Words
from registry.text import clean_text, refuse_long, spoken_s
from registry.voices.speech import Spoken

router = APIRouter(tags=["speak"], route_class=CheckedRoute)

Sending = Literal["whole", "stream", "events"]

STALLED_S = 60.0
BEGIN_S = 15.0  # of the time for an answer, to find the voice and wait for the model

EXAMPLE: dict[str, JsonValue] = {
    "voice": "alice",
    "text": "Enrol a voice once, speak with it by name.",
}
OF_VOICE = {
    "X-Voice-Id": "The id of the voice that spoke.",
    "X-Voice-Version": "Which enrolment of it.",
}
OF_SPEECH = {
    "X-Prompt-Cache": "Where the prompt features came from: memory, file, or rebuilt.",
    "X-Mode": "The mode that spoke: icl or xvec.",
    "X-Fallback": "xvec if nothing could be heard in mode icl, so that this mode spoke; else none.",
    "X-Seed": "The seed: with it the same request gives the same audio.",
    "X-Retries": "How often the speech was made again because nothing of it could be heard.",
    "X-Audio-Type": "The media type of the audio in events; absent from other answers.",
    "X-Audio-Seconds": "The length of the audio; absent from a stream.",
    "Server-Timing": "Where the time went, in milliseconds.",
}


def audio(headers: Mapping[str, str]) -> of.Responses:
    """What OpenAPI says of an answer that is sound."""
    return {
        200: {
            "description": "The audio: whole, or in chunks as it is spoken.",
            "content": of.binary((*(one.media_type for one in SPEECH.values()), MEDIA_TYPE)),
            "headers": of.headers(headers),
        }
    }


class SpeechRequest(BaseModel):
    """What to say, and how; not in whose voice."""

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
    format: SpeechFormat = "wav"
    stream: bool = Field(False, description="Send the audio while it is spoken.")
    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="sse streams it as server-sent events, as does Accept."
    )
    seed: Seed | None = Field(
        None, description="The same seed gives the same audio. Default: random."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_k: TopK | None = None
    top_p: float | None = Field(None, ge=0.001, le=1)

    def params(self, request: Request) -> SpeakParams:
        knobs = {field.name for field in fields(SpeakParams)}
        return SpeakParams(**self.model_dump(include=knobs), client=client_of(request.scope))


class SpeakRequest(SpeechRequest):
    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    voice: PlainText = Field(min_length=1, max_length=256, description="The voice's name or id.")


Use = Callable[[Spoken], Awaitable[Response]]
Speak = Callable[[str, Use], Awaitable[Response]]  # the cleaned text, what is made of its speech


@router.post(
    "/speak",
    summary="Speak with a voice",
    response_class=Response,
    responses=of.problems(
        of.BODY,
        of.NAMED,
        of.WORDS,
        of.MODES,
        of.CLIPS,
        of.KEPT_CLIPS,
        of.FEATURES,
        of.SPEECH,
        of.MODEL,
        of.GPU,
        of.WRITES,
    )
    | audio(OF_VOICE | OF_SPEECH),
    dependencies=[PATIENCE],
)
async def speak(request: Request, body: SpeakRequest, services: ServicesDep) -> Response:
    """A speech that can't be heard is made again with other seeds, and then in x-vector mode.

    Then `X-Retries` and `X-Fallback` say so. In a mode that the request or the voice asks for by
    its name, what can't be heard is an error instead.
    """

    async def with_voice(text: str, use: Use) -> Response:
        return await services.speaker.speak(body.voice, text, body.params(request), use)

    return await answer(request, services, body, with_voice)


async def answer(
    request: Request, services: Services, body: SpeechRequest, speak: Speak
) -> Response:
    """The audio as `body` wants it, of what `speak` brings."""
    text = clean_text(body.text, services.settings.max_text)
    how = _how(request, body)
    return await while_connected(
        request, _in_time(services.settings.answer_s, body, text, how, speak)
    )


def _how(request: Request, body: SpeechRequest) -> Sending:
    if body.stream_format == "sse" or accepted(request.headers.get("accept", "")):
        return "events"
    # HTTP/1.0 shows no difference between the end of a stream and its break: it gets the whole.
    return "stream" if body.stream and request.scope["http_version"] != "1.0" else "whole"


async def _in_time(
    limit_s: float | None, body: SpeechRequest, text: str, how: Sending, speak: Speak
) -> Response:
    """An answer, or the beginning of a stream, before whatever is in front of us gives up."""
    if limit_s is not None:
        leave_time(text, limit_s, streams=how != "whole")
    try:
        async with asyncio.timeout(limit_s):
            return await _answer(body, text, how, speak)
    except TimeoutError as error:
        raise SpeechUnfinished(
            f"The speech was not done within {limit_s:g} s, which is as long as an answer may take"
            " here. Stream it, or send it in parts.",
        ) from error


def leave_time(text: str, limit_s: float, streams: bool) -> None:
    """Wait for a GPU no longer than leaves the time to make the speech, at its own pace."""
    if streams:
        made_s = 0.0
    else:
        refuse_long(text, limit_s - BEGIN_S, ", or stream it")
        made_s = spoken_s(text)
    patience.set(patience.get().at_most(limit_s - made_s))


async def _answer(body: SpeechRequest, text: str, how: Sending, speak: Speak) -> Response:
    started_s = time.perf_counter()

    async def stream(spoken: Spoken) -> Response:
        made, kind = _encoder(body, spoken)
        parts = spoken.encoded(made, hold=True)
        return AudioStream(await anext(parts), parts, media_type=kind, headers=_headers(spoken))

    async def whole(spoken: Spoken) -> Response:
        made, kind = _encoder(body, spoken)
        parts = spoken.encoded(made, hold=False)
        content = made.whole(b"".join([part async for part in parts]))
        audio_s, total_s = made.frames / made.sample_rate, time.perf_counter() - started_s
        headers = _headers(spoken, audio_s, total=total_s)
        return Response(content, media_type=kind, headers=headers)

    async def events(spoken: Spoken) -> Response:
        made, kind = _encoder(body, spoken)
        parts = spoken.encoded(made, hold=True)
        first = delta(await anext(parts))
        rest = audio_events(parts, lambda: {"seconds": made.frames / made.sample_rate})
        headers = _headers(spoken) | EVENT_HEADERS | {"X-Audio-Type": kind}
        return AudioStream(first, rest, media_type=MEDIA_TYPE, headers=headers)

    return await speak(text, {"whole": whole, "stream": stream, "events": events}[how])


def _encoder(body: SpeechRequest, spoken: Spoken) -> tuple[Encoder, str]:
    """With the media type of what it makes."""
    sample_rate = spoken.speech.sample_rate
    return encoder(body.format, sample_rate), media_type(body.format, sample_rate)


class AudioStream(StreamingResponse):
    """Goes on for as long as someone listens. What breaks is cut off: it must not look whole.

    So is a connection that takes nothing for STALLED_S: what was spoken meanwhile is kept for it.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(_joined(first, rest), media_type=media_type, headers=headers)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        async with aclosing(self._rest):
            try:
                await while_connected(request, self.stream_response(send_in_time))
            except ClientGone:
                return
            except TimeoutError:
                log.warning("%s was cut off: its caller took nothing.", asked(request))
            except RegistryError as error:
                log.warning("%s broke off: %s", asked(request), error.detail)


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for part in rest:
        yield part


def _headers(spoken: Spoken, audio_s: float | None = None, **timings: float) -> dict[str, str]:
    length = {} if audio_s is None else {"X-Audio-Seconds": f"{audio_s:.3f}"}
    timings = {**spoken.timings, **timings}
    return {
        **_of_voice(spoken.voice),
        "X-Prompt-Cache": spoken.prompt_cache,
        **length,
        "X-Mode": spoken.speech.mode,
        "X-Fallback": spoken.speech.mode if spoken.fell_back else "none",
        "X-Seed": str(spoken.first.seed),
        "X-Retries": str(spoken.retries),
        "Server-Timing": ", ".join(f"{k};dur={1000 * v:.1f}" for k, v in timings.items()),
    }


def _of_voice(voice: StoredVoice) -> dict[str, str]:
    """One that is not stored has no name to ask for it again; its warnings are said here only."""
    if not is_transient(voice.row.id):
        return {"X-Voice-Id": voice.row.id, "X-Voice-Version": str(voice.row.version)}
    warnings = voice.enrolment.warnings
    return {"X-Warnings": json.dumps(warnings)} if warnings else {}
