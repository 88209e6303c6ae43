"""Makes keys, gives them another secret, and revokes them. A secret is shown once.

Knows nothing of requests: a command and a route ask for the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session

from registry.errors import StorageFull
from registry.key_errors import AdminLimited, KeyNotFound
from registry.keys.grant import ADMIN
from registry.keys.secret import PresentedKey, new_id, new_key, presented
from registry.storage.keys import (
    ApiKey,
    KeyPublic,
    KeyRow,
    Scope,
    add_key,
    key_rows,
    sound_keys,
)
from registry.storage.queries import find_row
from registry.storage.store import VoiceStore
from registry.storage.tables import utc_now


@dataclass(frozen=True)
class KeyRequest:
    """A key to make; `voices` are names or ids, None for all there are and will be."""

    name: str
    scopes: Sequence[Scope]
    voices: Sequence[str] | None = None
    expires_in_s: int | None = None


@dataclass(frozen=True)
class Issued:
    """A key, and its text, which is shown this once."""

    public: KeyPublic
    text: str


def create_key(store: VoiceStore, asked: KeyRequest) -> Issued:
    """Make a key. Raises AdminLimited, VoiceNotFound, KeysFull."""
    if ADMIN in asked.scopes and asked.voices is not None:
        raise AdminLimited
    with store.transaction() as session:
        text = new_key(new_id())
        row = _row(session, asked, text)
        add_key(session, row)
        return Issued(_public(row), text)


def rotate_key(store: VoiceStore, key_id: str, grace_s: float) -> Issued:
    """Give a key another secret; take the former for `grace_s` seconds. Raises KeyNotFound."""
    with store.transaction() as session:
        row = _live(session, key_id)
        text = new_key(row.id)
        row.former_sha256 = row.secret_sha256 if grace_s else None
        row.former_until = utc_now(grace_s) if grace_s else None
        row.secret_sha256 = _parsed(text).secret_sha256
        return Issued(_public(row), text)


def revoke_key(store: VoiceStore, key_id: str) -> None:
    """Revoke a key, on a full disk too, as a deletion works there. Raises KeyNotFound."""
    try:
        _revoke(store, key_id)
    except StorageFull:
        if not store.data.drop_ballast():
            raise
        _revoke(store, key_id)


def _revoke(store: VoiceStore, key_id: str) -> None:
    with store.transaction() as session:
        _live(session, key_id).revoked_at = utc_now()


def list_keys(store: VoiceStore) -> list[KeyPublic]:
    """Return the keys, those that are revoked too, the newest first."""
    with store.reading() as session:
        return [row.public() for row in sound_keys(key_rows(session))]


def has_usable_key(store: VoiceStore) -> bool:
    now = utc_now()
    keys = list_keys(store)
    return any(not key.revoked_at and (key.expires_at or "~") > now for key in keys)


def _row(session: Session, asked: KeyRequest, text: str) -> ApiKey:
    """Make the row of the key that `text` is."""
    in_s, made = asked.expires_in_s, _parsed(text)
    return ApiKey(
        id=made.id,
        name=asked.name,
        secret_sha256=made.secret_sha256,
        scopes=list(dict.fromkeys(asked.scopes)),
        voices=_voices(session, asked.voices),
        created_at=utc_now(),
        expires_at=None if in_s is None else utc_now(in_s),
    )


def _voices(session: Session, named: Sequence[str] | None) -> list[str] | None:
    """Return the ids of voices, so that no voice that later gets one of these names is meant."""
    if named is None:
        return None
    return sorted({find_row(session, reference).id for reference in named})


def _live(session: Session, key_id: str) -> ApiKey:
    row = session.get(ApiKey, key_id)
    if row is None or row.revoked_at is not None:
        raise KeyNotFound
    return row


def _parsed(text: str) -> PresentedKey:
    made = presented(text)
    assert made is not None
    return made


def _public(row: ApiKey) -> KeyPublic:
    return KeyRow.model_validate(row.model_dump()).public()
