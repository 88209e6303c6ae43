"""An edit of a voice, inside the transaction that makes it: what changes, and what must not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete
from sqlmodel import Session, col

from registry.audio.clips import ReferenceClip
from registry.contract import ExtractedPrompt, PromptSource
from registry.errors import EditConflict, ModeUnavailable, StorageUnavailable
from registry.names import name_key, variants
from registry.storage.queries import refuse_taken
from registry.storage.rows.inserts import (
    add_labels,
    add_version,
    drop_labels,
    index_name,
    keep_features,
    next_edit,
    version_row,
)
from registry.storage.stored_voice import StoredVoice
from registry.storage.tables import Alias, SpeakDefaults, Voice, VoiceVersion, utc_now


@dataclass(frozen=True)
class NewVersion:
    """A clip of a voice enrolled with another transcript or none; its files are there already."""

    source: PromptSource
    clip: ReferenceClip
    warnings: Sequence[str]
    prompt: ExtractedPrompt


@dataclass(frozen=True)
class VoiceEdit:
    """The changes of an edit: None leaves a field as it is, `labels` and `defaults` replace."""

    name: str | None = None
    description: str | None = None
    labels: dict[str, str] | None = None
    defaults: SpeakDefaults | None = None
    version: NewVersion | None = None


def refuse_stale(row: Voice, expected: int | None) -> None:
    """Raise EditConflict if `expected` is given and is not the current row_version."""
    if expected is not None and expected != row.row_version:
        raise EditConflict(
            f"{row.name!r} is at edit {row.row_version}, not {expected}: someone changed it. "
            "Read it again and repeat the edit.",
            row_version=row.row_version,
        )


def refuse_icl(name: str, mode: str | None, transcript: str | None) -> None:
    """Raise ModeUnavailable if a voice without a transcript would speak in icl by default."""
    if mode == "icl" and transcript is None:
        raise ModeUnavailable(
            f"{name!r} would speak in icl mode by default, which needs a transcript, and have "
            "none. Give it the words of its clip, or the default mode `xvec` or `auto`."
        )


def apply(session: Session, voice: StoredVoice, edit: VoiceEdit) -> None:
    """Make an edit, and count it unless it leaves everything as it was.

    Raises NameTaken, or ModeUnavailable if the voice would lack the transcript that its default
    mode needs.
    """
    row = voice.row
    changes = (
        _apply_name(session, row, edit.name),
        _apply_description(row, edit.description),
        _apply_labels(session, voice, edit.labels),
        _apply_defaults(row, edit.defaults),
        _apply_version(session, voice, edit.version),
    )
    if not any(changes):
        return
    if edit.defaults or edit.version:
        words = edit.version.source if edit.version else voice.source
        refuse_icl(row.name, row.defaults.get("mode"), words.transcript)
    row.row_version = next_edit(row.row_version)
    row.updated_at = utc_now()
    session.add(row)


def _apply_name(session: Session, row: Voice, name: str | None) -> bool:
    if name is None or name == row.name:
        return False
    key = name_key(name)
    if key != row.name_key:
        refuse_taken(session, name)
    index_name(session, row.id, variants(row.name_key), variants(key))
    row.name, row.name_key = name, key
    return True


def _apply_description(row: Voice, description: str | None) -> bool:
    if description is None or description == row.description:
        return False
    row.description = description
    return True


def _apply_labels(session: Session, voice: StoredVoice, labels: dict[str, str] | None) -> bool:
    if labels is None or labels == voice.labels:
        return False
    drop_labels(session, voice.row.id)
    add_labels(session, voice.row.id, labels)
    return True


def _apply_defaults(row: Voice, defaults: SpeakDefaults | None) -> bool:
    if defaults is None or defaults.model_dump(exclude_none=True) == row.defaults:
        return False
    row.defaults = defaults.model_dump(exclude_none=True)
    return True


def _apply_version(session: Session, voice: StoredVoice, new: NewVersion | None) -> bool:
    """Add the enrolment, unless another edit has brought the same transcript meanwhile."""
    if new is None or new.source.transcript == voice.enrolment.transcript:
        return False
    row = voice.row
    row.version += 1
    enrolment = version_row(new.source, row.version, new.clip, new.warnings, utc_now())
    add_version(session, enrolment, new.prompt)
    return True


def mark_deleted(session: Session, row: Voice) -> None:
    """Mark a voice as deleted; its name and its aliases are free from here on."""
    row.deleted_at = row.updated_at = utc_now()
    row.row_version = next_edit(row.row_version)
    session.add(row)
    index_name(session, row.id, variants(row.name_key), set())
    session.exec(delete(Alias).where(col(Alias.voice_id) == row.id))


def record(
    session: Session, voice: StoredVoice, prompt: ExtractedPrompt, warnings: Sequence[str]
) -> None:
    """Record the features and warnings made anew for an enrolment.

    Raises StorageUnavailable if the enrolment has been forgotten by now.
    """
    number = voice.enrolment.number
    row = session.get(VoiceVersion, (voice.row.id, number))
    if row is None:
        raise StorageUnavailable(
            f"{voice.row.name!r} was edited many times while its features were made. Nothing was "
            "stored; try again."
        )
    keep_features(session, voice.row.id, number, prompt, utc_now())
    row.warnings = list(warnings)
    session.add(row)
