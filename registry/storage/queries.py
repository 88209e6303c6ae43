"""The reads of the registry: each a few index look-ups, however many voices there are."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement, exists, func
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from registry.contract import ModelRef
from registry.errors import CursorInvalid, NameTaken, VoiceDamaged, VoiceNotFound
from registry.names import MAX_LENGTH, OPENAI_VOICES, is_voice_id, likeness, name_key, variants
from registry.storage.stored_voice import Page, StoredVoice, cursor, is_full, shown_id
from registry.storage.tables import (
    Alias,
    Features,
    Label,
    ModelInUse,
    NameVariant,
    Voice,
    VoiceVersion,
)

LAST_CHARACTER = "\U0010ffff"
NEAR_NAMES = 3
NEAR_CANDIDATES = 200
FEW_HOLDERS = 1000
BLOCK = 50  # voices of a page that are read at once
Visible = frozenset[str] | None  # the ids of the voices that there are to somebody; None: all


def find(session: Session, reference: str, only: Visible = None) -> StoredVoice:
    """Return the live voice with this id or name.

    Raises VoiceNotFound with the names that look alike, VoiceDamaged if its enrolment is gone.
    """
    row = find_row(session, reference, only)
    voices = _load(session, [row])
    if not voices:
        raise VoiceDamaged(
            f"The voice {row.name!r} ({shown_id(row.id)}) is damaged in the database: its "
            f"enrolment {row.version!r} is gone. Restore a backup.",
            id=shown_id(row.id),
            field="version",
        )
    return voices[0]


def find_row(session: Session, reference: str, only: Visible = None) -> Voice:
    """Return the row of a live voice, even of a damaged one.

    Raises VoiceNotFound, and the same for a voice that is not one of `only`.
    """
    if is_voice_id(reference):
        condition = col(Voice.id) == reference
    else:
        condition = col(Voice.name_key) == name_key(reference)
    row = session.exec(_live(only).where(condition).limit(1)).first()
    row = row or _aliased(session, name_key(reference), only)
    if row is None:
        raise VoiceNotFound(reference, near_names(session, reference, only), _advice(reference))
    return row


def _aliased(session: Session, key: str, only: Visible) -> Voice | None:
    aliased = _live(only).join(Alias, col(Alias.voice_id) == col(Voice.id))
    return session.exec(aliased.where(col(Alias.name_key) == key)).first()


def _advice(reference: str) -> str:
    if (name := name_key(reference)) not in OPENAI_VOICES:
        return ""
    return f" It is one of OpenAI's: `voices alias {name} VOICE` makes it one of yours."


def page(
    session: Session,
    limit: int,
    after: str | None,
    search: str,
    labels: Sequence[str],
    only: Visible = None,
) -> Page:
    """Return live voices by name that hold `search` anywhere in it and have all `labels`.

    A label is given as `key` or `key=value`.
    """
    statement = _live(only).order_by(col(Voice.name_key)).limit(limit + 1)
    statement = statement.where(*_conditions(after, name_key(search)))
    for label in labels:
        statement = statement.where(_labelled(session, label))
    rows = session.exec(statement).all()
    voices, kept = list[StoredVoice](), 0
    while kept < min(limit, len(rows)) and not is_full(voices):
        block = rows[kept : min(kept + BLOCK, limit)]
        voices += _load(session, block)
        kept += len(block)
    whole = {voice.row.id for voice in voices}
    damaged = [shown_id(row.id) for row in rows[:kept] if row.id not in whole]
    following = cursor(str(rows[kept - 1].name_key)) if kept < len(rows) else None
    return Page(voices, following, damaged)


def holder_of(session: Session, key: str) -> str | None:
    """Return the name of the live voice that has this key, if any."""
    condition = (col(Voice.name_key) == key, col(Voice.deleted_at).is_(None))
    return session.exec(select(Voice.name).where(*condition)).first()


def refuse_taken(session: Session, name: str) -> None:
    """Raise NameTaken if a live voice has this name or one alike."""
    key = name_key(name)
    holder = holder_of(session, key)
    if holder is not None:
        raise NameTaken(name, holder)
    if (alias := session.get(Alias, key)) is not None:
        raise NameTaken(name, alias.name, "an alias")


def near_names(session: Session, wanted: str, only: Visible = None) -> list[str]:
    """Return the names one slip away from `wanted`, or that begin with it, best first."""
    key = name_key(wanted[: 4 * MAX_LENGTH])[:MAX_LENGTH]
    candidates = {*_one_slip_away(session, key, only), *_beginning_with(session, key, only)}
    ranked = sorted(candidates, key=lambda name: (-likeness(key, name_key(name)), name))
    return ranked[:NEAR_NAMES]


def _one_slip_away(session: Session, key: str, only: Visible) -> Sequence[str]:
    statement = (
        select(Voice.name)
        .join(NameVariant, col(NameVariant.voice_id) == col(Voice.id))
        .where(col(NameVariant.variant).in_(sorted(variants(key))), *among(only))
        .limit(NEAR_CANDIDATES)
    )
    return session.exec(statement).all()


def _beginning_with(session: Session, key: str, only: Visible) -> Sequence[str]:
    conditions = (*_begins_with(key), *among(only), col(Voice.deleted_at).is_(None))
    ordered = select(Voice.name).where(*conditions).order_by(col(Voice.name_key))
    return session.exec(ordered.limit(NEAR_NAMES)).all() if key else []


def _live(only: Visible) -> SelectOfScalar[Voice]:
    return select(Voice).where(col(Voice.deleted_at).is_(None), *among(only))


def among(only: Visible) -> list[ColumnElement[bool]]:
    return [] if only is None else [col(Voice.id).in_(sorted(only))]


def _conditions(after: str | None, part: str) -> Iterator[ColumnElement[bool]]:
    if after is not None:
        yield col(Voice.name_key) > _key_of(after)
    if part:
        yield func.instr(Voice.name_key, part) > 0  # asked of the index on names, not of the rows


def _begins_with(prefix: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Ask for a range, which the index on names serves; LIKE would read every row."""
    return col(Voice.name_key) >= prefix, col(Voice.name_key) < prefix + LAST_CHARACTER


