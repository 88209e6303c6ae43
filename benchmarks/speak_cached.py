"""One enrolment for all time, against the reference sent and encoded with each request.

A: POST /speak {voice, text} to the registry, which speaks with our engine. B: POST /speak with
clip, transcript and text to a minimal app around qwen-tts, which decodes the clip, calls
create_voice_clone_prompt and generates. Same process, model files and device; real HTTP on
loopback; A and B take turns. The prompt's columns compare a kept prompt with an encoded one; the
totals compare the two systems, engines included. A and B draw other codes, so their speech differs
and may differ in length: the frames of both stand beside the times.
"""

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import measure
import numpy as np
import soundfile
import soxr
from fastapi import FastAPI, Form, Response, UploadFile
from server import in_thread

from cli.compose import make_app, make_service, open_store
from inference.models.catalog import LocatedModel
from registry.audio.encoding.encoders import encode
from registry.audio.formats import AudioFormat
from registry.settings import Settings

RATE = 24_000
FRAME_SAMPLES = 1920
SEED = 11
SHOWN = ("ms", "frames")
DATA = measure.ROOT / "cli" / "data"
TEXT = "The second sentence needs no file at all."


@dataclass(frozen=True)
class Reference:
    """A clip as an application holds it: the bytes of a file, and its words."""

    content: bytes
    transcript: str
    seconds: float


class Peer:
    """qwen-tts as its README uses it, on a thread of its own."""

    def __init__(self, model: LocatedModel, device: str, threads: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._load, model, device, threads).result()

    def _load(self, model: LocatedModel, device: str, threads: int) -> None:
        import torch

        from inference.engine.checkpoint.qwen import import_qwen_tts
        from inference.engine.config import DTYPES, default_dtype

        torch.set_num_threads(threads)
        dtype = DTYPES[default_dtype(torch.device(device))]
        self._seed = torch.manual_seed
        load = import_qwen_tts().Qwen3TTSModel.from_pretrained
        self._model = load(str(model.path), device_map=device, dtype=dtype)

    async def speak(self, clip: bytes, transcript: str, text: str) -> tuple[np.ndarray, float]:
        """The samples, and the seconds that the prompt took of the whole."""
        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._thread, self._speak, clip, transcript, text)

    def _speak(self, clip: bytes, transcript: str, text: str) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        prompt = self._model.create_voice_clone_prompt((decoded(clip), RATE), transcript)
        prompt_s = time.perf_counter() - started
        self._seed(SEED)
        [samples], _ = self._model.generate_voice_clone(text, voice_clone_prompt=prompt)
        return samples, prompt_s


def decoded(clip: bytes) -> np.ndarray:
    """(n,) float32 at 24 kHz, in the fastest way we know; qwen-tts would resample with librosa."""
    samples, rate = soundfile.read(io.BytesIO(clip), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, RATE)


def peer_app(peer: Peer) -> FastAPI:
    app = FastAPI()

    @app.post("/speak")
    async def speak(
        audio: UploadFile, transcript: Annotated[str, Form()], text: Annotated[str, Form()]
    ) -> Response:
        samples, prompt_s = await peer.speak(await audio.read(), transcript, text)
        headers = {"Server-Timing": f"prompt;dur={1000 * prompt_s:.1f}"}
        content = encode(samples, RATE, AudioFormat("wav"))
        return Response(content, media_type="audio/wav", headers=headers)

    return app


def main() -> None:
    asked = parsed()
    os.environ.setdefault("OMP_NUM_THREADS", str(asked.threads))  # before torch is imported
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        settings = Settings(
            home=Path(folder),
            model=asked.model,
            device=asked.device,
            threads=asked.threads,
            trial="off",  # it would bring the voice into memory, and count as enrolment
        )
        with servers(settings) as (ours, theirs):
            references = [reference(seconds) for seconds in asked.seconds]
            warm_up(ours, theirs, asked.text)
            found = [compared(ours, theirs, clip, asked) for clip in references]
    report(found)
    measure.record(asked.results, "speak_cached", vars(asked), found)


def parsed() -> argparse.Namespace:
    parser = measure.arguments(__doc__)
    parser.add_argument("--model", default="demo", help="demo, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--repeat", type=int, default=6, help="pairs of A and B for each length")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[3, 8, 24], help="lengths of the reference clip"
    )
    parser.add_argument("--text", default=TEXT, help="what is spoken")
    return parser.parse_args()


@contextmanager
def servers(settings: Settings) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    store = open_store(settings)
    located = make_service(settings, store).located()
    peer = Peer(located, settings.device, settings.threads or 1)
    with in_thread(make_app(settings, store)) as ours, in_thread(peer_app(peer)) as theirs:
        yield ours, theirs


