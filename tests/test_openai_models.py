"""The models as OpenAI's and Open WebUI's clients list them, and the shape of what goes wrong."""

from collections.abc import Iterator

import httpx
import pytest
from api import add
from fakes import MODEL, FakeInference
from serving import serving

from registry.api.host_and_origin import add_fence
from registry.app import create_app
from registry.settings import Settings
from registry.speech.local import NoInference
from registry.storage.store import VoiceStore

NAMES = ["tts-1", "tts-1-hd", "gpt-4o-mini-tts", MODEL.id]


def told(answer: httpx.Response) -> tuple[int, str, str | None]:
    """The status, the code and the param of an error in OpenAI's shape."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "?")) and error["type"]
    return answer.status_code, error["code"], error["param"]


def test_the_list_has_the_names_that_clients_send_and_the_model(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == NAMES
    for one in listed["data"]:
        assert one == {"id": one["id"], "object": "model", "created": 0} | {
            "owned_by": "voice-registry"
        }
    assert client.get("/v1/audio/models").json() == {"models": [{"id": name} for name in NAMES]}


def test_a_model_is_as_old_as_its_choice(client: httpx.Client) -> None:
    assert add(client, "alice").status_code == 201
    assert client.get("/v1/models/tts-1").json()["created"] > 1_700_000_000


@pytest.mark.parametrize("name", [*NAMES, "tts-1-en", "tts-1-english"])
def test_a_model_is_read_by_its_name(client: httpx.Client, name: str) -> None:
    assert client.get(f"/v1/models/{name}").json()["id"] == name


@pytest.mark.parametrize("name", ["gpt-5", "tts-1-", "tts-1-xx", "TTS-1", "a/b", "%2e%2e"])
def test_a_model_that_is_not_there_is_not_found(client: httpx.Client, name: str) -> None:
    refused = client.get(f"/v1/models/{name}")
    assert told(refused) == (404, "model_not_found", "model")
    assert "tts-1-hd" in refused.json()["error"]["message"]


def test_what_a_query_has_that_is_not_known_is_told(client: httpx.Client) -> None:
    listed = client.get("/v1/models", params={"show": "all", "né": "1"})
    assert listed.status_code == 200 and listed.headers["x-ignored-fields"] == "show, n%C3%A9"
    assert "x-ignored-fields" not in client.get("/v1/models").headers
    many = client.get("/v1/models", params={f"p{number}": "1" for number in range(40)})
    assert many.headers["x-ignored-fields"].endswith(", p15, and 24 more")
    long = client.get("/v1/models", params={"x" * 9000: "1"})
    assert long.headers["x-ignored-fields"] == "x" * 64


def test_what_is_said_twice_or_in_no_text_is_refused(client: httpx.Client) -> None:
    assert told(client.get("/v1/models?a=1&a=2")) == (400, "request_invalid", "a")
    assert told(client.get("/v1/models?a=%FF")) == (400, "request_invalid", None)
    assert told(client.get("/v1/models/%FF")) == (404, "not_found", None)


def test_a_server_without_a_model_says_so_once(store: VoiceStore) -> None:
    with serving(create_app(store, NoInference(), Settings(home=store.data.root))) as client:
        for path in ("/v1/models", "/v1/models/tts-1", "/v1/audio/models"):
            refused = client.get(path)
            assert told(refused) == (503, "inference_off", None)
            assert refused.headers["x-should-retry"] == "false"


@pytest.fixture
def fenced(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    settings = Settings(home=store.data.root)
    settings = settings.model_copy(update={"max_requests": 0})
    app = create_app(store, fake, settings)
    add_fence(app, settings, ["127.0.0.1"])
    with serving(app) as client:
        yield client


def test_what_is_refused_before_a_route_is_found_has_the_shape_of_its_path(
    client: httpx.Client,
) -> None:
    assert told(client.get("/v1/nothing")) == (404, "not_found", None)
    assert told(client.get("/v1/")) == (404, "not_found", None)
    wrong = client.delete("/v1/models")
    assert told(wrong) == (405, "method_not_allowed", None)
    assert wrong.headers["allow"] == "GET, HEAD" and wrong.headers["x-should-retry"] == "false"
    assert client.get("/v12/nothing").headers["content-type"] == "application/problem+json"


def test_so_has_what_the_limits_and_the_fence_refuse(fenced: httpx.Client) -> None:
    busy = fenced.get("/v1/models")
    assert told(busy) == (503, "server_busy", None)
    assert busy.headers["retry-after"] == "1" and busy.headers["x-should-retry"] == "true"
    foreign = fenced.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert told(foreign) == (403, "origin_refused", None)
    assert foreign.headers["x-should-retry"] == "false"
    renamed = fenced.get("/v1/models", headers={"Host": "elsewhere.example"})
    assert told(renamed) == (421, "host_unknown", None)
    assert fenced.get("/voices").headers["content-type"] == "application/problem+json"
