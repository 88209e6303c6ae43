"""Turns an upload into a voice, and a stored clip into prompt features again.

The one place that brings clip, inference and store together; it knows nothing about HTTP.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from anyio import to_thread

from registry.audio.clips import (
    ClipLimits,
    ClipRefused,
    DecoderUnavailable,
    ReferenceClip,
    read_clip,
)
from registry.contract import (
    Deadline,
    Description,
    ExtractedPrompt,
    Inference,
    PromptRef,
    PromptSource,
)
from registry.errors import (
    ClipsUnopenable,
    ClipUnsupported,
    ClipUnusable,
    InferenceOff,
    ModelMismatch,
)
from registry.names import check_name, name_key, new_voice_id
from registry.storage.rows.edits import NewVersion, VoiceEdit, refuse_icl, refuse_stale
from registry.storage.rows.inserts import NewVoice
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import SpeakDefaults
from registry.storage.uploads import DECODERS, Clip, StoredClip, Upload
from registry.threads import to_its_end
from registry.voices.languages import language_named
from registry.voices.transcript import (
    checked_transcript,
    refuse_absurd,
    refuse_crowded,
    transcript_warnings,
)
from registry.voices.trial import LIMIT_S, OPENING, Trial
from registry.voices.turns import FairTurns
from registry.voices.unfinished import Unfinished

QUEUE_LIMIT, QUEUE_TIMEOUT_S = 32, 30.0  # clips that wait for the encoders, and how long
LINE = 16  # rebuilds and edits that wait for a decoder: some five seconds of the longest clips


@dataclass(frozen=True)
class Enrolment:
    """The voice that a person asks for, not yet checked."""

    name: str
    upload: Upload
    transcript: str | None
    description: str
    labels: dict[str, str]
    language: str | None
    deadline: Deadline = field(default_factory=Deadline)


@dataclass(frozen=True)
class TranscriptEdit:
    """The transcript to have from now on; None removes it, which leaves x-vector mode."""

    transcript: str | None


@dataclass(frozen=True)
class Change:
    """The edit that a person asks for; None leaves a field as it is."""

    name: str | None = None
    description: str | None = None
    labels: dict[str, str] | None = None
    defaults: SpeakDefaults | None = None
    words: TranscriptEdit | None = None

    def checked(self) -> "Change":
        """Return it cleaned. Raises NameInvalid, TextInvalid, TextTooLong."""
        name = None if self.name is None else check_name(self.name)
        words = self.words and TranscriptEdit(checked_transcript(self.words.transcript))
        return replace(self, name=name, words=words)


class Enroller:
    """Enrols and edits voices, and rebuilds their features, a few clips at a time."""

    def __init__(
        self,
        store: VoiceStore,
        inference: Inference,
        trial_s: float = LIMIT_S,
        queue_limit: int = QUEUE_LIMIT,
        queue_timeout_s: float = QUEUE_TIMEOUT_S,
    ) -> None:
        """Prepare to enrol; each transcript is tried for `trial_s` at most, 0 tries none.

        At most `queue_limit` clips wait for the encoders, each for `queue_timeout_s` seconds at
        most; more are refused.
        """
        self._store = store
        self._inference = inference
        self._trial = Trial(inference, trial_s)
        self._unfinished = Unfinished(store)
        self._decoders = FairTurns(DECODERS)
        self._encoders = FairTurns(inference.encoders)
        self._queue_limit, self._queue_timeout_s = queue_limit, queue_timeout_s

    @property
    def waiting(self) -> int:
        """How many clips wait for the encoders."""
        return self._encoders.waiting

    @property
    def is_at_work(self) -> bool:
        """True while work is under way or files of work that failed are being removed."""
        return self._unfinished.is_at_work

    def drop_unfinished(self) -> None:
        """Remove files of work under way, for a process that ends now without waiting for it."""
        self._unfinished.drop_now()

    async def enrol(self, request: Enrolment) -> StoredVoice:
        """Enrol a voice: cheap refusals first, files before the row, the row in one transaction."""
        name = check_name(request.name)
        transcript = checked_transcript(request.transcript)
        await to_thread.run_sync(self._store.refuse_taken, name)
        clip = await self.decode(request.upload)
        refuse_absurd(transcript, clip.speech_s)
        await self.adopt_model()
        language = await to_thread.run_sync(self.language, request.language)
        source = PromptSource(new_voice_id(), clip.sha256, transcript)
        async with self._unfinished.work(source):
            await to_its_end(self._store.keep_clip, source, request.upload, clip)
            prompt = await self.extract_prompt(source, request.upload.client, request.deadline)
            refuse_crowded(transcript, clip.speech_s, prompt.room)
            tried = await self._tried(source, prompt, language)
            new = NewVoice(
                source=source,
                name=name,
                description=request.description,
                labels=request.labels,
                defaults=SpeakDefaults(language=language),
                warnings=[*self.warnings(source, clip), *(tried or [])],
            )
            return await to_its_end(self._insert, new, request.upload, clip, prompt)

    def _insert(
        self, new: NewVoice, upload: Upload, clip: ReferenceClip, prompt: ExtractedPrompt
    ) -> StoredVoice:
        """Store all that an enrolment leaves in the database, in one transaction."""
        with self._store.transaction() as session:
            return self._store.insert(session, new, upload, clip, prompt)

    async def edit(
        self,
        reference: str,
        change: Change,
        expected: int | None,
        client: str = "",
        deadline: Deadline | None = None,
    ) -> StoredVoice:
        """Edit a voice in one transaction, after the long work that another transcript takes.

        `change` must be checked. Raises EditConflict if `expected` is given and is not, or no
        longer, the row_version; ServerBusy where many wait for such work.
        """
        voice = await to_thread.run_sync(self._store.get, reference)
        refuse_stale(voice.row, expected)
        defaults = await to_thread.run_sync(self._defaults, change.defaults)
        edit = VoiceEdit(change.name, change.description, change.labels, defaults)
        if change.words is None or change.words.transcript == voice.enrolment.transcript:
            return await to_thread.run_sync(self._store.edit, voice.row.id, edit, expected)
        source = replace(voice.source, transcript=change.words.transcript)
        async with self._unfinished.work(source):
            edit = replace(edit, version=await self._version(voice, edit, source, client, deadline))
            return await to_its_end(self._store.edit, voice.row.id, edit, expected)

    async def _version(
        self,
        voice: StoredVoice,
        edit: VoiceEdit,
        source: PromptSource,
        client: str,
        deadline: Deadline | None,
    ) -> NewVersion:
        """Enrol the voice's clip once more, with another transcript."""
        if edit.name is not None and name_key(edit.name) != voice.row.name_key:
            await to_thread.run_sync(self._store.refuse_taken, edit.name)
        refuse_icl(voice.row.name, (edit.defaults or voice.defaults).mode, source.transcript)
        await self.refuse_other_model(voice)
        clip = await self.decode(self._stored_clip(voice, client), LINE)
        refuse_absurd(source.transcript, clip.speech_s)
        await to_its_end(self._store.keep_clip, source, None, clip)
        prompt = await self.extract_prompt(source, client, deadline)
        refuse_crowded(source.transcript, clip.speech_s, prompt.room)
        language = (edit.defaults or voice.defaults).language
        tried = await self._tried(source, prompt, language)
        warnings = [*self.warnings(source, clip), *(tried or [])]
        return NewVersion(source, clip, warnings, prompt)

    async def rebuild(
        self, voice: StoredVoice, client: str, deadline: Deadline | None = None
    ) -> StoredVoice:
        """Make the prompt features anew from the reference clip, and try them.

        Raises ClipDamaged; ServerBusy where many wait for such work.
        """
        stored = self._stored_clip(voice, client)
        return await self._rebuild(voice, stored, deadline, LINE, trial=True)

    async def refresh(self, voice: StoredVoice, client: str, deadline: Deadline) -> StoredVoice:
        """Rebuild for a speech that has its place in a line; no trial, for old results hold."""
        stored = self._stored_clip(voice, client)
        return await self._rebuild(voice, stored, deadline, None, trial=False)

    async def _rebuild(
        self,
        voice: StoredVoice,
        stored: StoredClip,
        deadline: Deadline | None,
        line: int | None,
        *,
        trial: bool,
    ) -> StoredVoice:
        await self.refuse_other_model(voice)
        clip = await self.decode(stored, line)
        async with self._unfinished.work(voice.source):
            await to_its_end(self._store.keep_clip, voice.source, None, clip)
            prompt = await self.extract_prompt(
                voice.source, stored.client, deadline, counted=line is None
            )
            tried = None
            if trial:
                tried = await self._tried(voice.source, prompt, voice.defaults.language)
            if tried is None:
                tried = [told for told in voice.enrolment.warnings if told.startswith(OPENING)]
            warnings = [*self.warnings(voice.source, clip), *tried]
            return await to_its_end(self._store.record_features, voice, prompt, warnings)

    async def adopt_model(self) -> None:
        description = await to_thread.run_sync(self._inference.describe)
        await to_thread.run_sync(self._store.adopt_model, description.source, description.model)

    def language(self, given: str | None) -> str | None:
        """Return the model's name for a language; raise LanguageUnsupported if it lacks it."""
        if given is None:
            return None
        try:
            languages = self._inference.describe().languages
        except InferenceOff:
            return language_named(given, None)
        return language_named(given, languages)

    def _defaults(self, defaults: SpeakDefaults | None) -> SpeakDefaults | None:
        if defaults is None:
            return None
        return defaults.model_copy(update={"language": self.language(defaults.language)})

    async def refuse_other_model(self, voice: StoredVoice) -> Description:
        """Raise ModelMismatch if `voices model use` changed the model since the server started."""
        description = await to_thread.run_sync(self._inference.describe)
        model = description.model
        if voice.model != model:
            raise ModelMismatch(
                f"This server runs {model.id} at {model.revision}, but the data directory now uses "
                "another model. Restart the server."
            )
        return description

    def warnings(self, source: PromptSource, clip: ReferenceClip) -> list[str]:
        return [*clip.warnings, *transcript_warnings(source.transcript, clip.speech_s)]

    async def _tried(
        self, source: PromptSource, prompt: ExtractedPrompt, language: str | None
    ) -> list[str] | None:
        if source.transcript is None:
            return None
        ref = PromptRef(source.voice_id, prompt.fingerprint, prompt.sha256)
        return await self._trial.warnings(ref, source.transcript, language)

    def _stored_clip(self, voice: StoredVoice, client: str) -> StoredClip:
        read = partial(self._store.open_clip, voice)
        return StoredClip(voice.enrolment.clip_sha256, read, client)

    async def decode(self, clip: Clip, line: int | None = None) -> ReferenceClip:
        """Decode a clip in its turn; raise ServerBusy if `line` others wait for a decoder."""
        async with self._decoders.turn(clip.client, line):
            return await to_its_end(decoded, clip)

    async def extract_prompt(
        self,
        source: PromptSource,
        client: str,
        deadline: Deadline | None,
        *,
        counted: bool = False,
    ) -> ExtractedPrompt:
        """Make features in turn; raise ServerBusy if too many wait, Overloaded after too long.

        A speech whose voice is healed was `counted` with it, and is not counted again.
        """
        line = None if counted else self._queue_limit
        async with self._encoders.turn(client, line, self._queue_timeout_s):
            return await self._inference.extract_prompt(source, deadline)


def decoded(clip: Clip) -> ReferenceClip:
    with clip.open() as file:
        try:
            return read_clip(file, clip.sha256, ClipLimits())
        except ClipRefused as refused:
            kind = ClipUnsupported if refused.code == "audio-unsupported" else ClipUnusable
            raise kind(refused.code, str(refused)) from refused
        except DecoderUnavailable as error:
            raise ClipsUnopenable(str(error)) from error