def reference(seconds: float) -> Reference:
    """So much of the bundled clip; a longer one says it again."""
    samples, rate = soundfile.read(DATA / "alice.wav", dtype="int16")
    words = (DATA / "alice.txt").read_text(encoding="utf-8").split()
    share = seconds * rate / len(samples)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.resize(samples, round(seconds * rate)), rate, format="WAV")
    spoken = [words[i % len(words)] for i in range(max(1, round(share * len(words))))]
    return Reference(buffer.getvalue(), " ".join(spoken), seconds)


def warm_up(ours: httpx.Client, theirs: httpx.Client, text: str) -> None:
    clip = reference(2)
    enrolled(ours, "warm up", clip)
    cached(ours, "warm up", text)
    uncached(theirs, clip, text)


def enrolled(ours: httpx.Client, name: str, clip: Reference) -> float:
    started = time.perf_counter()
    form = {"name": name, "transcript": clip.transcript}
    ours.post("/voices", data=form, files={"audio": clip.content}).raise_for_status()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Reply:
    total_s: float
    prompt_ms: float
    frames: int
    cache: str


def cached(ours: httpx.Client, name: str, text: str) -> Reply:
    started = time.perf_counter()
    answer = ours.post("/speak", json={"voice": name, "text": text, "seed": SEED})
    return understood(answer, time.perf_counter() - started)


def uncached(theirs: httpx.Client, clip: Reference, text: str) -> Reply:
    started = time.perf_counter()
    form = {"transcript": clip.transcript, "text": text}
    answer = theirs.post("/speak", data=form, files={"audio": clip.content})
    return understood(answer, time.perf_counter() - started)


def understood(answer: httpx.Response, total_s: float) -> Reply:
    answer.raise_for_status()
    timings = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    frames = round(soundfile.info(io.BytesIO(answer.content)).frames / FRAME_SAMPLES)
    cache = answer.headers.get("X-Prompt-Cache", "none")
    return Reply(total_s, float(timings["prompt"]), frames, cache)


def compared(
    ours: httpx.Client, theirs: httpx.Client, clip: Reference, asked: argparse.Namespace
) -> dict[str, Any]:
    """Enrol a voice anew for each pair: its first speech reads the file, its second one memory."""
    enrol_s, files, hits, peers = [], [], [], []
    for turn in range(asked.repeat):
        name = f"{clip.seconds:g} s, {turn}"
        enrol_s.append(enrolled(ours, name, clip))
        files.append(cached(ours, name, asked.text))
        hits.append(cached(ours, name, asked.text))
        peers.append(uncached(theirs, clip, asked.text))
    assert {r.cache for r in files} == {"file"} and {r.cache for r in hits} == {"memory"}
    return figures(clip, enrol_s, files, hits, peers)


def figures(
    clip: Reference, enrol_s: list[float], files: list[Reply], hits: list[Reply], peers: list[Reply]
) -> dict[str, Any]:
    totals = [[reply.total_s for reply in kind] for kind in (peers, hits)]
    return {
        "clip_s": clip.seconds,
        "enrolment_ms": measure.ms(statistics.median(enrol_s)),
        "prompt_ms": {
            "from file": statistics.median(r.prompt_ms for r in files),
            "from memory": statistics.median(r.prompt_ms for r in hits),
            "encoded each time": statistics.median(r.prompt_ms for r in peers),
        },
        "cached_ms": measure.ms(statistics.median(totals[1])),
        "uncached_ms": measure.ms(statistics.median(totals[0])),
        "saved_ms": measure.ms(statistics.median(map(float.__sub__, *totals))),
        "uncached_to_cached": measure.ratios(*totals),
        "cached_frames": statistics.median_high([r.frames for r in hits]),
        "uncached_frames": statistics.median_high([r.frames for r in peers]),
    }


def report(found: list[dict[str, Any]]) -> None:
    measure.table(
        ["clip s", "enrolment ms", "prompt: file ms", "memory ms", "encoded ms"],
        [[f["clip_s"], f["enrolment_ms"], *f["prompt_ms"].values()] for f in found],
    )
    headings = ["clip s", "cached ms", "frames", "uncached ms", "frames", "saved ms"]
    measure.table(
        [*headings, "ratio", "min", "max"],
        [[*totals(f), *f["uncached_to_cached"].values()] for f in found],
    )


def totals(found: dict[str, Any]) -> list[float]:
    sides = [found[f"{side}_{what}"] for side in ("cached", "uncached") for what in SHOWN]
    return [found["clip_s"], *sides, found["saved_ms"]]


if __name__ == "__main__":
    main()
