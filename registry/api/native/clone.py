"""POST /clone: a clip and a text in, speech in the voice of the clip out. Nothing is kept.

It is a route of its own, and no second form of POST /speak: in OpenAPI an operation has one body,
one set of errors and one function in the clients that are made from it.
"""

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from registry.api import openapi as of
from registry.api.access import needs
from registry.api.forms import form_body, taken_in
from registry.api.native.speak import SpeechFields, asked_for
from registry.api.native.voices import ClipWords, ReferenceAudio
from registry.api.requests import CheckedRoute, DeadlineDep
from registry.api.services import ServicesDep
from registry.api.speech_response import OF_SPEECH, Use, audio
from registry.voices.clone import Reference

WARNINGS = "What an enrolment would warn of: a JSON list of sentences. Absent if there is nothing."

router = APIRouter(tags=["speak"], route_class=CheckedRoute)


class CloneForm(SpeechFields):
    """The clip to speak like, with its words, and what to say."""

    model_config = ConfigDict(strict=False)  # a form has only words

    audio: ReferenceAudio
    transcript: ClipWords = None


@router.post(
    "/clone",
    summary="Speak like a clip, without enrolling it",
    response_class=Response,
    responses=of.problems(
        of.BODY,
        of.WORDS,
        of.MODES,
        of.TRANSCRIPTS,
        of.CLIPS,
        of.FEATURES,
        of.SPEECH,
        of.MODEL,
        of.GPU,
        of.WRITES,
    )
    | audio(OF_SPEECH | {"X-Warnings": WARNINGS}),
    openapi_extra=form_body(CloneForm),
)
@needs("speak", all_voices=True)
async def clone(request: Request, services: ServicesDep, deadline: DeadlineDep) -> Response:
    """The clip and its transcript are checked as at an enrolment.

    Clip and features are removed when the model has taken them in, whatever becomes of the speech.
    """

    async with taken_in(request, CloneForm, services.uploads) as form:
        services.speaker.line.refuse_full()  # it was not when the clip began to come
        asked, reply = asked_for(request, services.settings, form, deadline)

        async def with_clip(use: Use) -> Response:
            reference = Reference(form.audio, form.transcript, asked.deadline)
            async with services.cloner.voice(reference) as voice:
                return await services.speaker.speak_as(voice, asked, use)

        return await reply.of(with_clip)