def _labelled(session: Session, label: str) -> ColumnElement[bool]:
    """Ask for voices with a label: by their ids if they are few, else along the names.

    Where many have it, some are soon met in the order of names.
    """
    key, equals, value = label.partition("=")
    conditions = [col(Label.key) == key]
    if equals:
        conditions.append(col(Label.value) == value)
    few = select(Label.voice_id).where(*conditions).limit(FEW_HOLDERS + 1)
    holders = session.exec(few).all()
    if len(holders) <= FEW_HOLDERS:
        return col(Voice.id).in_(holders)
    return exists().where(col(Label.voice_id) == col(Voice.id), *conditions)


def _key_of(cursor: str) -> str:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise CursorInvalid(
            f"{cursor[:80]!r} is not a cursor; pass the `next` of the page before."
        ) from error


def model_in_use(session: Session) -> ModelInUse | None:
    """Return the one row that says which model the voices of this directory are for."""
    return session.get(ModelInUse, 1)


def current_model(session: Session) -> ModelRef | None:
    row = model_in_use(session)
    return None if row is None else ModelRef(row.model_id, row.revision)


def _load(session: Session, rows: Sequence[Voice]) -> list[StoredVoice]:
    """Load voices with all that belongs to them, in four reads; leave out any without enrolment."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    model = current_model(session)
    enrolments = _enrolments(session, ids)
    labels = _labels(session, ids)
    voices = [
        StoredVoice(row, enrolments[row.id], labels[row.id], model, None)
        for row in rows
        if row.id in enrolments
    ]
    features = _features(session, voices, model)
    return [replace(v, features=features.get((v.row.id, v.fingerprint()))) for v in voices]


def _enrolments(session: Session, ids: list[str]) -> dict[str, VoiceVersion]:
    """Return the current enrolment of each, without reading the ones before."""
    current = (col(Voice.id) == VoiceVersion.voice_id) & (col(Voice.version) == VoiceVersion.number)
    statement = select(VoiceVersion).join(Voice, current).where(col(Voice.id).in_(ids))
    return {found.voice_id: found for found in session.exec(statement)}


def _labels(session: Session, ids: list[str]) -> dict[str, dict[str, str]]:
    labels: dict[str, dict[str, str]] = {voice_id: {} for voice_id in ids}
    statement = select(Label).where(col(Label.voice_id).in_(ids)).order_by(col(Label.key))
    for found in session.exec(statement):
        labels[found.voice_id][found.key] = found.value
    return labels


def _features(
    session: Session, voices: list[StoredVoice], model: ModelRef | None
) -> dict[tuple[str, str | None], Features]:
    """Return the features of current enrolments by voice and fingerprint, read by whole keys."""
    if model is None:
        return {}
    current = (col(Voice.id) == Features.voice_id) & (col(Voice.version) == Features.version)
    statement = (
        select(Features)
        .join(Voice, current)
        .where(
            col(Voice.id).in_([voice.row.id for voice in voices]),
            col(Features.fingerprint).in_({*map(StoredVoice.fingerprint, voices)} - {None}),
            col(Features.model_id) == model.id,
            col(Features.model_revision) == model.revision,
        )
    )
    return {(found.voice_id, found.fingerprint): found for found in session.exec(statement)}
