"""A voice as it was read from the database, and as it is shown.

Rows are trusted no more than requests, for a backup of someone else's may have brought them.
"""

import base64
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from registry.contract import ModelRef, PromptRef, PromptSource, fingerprint
from registry.errors import ClipDamaged, PromptNotReady, VoiceDamaged
from registry.names import is_voice_id
from registry.storage.schemas import PromptPublic, VoicePage, VoicePublic
from registry.storage.tables import AUDIO_TYPES, Features, SpeakDefaults, Voice, VoiceVersion

log = logging.getLogger("registry")

PAGE_CHARACTERS = 256 * 1024  # so many end a page, so that it is no more than a few MiB


@dataclass(frozen=True)
class StoredVoice:
    """A live voice with its current enrolment, and its features for the model in use, if made."""

    row: Voice
    enrolment: VoiceVersion
    labels: dict[str, str]
    model: ModelRef | None
    features: Features | None

    @property
    def source(self) -> PromptSource:
        return PromptSource(self.row.id, self.enrolment.clip_sha256, self.enrolment.transcript)

    @property
    def defaults(self) -> SpeakDefaults:
        """The parameters that it speaks with unless a request has others. Raises VoiceDamaged."""
        with self._believed("defaults"):
            return SpeakDefaults.model_validate(self.row.defaults)

    @property
    def modes(self) -> list[str]:
        return ["xvec"] if self.enrolment.transcript is None else ["icl", "xvec"]

    @property
    def clip_type(self) -> str:
        """The media type that the clip may be served as."""
        clip = self.enrolment.clip if isinstance(self.enrolment.clip, dict) else {}
        kind = str(clip.get("media_type"))
        return kind if kind in AUDIO_TYPES else "application/octet-stream"

    def characters(self) -> int:
        """Count roughly the characters that people wrote into it."""
        labels, warnings = self.labels.values(), self.enrolment.warnings
        words = (self.row.description, self.enrolment.transcript, *labels, warnings)
        return sum(len(str(word)) for word in words)

    def fingerprint(self) -> str | None:
        """Return the key of the features that the model in use needs.

        None before any model was used, or where the row holds no text.
        """
        parts = (self.enrolment.clip_sha256, self.enrolment.transcript or "")
        if self.model is None or not all(isinstance(part, str) for part in parts):
            return None
        return fingerprint(self.source, self.model)

    def prompt_ref(self) -> PromptRef | None:
        if self.features is None:
            return None
        return PromptRef(self.row.id, self.features.fingerprint, self.features.sha256)

    def damaged_clip(self) -> ClipDamaged:
        return ClipDamaged(
            f"The reference clip of {self.row.name!r} is missing or damaged on disk; restore "
            f"clips/{self.enrolment.clip_sha256} from a backup, or delete the voice and add it "
            "again."
        )

    def ready_prompt(self) -> PromptRef:
        """Return its prompt for the model in use; raise PromptNotReady if none was made yet."""
        ref = self.prompt_ref()
        if ref is None:
            raise PromptNotReady(
                f"{self.row.name!r} has no prompt features for the model in use yet; "
                "speak with it or rebuild it first."
            )
        return ref

    def public(self) -> VoicePublic:
        """Return what the API shows; raise VoiceDamaged for what no request could have stored."""
        clip, sha256 = self.enrolment.clip, {"sha256": self.enrolment.clip_sha256}
        row = self.row.model_dump(exclude={"name_key", "deleted_at", "defaults"}, warnings=False)
        shown = row | {
            "labels": self.labels,
            "defaults": self.defaults,
            "modes": self.modes,
            "transcript": self.enrolment.transcript,
            "clip": {**clip, **sha256} if isinstance(clip, dict) else clip,
            "warnings": self.enrolment.warnings,
        }
        with self._believed():
            return VoicePublic(**shown, prompt=self._prompt_public())

    def damaged_prompt(self) -> PromptNotReady:
        return PromptNotReady(
            f"The prompt file of {self.row.name!r} is missing or damaged; speak with it or rebuild "
            "it, and it is made anew from the clip."
        )

    @contextmanager
    def _believed(self, within: str = "") -> Iterator[None]:
        """Raise VoiceDamaged for what a model refuses within the block."""
        try:
            yield
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, (within, *first["loc"]))).removeprefix(".")
            raise VoiceDamaged(
                f"The voice {self.row.name!r} ({self.row.id}) is damaged in the database: its "
                f"{field} is not valid ({first['msg']}). `voices doctor` finds all such voices.",
                id=shown_id(self.row.id),
                field=field,
                why=first["msg"],
            ) from error

    def _prompt_public(self) -> PromptPublic:
        if self.features is None:
            return PromptPublic(state="stale")
        return PromptPublic(
            state="ready", fingerprint=self.features.fingerprint, frames=self.features.frames
        )


@dataclass(frozen=True)
class Page:
    """Voices of one page, and the cursor of the next."""

    voices: list[StoredVoice]
    next: str | None
    damaged: list[str]  # ids of those that have no enrolment

    def public(self) -> VoicePage:
        """Return what the API shows of the page: damaged voices by their ids, all others whole.

        It ends early, with a cursor, after voices with many words.
        """
        shown, damaged, characters = list[VoicePublic](), [*self.damaged], 0
        following = self.next
        for before, voice in zip((None, *self.voices), self.voices, strict=False):
            characters += voice.characters()
            if before and characters > PAGE_CHARACTERS:
                following = cursor(before.row.name_key)
                break
            try:
                shown.append(voice.public())
            except VoiceDamaged as error:
                log.warning("%s", error.detail)
                damaged.append(shown_id(voice.row.id))
        return VoicePage(data=shown, damaged=damaged, next=following)


def is_full(voices: Sequence[StoredVoice]) -> bool:
    """Tell whether a page of these has no room for another."""
    return sum(voice.characters() for voice in voices) > PAGE_CHARACTERS


def cursor(name_key: str) -> str:
    """Return the cursor of the page that begins after this name."""
    return base64.urlsafe_b64encode(name_key.encode()).decode().rstrip("=")


def shown_id(voice_id: object) -> str:
    """Return an id as it is if it is valid; anything else escaped, and cut short."""
    return str(voice_id) if is_voice_id(voice_id) else ascii(voice_id)[:80]
