"""Other names of voices, for programs that can say no other: `alloy` may be a voice of one's own.

Names and aliases share one space, so that a name always means one voice. An alias goes with its
voice, and is looked up only where no voice has the name (`queries.find_row`).
"""

import logging
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from sqlalchemy import func
from sqlmodel import Session, col, select

from registry.errors import AliasNotFound, FieldInvalid, NameInvalid, NameTaken
from registry.names import check_name, name_key
from registry.storage.queries import Visible, find_row, holder_of
from registry.storage.tables import STORED, Alias, Instant, StoredName, Voice, VoiceId, utc_now

MOST = 1000

log = logging.getLogger("registry")


class AliasPublic(BaseModel):
    """An alias, and the voice that it stands for now."""

    model_config = STORED

    alias: StoredName
    voice: StoredName
    voice_id: VoiceId
    created_at: Instant


def list_aliases(session: Session, only: Visible = None) -> list[AliasPublic]:
    """Return those of live voices, by name, without rows that no request could have made."""
    asked = select(Alias, Voice).join(Voice, col(Alias.voice_id) == col(Voice.id))
    asked = asked.where(col(Voice.deleted_at).is_(None)).order_by(col(Alias.name_key))
    shown = list[AliasPublic]()
    for alias, voice in session.exec(asked):
        try:
            shown += [_public(alias, voice)] if only is None or voice.id in only else []
        except ValidationError:
            log.warning("An alias is not listed, for its row is damaged: `voices doctor` tells.")
    return shown


def put_alias(session: Session, name: str, reference: str) -> AliasPublic:
    """Let `name` stand for a voice, whatever it stood for.

    Raises NameInvalid, NameTaken for the name of a voice, VoiceNotFound, FieldInvalid for too many.
    """
    name = check_name(name)
    key = name_key(name)
    if (holder := holder_of(session, key)) is not None:
        raise NameTaken(name, holder)
    voice = find_row(session, reference)
    alias = session.get(Alias, key)
    if alias is None:
        _refuse_more(session)
        alias = Alias(name_key=key, name=name, voice_id=voice.id, created_at=utc_now())
    alias.name, alias.voice_id = name, voice.id
    session.add(alias)
    session.flush()
    return _public(alias, voice)


def remove_alias(session: Session, name: str) -> None:
    """Remove an alias. Raises AliasNotFound."""
    alias = session.get(Alias, name_key(name))
    if alias is None:
        raise AliasNotFound(f"There is no alias {name[:80]!r}.")
    session.delete(alias)


def alias_faults(session: Session) -> Iterator[tuple[Alias, str]]:
    """Yield the rows that no request could have made, each with the reason."""
    for alias in session.exec(select(Alias)).all():
        voice = session.get(Voice, alias.voice_id)
        if voice is None or voice.deleted_at is not None:
            yield alias, "there is no such voice"
        elif holder_of(session, alias.name_key) is not None:
            yield alias, "a voice has this name"
        elif not _is_sound(alias, voice):
            yield alias, "its name or time is none, or its key is another name's"


def _is_sound(alias: Alias, voice: Voice) -> bool:
    try:
        shown = _public(alias, voice)
        return check_name(shown.alias) == shown.alias and alias.name_key == name_key(shown.alias)
    except (NameInvalid, ValidationError):
        return False


def _refuse_more(session: Session) -> None:
    count = session.exec(select(func.count()).select_from(Alias)).one()
    if count >= MOST:
        raise FieldInvalid(f"There are {MOST:,} aliases already, the most. Remove one first.")


def _public(alias: Alias, voice: Voice) -> AliasPublic:
    return AliasPublic(
        alias=alias.name, voice=voice.name, voice_id=voice.id, created_at=alias.created_at
    )
