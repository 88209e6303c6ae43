"""Four times as many clients as a server can speak for at once: each is answered, as it should."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clips
import httpx
import pytest
from api import problem
from conftest import TRANSCRIPT
from test_serve import Server, served

SLOTS, LIMIT, TIMES = 4, 4, 4
CROWD = TIMES * (SLOTS + LIMIT)
AGAIN_S = 1.0  # after a refusal; more often, and nearly all would be refused
MOST_MIB = 100  # more than before: what is held of each request would be more
PATIENCE_S = 60


def crowd(url: str, requests: int) -> Counter[str]:
    """How many answers were of which kind, to clients who each ask again when they are answered."""
    ends: Counter[str] = Counter()
    left = iter(range(requests))

    async def ask(client: httpx.AsyncClient) -> None:
        for number in left:
            text = {"voice": "alice", "text": f"Hello {number % 100}.", "seed": number}
            answer = await client.post("/speak", json=text)
            if answer.status_code == 200:
                assert answer.content[:4] == b"RIFF" and len(answer.content) > 1000
                ends["spoken"] += 1
            else:
                status, code = problem(answer)
                assert status == 503 and int(answer.headers["Retry-After"]) > 0, answer.text
                ends[code] += 1
                await asyncio.sleep(AGAIN_S)

    async def all_ask() -> None:
        limits = httpx.Limits(max_connections=CROWD)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            await asyncio.gather(*(ask(client) for _ in range(CROWD)))

    asyncio.run(all_ask())
    return ends


@contextmanager
def health_asked(server: Server, found: list[int]) -> Iterator[None]:
    """All the while, by a client of its own."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            found.append(server.ask("GET", "/healthz")[0])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def queue_of(server: Server) -> dict[str, int]:
    status, body = server.ask("GET", "/readyz")
    assert status == 200
    found: dict[str, int] = json.loads(body)["inference"]
    return found


def hold(folder: Path, requests: int) -> None:
    settings = {"slots": SLOTS, "queue_limit": LIMIT, "log_level": "error"}
    with served(folder / "data", "--model", "demo", **settings) as server:
        clip = clips.file(clips.spoken(), 24_000)
        form = {"name": "alice", "transcript": TRANSCRIPT}
        url = f"http://127.0.0.1:{server.port}"
        assert httpx.post(f"{url}/voices", data=form, files={"audio": clip}, timeout=600).is_success
        crowd(url, 2 * CROWD)  # to warm up
        before_mib, healths = server.peak_mib(), list[int]()
        with health_asked(server, healths):
            ends = crowd(url, requests)
        grown_mib = server.peak_mib() - before_mib
        print(dict(ends), f"+{grown_mib} MiB, /healthz {len(healths)} times")
        assert sum(ends.values()) == requests
        assert ends.keys() == {"spoken", "overloaded"}
        assert healths and {*healths} == {200}
        until_s = time.monotonic() + PATIENCE_S
        while (found := queue_of(server))["queued"] + found["running"]:
            assert time.monotonic() < until_s, found
        assert crowd(url, 1) == {"spoken": 1}
        assert grown_mib < MOST_MIB
    assert not [line for line in server.log if "Traceback" in line]


@pytest.mark.slow
def test_a_crowd_is_answered_and_leaves_nothing(tmp_path: Path) -> None:
    hold(tmp_path, 150)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_ten_thousand_requests_are_answered_and_leave_nothing(tmp_path: Path) -> None:
    hold(tmp_path, 10_000)
