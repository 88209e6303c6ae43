"""Makes the rows that writes leave: voices, enrolments, features, labels, variants of names."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry.audio.clips import ReferenceClip
from registry.contract import ExtractedPrompt, ModelRef, PromptSource
from registry.errors import ModelMismatch
from registry.names import name_key, variants
from registry.storage import sqlite
from registry.storage.queries import current_model
from registry.storage.schemas import ClipPublic
from registry.storage.tables import (
    Features,
    Label,
    ModelInUse,
    NameVariant,
    SpeakDefaults,
    Voice,
    VoiceVersion,
    utc_now,
)

FIRST_VERSION = 1  # the enrolment that makes a voice
MOST_EDITS = 2**53  # what JSON can count to
CLIP_FIELDS = [name for name in ClipPublic.model_fields if name not in ("sha256", "bytes")]


@dataclass(frozen=True)
class NewVoice:
    """A checked enrolment; its id exists before its row, because its files come first."""

    source: PromptSource
    name: str
    description: str
    labels: dict[str, str]
    defaults: SpeakDefaults
    warnings: Sequence[str]


def next_edit(row_version: object) -> int:
    """Return the number after this edit; 1 after a damaged one, so that a sound one is left."""
    sound = isinstance(row_version, int) and 0 < row_version < MOST_EDITS
    return int(row_version) + 1 if sound else 1  # type: ignore[call-overload]


def voice_row(new: NewVoice, version: int, now: str) -> Voice:
    """Make the row of a new voice; `version` is the number of its current enrolment."""
    return Voice(
        id=new.source.voice_id,
        name=new.name,
        name_key=name_key(new.name),
        description=new.description,
        defaults=new.defaults.model_dump(exclude_none=True),
        version=version,
        row_version=1,
        created_at=now,
        updated_at=now,
    )


def add_voice(
    session: Session, new: NewVoice, clip: ReferenceClip, prompt: ExtractedPrompt
) -> None:
    """Add all rows of a voice with its first enrolment."""
    voice_id, now = new.source.voice_id, utc_now()
    row = voice_row(new, FIRST_VERSION, now)
    session.add(row)
    session.flush()
    add_labels(session, voice_id, new.labels)
    index_name(session, voice_id, set(), variants(name_key(new.name)))
    add_version(session, version_row(new.source, row.version, clip, new.warnings, now), prompt)
    session.flush()


def add_version(session: Session, row: VoiceVersion, prompt: ExtractedPrompt) -> None:
    """Add an enrolment with its features."""
    session.add(row)
    session.flush()
    keep_features(session, row.voice_id, row.number, prompt, row.created_at)


def version_row(
    source: PromptSource,
    number: int,
    clip: ReferenceClip,
    warnings: Sequence[str],
    now: str,
) -> VoiceVersion:
    return VoiceVersion(
        voice_id=source.voice_id,
        number=number,
        clip_sha256=clip.sha256,
        transcript=source.transcript,
        clip={"bytes": clip.size} | {field: getattr(clip, field) for field in CLIP_FIELDS},
        warnings=list(warnings),
        created_at=now,
    )


def keep_features(
    session: Session, voice_id: str, number: int, prompt: ExtractedPrompt, now: str
) -> None:
    """Add or replace the features of one enrolment; another enrolment may name another file."""
    session.merge(features_row(voice_id, number, prompt, now))


def features_row(voice_id: str, number: int, prompt: ExtractedPrompt, now: str) -> Features:
    return Features(
        voice_id=voice_id,
        version=number,
        fingerprint=prompt.fingerprint,
        sha256=prompt.sha256,
        frames=prompt.frames,
        modes=list(prompt.modes),
        model_id=prompt.model.id,
        model_revision=prompt.model.revision,
        created_at=now,
    )


def model_row(source: str, model: ModelRef) -> ModelInUse:
    return ModelInUse(
        source=source, model_id=model.id, revision=model.revision, chosen_at=utc_now()
    )


def adopt_model(session: Session, source: str, model: ModelRef) -> None:
    """Record the model in use if there is none; raise ModelMismatch if there is another."""
    current = current_model(session)
    if current is None:
        session.add(model_row(source, model))
    elif current != model:
        raise ModelMismatch(
            f"The voices here are enrolled for {current.id} at {current.revision}, but the "
            f"model given is {model.id} at {model.revision}. To change on purpose, run `voices "
            f"model use {source}` (on Modal: `modal run -m registry.modal.app::use_model`): each "
            "voice is then rebuilt from its clip when it first speaks."
        )


def index_name(session: Session, voice_id: str, old: set[str], new: set[str]) -> None:
    """Replace a voice's `old` variants in the index of near names by `new` ones."""
    if gone := old - new:
        variant = col(NameVariant.variant)
        of_voice = col(NameVariant.voice_id) == voice_id
        session.exec(delete(NameVariant).where(variant.in_(gone), of_voice))
    if added := sorted(new - old):
        rows = [{"variant": variant, "voice_id": voice_id} for variant in added]
        sqlite.add_missing(session, NameVariant, rows)


def add_labels(session: Session, voice_id: str, labels: dict[str, str]) -> None:
    session.add_all(Label(voice_id=voice_id, key=k, value=v) for k, v in labels.items())


def drop_labels(session: Session, voice_id: str) -> None:
    for row in session.exec(select(Label).where(Label.voice_id == voice_id)):
        session.delete(row)
    session.flush()
