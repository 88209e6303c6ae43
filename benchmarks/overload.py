"""What those notice who do not speak, while others ask to at four times the capacity.

A stand-in has slots, a queue and a fixed time for each speech. The same requests are sent to a
server that refuses by the head of a request, and to one that refuses in the queue itself, in turn;
meanwhile a process of its own asks for /healthz and /voices.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import measure
from fakes import FakeInference
from faults import QuickEnroller, noise
from server import served
from uploading import enrol_bytes

from registry.contract import PromptRef, Speech, SpeechRequest
from registry.errors import Overloaded
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

PROBE = """
import http.client, json, sys, time
connection = http.client.HTTPConnection(*sys.argv[1].split(":"), timeout=60)
found = {path: [] for path in sys.argv[3:]}
for _ in range(int(sys.argv[2])):
    for path, into in found.items():
        started = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.read() and answer.status in (200, 503)  # of too many requests
        into.append(time.perf_counter() - started)
    time.sleep(0.01)
print(json.dumps(found))
"""
SLOTS, LIMIT, SPEECH_S = 8, 32, 0.1
VOICES = 20
PATHS = ("/healthz", "/voices")
BY = ("head", "queue")
BODY = b'{"voice": "voice 1", "text": "Hello"}'
HEAD = "POST /speak HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASKED = f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Crowded(FakeInference):
    """Speaks with some at a time, while others wait, and refuses the rest."""

    def __init__(self, data: DataDir, by: str) -> None:
        super().__init__(data)
        self._by, self._waiting = by, 0
        self._slots = asyncio.Semaphore(SLOTS)

    def refuse_full(self, ahead: int) -> None:
        if self._by == "head":
            self._refuse(ahead)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        self._refuse(0)
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            await asyncio.sleep(SPEECH_S)
        finally:
            self._slots.release()
        return await super().speak(ref, asked)

    def _refuse(self, ahead: int) -> None:
        if self._waiting + ahead >= LIMIT:
            raise Overloaded("The queue is full.", 1)


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--times", type=float, default=4.0, help="the capacity")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asyncio.run(enrolled(Path(folder)))
        rounds: dict[str, list[dict[str, Any]]] = {by: [] for by in BY}
        for _ in range(asked.rounds):
            for by in BY:
                rounds[by].append(measured(Path(folder), by, asked))
    report(rounds)
    measure.record(asked.results, "overload", vars(asked), rounds)


async def enrolled(home: Path) -> None:
    store = VoiceStore(DataDir(home))
    enroller = QuickEnroller(store, FakeInference(store.data))
    for number in range(VOICES):
        await enrol_bytes(enroller, f"voice {number}", noise(random.Random(number)))
    store.close()


def measured(home: Path, by: str, asked: argparse.Namespace) -> dict[str, Any]:
    took_s = asked.requests / (asked.times * SLOTS / SPEECH_S)
    with served(home, partial(Crowded, by=by)) as url:
        probed(url, 20)  # to warm up
        with ThreadPoolExecutor(1) as thread:
            probing = thread.submit(probed, url, int(took_s / 0.02))
            statuses, refused_s = asyncio.run(crowd(url, asked.requests, asked.times))
            found = probing.result()
    return {
        "statuses": dict(Counter(statuses)),
        "refusal": measure.p50_p99(refused_s),
        **{path[1:]: measure.p50_p99(times_s) for path, times_s in found.items()},
    }


def probed(url: str, times: int) -> dict[str, list[float]]:
    """Seconds by path, as another process has to wait."""
    command = [sys.executable, "-c", PROBE, urlsplit(url).netloc, str(times), *PATHS]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


async def crowd(url: str, requests: int, times: float) -> tuple[list[int], list[float]]:
    """Each request at its time, whoever is answered meanwhile."""
    refused_s: list[float] = []
    idle: list[Connection] = []

    async def ask() -> int:
        started = time.perf_counter()
        connection = idle.pop() if idle else await connected(url)
        status = await answered(*connection)
        idle.append(connection)
        if status == 503:
            refused_s.append(time.perf_counter() - started)
        return status

    begun, asking = time.perf_counter(), []
    for number in range(requests):
        due = begun + number * SPEECH_S / SLOTS / times
        await asyncio.sleep(due - time.perf_counter())
        asking.append(asyncio.create_task(ask()))
    async with asyncio.timeout(60):
        statuses = await asyncio.gather(*asking)
    for _, writer in idle:
        writer.close()
    return statuses, refused_s


async def connected(url: str) -> Connection:
    return await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    writer.write(ASKED)
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found is not None
    await reader.readexactly(int(found[1]))
    return int(head.split(b" ", 2)[1])


def report(rounds: dict[str, list[dict[str, Any]]]) -> None:
    rows = []
    for what in ("refusal", *(path[1:] for path in PATHS)):
        for of in ("p50_ms", "p99_ms"):
            by = {name: [found[what][of] for found in rounds[name]] for name in BY}
            gain = measure.ratios(by["queue"], by["head"])
            rows.append(
                [f"{what} {of}", *(statistics.median(by[name]) for name in BY), gain["median"]]
            )
    measure.table(["", "refused by the head", "by the queue", "ratio"], rows)
    for name in BY:
        print(name, rounds[name][0]["statuses"])


if __name__ == "__main__":
    main()
