"""What somebody says or writes into a voice stays out of the log, and out of answers that fail."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
from api import CLIP, add, problem
from fakes import FakeInference
from pydantic import BaseModel, ValidationError
from serving import serving

from registry.api.native.clone import CloneForm
from registry.api.native.speak import SpeechFields
from registry.api.native.voices import EnrolmentForm, VoicePatch
from registry.app import create_app
from registry.settings import Settings
from registry.storage.schemas import VoicePublic
from registry.storage.store import VoiceStore
from registry.storage.tables import SpeakDefaults

SECRET = "xylophone"  # is no part of any code or message
WORDS = f"hello {SECRET}"
Ask = Callable[[httpx.Client], httpx.Response]
ASKED: dict[str, Ask] = {
    "a transcript enrolled": lambda http: add(http, "bob", transcript=WORDS),
    "a name enrolled": lambda http: add(http, SECRET),
    "a description enrolled": lambda http: add(http, "bob", description=WORDS),
    "labels enrolled": lambda http: add(http, "bob", labels=f'{{"use": "{WORDS}"}}'),
    "a transcript edited": lambda http: patched(http, transcript=WORDS),
    "a name edited": lambda http: patched(http, name=SECRET),
    "a description edited": lambda http: patched(http, description=WORDS),
    "labels edited": lambda http: patched(http, labels={"use": WORDS}),
    "all of them edited": lambda http: patched(
        http, name=SECRET, transcript=WORDS, description=WORDS, labels={"use": WORDS}
    ),
}


def patched(http: httpx.Client, **fields: object) -> httpx.Response:
    return http.patch("/voices/alice", json=fields)


@pytest.fixture
def http(
    store: VoiceStore, fake: FakeInference, caplog: pytest.LogCaptureFixture
) -> Iterator[httpx.Client]:
    """A server whose whole log is caught: uvicorn's, the registry's and SQLAlchemy's."""
    with serving(create_app(store, fake, Settings(home=store.data.root))) as client:
        assert add(client, "alice").status_code == 201
        caplog.set_level(logging.DEBUG)
        for name in ("uvicorn.error", "registry"):
            caplog.set_level(logging.DEBUG, name)
        server = logging.getLogger("uvicorn")
        server.addHandler(caplog.handler)
        yield client
        server.removeHandler(caplog.handler)


def break_writes(store: VoiceStore, what: str) -> None:
    """To the table that holds it, so that what fails is the statement with the words."""
    held = {"transcript": "voice_version", "labels": "label"}
    table = next((held[word] for word in held if word in what), "voice")
    with closing(sqlite3.connect(store.data.database)) as opened, opened:
        for verb in ("INSERT", "UPDATE"):
            opened.execute(
                f"CREATE TRIGGER broken_{verb} BEFORE {verb} ON {table}"
                " BEGIN SELECT RAISE(ABORT, 'no disk likes this'); END"
            )


@pytest.mark.parametrize("what", ASKED)
def test_what_a_failed_statement_would_store_is_not_told(
    what: str, http: httpx.Client, store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    break_writes(store, what)
    answer = ASKED[what](http)
    assert problem(answer) == (500, "internal-error")
    assert SECRET not in answer.text and SECRET not in caplog.text
    assert "no disk likes this" in caplog.text and "Traceback" in caplog.text


def test_a_damaged_transcript_is_not_told(
    http: httpx.Client, store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    for damage in (f"{SECRET}\x00".encode(), SECRET.encode() + b"\xff"):
        with closing(sqlite3.connect(store.data.database)) as opened, opened:
            opened.execute("UPDATE voice_version SET transcript = ?", (damage,))
        for answer in (http.get("/voices/alice"), http.get("/voices")):
            assert SECRET not in answer.text and SECRET not in caplog.text


@pytest.mark.parametrize(
    "model", [VoicePublic, SpeakDefaults, SpeechFields, CloneForm, EnrolmentForm, VoicePatch]
)
def test_a_value_that_does_not_fit_is_not_in_the_error(model: type[BaseModel]) -> None:
    fields = {name: [[SECRET]] for name in model.model_fields}
    with pytest.raises(ValidationError) as raised:
        model.model_validate(fields | {"unknown": SECRET})
    assert SECRET not in str(raised.value)


def test_a_form_that_does_not_fit_is_refused_without_its_words(http: httpx.Client) -> None:
    for form in ({"transcript": WORDS}, {"transcript": WORDS * 500}, {"language": WORDS * 9}):
        answer = http.post("/voices", data={"name": "bob"} | form, files={"audio": CLIP[:100]})
        assert answer.is_client_error and SECRET not in answer.text


def test_no_path_commands_the_terminal_that_shows_the_log(
    http: httpx.Client, store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shows it: the lines of a deployment do not go through the formatter of `serve`."""
    with closing(sqlite3.connect(store.data.database)) as opened, opened:
        opened.execute("UPDATE voice SET created_at = 'never'")
        [(voice_id,)] = opened.execute("SELECT id FROM voice").fetchall()
    caplog.clear()
    assert http.get("/voices/%1b%5d52%3bc%3beA==%07%0aINFO").status_code == 404
    assert http.get(f"/voices/{voice_id}").status_code == 500
    ours = [record.getMessage() for record in caplog.records if record.name == "registry"]
    assert any(f"GET /voices/{voice_id}: " in line for line in ours)
    assert all(line.isprintable() for line in ours)
