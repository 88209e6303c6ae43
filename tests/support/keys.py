"""Keys for tests, and a server that asks for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from fakes import FakeInference
from serving import serving

from registry.app import create_app
from registry.keys.issuing import KeyRequest, create_key
from registry.settings import Settings
from registry.storage.keys import Scope
from registry.storage.store import VoiceStore


def key_for(store: VoiceStore, *scopes: Scope, voices: Sequence[str] | None = None) -> str:
    return create_key(store, KeyRequest("a test", scopes, voices)).text


def id_of(key: str) -> str:
    return key.split("_")[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def asking(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    """A server that asks for keys; its client has none."""
    app = create_app(store, fake, Settings(home=store.data.root), asks_keys=True)
    with serving(app) as client:
        yield client
