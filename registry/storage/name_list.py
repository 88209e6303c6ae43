"""Lists names of voices, for a program to choose from: many more than a page of voices has.

It reads nothing else of them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from pydantic import BaseModel, ValidationError
from sqlmodel import Session, col, select

from registry.errors import CursorInvalid
from registry.names import name_key
from registry.storage.queries import Visible, among
from registry.storage.stored_voice import shown_id
from registry.storage.tables import STORED, Instant, StoredName, Voice, VoiceId

log = logging.getLogger("registry")


class ListedVoice(BaseModel):
    """A voice by id and name."""

    model_config = STORED

    id: VoiceId
    name: StoredName
    created_at: Instant


@dataclass(frozen=True)
class NameList:
    """Voices by name, and whether more follow."""

    voices: Sequence[ListedVoice]
    has_more: bool


def listed(session: Session, limit: int, after: str | None, only: Visible = None) -> NameList:
    """Read live voices by name, those that follow the voice `after`: its id or its name.

    The voice of that id may be deleted by now. Raises CursorInvalid for an id that no voice had.
    A row that no request could have made is left out; the log says so.
    """
    asked = select(Voice.id, Voice.name, Voice.created_at).order_by(col(Voice.name_key))
    asked = asked.where(col(Voice.deleted_at).is_(None), *among(only))
    if after is not None:
        asked = asked.where(col(Voice.name_key) > _key_of(session, after, only))
    rows = session.exec(asked.execution_options(yield_per=limit + 1))
    sound = (voice for row in rows if (voice := _believed(*row)))
    found = list(islice(sound, limit + 1))
    return NameList(found[:limit], has_more=len(found) > limit)


def _believed(voice_id: str, name: str, created_at: str) -> ListedVoice | None:
    try:
        return ListedVoice(id=voice_id, name=name, created_at=created_at)
    except ValidationError:
        log.warning("The voice %s is not listed: its row is damaged.", shown_id(voice_id))
        return None


def _key_of(session: Session, after: str, only: Visible) -> str:
    if not after.startswith("voice_"):
        return name_key(after)
    key = session.exec(select(Voice.name_key).where(Voice.id == after, *among(only))).first()
    if key is None:
        raise CursorInvalid(f"{after[:80]!r} is the id of no voice; pass the last id of a page.")
    return key
