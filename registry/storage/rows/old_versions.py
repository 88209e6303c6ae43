"""Forgets enrolments that a voice had before its current one, but for the last few.

Rows go with the edit that adds one; then, in another transaction, the files that no row names. A
kill between the two leaves files without rows, which `voices doctor` takes. Knows no lock.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, exists
from sqlmodel import Session, col, select

from registry.contract import PromptRef
from registry.names import is_voice_id
from registry.storage import sqlite
from registry.storage.blobs import BlobStore
from registry.storage.data_dir import DataDir, is_old, is_sha256, keys_of, stored_prompt_key
from registry.storage.database import Database
from registry.storage.rows.purge import is_named, prompts_of
from registry.storage.tables import Features, Voice, VoiceVersion

# Enrolments of a voice, with the current one: as many as edits wait at once, so that a speech or
# a rebuild that began with one still finds it. Nothing else reads those of before.
KEPT = 16


@dataclass(frozen=True)
class ForgottenVersions:
    """Clips and prompts that the deleted enrolments referred to."""

    voice_id: str
    prompts: frozenset[PromptRef]
    clips: frozenset[str]


def forget_old_versions(session: Session, voice: Voice) -> ForgottenVersions:
    """Remove the rows of all but the last KEPT enrolments of a voice."""
    last = voice.version - KEPT
    features = (col(Features.voice_id) == voice.id, col(Features.version) <= last)
    versions = (col(VoiceVersion.voice_id) == voice.id, col(VoiceVersion.number) <= last)
    named = select(Features.fingerprint, Features.sha256).where(*features).distinct()
    prompts = {PromptRef(voice.id, *row) for row in session.exec(named)}
    clips = {*session.exec(select(VoiceVersion.clip_sha256).where(*versions).distinct())}
    session.exec(delete(Features).where(*features))
    session.exec(delete(VoiceVersion).where(*versions))
    return ForgottenVersions(voice.id, frozenset(prompts), frozenset(filter(is_sha256, clips)))


def forget_all_old_versions(data: DataDir) -> None:
    """Forget the old enrolments of all voices of a directory that nobody else has open.

    No more stays of them than an edit leaves, in rows, files or free pages.
    """
    with Database(data.database) as database:
        with database.write() as session:
            forgotten = [forget_old_versions(session, voice) for voice in _crowded(session)]
        with database.write() as session:
            for one in forgotten:
                for key in forgotten_files(data.blobs, session, one, young=True):
                    data.blobs.delete(key)
    if forgotten:
        sqlite.vacuum(data.database)


def _crowded(session: Session) -> Sequence[Voice]:
    """Return the voices, deleted ones too, that have enrolments older than the last KEPT."""
    older = col(VoiceVersion.number) <= col(Voice.version) - KEPT
    of_voice = col(VoiceVersion.voice_id) == col(Voice.id)
    return session.exec(select(Voice).where(exists().where(of_voice, older))).all()


def forgotten_files(
    blobs: BlobStore, session: Session, forgotten: ForgottenVersions, *, young: bool = False
) -> list[str]:
    """Return the keys of forgotten clips and prompts that no row names.

    A clip written lately may be being enrolled again, and is left out unless `young` is true.
    """
    clips = {sha256 for sha256 in forgotten.clips if not is_named(session, sha256)}
    found = (key for key in keys_of(blobs, clips) if young or is_old(blobs.written_s(key)))
    return [*_prompts(blobs, session, forgotten), *found]


def _prompts(blobs: BlobStore, session: Session, forgotten: ForgottenVersions) -> Iterator[str]:
    if not forgotten.prompts or not is_voice_id(forgotten.voice_id):
        return
    of_voice = select(Features.fingerprint, Features.sha256).where(
        Features.voice_id == forgotten.voice_id
    )
    named = {PromptRef(forgotten.voice_id, *row) for row in session.exec(of_voice.distinct())}
    # Compared by key, not by hash: a file with a former key may belong to several of them.
    gone = _stored(blobs, forgotten.prompts) - _stored(blobs, named)
    yield from (key for key in prompts_of(blobs, forgotten.voice_id) if key in gone)


def _stored(blobs: BlobStore, refs: Iterable[PromptRef]) -> set[str]:
    sound = (ref for ref in refs if is_sha256(ref.fingerprint) and is_sha256(ref.sha256))
    return {stored_prompt_key(blobs, ref) for ref in sound}
