"""Deleted voices that are forgotten: rows in one transaction, then the files that no row names.

A kill between the two leaves files without rows, which `voices doctor` takes. Knows no lock.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry.files import FILE_NAMES, DataDir, is_sha256
from registry.models import Features, Label, NameVariant, Voice, VoiceVersion
from registry.names import is_voice_id

MOST = 100  # voices of one transaction
CLOCK_S = 0.001  # what times in rows are rounded by


@dataclass(frozen=True)
class Forgotten:
    """A voice without rows, and what they named."""

    voice_id: str
    deleted_at: str
    clips: tuple[str, ...]


def surplus(session: Session, keep: int) -> Sequence[str]:
    """The ids of deleted voices, but for the `keep` that were deleted last: the oldest, some."""
    deleted = select(Voice.id).where(col(Voice.deleted_at).is_not(None))
    newest_first = deleted.order_by(col(Voice.deleted_at).desc(), col(Voice.id))
    return session.exec(newest_first.offset(keep)).all()[-MOST:]


def forget(session: Session, voices: Sequence[str]) -> list[Forgotten]:
    """Remove all rows of those of the voices that are deleted."""
    asked = (col(Voice.id).in_(voices), col(Voice.deleted_at).is_not(None))
    deleted = dict(session.exec(select(Voice.id, Voice.deleted_at).where(*asked)).all())
    clips: dict[str, set[str]] = {voice_id: set() for voice_id in deleted}
    enrolled = select(VoiceVersion.voice_id, VoiceVersion.clip_sha256)
    for voice_id, sha256 in session.exec(enrolled.where(col(VoiceVersion.voice_id).in_(deleted))):
        clips[voice_id].add(sha256)
    for table in (Features, NameVariant, Label, VoiceVersion):
        session.exec(delete(table).where(col(table.voice_id).in_(deleted)))
    session.exec(delete(Voice).where(col(Voice.id).in_(deleted)))
    return [Forgotten(one, str(deleted[one]), tuple(clips[one])) for one in deleted]


def remove_files(data: DataDir, session: Session, forgotten: Sequence[Forgotten]) -> None:
    """Under the write lock, so that no row can appear for a file that goes."""
    for voice in forgotten:
        if is_voice_id(voice.voice_id) and session.get(Voice, voice.voice_id) is None:
            _remove_prompts(data, voice.voice_id)
        for sha256 in filter(is_sha256, voice.clips):
            named = select(VoiceVersion.voice_id).where(VoiceVersion.clip_sha256 == sha256)
            if session.exec(named.limit(1)).first() is None:
                _remove_clip(data, sha256, voice.deleted_at)


def _remove_prompts(data: DataDir, voice_id: str) -> None:
    folder = data.prompts(voice_id)
    if folder.is_symlink():
        return  # no program of ours made it
    for path in folder.glob("*"):
        if FILE_NAMES["prompts"].fullmatch(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is gone, or holds what is not ours
        folder.rmdir()


def _remove_clip(data: DataDir, sha256: str, deleted_at: str) -> None:
    """One that was touched since is being enrolled again: the doctor takes it if nobody has."""
    found = [data.clip(sha256), *(data.root / "conditioned").glob(f"{sha256}-*.wav")]
    files = [path for path in found if path.is_file()]
    if any(path.stat().st_mtime > _seconds(deleted_at) for path in files):
        return
    for path in files:
        path.unlink()


def _seconds(deleted_at: str) -> float:
    """The beginning of time for what is no time, in a row that is damaged."""
    try:
        return datetime.fromisoformat(deleted_at).timestamp() + CLOCK_S
    except ValueError:
        return 0.0
