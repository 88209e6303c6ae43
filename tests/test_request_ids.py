"""Every answer of the service has an id, whatever answers; a log line of a failure names it."""

import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from api import add
from fakes import FakeInference
from serving import serving

from registry.api.host_and_origin import add_fence
from registry.app import create_app
from registry.errors import SpeechFailed
from registry.settings import Settings
from registry.storage.store import VoiceStore

OWN = re.compile(r"req_[0-9a-f]{32}")
SPOKEN = {"voice": "alice", "text": "Hello."}


def broken() -> None:
    raise ZeroDivisionError


@pytest.fixture
def http(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    settings = Settings(home=store.data.root, allowed_origins="https://app.example")
    app = create_app(store, fake, settings)
    app.add_api_route("/broken", broken)
    add_fence(app, settings, ["127.0.0.1"])
    with serving(app) as client:
        assert add(client, "alice").status_code == 201
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/healthz", {}, 200),
        ("HEAD", "/voices", {}, 200),
        ("GET", "/voices/alice/clip", {}, 200),
        ("POST", "/speak", {}, 415),
        ("GET", "/nothing", {}, 404),
        ("DELETE", "/healthz", {}, 405),
        ("GET", "/broken", {}, 500),
        ("GET", "/healthz", {"Host": "elsewhere.example"}, 421),
        ("GET", "/healthz", {"Origin": "https://elsewhere.example"}, 403),
        (
            "OPTIONS",
            "/speak",
            {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
            200,
        ),
        ("GET", "/v1/models", {}, 200),
        ("GET", "/v1/nothing", {}, 404),
    ],
)
def test_every_answer_has_an_id(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = http.request(method, path, headers=headers)
    assert answer.status_code == status
    assert OWN.fullmatch(answer.headers["x-request-id"])


def test_a_stream_has_an_id_and_no_two_answers_have_the_same(http: httpx.Client) -> None:
    spoken = [http.post("/speak", json=SPOKEN | {"stream": True}) for _ in range(3)]
    assert len({answer.headers["x-request-id"] for answer in spoken}) == 3


@pytest.mark.parametrize("sent", ["a", "A-1_b.c", "x" * 128])
def test_an_id_that_comes_with_a_request_is_kept(http: httpx.Client, sent: str) -> None:
    assert http.get("/healthz", headers={"X-Request-Id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "a\tb", "a;b", "é", "a/b"])
def test_one_that_a_log_could_not_show_is_not(http: httpx.Client, sent: str) -> None:
    answer = http.get("/healthz", headers=[(b"X-Request-Id", sent.encode())])
    assert OWN.fullmatch(answer.headers["x-request-id"])


def test_of_two_ids_neither_counts(http: httpx.Client) -> None:
    answer = http.get("/healthz", headers=[("X-Request-Id", "one"), ("X-Request-Id", "two")])
    assert answer.headers.get_list("x-request-id") != ["one"]
    assert OWN.fullmatch(answer.headers["x-request-id"])


def test_the_log_names_the_request_that_failed(
    http: httpx.Client, fake: FakeInference, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "registry")

    async def refuse(*_: object) -> None:
        raise SpeechFailed("The model broke.")

    fake.speak = refuse  # type: ignore[assignment,method-assign]
    http.post("/speak", json=SPOKEN, headers={"X-Request-Id": "expected"})
    http.get("/broken", headers={"X-Request-Id": "unexpected"})
    said = [record.getMessage() for record in caplog.records if record.name == "registry"]
    assert "unexpected GET /broken failed" in said
    assert "expected POST /speak: The model broke." in said
