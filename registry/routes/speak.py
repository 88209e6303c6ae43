"""POST /speak: a voice and a text in, audio out. Every error comes before the first byte."""

import time
from typing import Literal

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from registry.encode import encode, media_type
from registry.inference_client import SpeakParams
from registry.models import Mode, PlainText
from registry.requests import CheckedRoute, while_connected
from registry.services import Services, ServicesDep
from registry.speech import Spoken
from registry.text import clean_text

router = APIRouter(tags=["speak"], route_class=CheckedRoute)

EXAMPLE: dict[str, JsonValue] = {
    "voice": "alice",
    "text": "Enrol a voice once, speak with it by name.",
}
AUDIO: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The audio, whole.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("audio/wav", "audio/flac", "audio/pcm")
        },
    }
}


class SpeakRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"examples": [EXAMPLE]}
    )

    voice: PlainText = Field(min_length=1, max_length=256, description="The voice's name or id.")
    text: str = Field(description="1 to 5,000 characters.")
    language: PlainText | None = Field(
        None, max_length=32, description="Default: the voice's own, else found from the text."
    )
    mode: Mode | None = None
    format: Literal["wav", "flac", "pcm"] = "wav"
    seed: int | None = Field(
        None, ge=0, lt=2**31, description="The same seed gives the same audio. Default: random."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_k: int | None = Field(None, ge=1, le=3072)
    top_p: float | None = Field(None, ge=0.001, le=1)

    def params(self) -> SpeakParams:
        return SpeakParams(**self.model_dump(exclude={"voice", "text", "format"}))


@router.post("/speak", summary="Speak with a voice", response_class=Response, responses=AUDIO)
async def speak(request: Request, body: SpeakRequest, services: ServicesDep) -> Response:
    """`X-Prompt-Cache` says where the prompt features came from: memory, file, or rebuilt."""
    started = time.perf_counter()
    text = clean_text(body.text, services.settings.max_text)
    spoken, samples = await while_connected(request, _whole(services, body, text))
    rate = spoken.speech.sample_rate
    content = await to_thread.run_sync(encode, samples, rate, body.format)
    headers = _headers(spoken, len(samples) / rate, time.perf_counter() - started)
    return Response(content, media_type=media_type(body.format, rate), headers=headers)


async def _whole(
    services: Services, body: SpeakRequest, text: str
) -> tuple[Spoken, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    spoken = await services.speaker.speak(body.voice, text, body.params())
    chunks = [chunk async for chunk in spoken.speech.chunks]
    return spoken, np.concatenate(chunks)


def _headers(spoken: Spoken, audio_s: float, total_s: float) -> dict[str, str]:
    timings = {**spoken.speech.timings, "total": total_s}
    return {
        "X-Voice-Id": spoken.voice.row.id,
        "X-Voice-Version": str(spoken.voice.row.version),
        "X-Prompt-Cache": spoken.prompt_cache,
        "X-Audio-Seconds": f"{audio_s:.3f}",
        "X-Mode": spoken.speech.mode,
        "X-Seed": str(spoken.speech.seed),
        "Server-Timing": ", ".join(f"{k};dur={1000 * v:.1f}" for k, v in timings.items()),
    }
