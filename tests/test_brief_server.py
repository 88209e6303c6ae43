"""The server that lives as long as one command: how it ends."""

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from cli.server import brief_server
from cli.server.brief_server import BriefServer

END_S = 60  # a guard: what does not end by then never does


class Running:
    def __init__(self, app: FastAPI) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.server = BriefServer(uvicorn.Config(app, log_level="critical", ws="none"))
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )

    def ends(self) -> bool:
        self.thread.join(END_S)
        return not self.thread.is_alive()


@pytest.fixture
def asked() -> threading.Event:
    return threading.Event()


@pytest.fixture
def answering() -> threading.Event:
    return threading.Event()


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def running(
    asked: threading.Event,
    answering: threading.Event,
    ended: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Running:
    """Looks at the clock only after an hour, so that only `stop` can wake it."""
    monkeypatch.setattr(brief_server, "TICK_S", 3600)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        ended.append("lifespan")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    def slow() -> str:
        asked.set()
        assert answering.wait(END_S)
        return "whole"

    return Running(app)


def test_it_ends_as_soon_as_it_is_told(
    running: Running, answering: threading.Event, ended: list[str]
) -> None:
    answering.set()
    running.thread.start()
    with httpx.Client(base_url=running.url) as client:
        assert client.get("/").json() == "whole"
    running.server.stop()
    assert running.ends() and ended == ["lifespan"]


def test_one_that_is_told_before_it_begins_does_not_begin(running: Running) -> None:
    running.server.stop()
    running.thread.start()
    assert running.ends()


def test_it_may_be_told_twice_and_after_its_end(running: Running) -> None:
    running.thread.start()
    running.server.stop()
    running.server.stop()
    assert running.ends()
    running.server.stop()


def test_an_answer_under_way_is_given_whole(
    running: Running, asked: threading.Event, answering: threading.Event, ended: list[str]
) -> None:
    running.thread.start()
    got: list[str] = []

    def ask() -> None:
        got.append(httpx.get(running.url, timeout=END_S).json())

    client = threading.Thread(target=ask)
    client.start()
    assert asked.wait(END_S)
    running.server.stop()
    assert not ended
    answering.set()
    client.join(END_S)
    assert got == ["whole"]
    assert running.ends() and ended == ["lifespan"]


def test_a_connection_that_is_only_held_does_not_keep_it(
    running: Running, answering: threading.Event
) -> None:
    answering.set()
    running.thread.start()
    with httpx.Client(base_url=running.url) as client:
        client.get("/")
        running.server.stop()
        assert running.ends()
