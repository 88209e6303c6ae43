"""From an upload to a voice, and from a stored clip back to prompt features.

The one place that brings clip, inference and store together; it knows nothing about HTTP.
"""

import asyncio
from dataclasses import dataclass

from anyio import to_thread

from registry.audio import ClipLimits, ClipRefused, ReferenceClip, read_clip
from registry.errors import (
    ClipUnsupported,
    ClipUnusable,
    LanguageUnsupported,
    ModelMismatch,
    NameTaken,
)
from registry.files import PromptSource
from registry.inference_client import Inference
from registry.models import SpeakDefaults
from registry.names import check_name, new_voice_id
from registry.queries import StoredVoice
from registry.rows import NewVoice
from registry.store import VoiceStore
from registry.text import clean_text

MAX_TRANSCRIPT = 2000
DECODERS = 2
NO_TRANSCRIPT = (
    "No transcript was given: the voice speaks in x-vector mode, which follows its timbre but not "
    "its manner. Add it again with the words of the clip for the closer copy."
)


@dataclass(frozen=True)
class Enrolment:
    """What a person asks for, not yet checked."""

    name: str
    upload: bytes
    transcript: str | None
    description: str
    labels: dict[str, str]
    language: str | None


class Enroller:
    def __init__(self, store: VoiceStore, inference: Inference) -> None:
        self._store = store
        self._inference = inference
        self._decoders = asyncio.Semaphore(DECODERS)

    async def enrol(self, request: Enrolment) -> StoredVoice:
        """Cheap refusals first, files before the row, the row in one transaction."""
        name = check_name(request.name)
        transcript = _checked_transcript(request.transcript)
        await to_thread.run_sync(self._store.refuse_taken, name)
        clip = await self._decode(request.upload)
        await self.adopt_model()
        await to_thread.run_sync(self.check_language, request.language)
        source = PromptSource(new_voice_id(), clip.sha256, transcript)
        await to_thread.run_sync(self._store.keep_clip, source, request.upload, clip)
        prompt = await self._inference.extract_prompt(source)
        new = _new_voice(request, source, name, clip)
        try:
            return await to_thread.run_sync(self._store.insert, new, request.upload, clip, prompt)
        except NameTaken:
            await to_thread.run_sync(self._store.drop_prompts, source.voice_id)
            raise

    async def rebuild(self, voice: StoredVoice) -> StoredVoice:
        """Make the prompt features anew from the reference clip. Raises ClipDamaged."""
        await self.refuse_other_model(voice)
        upload = await to_thread.run_sync(self._store.clip, voice)
        clip = await self._decode(upload)
        await to_thread.run_sync(self._store.keep_clip, voice.source, upload, clip)
        prompt = await self._inference.extract_prompt(voice.source)
        return await to_thread.run_sync(self._store.record_features, voice, prompt)

    async def adopt_model(self) -> None:
        description = await to_thread.run_sync(self._inference.describe)
        await to_thread.run_sync(self._store.adopt_model, description.source, description.model)

    def check_language(self, language: str | None) -> None:
        """Raises LanguageUnsupported for a default that no request could be spoken with."""
        if language is None or language.lower() == "auto":
            return
        languages = self._inference.describe().languages
        if language.lower() not in languages:
            raise LanguageUnsupported(
                f"The model does not speak {language!r}. It speaks {', '.join(languages)}, or auto."
            )

    async def refuse_other_model(self, voice: StoredVoice) -> None:
        """Someone may have run `voices model use` while this process holds the model of before."""
        model = (await to_thread.run_sync(self._inference.describe)).model
        if voice.model != model:
            raise ModelMismatch(
                f"This server runs {model.id} at {model.revision}, but the data directory now uses "
                "another model. Restart the server."
            )

    async def _decode(self, upload: bytes) -> ReferenceClip:
        async with self._decoders:
            try:
                return await to_thread.run_sync(read_clip, upload, ClipLimits())
            except ClipRefused as refused:
                unsupported = refused.code == "audio-unsupported"
                kind = ClipUnsupported if unsupported else ClipUnusable
                raise kind(refused.code, str(refused)) from refused


def _checked_transcript(transcript: str | None) -> str | None:
    if transcript is None:
        return None
    return clean_text(transcript, MAX_TRANSCRIPT, "The transcript")


def _new_voice(
    request: Enrolment, source: PromptSource, name: str, clip: ReferenceClip
) -> NewVoice:
    return NewVoice(
        source=source,
        name=name,
        description=request.description,
        labels=request.labels,
        defaults=SpeakDefaults(language=request.language),
        warnings=[*clip.warnings, *([NO_TRANSCRIPT] if source.transcript is None else [])],
    )
