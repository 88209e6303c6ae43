"""CORS: only for the origins of the settings, and then our headers can be read."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from api import add
from fakes import FakeInference
from serving import serving

from registry.api.cross_origin import READ
from registry.api.speech_response import OF_SPEECH, OF_VOICE
from registry.app import create_app
from registry.errors import SettingInvalid
from registry.settings import Settings, load_settings
from registry.storage.store import VoiceStore

PAGE = "https://app.example.org"


@contextmanager
def allowing(store: VoiceStore, fake: FakeInference, origins: str) -> Iterator[httpx.Client]:
    settings = Settings(home=store.data.root, allowed_origins=origins)
    with serving(create_app(store, fake, settings)) as client:
        yield client


def test_by_default_no_page_may_call(client: httpx.Client) -> None:
    found = client.get("/voices", headers={"Origin": PAGE})
    assert not [name for name in found.headers if name.startswith("access-control")]
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
    assert client.options("/voices", headers=asked).status_code == 405


def test_a_named_page_may_call_and_read_our_headers(store: VoiceStore, fake: FakeInference) -> None:
    with allowing(store, fake, f"http://localhost:3000,{PAGE}") as client:
        add(client, "alice")
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "content-type, if-match, prefer",
        }
        preflight = client.options("/voices/alice", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        body = {"voice": "alice", "text": "Hi"}
        spoken = client.post("/speak", json=body, headers={"Origin": PAGE})
        exposed = spoken.headers["access-control-expose-headers"].lower().split(", ")
        assert {n for n in spoken.headers if n.startswith("x-")} <= {*exposed}
        missing = client.get("/voices/bob", headers={"Origin": PAGE})
        assert missing.headers["access-control-allow-origin"] == PAGE
        other = client.get("/voices", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_every_header_of_speech_can_be_read() -> None:
    assert {*OF_VOICE, *OF_SPEECH} <= set(READ)


@pytest.mark.parametrize(
    "origins",
    ["", "*", PAGE, "http://localhost:3000", "http://[::1]:8000", f"{PAGE},http://127.0.0.1:1"],
)
def test_origins_are_origins(origins: str, store: VoiceStore) -> None:
    found = load_settings({"VOICES_ALLOWED_ORIGINS": origins}, store.data.root)
    assert found.allowed_origins == origins


@pytest.mark.parametrize(
    "origins",
    [f"{PAGE}/", "app.example.org", "null", "*,*", f"{PAGE} ", f"{PAGE}\n", "https://*.example"],
)
def test_what_is_no_origin_refuses_to_start(origins: str, store: VoiceStore) -> None:
    with pytest.raises(SettingInvalid, match="VOICES_ALLOWED_ORIGINS"):
        load_settings({"VOICES_ALLOWED_ORIGINS": origins}, store.data.root)
