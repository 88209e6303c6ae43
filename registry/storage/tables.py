"""The tables, and the types of their fields. docs/storage.md describes both."""

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic import Field as Documented
from pydantic.config import JsonDict
from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKeyConstraint,
    Index,
    TypeDecorator,
    text,
)
from sqlmodel import Field, SQLModel

from registry.audio import report
from registry.contract import SAMPLING_RANGES, Mode
from registry.invisible import is_invisible
from registry.storage import sqlite


def _plain(value: str) -> str:
    """Give a text the line ends of Unix; ValueError for control characters and lone surrogates."""
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise ValueError(f"holds U+{ord(character):04X}, which is not text")
    return value


def whole(number: object) -> object:
    """Make an integer of a float like 3.0, which is one by JSON's schema."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _seen(key: object) -> object:
    """Refuse an invisible character and say which; the pattern refuses it too, but can't say."""
    for character in key if isinstance(key, str) else "":
        if is_invisible(character):
            raise ValueError(f"holds U+{ord(character):04X}, which nobody sees")
    return key


def _few(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        raise ValueError(f"has {len(labels)} labels; the limit is {MAX_LABELS}")
    return labels


def described(format: str, longest: int) -> Any:
    """Describe to OpenAPI a text that is checked elsewhere."""
    rules: JsonDict = {"format": format, "minLength": 1, "maxLength": longest}
    return Documented(json_schema_extra=rules)


def in_range(name: str) -> Any:
    """Return the contract's limits for a number by which codes are sampled."""
    low, high = SAMPLING_RANGES[name]
    return Documented(ge=low, le=high)


MAX_LABELS, MAX_WARNINGS = 32, 64
MAX_TRANSCRIPT = 2000
NOT_PLAIN = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
PLAIN = f"^[^{NOT_PLAIN}]*$"
PlainText = Annotated[str, AfterValidator(_plain), Documented(json_schema_extra={"pattern": PLAIN})]
Seed = Annotated[int, in_range("seed"), BeforeValidator(whole)]
Temperature = Annotated[float, in_range("temperature")]
TopK = Annotated[int, in_range("top_k"), BeforeValidator(whole)]
TopP = Annotated[float, in_range("top_p")]
# Their rules are code (names.py, text.py); the schema says how long they are, and names the rules.
VoiceName = Annotated[str, described("voice-name", 64)]
Words = Annotated[str, described("spoken-text", 5000)]
GivenTranscript = Annotated[str, described("spoken-text", MAX_TRANSCRIPT)]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$"), BeforeValidator(_seen)
]
LabelValue = Annotated[PlainText, StringConstraints(max_length=256)]
Labels = Annotated[
    dict[LabelKey, LabelValue],
    AfterValidator(_few),
    Documented(json_schema_extra={"additionalProperties": False, "maxProperties": MAX_LABELS}),
]
VoiceDescription = Annotated[PlainText, StringConstraints(max_length=2000)]
Transcript = Annotated[PlainText, StringConstraints(min_length=1, max_length=MAX_TRANSCRIPT)]
Warned = Annotated[PlainText, StringConstraints(max_length=2000)]


AUDIO_TYPES = frozenset(get_args(report.MediaType))


def _audio(media_type: str) -> str:
    if media_type not in AUDIO_TYPES:
        raise ValueError("is not a type of audio that a clip can have")
    return media_type


# What a row must be, to be shown: rows are believed no more than requests.
STORED = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)
VoiceId = Annotated[str, StringConstraints(pattern=r"^voice_[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
StoredName = Annotated[PlainText, StringConstraints(min_length=1, max_length=256)]
Instant = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"
    ),
]
ClipType = Annotated[str, AfterValidator(_audio)]
Count = Annotated[int, Documented(ge=0, le=2**53)]
Counter = Annotated[int, Documented(ge=1, le=2**52)]  # one that can still be increased
Seconds = Annotated[float, Documented(gt=0, le=100)]  # a clip's length, which is 61 at most
Decibels = Annotated[float, Documented(ge=-1000, le=1000)]


