"""Stores the keys of a server: their table, and what is read and written of it.

Of a secret the hash alone is kept. Keys belong to a server and not to its voices, so no backup has
them, and a restore leaves those that are there. Knows nothing of requests.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, StringConstraints, ValidationError
from pydantic import Field as Documented
from sqlalchemy import Column, delete, func, or_, update
from sqlalchemy import select as select_columns
from sqlmodel import Field, Session, SQLModel, col, select

from registry.key_errors import KeysFull
from registry.storage.tables import STORED, Instant, Sha256, StoredJson, VoiceId

MOST_KEYS = 1000  # that are not revoked
KEPT_REVOKED = 100  # so that a list tells of them
MOST_VOICES = 1000  # of one key

Scope = Literal["voices:read", "voices:write", "speak", "admin"]


def _one_line(name: str) -> str:
    for character in name:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"holds U+{ord(character):04X}, which is not text of one line")
    return name


KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{8}$")]
KeyName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    AfterValidator(_one_line),
    Documented(json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}),
]
Scopes = Annotated[list[Scope], Documented(min_length=1, max_length=4)]
AllowedVoices = Annotated[list[VoiceId], Documented(min_length=1, max_length=MOST_VOICES)]


class ApiKey(SQLModel, table=True):
    """A key that was given to somebody. A former secret of it is taken until `former_until`."""

    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    name: str
    secret_sha256: str
    former_sha256: str | None = None
    former_until: str | None = None
    scopes: list[str] = Field(sa_column=Column(StoredJson, nullable=False))
    voices: list[str] | None = Field(sa_column=Column(StoredJson(none_as_null=True)))
    created_at: str
    expires_at: str | None = None
    last_used_at: str | None = None
    revoked_at: str | None = None


class KeyPublic(BaseModel):
    """A key as it is shown, which tells nothing of its secret."""

    model_config = STORED

    id: KeyId
    name: KeyName
    scopes: Scopes
    voices: AllowedVoices | None = Documented(
        description="The ids of the voices that it is for; null: for all."
    )
    created_at: Instant
    expires_at: Instant | None
    last_used_at: Instant | None = Documented(description="To a minute; on Modal to an hour.")
    revoked_at: Instant | None
    former_until: Instant | None = Documented(
        description="Until then the secret before the last rotation is taken as well."
    )


class KeyRow(KeyPublic):
    """A row of a key that may let somebody in: only one that is sound does."""

    secret_sha256: Sha256
    former_sha256: Sha256 | None

    def public(self) -> KeyPublic:
        return KeyPublic(**self.model_dump(exclude={"secret_sha256", "former_sha256"}))


def key_rows(session: Session) -> list[dict[str, Any]]:
    """Return all rows as they are stored, the newest first."""
    table = SQLModel.metadata.tables["api_key"]
    asked = select_columns(*table.columns).order_by(table.c.created_at.desc(), table.c.id)
    return [dict(row) for row in session.execute(asked).mappings()]


def sound_keys(rows: Iterable[Mapping[str, Any]]) -> list[KeyRow]:
    """Return the keys that a request could have stored."""
    found = []
    for row in rows:
        try:
            found.append(KeyRow.model_validate(row))
        except ValidationError:
            continue  # the doctor names it
    return found


def add_key(session: Session, row: ApiKey) -> None:
    """Add a key, and forget old revoked ones. Raises KeysFull."""
    live = select(func.count()).select_from(ApiKey).where(col(ApiKey.revoked_at).is_(None))
    if session.exec(live).one() >= MOST_KEYS:
        raise KeysFull(f"There are {MOST_KEYS:,} keys, which is the most. Revoke one first.")
    session.add(row)
    session.flush()
    revoked = select(ApiKey.id).where(col(ApiKey.revoked_at).is_not(None))
    newest_first = revoked.order_by(col(ApiKey.revoked_at).desc())
    oldest = session.exec(newest_first.offset(KEPT_REVOKED)).all()
    session.exec(delete(ApiKey).where(col(ApiKey.id).in_(oldest)))


def note_use(session: Session, used: Mapping[str, str]) -> None:
    """Record when keys were last used, by id; another process may know of later uses."""
    last = col(ApiKey.last_used_at)
    for key_id, at in used.items():
        known = (col(ApiKey.id) == key_id, or_(last.is_(None), last < at))
        session.exec(update(ApiKey).where(*known).values(last_used_at=at))
