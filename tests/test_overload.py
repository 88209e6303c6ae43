"""A queue that is full is told at once: before the body, the database and any thread."""

import asyncio
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from api import CLIP, add, problem
from conftest import Enrol, ServiceFactory
from fakes import PATIENCE_S, FakeInference, Pace
from fastapi import FastAPI
from faults import quick_app
from serving import serving
from speaking import run
from test_queue import Gate
from test_slow_clients import answer

from registry.api.fair_requests import AT_ONCE, FairRequests
from registry.api.services import LISTINGS
from registry.app import create_app
from registry.audio.clips import ReferenceClip
from registry.contract import Deadline, PromptRef, PromptSource, SpeechRequest
from registry.errors import Overloaded
from registry.settings import Settings
from registry.storage.blobs import StoredContent
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import Page, StoredVoice
from registry.storage.uploads import DECODERS, Clip
from registry.voices import enrolment as enrol

SPEAK = {"voice": "alice", "text": "Hello"}
FORM = "multipart/form-data; boundary=x"


@pytest.fixture
def client(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    with serving(create_app(store, fake, Settings(home=store.data.root))) as client:
        yield client


@pytest.fixture
def gate(located: object) -> Iterator[Gate]:
    gate = Gate(located)  # type: ignore[arg-type]
    yield gate
    gate.open.set()


@pytest.mark.parametrize(("path", "kind"), [("/speak", "application/json"), ("/clone", FORM)])
def test_a_full_queue_is_told_by_the_head_alone(
    client: httpx.Client, fake: FakeInference, path: str, kind: str
) -> None:
    fake.room_in_line = 0
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    assert client.base_url.port is not None
    with socket.create_connection(("127.0.0.1", client.base_url.port), 60) as connection:
        connection.sendall(f"{head}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        said = answer(connection)
    assert said.startswith(b"HTTP/1.1 503") and b"retry-after: 3" in said.lower()
    assert b'"code":"overloaded"' in said
    assert client.get("/voices").status_code == 200
    assert add(client, "alice").status_code == 201  # which needs no place in that queue


def test_a_clip_that_came_to_a_queue_full_by_now_is_not_decoded(
    client: httpx.Client, store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse_full(ahead: int) -> None:
        asked.append(ahead)
        if len(asked) > 1:
            fake.room_in_line = 0
            FakeInference.refuse_full(fake, ahead)

    monkeypatch.setattr(fake, "refuse_full", refuse_full)
    refused = client.post("/clone", data={"text": "Hello"}, files={"audio": b"no clip"})
    assert problem(refused) == (503, "overloaded")
    assert len(asked) == 2 and list(store.data.uploads.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/sys/net").is_dir(), reason="127.0.0.2 is an address on Linux")
@pytest.mark.parametrize("path", ["/speak", "/clone"])
def test_the_last_places_for_speech_are_for_other_addresses(
    client: httpx.Client, fake: FakeInference, path: str
) -> None:
    """Of 8 that are made and 16 that wait, one address has 22 at once."""
    add(client, "alice")
    fake.room_in_line, fake.pace = 16, Pace()
    held: list[Future[httpx.Response]] = []

    def ask() -> httpx.Response:
        if path == "/clone":
            return client.post(path, data={"text": "Hello"}, files={"audio": CLIP})
        return client.post(path, json=SPEAK)

    with ThreadPoolExecutor(24) as threads:
        for _ in range(22):
            held.append(threads.submit(ask))
            fake.pace.until_asked()
        refused = client.post("/speak", json=SPEAK)
        assert problem(refused) == (503, "overloaded")
        assert "of this client" in refused.json()["detail"] and refused.headers["retry-after"]
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, base_url=client.base_url, timeout=60) as other:
            others = threads.submit(other.post, "/speak", json=SPEAK)
            fake.pace.until_asked()  # the model has it
            fake.pace.open()
            assert others.result().status_code == 200
        assert [reply.result().status_code for reply in held] == [200] * 22
    assert {one.client for one in fake.asked} == {"127.0.0.1", "127.0.0.2"}  # whose turn it is
    fake.pace = None
    assert client.post("/speak", json=SPEAK).status_code == 200  # its places are free again


def test_of_a_burst_no_more_ask_the_database_than_can_wait(
    client: httpx.Client, store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(client, "alice")
    fake.room_in_line = 2
    both, go, get = threading.Barrier(3), threading.Event(), store.get

    def slow(reference: str, only: object) -> object:
        both.wait(PATIENCE_S)
        assert go.wait(PATIENCE_S)
        return get(reference, only)

    monkeypatch.setattr(store, "get", slow)
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(client.post, "/speak", json=SPEAK) for _ in range(2)]
        both.wait(PATIENCE_S)
        for _ in range(5):
            assert problem(client.post("/speak", json=SPEAK)) == (503, "overloaded")
        go.set()
        assert [reply.result().status_code for reply in first] == [200, 200]
    monkeypatch.undo()
    assert client.post("/speak", json=SPEAK).status_code == 200  # their places are free again
    assert client.post("/speak", json={**SPEAK, "voice": "bob"}).status_code == 404
    assert client.post("/speak", json=SPEAK).status_code == 200


def test_who_comes_is_counted_from_the_first_step(
    service_factory: ServiceFactory, gate: Gate, enrol: Enrol
) -> None:
    service = service_factory(gate, queue_limit=3)
    ref = PromptRef("voice_1", "f" * 64, "0" * 64)

    async def go() -> None:
        service.refuse_full()
        speaking = [
            asyncio.create_task(service.speak(ref, SpeechRequest("Hello"))) for _ in range(3)
        ]
        await asyncio.to_thread(gate.entered.wait, 60)
        assert service.status().queued == 2, "the first one's job runs"
        assert service.status().queue_limit == 3
        service.refuse_full()
        with pytest.raises(Overloaded, match="3 requests are waiting"):
            service.refuse_full(ahead=1)
        speaking[1].cancel()
        await asyncio.gather(speaking[1], return_exceptions=True)
        service.refuse_full(ahead=1)
        gate.open.set()
        await asyncio.gather(*speaking, return_exceptions=True)  # there is no such prompt
        assert service.status().queued == 0
        service.refuse_full(ahead=2)

    run(go())


def test_a_ready_server_tells_how_many_may_wait(client: httpx.Client) -> None:
    assert client.get("/readyz").json()["inference"]["queue_limit"] == 1000


@pytest.mark.slow
def test_a_crowd_that_lists_leaves_room_for_others(
    client: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred pages of the largest voices, made at once, kept a server deaf for 4.5 s."""
    add(client, "alice")
    at_work, most = 0, 0
    lock, read = threading.Lock(), store.page

    def page(*asked: Any) -> Page:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return read(*asked)

    monkeypatch.setattr(store, "page", page)
    with ThreadPoolExecutor(24) as crowd:
        answers = list(crowd.map(client.get, ["/voices"] * 48))
    assert [answer.status_code for answer in answers] == [200] * 48
    assert [answer.json()["data"][0]["name"] for answer in answers] == ["alice"] * 48
    assert most == LISTINGS


def test_who_leaves_a_crowd_that_lists_is_not_waited_for(
    client: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, read = threading.Semaphore(0), threading.Event(), store.page

    def page(*asked: Any) -> Page:
        began.release()
        assert go_on.wait(60)
        return read(*asked)

    monkeypatch.setattr(store, "page", page)
    with ThreadPoolExecutor(LISTINGS) as slow:
        first = [slow.submit(client.get, "/voices") for _ in range(LISTINGS)]
        for _ in first:
            assert began.acquire(timeout=60)
        for _ in range(10):
            with pytest.raises(httpx.ReadTimeout):
                client.get("/voices", timeout=0.05)
        go_on.set()
        assert [one.result().status_code for one in first] == [200] * LISTINGS
    assert client.get("/voices").status_code == 200
    assert began.acquire(timeout=60) and not began.acquire(blocking=False)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [False, True])
def test_rebuilds_wait_in_a_line_that_has_an_end(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, edit: bool
) -> None:
    """540 of them took all places of a server for minutes."""
    add(client, "alice")
    go_on, decode = threading.Event(), enrol.decoded

    def decoded(clip: Clip) -> ReferenceClip:
        assert go_on.wait(60)
        return decode(clip)

    def ask(number: int) -> tuple[int, str] | int:
        if edit:
            reply = client.patch("/voices/alice", json={"transcript": f"Word {number}."})
        else:
            reply = client.post("/voices/alice/rebuild")
        return problem(reply) if reply.status_code == 503 else reply.status_code

    monkeypatch.setattr(enrol, "decoded", decoded)
    places = DECODERS + enrol.LINE - enrol.LINE // 8
    with ThreadPoolExecutor(60) as crowd:
        asked = [crowd.submit(ask, number) for number in range(60)]
        while sum(one.done() for one in asked) < 60 - places:
            assert client.get("/voices").status_code == 200
        refused = [one.result() for one in asked if one.done()]
        assert refused == [(503, "server-busy")] * (60 - places)
        go_on.set()
        statuses = {one.result() for one in asked} - {(503, "server-busy")}
    assert statuses == {200}


@pytest.mark.skipif(not Path("/proc/sys/net").is_dir(), reason="127.0.0.2 is an address on Linux")
def test_who_reads_without_end_keeps_nobody_from_reading(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range of one byte costs the hash of a clip; the pool had no turns, and 40 threads."""
    passes, content, begun = threading.Semaphore(0), store.clip_content, threading.Semaphore(0)

    def clip_content(voice: StoredVoice) -> object:
        begun.release()
        assert passes.acquire(timeout=PATIENCE_S)
        return content(voice)

    monkeypatch.setattr(store, "clip_content", clip_content)
    app = create_app(store, fake, Settings(home=store.data.root))
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with serving(app) as client, ThreadPoolExecutor(61) as crowd:
        add(client, "alice")
        waiting = fair_requests_of(app)._turns._waiting
        read_byte = partial(client.get, "/voices/alice/clip", headers={"range": "bytes=0-0"})
        asked = [crowd.submit(read_byte) for _ in range(60)]
        for _ in range(AT_ONCE):
            assert begun.acquire(timeout=PATIENCE_S)
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        with httpx.Client(transport=transport, base_url=client.base_url, timeout=60) as other:
            read = crowd.submit(other.get, "/voices/alice")
            while "127.0.0.2" not in waiting:
                assert client.get("/readyz").status_code == 200
            passes.release(2)
            assert read.result(timeout=PATIENCE_S).status_code == 200
        assert sum(one.done() for one in asked) <= 2
        passes.release(60)
        assert {one.result().status_code for one in asked} == {206}


def fair_requests_of(app: FastAPI) -> FairRequests:
    layer: Any = app.middleware_stack
    while not isinstance(layer, FairRequests):
        layer = vars(layer).get("app") or layer._app
    return layer


def test_an_answer_that_is_read_slowly_takes_no_turn(
    client: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(client, "alice")
    passes = threading.Event()

    def parts(content: StoredContent, start: int, end: int) -> Iterator[bytes]:
        assert passes.wait(PATIENCE_S)
        yield content.read(start, end)

    monkeypatch.setattr(StoredContent, "parts", parts)
    with ThreadPoolExecutor(AT_ONCE) as crowd:
        asked = [crowd.submit(client.get, "/voices/alice/clip") for _ in range(AT_ONCE)]
        for _ in range(3 * AT_ONCE):
            assert client.get("/voices/alice").status_code == 200
        assert not any(one.done() for one in asked)
        passes.set()
        assert {one.result().status_code for one in asked} == {200}


@pytest.mark.skipif(not Path("/proc/sys/net").is_dir(), reason="127.0.0.2 is an address on Linux")
def test_who_rebuilds_without_end_keeps_nobody_from_enrolling(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoders take one clip at a time: whoever came had to wait for all before."""
    go_on, made, extract = threading.Event(), list[str](), fake.extract_prompt

    async def extract_prompt(source: PromptSource, deadline: Deadline | None = None) -> object:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        made.append(source.voice_id)
        return await extract(source)

    app = create_app(store, fake, Settings(home=store.data.root))
    waiting = app.state.services.enroller._encoders._waiting
    with serving(app) as client, ThreadPoolExecutor(61) as crowd:
        add(client, "alice")
        monkeypatch.setattr(fake, "extract_prompt", extract_prompt)
        rebuilds = [crowd.submit(client.post, "/voices/alice/rebuild") for _ in range(60)]
        while len(waiting.get("127.0.0.1", ())) < enrol.LINE - enrol.LINE // 8:
            assert client.get("/voices").status_code == 200
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, base_url=client.base_url, timeout=60) as other:
            bob = crowd.submit(add, other, "bob")
            while "127.0.0.2" not in waiting:
                assert client.get("/voices").status_code == 200
            go_on.set()
            assert bob.result().status_code == 201
        told = {problem(one.result()) for one in rebuilds if one.result().status_code != 200}
    assert told == {(503, "server-busy")}
    assert made.index(bob.result().json()["id"]) <= 2


def test_who_waits_for_the_encoders_is_counted_and_told_in_time(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, extract = threading.Event(), fake.extract_prompt

    async def extract_prompt(source: PromptSource, deadline: Deadline | None = None) -> object:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return await extract(source, deadline)

    monkeypatch.setattr(fake, "extract_prompt", extract_prompt)
    settings = Settings(home=store.data.root, queue_limit=8, queue_timeout_s=2)
    app = quick_app(store, fake, settings)
    encoders = app.state.services.enroller._encoders
    clip = {"audio": CLIP}

    def clone(client: httpx.Client) -> httpx.Response:
        return client.post("/clone", data={"text": "Hello"}, files=clip)

    with serving(app) as client, ThreadPoolExecutor(12) as crowd:
        first = crowd.submit(clone, client)
        while encoders._free:
            assert client.get("/voices").status_code == 200
        late = [crowd.submit(clone, client) for _ in range(10)]
        most = 0
        while not all(one.done() for one in late):
            most = max(most, client.get("/readyz").json()["inference"]["queued"])
        told = sorted(problem(one.result()) for one in late)
        assert told == [(503, "overloaded")] * 7 + [(503, "server-busy")] * 3
        assert all(one.result().headers["retry-after"] for one in late)
        assert most == 7 and encoders.waiting == 0
        go_on.set()
        assert first.result().status_code == 200


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.storage.sqlite.BUSY_TIMEOUT_S", 1.0)
    monkeypatch.setattr("registry.storage.database.PLACE_S", 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_changes_that_wait_for_another_process_hold_nobody_else_up(
    client: httpx.Client, data: DataDir
) -> None:
    """More than 15 of them were a 500 once the pool of connections was empty."""
    add(client, "alice")

    def change(number: int) -> httpx.Response:
        return client.patch("/voices/alice", json={"description": f"{number}"})

    with closing(sqlite3.connect(data.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(60) as crowd:
            asked = [crowd.submit(change, number) for number in range(60)]
            while not all(one.done() for one in asked):
                assert client.get("/voices/alice").status_code == 200
        told = {problem(one.result()) for one in asked}
        assert told == {(503, "overloaded")}
        other.execute("ROLLBACK")
    assert change(1).status_code == 200


@pytest.mark.slow
def test_a_crowd_of_changes_is_stored_where_nobody_holds_the_database(client: httpx.Client) -> None:
    add(client, "alice")

    def change(number: int) -> int:
        return client.patch("/voices/alice", json={"description": f"{number}"}).status_code

    with ThreadPoolExecutor(60) as crowd:
        assert set(crowd.map(change, range(120))) == {200}