class StoredJson(TypeDecorator[Any]):
    """A column of JSON; text that is no JSON is read as it is, which no model takes for a value."""

    impl = JSON
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        decoded = super().result_processor(dialect, coltype)
        return lambda value: _decoded(decoded, value)


def _decoded(decode: Any, value: object) -> object:
    try:
        return decode(value)
    except (ValueError, TypeError, RecursionError):
        return value


def utc_now(in_s: float = 0.0) -> str:
    """Return the time in UTC, or in so many seconds: RFC 3339 with milliseconds, sorts as text."""
    then = datetime.now(UTC) + timedelta(seconds=in_s)
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Voice(SQLModel, table=True):
    """A named voice. Deleting marks the row; the partial index frees the name at once."""

    __tablename__ = "voice"
    __table_args__ = (
        Index(
            "voice_live_name",
            "name_key",
            unique=True,
            **sqlite.only_where(text("deleted_at IS NULL")),
            postgresql_where=text("deleted_at IS NULL"),  # else deleted names are taken for ever
        ),
    )

    id: str = Field(primary_key=True)
    name: str
    name_key: str
    description: str
    defaults: dict[str, Any] = Field(sa_column=Column(StoredJson, nullable=False))
    version: int  # the current enrolment
    row_version: int  # edit counter = ETag
    created_at: str
    updated_at: str
    deleted_at: str | None = None


class VoiceVersion(SQLModel, table=True):
    """One immutable enrolment: a clip, its transcript, and what was heard in it."""

    __tablename__ = "voice_version"

    voice_id: str = Field(primary_key=True, foreign_key="voice.id")
    number: int = Field(primary_key=True)
    clip_sha256: str = Field(index=True)
    transcript: str | None
    clip: dict[str, Any] = Field(sa_column=Column(StoredJson, nullable=False))
    warnings: list[str] = Field(sa_column=Column(StoredJson, nullable=False))
    created_at: str


class Features(SQLModel, table=True):
    """Prompt features of one enrolment under one model; two models' features coexist."""

    __tablename__ = "features"
    __table_args__ = (
        ForeignKeyConstraint(
            ["voice_id", "version"], ["voice_version.voice_id", "voice_version.number"]
        ),
    )

    voice_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    fingerprint: str = Field(primary_key=True)
    sha256: str
    frames: int
    modes: list[str] = Field(sa_column=Column(StoredJson, nullable=False))
    model_id: str
    model_revision: str
    created_at: str


class Label(SQLModel, table=True):
    """One label of a voice: a key and its value."""

    __tablename__ = "label"
    __table_args__ = (Index("label_value", "key", "value", "voice_id"),)

    voice_id: str = Field(primary_key=True, foreign_key="voice.id")
    key: str = Field(primary_key=True)
    value: str


class NameVariant(SQLModel, table=True):
    """The index behind near names: see `names.variants`. Only live voices have rows here."""

    __tablename__ = "name_variant"
    __table_args__ = (sqlite.WITHOUT_ROWID,)

    variant: str = Field(primary_key=True)
    voice_id: str = Field(primary_key=True, foreign_key="voice.id")


class Alias(SQLModel, table=True):
    """Another name of a voice; no live voice has it."""

    __tablename__ = "alias"

    name_key: str = Field(primary_key=True)
    name: str
    voice_id: str = Field(foreign_key="voice.id", index=True)
    created_at: str


class ModelInUse(SQLModel, table=True):
    """The one model of this data directory; the single row is written at first use."""

    __tablename__ = "model_in_use"
    __table_args__ = (CheckConstraint("id = 1"),)

    id: int = Field(default=1, primary_key=True)
    source: str  # what --model took: demo, a directory, or hub-id@revision
    model_id: str
    revision: str
    chosen_at: str


class SpeakDefaults(BaseModel):
    """The parameters that a voice speaks with when a request doesn't say otherwise."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )

    language: PlainText | None = Documented(
        None, max_length=32, description="A language of the model, or null: found from the text."
    )
    mode: Mode | None = Documented(
        None, description="`auto` (the model's default): `icl` where there is a transcript."
    )
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
