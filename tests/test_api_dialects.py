"""Another dialect beside the native routes: the same errors, in a shape of its own."""

import asyncio
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from api import add, problem
from fakes import FakeInference
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel
from serving import serving
from starlette.responses import JSONResponse
from starlette.types import Scope

from registry.api.problems import CLIENT_GONE, Problem, Render, rendered
from registry.api.requests import CheckedRoute, while_connected
from registry.api.services import ServicesDep
from registry.api.speech_response import SpeechReply, sending
from registry.app import create_app
from registry.audio.encoding.rendering import Rendering
from registry.contract import SpeechRequest
from registry.errors import Overloaded
from registry.settings import Settings
from registry.storage.store import VoiceStore


def other(problem: Problem) -> Response:
    told = {"message": problem.detail, "code": problem.code}
    return JSONResponse({"error": told}, problem.status, dict(problem.headers))


def other_by_path(scope: Scope) -> Render:
    return other if scope["path"].startswith("/other/") else rendered


router = APIRouter(prefix="/other", route_class=CheckedRoute)


class Body(BaseModel):
    what: int


@router.post("/take")
async def take(body: Body) -> int:
    return body.what


@router.get("/voices/{name}")
def voice(name: str, services: ServicesDep) -> str:
    return services.store.get(name).row.name


@router.post("/audio/speech")
async def speech(request: Request, services: ServicesDep, voice: str, input: str) -> Response:
    reply = SpeechReply(request, Rendering(), sending(request, stream=False, events=False), None)
    return await reply.of(partial(services.speaker.speak, voice, SpeechRequest(input)))


@router.get("/busy")
def busy() -> None:
    raise Overloaded("Too many wait.", 6.6)


@router.get("/broken")
def broken() -> None:
    raise ZeroDivisionError("nobody's business")


@router.get("/slow")
async def slow(request: Request) -> None:
    await while_connected(request, asyncio.sleep(60))


@pytest.fixture
def app(store: VoiceStore, fake: FakeInference) -> FastAPI:
    app = create_app(store, fake, Settings(home=store.data.root))
    app.include_router(router)
    app.state.render_of = other_by_path
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serving(app) as client:
        yield client


def told(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"} and answer.json()["error"]["message"]
    return answer.status_code, answer.json()["error"]["code"]


def test_what_the_routes_of_a_dialect_refuse_is_in_its_shape(client: httpx.Client) -> None:
    assert told(client.post("/other/take", json={"what": "x"})) == (422, "request-invalid")
    assert told(client.post("/other/take", content=b"{")) == (415, "content-type-unsupported")
    assert told(client.get("/other/voices/nobody")) == (404, "voice-not-found")
    assert told(client.get("/other/busy?odd=1")) == (422, "request-invalid")
    big = {"what": "x" * 100_000}
    assert told(client.post("/other/take", json=big)) == (413, "body-too-large")


def test_when_to_come_back_is_told_in_every_shape(client: httpx.Client) -> None:
    refused = client.get("/other/busy")
    assert told(refused) == (503, "overloaded") and refused.headers["retry-after"] == "7"


def test_what_nobody_expected_is_told_without_what_it_says(client: httpx.Client) -> None:
    failed = client.get("/other/broken")
    assert told(failed) == (500, "internal-error") and "business" not in failed.text


def test_what_is_refused_before_a_route_is_found_is_in_the_shape_of_its_path(
    client: httpx.Client,
) -> None:
    assert told(client.get("/other/nothing")) == (404, "not-found")
    assert told(client.delete("/other/busy")) == (405, "method-not-allowed")
    assert problem(client.get("/others/nothing")) == (404, "not-found")


def test_the_native_routes_keep_their_shape(client: httpx.Client) -> None:
    assert add(client, "alice").status_code == 201
    assert client.get("/other/voices/alice").json() == "alice"
    assert problem(client.get("/voices/nobody")) == (404, "voice-not-found")
    assert problem(client.post("/speak", json={})) == (422, "request-invalid")
    assert problem(client.delete("/voices")) == (405, "method-not-allowed")


def test_a_route_for_speech_needs_nothing_of_the_native_one(client: httpx.Client) -> None:
    assert add(client, "alice").status_code == 201
    asked = {"voice": "alice", "input": "Hello."}
    spoken = client.post("/other/audio/speech", params=asked)
    assert spoken.headers["content-type"] == "audio/wav" and spoken.content[:4] == b"RIFF"
    assert spoken.headers["x-mode"] == "icl"
    unknown = client.post("/other/audio/speech", params=asked | {"voice": "nobody"})
    assert told(unknown) == (404, "voice-not-found")


def test_whoever_has_left_is_answered_nothing(app: FastAPI) -> None:
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/other/slow", "raw_path": b"/other/slow"}
    rest = {"query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http"}
    asyncio.run(app({**scope, **rest, "root_path": ""}, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == CLIENT_GONE and not sent[1].get("body")
