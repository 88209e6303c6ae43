"""Checks rows against what the API would have taken, in a backup or a database changed by others.

Every voice is read through the models that the API answers with, deleted ones and earlier
enrolments too. Knows nothing of files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sqlalchemy import LargeBinary, String, cast, func, literal
from sqlmodel import Session, SQLModel, col, select

from registry.contract import Mode
from registry.errors import NameInvalid, VoiceDamaged
from registry.names import check_name, name_key
from registry.storage.aliases import alias_faults
from registry.storage.keys import KeyRow, key_rows
from registry.storage.stored_voice import StoredVoice, shown_id
from registry.storage.tables import (
    STORED,
    Count,
    Counter,
    Features,
    Instant,
    Label,
    ModelInUse,
    PlainText,
    Sha256,
    Voice,
    VoiceId,
    VoiceVersion,
)

CHUNK = 500  # voices
MOST_BYTES = 64 * 1024  # the limit of a value: that of a request's JSON


@dataclass(frozen=True)
class RowFault:
    """A fault of one row; `voice_id` is empty if the row belongs to no voice."""

    voice_id: str
    name: str
    field: str
    why: str

    def __str__(self) -> str:
        whose = f"the {self.field} of the voice {self.name!r} ({shown_id(self.voice_id)})"
        return f"{whose if self.voice_id else f'the {self.field}'} is not valid: {self.why}"


class _Features(BaseModel):
    model_config = STORED

    voice_id: VoiceId
    version: Counter
    fingerprint: Sha256
    sha256: Sha256
    frames: Count
    modes: Annotated[list[Mode], Field(max_length=3)]
    model_id: PlainText
    model_revision: PlainText
    created_at: Instant


class _Model(BaseModel):
    model_config = STORED

    source: PlainText
    model_id: PlainText
    revision: PlainText
    chosen_at: Instant


class _Key(KeyRow):
    pass


DELETED_AT = TypeAdapter(Instant | None)


def row_faults(session: Session) -> Iterator[RowFault]:
    """Yield the first fault of every row that has one, in no order.

    Where a value is huge, only huge values are reported, and no row is read.
    """
    if huge := [*_huge(session)]:
        yield from huge
        return
    for row in session.exec(select(ModelInUse)):
        yield from _faults_of(_Model, row.model_dump(warnings=False), "", "")
    for key in key_rows(session):
        yield from _faults_of(_Key, key, "", "")
    for alias, why in alias_faults(session):
        yield RowFault(alias.voice_id, _name_of(session, alias.voice_id), "alias", why)
    ids = session.exec(select(Voice.id)).all()
    for start in range(0, len(ids), CHUNK):
        yield from _of_some(session, ids[start : start + CHUNK])


def _huge(session: Session) -> Iterator[RowFault]:
    """Yield values larger than any that the API takes, one of each column, without reading them."""
    for table in SQLModel.metadata.sorted_tables:
        owner = table.columns.get("id" if table.name == "voice" else "voice_id", literal(""))
        for column in table.columns:
            size = func.length(cast(column, LargeBinary))
            voice_id = func.substr(cast(owner, String), 1, 64)
            found = session.execute(select(voice_id, size).where(size > MOST_BYTES)).first()
            if found:
                why = f"it has {found[1]:,} bytes, and {MOST_BYTES:,} are the most"
                yield RowFault(found[0], _name_of(session, found[0]), column.name, why)


def _name_of(session: Session, voice_id: str) -> str:
    asked = select(func.substr(Voice.name, 1, 64)).where(col(Voice.id) == voice_id)
    return str(session.exec(asked).first() or "")


def _of_some(session: Session, ids: Iterable[str]) -> Iterator[RowFault]:
    ids = list(ids)
    rows = {row.id: row for row in session.exec(select(Voice).where(col(Voice.id).in_(ids)))}
    labels: dict[str, dict[str, str]] = {voice_id: {} for voice_id in rows}
    for label in session.exec(select(Label).where(col(Label.voice_id).in_(ids))):
        labels[label.voice_id][label.key] = label.value
    enrolled: set[tuple[str, int]] = set()
    for version in session.exec(select(VoiceVersion).where(col(VoiceVersion.voice_id).in_(ids))):
        enrolled.add((version.voice_id, version.number))
        row = rows[version.voice_id]
        if _is_later(version, row):
            why = f"there is an enrolment {version.number} after the current one"
            yield RowFault(row.id, row.name, "version", why)
        yield from _of_an_enrolment(StoredVoice(row, version, labels[row.id], None, None))
    for row in rows.values():
        yield from _of_a_voice(row, (row.id, row.version) in enrolled)
    for made in session.exec(select(Features).where(col(Features.voice_id).in_(ids))):
        name = rows[made.voice_id].name
        yield from _faults_of(_Features, made.model_dump(warnings=False), made.voice_id, name)


def _is_later(version: VoiceVersion, row: Voice) -> bool:
    """Tell whether an enrolment has a higher number than the voice's current one."""
    numbers = (version.number, row.version)
    return all(isinstance(number, int) for number in numbers) and version.number > row.version


def _of_an_enrolment(voice: StoredVoice) -> Iterator[RowFault]:
    try:
        voice.public()
    except VoiceDamaged as error:
        why = str(error.extra["why"])
        yield RowFault(voice.row.id, voice.row.name, str(error.extra["field"]), why)
    created = {"voice_id": voice.row.id, "number": voice.enrolment.number}
    created["created_at"] = voice.enrolment.created_at
    yield from _faults_of(_Enrolment, created, voice.row.id, voice.row.name)


class _Enrolment(BaseModel):
    model_config = STORED

    voice_id: VoiceId
    number: Counter
    created_at: Instant


def _of_a_voice(row: Voice, enrolled: bool) -> Iterator[RowFault]:
    if not enrolled:
        yield RowFault(row.id, row.name, "version", f"there is no enrolment {row.version!r}")
    try:
        sound = isinstance(row.name, str) and check_name(row.name) == row.name
        if not sound or row.name_key != name_key(row.name):
            yield RowFault(row.id, row.name, "name", "its key is another name's")
        DELETED_AT.validate_python(row.deleted_at, strict=True)
    except NameInvalid as error:
        yield RowFault(row.id, row.name, "name", error.detail)
    except ValidationError as error:
        yield RowFault(row.id, row.name, "deleted_at", _why(error))


def _faults_of(
    kind: type[BaseModel], row: dict[str, object], voice_id: str, name: str
) -> Iterator[RowFault]:
    try:
        kind.model_validate(row)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        about = kind.__name__.removeprefix("_").lower()
        yield RowFault(voice_id, name, f"{about}.{field}", _why(error))


def _why(error: ValidationError) -> str:
    return str(error.errors(include_url=False, include_input=False)[0]["msg"])
