"""Makes a voice for one speech: its clip is checked and made into features, but not enrolled.

It has no row. Its files lie in a folder of its own, which goes when the speech no longer needs
them: the content is shared with no voice, so nothing is taken from one. A kill leaves the folder to
the next start, or to the doctor.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from anyio import to_thread

from registry.audio.clips import ReferenceClip
from registry.contract import TRANSIENT_PREFIX, Deadline, ExtractedPrompt, Inference, PromptSource
from registry.errors import StorageUnavailable
from registry.storage.rows.inserts import (
    FIRST_VERSION,
    NewVoice,
    features_row,
    version_row,
    voice_row,
)
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import SpeakDefaults, utc_now
from registry.storage.uploads import Upload
from registry.threads import to_its_end
from registry.voices.enrolment import Enroller
from registry.voices.transcript import checked_transcript, refuse_absurd

NAME = "the clip"

log = logging.getLogger("registry")


@dataclass(frozen=True)
class Reference:
    """A clip to speak like, not yet checked."""

    upload: Upload
    transcript: str | None
    deadline: Deadline = field(default_factory=Deadline)


class Cloner:
    """Makes voices from uploaded clips, each for one speech."""

    def __init__(self, store: VoiceStore, inference: Inference, enroller: Enroller) -> None:
        self._store = store
        self._inference = inference
        self._enroller = enroller
        self._here = set[str]()  # ids of voices that exist for a speech

    @asynccontextmanager
    async def voice(self, reference: Reference) -> AsyncIterator[StoredVoice]:
        """Yield a voice that exists within the block; raises what an enrolment raises."""
        transcript = checked_transcript(reference.transcript)
        clip = await self._enroller.decode(reference.upload)
        reference.upload.close()
        refuse_absurd(transcript, clip.speech_s)
        voice_id = TRANSIENT_PREFIX + secrets.token_hex(16)
        source = PromptSource(voice_id, clip.sha256, transcript)
        self._here.add(voice_id)
        making = asyncio.ensure_future(self._features(source, clip, reference))
        try:
            prompt = await asyncio.shield(making)
            warnings = self._enroller.warnings(source, clip)
            yield stored(source, clip, warnings, prompt)
        finally:
            making.cancel()  # whoever leaves gives its turn back; what has begun goes on to its end
            await asyncio.shield(self._drop(voice_id, making))

    async def _features(
        self, source: PromptSource, clip: ReferenceClip, reference: Reference
    ) -> ExtractedPrompt:
        await to_its_end(self._store.keep_transient, source, clip)
        return await self._enroller.extract_prompt(
            source, reference.upload.client, reference.deadline
        )

    async def _drop(self, voice_id: str, making: "asyncio.Future[ExtractedPrompt]") -> None:
        """Remove the files once nobody writes them: a caller who leaves stops no thread."""
        await asyncio.gather(making, return_exceptions=True)
        try:
            await to_thread.run_sync(self._store.drop_transient, voice_id)
        except (OSError, StorageUnavailable) as error:
            log.warning("transient/%s is left to `voices doctor --repair`: %s", voice_id, error)
        finally:
            self._here.discard(voice_id)

    @property
    def is_at_work(self) -> bool:
        """True while any such voice exists."""
        return bool(self._here)

    def drop_now(self) -> None:
        """Remove the files of all, for a process that ends without their speeches; any thread."""
        for voice_id in [*self._here]:
            with suppress(OSError, StorageUnavailable):
                self._store.drop_transient(voice_id)


def stored(
    source: PromptSource,
    clip: ReferenceClip,
    warnings: list[str],
    prompt: ExtractedPrompt,
) -> StoredVoice:
    """Make the rows that an enrolment would have left."""
    now = utc_now()
    new = NewVoice(source, NAME, "", {}, SpeakDefaults(), warnings)
    voice = voice_row(new, FIRST_VERSION, now)
    return StoredVoice(
        voice,
        version_row(source, voice.version, clip, warnings, now),
        labels={},
        model=prompt.model,
        features=features_row(source.voice_id, voice.version, prompt, now),
    )
