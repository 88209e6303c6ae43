"""Forgets deleted voices: rows in one transaction, then the files that no row names.

It also finds the files whose row was never written. A kill between the two leaves files without
rows, which `voices doctor` takes. Knows no lock.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry.contract import PromptSource, fingerprint
from registry.names import is_voice_id, variants
from registry.storage.blobs import BlobStore
from registry.storage.data_dir import (
    FILE_NAMES,
    clip_key,
    conditioned_key,
    is_old,
    is_sha256,
    keys_of,
    voice_prefix,
)
from registry.storage.queries import current_model
from registry.storage.tables import Alias, Features, Label, NameVariant, Voice, VoiceVersion

MOST = 100  # voices of one transaction
CLOCK_S = 0.001  # by which times in rows are rounded


@dataclass(frozen=True)
class Forgotten:
    """A deleted voice whose rows are to go, and the clips that they name."""

    voice_id: str
    deleted_at: str
    clips: tuple[str, ...]


def surplus(session: Session, keep: int) -> list[Sequence[str]]:
    """Return the ids of deleted voices, but for the `keep` that were deleted last.

    The oldest come first, in lists of one transaction each.
    """
    deleted = select(Voice.id).where(col(Voice.deleted_at).is_not(None))
    newest_first = deleted.order_by(col(Voice.deleted_at).desc(), col(Voice.id))
    found = session.exec(newest_first.offset(keep)).all()[::-1]
    return [found[start : start + MOST] for start in range(0, len(found), MOST)]


def forgettable(blobs: BlobStore, session: Session, voices: Sequence[str]) -> list[Forgotten]:
    """Return those of the voices that are deleted and may be forgotten now.

    A clip that was written since the deletion, and lately, may be being enrolled again, or was
    restored. The last voice that names such a clip stays: without a row nobody would know of it
    later.
    """
    found = dict[str, Forgotten]()
    for voice in _deleted(session, voices):
        found[voice.voice_id] = voice
        alone = (sha256 for sha256 in voice.clips if not is_named(session, sha256, but=found))
        if any(_is_young(blobs, sha256, voice.deleted_at) for sha256 in alone):
            del found[voice.voice_id]
    return [*found.values()]


def _deleted(session: Session, voices: Sequence[str]) -> Iterator[Forgotten]:
    asked = (col(Voice.id).in_(voices), col(Voice.deleted_at).is_not(None))
    deleted = dict(session.exec(select(Voice.id, Voice.deleted_at).where(*asked)).all())
    clips: dict[str, set[str]] = {voice_id: set() for voice_id in deleted}
    enrolled = select(VoiceVersion.voice_id, VoiceVersion.clip_sha256)
    of_deleted = enrolled.where(col(VoiceVersion.voice_id).in_(deleted))
    for voice_id, sha256 in session.exec(of_deleted.distinct()):
        clips[voice_id].update(filter(is_sha256, [sha256]))
    for voice_id, deleted_at in deleted.items():
        yield Forgotten(voice_id, str(deleted_at), tuple(clips[voice_id]))


def is_named(session: Session, sha256: str, but: Iterable[str] = ()) -> bool:
    """Tell whether a voice, live or deleted, names this clip; those in `but` do not count."""
    of_clip = select(VoiceVersion.voice_id).where(VoiceVersion.clip_sha256 == sha256)
    others = of_clip.where(col(VoiceVersion.voice_id).not_in([*but]))
    return session.exec(others.limit(1)).first() is not None


def _is_young(blobs: BlobStore, clip: str, deleted_at: str) -> bool:
    written_s = blobs.written_s(clip_key(clip))
    return written_s is not None and written_s > _seconds(deleted_at) and not is_old(written_s)


def forget(session: Session, forgotten: Sequence[Forgotten]) -> None:
    """Remove all rows of these voices, in a session that checks no references."""
    voices = [voice.voice_id for voice in forgotten]
    keys = select(Voice.id, Voice.name_key).where(col(Voice.id).in_(voices))
    for voice_id, key in session.exec(keys).all():
        near = sorted(variants(str(key)))  # the index is ordered by variant, not by voice
        of_voice = (col(NameVariant.variant).in_(near), col(NameVariant.voice_id) == voice_id)
        session.exec(delete(NameVariant).where(*of_voice))
    for table in (Alias, Features, Label, VoiceVersion):
        session.exec(delete(table).where(col(table.voice_id).in_(voices)))
    session.exec(delete(Voice).where(col(Voice.id).in_(voices)))


def unneeded(blobs: BlobStore, session: Session, forgotten: Sequence[Forgotten]) -> list[str]:
    """Return the keys of their files that no row names; call it under the write lock.

    Only then no such row can appear.
    """
    clips, prompts = set[str](), list[str]()
    for voice in forgotten:
        if is_voice_id(voice.voice_id) and session.get(Voice, voice.voice_id) is None:
            prompts += prompts_of(blobs, voice.voice_id)
        clips.update(c for c in voice.clips if not _is_young(blobs, c, voice.deleted_at))
    named = {sha256 for sha256 in clips if is_named(session, sha256)}
    return [*prompts, *keys_of(blobs, clips - named)]


def prompts_of(blobs: BlobStore, voice_id: str) -> list[str]:
    """Return the keys of a voice's prompt files, and last that of their folder."""
    prefix = voice_prefix(voice_id)
    if not blobs.exists(prefix):
        return []
    ours = FILE_NAMES["prompts"].fullmatch
    return [*(key for key in blobs.list(prefix) if ours(key.removeprefix(prefix))), prefix]


def unfinished(
    blobs: BlobStore, session: Session, source: PromptSource, *, clip: bool
) -> list[str]:
    """Return the keys of files that were written for a row that never came, and no row names."""
    found = list[str]()
    if clip and not is_named(session, source.clip_sha256):
        found += filter(blobs.exists, (clip_key(source.clip_sha256), conditioned_key(source)))
    prompts = prompts_of(blobs, source.voice_id)
    if session.get(Voice, source.voice_id) is None:
        return [*found, *prompts]
    return [*found, *_unnamed(session, source, prompts[:-1])]


def _unnamed(session: Session, source: PromptSource, prompts: Iterable[str]) -> Iterator[str]:
    """Yield a voice's prompts made from this source for the model in use that no row names."""
    model = current_model(session)
    if model is None:
        return
    made = fingerprint(source, model)
    of_voice = select(Features.sha256).where(Features.voice_id == source.voice_id)
    kept = {sha256[:16] for sha256 in session.exec(of_voice.where(Features.fingerprint == made))}
    for key in prompts:
        name = key.removeprefix(voice_prefix(source.voice_id)).removesuffix(".safetensors")
        found, _, digits = name.partition("-")
        if found == made and digits and digits not in kept:
            yield key


def _seconds(deleted_at: str) -> float:
    """Return when a voice was deleted; 0 if its row is damaged and holds no time."""
    try:
        return datetime.fromisoformat(deleted_at).timestamp() + CLOCK_S
    except ValueError:
        return 0.0
