"""Answers requests for speech, in any dialect: their deadline, encoding, headers and end.

Every refusal comes before the first byte. A stream that breaks has its connection cut.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Literal

from fastapi import Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from registry.api import openapi as of
from registry.api.events import EVENT_HEADERS, MEDIA_TYPE, accepted, audio_events, delta
from registry.api.problems import ClientGone, log, request_line
from registry.api.requests import while_connected
from registry.audio.encoding.rendering import Renderer, Rendering
from registry.audio.formats import SPEECH
from registry.contract import Deadline, is_transient
from registry.errors import RegistryError, SpeechUnfinished
from registry.storage.stored_voice import StoredVoice
from registry.text import refuse_long, spoken_s
from registry.voices.takes import Spoken

Sending = Literal["whole", "stream", "events"]

Use = Callable[[Spoken], Awaitable[Response]]

STALLED_S = 60.0
BEGIN_S = 15.0  # to find the voice and wait for the model, of the time for an answer

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
    "X-Loudness": "With `loudness`: the LUFS of what is sent whole, `running` for a stream.",
    "Server-Timing": "Where the time went, in milliseconds.",
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENTS: dict[str, object] = {MEDIA_TYPE: {"schema": EVENT}}  # whose data is JSON


def audio(headers: Mapping[str, str]) -> of.Responses:
    """Describe an answer that is sound to OpenAPI."""
    return {
        200: {
            "description": "The audio: whole, or in chunks as it is spoken.",
            "content": of.binary(one.media_type for one in SPEECH.values()) | EVENTS,
            "headers": of.headers(headers),
        }
    }


def sending(request: Request, *, stream: bool, events: bool) -> Sending:
    """Decide how the answer goes out, by what a body and the Accept header ask for."""
    if events or accepted(request.headers.get("accept", "")):
        return "events"
    # HTTP/1.0 shows no difference between the end of a stream and its break: it gets the whole.
    return "stream" if stream and request.scope["http_version"] != "1.0" else "whole"


class SpeechReply:
    """Answers one speech: in which format, sent how, and within which time.

    A dialect whose events say other things has a subclass.
    """

    def __init__(
        self, request: Request, rendering: Rendering, sending: Sending, limit_s: float | None
    ) -> None:
        self._request = request
        self._rendering = rendering
        self._limit_s = limit_s
        self._is_whole = sending == "whole"
        self._send = {"whole": self._whole, "stream": self._stream, "events": self._events}[sending]
        self._begun_s = time.perf_counter()

    def deadline(self, text: str, deadline: Deadline) -> Deadline:
        """Shorten a GPU's deadline, so that time is left to make the speech at its own pace.

        Raises TextTooLong for a text that takes longer in any case.
        """
        if self._limit_s is None:
            return deadline
        if not self._is_whole:
            return deadline.at_most(self._limit_s)
        refuse_long(text, self._limit_s - BEGIN_S, ", or stream it")
        return deadline.at_most(self._limit_s - spoken_s(text))

    async def of(self, speak: Callable[[Use], Awaitable[Response]]) -> Response:
        """Answer with what `speak` brings; a client that leaves ends the work."""
        return await while_connected(self._request, self._in_time(speak))

    async def _in_time(self, speak: Callable[[Use], Awaitable[Response]]) -> Response:
        """Answer, or begin a stream, before whatever is in front of the server gives up."""
        try:
            async with asyncio.timeout(self._limit_s):
                return await speak(self._send)
        except TimeoutError as error:
            raise SpeechUnfinished(
                f"The speech was not done within {self._limit_s:g} s, which is as long as an answer"
                " may take here. Stream it, or send it in parts.",
            ) from error

    async def _stream(self, spoken: Spoken) -> Response:
        made = self._renderer(spoken)
        parts = spoken.rendered(made, hold=True)
        first, headers = await anext(parts), _headers(spoken, made)
        return AudioStream(first, parts, media_type=made.content_type, headers=headers)

    async def _whole(self, spoken: Spoken) -> Response:
        made = self._renderer(spoken)
        parts = spoken.rendered(made, hold=False)
        content = made.whole(b"".join([part async for part in parts]))
        headers = _headers(spoken, made, total=time.perf_counter() - self._begun_s)
        headers["X-Audio-Seconds"] = f"{made.seconds:.3f}"
        return Response(content, media_type=made.content_type, headers=headers)

    async def _events(self, spoken: Spoken) -> Response:
        made = self._renderer(spoken)
        parts = spoken.rendered(made, hold=True)
        first = delta(await anext(parts))
        rest = audio_events(parts, partial(self.summary, spoken, made), self.failure)
        headers = _headers(spoken, made) | EVENT_HEADERS | {"X-Audio-Type": made.content_type}
        return AudioStream(first, rest, media_type=MEDIA_TYPE, headers=headers)

    def summary(self, spoken: Spoken, made: Renderer) -> Mapping[str, object]:
        """Return what the last event says of the speech."""
        return {"seconds": made.seconds}

    def failure(self, error: RegistryError) -> Mapping[str, object]:
        """Return what the event of an error says of it."""
        return {"code": error.code, "message": error.detail}

    def _renderer(self, spoken: Spoken) -> Renderer:
        return Renderer(self._rendering, spoken.speech.sample_rate, whole=self._is_whole)


class AudioStream(StreamingResponse):
    """Streams audio for as long as someone listens; cuts off what breaks, lest it looks whole.

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
                log.warning("%s was cut off: its caller took nothing.", request_line(request))
            except RegistryError as error:
                log.warning("%s broke off: %s", request_line(request), error.detail)


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for part in rest:
        yield part


def _headers(spoken: Spoken, made: Renderer, **timings: float) -> dict[str, str]:
    timings = {**spoken.timings, **timings}
    return {
        **_of_voice(spoken.voice),
        "X-Prompt-Cache": spoken.prompt_cache,
        **({} if made.loudness is None else {"X-Loudness": made.loudness}),
        "X-Mode": spoken.speech.mode,
        "X-Fallback": spoken.speech.mode if spoken.fell_back else "none",
        "X-Seed": str(spoken.first.seed),
        "X-Retries": str(spoken.retries),
        "Server-Timing": ", ".join(f"{k};dur={1000 * v:.1f}" for k, v in timings.items()),
    }


def _of_voice(voice: StoredVoice) -> dict[str, str]:
    """Return the headers that identify the voice; for a clone, its warnings."""
    if not is_transient(voice.row.id):
        return {"X-Voice-Id": voice.row.id, "X-Voice-Version": str(voice.row.version)}
    warnings = voice.enrolment.warnings
    return {"X-Warnings": json.dumps(warnings)} if warnings else {}
