"""What POST /speak costs outside of the model: HTTP, look-up, encoding, by a stand-in that hums.

The server runs in a process of its own, as `voices serve` runs it. Requests per second and
latencies for one caller and for many, then the parts alone, in this process.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import measure
from fakes import SAMPLE_RATE, FakeInference, tone
from server import served
from uploading import enrol_bytes

from registry.audio.encoding.encoders import encode
from registry.audio.formats import AudioFormat
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.enrolment import Enroller

CLIP = measure.ROOT / "cli" / "data" / "alice.wav"
TEXT = "The second sentence needs no file at all."  # the stand-in hums 50 ms a character


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=400, help="for each number of callers")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        store = VoiceStore(DataDir(Path(folder)))
        voice = asyncio.run(enrolled(store))
        found = {
            "speak": {str(n): asyncio.run(load(store, voice, n, asked)) for n in asked.callers},
            "alone": parts(store, voice, asked.requests),
        }
    report(found)
    measure.record(asked.results, "speak_overhead", vars(asked), found)


async def enrolled(store: VoiceStore) -> StoredVoice:
    enroller = Enroller(store, FakeInference(store.data))
    words = "A transcript."
    return await enrol_bytes(enroller, "alice", CLIP.read_bytes(), words, language="english")


async def load(
    store: VoiceStore, voice: StoredVoice, callers: int, asked: argparse.Namespace
) -> dict[str, Any]:
    with served(store.data.root) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            await call(http, "/speak", 10 * callers, callers)  # to warm up
            started = time.perf_counter()
            times_s = await call(http, "/speak", asked.requests, callers)
            taken_s = time.perf_counter() - started
            health_s = await call(http, "/healthz", asked.requests, callers)
    rate = {"requests_per_s": round(len(times_s) / taken_s, 1)}
    return rate | measure.p50_p99(times_s) | {"healthz_p50_ms": measure.p50_p99(health_s)["p50_ms"]}


async def call(http: httpx.AsyncClient, path: str, requests: int, callers: int) -> list[float]:
    times_s: list[float] = []

    async def caller() -> None:
        for _ in range(max(1, requests // callers)):
            with measure.stopwatch(times_s):
                (await asked_of(http, path)).raise_for_status()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return times_s


async def asked_of(http: httpx.AsyncClient, path: str) -> httpx.Response:
    if path == "/healthz":
        return await http.get(path)
    return await http.post(path, json={"voice": "alice", "text": TEXT})


def parts(store: VoiceStore, voice: StoredVoice, repeat: int) -> dict[str, float]:
    samples = tone(voice.row.id, len(TEXT))
    alone: dict[str, Callable[[], object]] = {
        "find the voice by name": lambda: store.get("alice"),
        "the stand-in's hum": lambda: tone(voice.row.id, len(TEXT)),
        "encode wav": lambda: encode(samples, SAMPLE_RATE, AudioFormat("wav")),
        "encode flac": lambda: encode(samples, SAMPLE_RATE, AudioFormat("flac")),
        "encode pcm": lambda: encode(samples, SAMPLE_RATE, AudioFormat("pcm")),
    }
    return {name: median_ms(part, repeat) for name, part in alone.items()}


def median_ms(part: Callable[[], object], repeat: int) -> float:
    return measure.ms(statistics.median(measure.seconds(part) for _ in range(repeat)))


def report(found: dict[str, Any]) -> None:
    rows = [[callers, *figures.values()] for callers, figures in found["speak"].items()]
    measure.table(["callers", "requests/s", "p50 ms", "p99 ms", "/healthz p50 ms"], rows)
    measure.table(["alone", "median ms"], list(found["alone"].items()))


if __name__ == "__main__":
    main()
