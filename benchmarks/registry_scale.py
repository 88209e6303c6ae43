"""The registry at 100, 10,000 and 100,000 voices: does an answer cost more when there are more?

Every size is open at the same time and asked in turn, so that a slow moment of the machine falls on
all of them. Each operation is timed at the store (SQL and rows) and over HTTP on loopback; the
model is the stand-in of the tests.
"""

import argparse
import asyncio
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import measure
import soundfile
from fakes import MODEL, FakeInference
from population import ROLES, Known, populate
from server import client
from uploading import enrol_bytes, read_clip

from registry.audio.clips import ClipLimits, ReferenceClip
from registry.errors import VoiceNotFound
from registry.names import name_key
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.uploads import Clip
from registry.voices.enrolment import Enroller

CLIP = measure.ROOT / "cli" / "data" / "alice.wav"
SIZES = (100, 10_000, 100_000)
PAGE = 20  # rows: as many as the smallest registry has for each of these questions
SAMPLE = 60  # voices of each registry that questions are made of
COMMON_PREFIX = "narrator "


@dataclass(frozen=True)
class Question:
    """One voice by `reference`, or a page of the list."""

    reference: str | None = None
    after: str | None = None
    search: str = ""
    label: str = ""

    def at_store(self, store: VoiceStore) -> None:
        if self.reference is None:
            page = store.page(PAGE, self.after, self.search, [self.label] if self.label else [])
            [voice.public() for voice in page.voices]
        else:
            with suppress(VoiceNotFound):
                store.get(self.reference).public()

    def over_http(self, http: httpx.Client) -> None:
        if self.reference is None:
            http.get("/voices", params=self._query()).raise_for_status()
        else:
            assert http.get(f"/voices/{self.reference}").status_code in (200, 404)

    def _query(self) -> dict[str, Any]:
        query = {"after": self.after, "search": self.search, "label": self.label}
        return {"limit": PAGE} | {k: v for k, v in query.items() if v}


@dataclass
class Registry:
    """One population, served; `asked` is what each operation asks, another one each time."""

    size: int
    store: VoiceStore
    inference: FakeInference
    http: httpx.Client
    known: list[Known]
    random: Random

    def questions(self) -> dict[str, list[Question]]:
        voices = self.random.sample(self.known, min(SAMPLE, self.size))
        keys = {name_key(voice.name) for voice in self.known}
        return {
            "get by id": [Question(reference=v.id) for v in voices],
            "get by name": [Question(reference=v.name) for v in voices],
            "first page": [Question()],
            "middle page": [Question(after=cursor) for cursor in self._cursors(voices)],
            "search, a page": [Question(search=COMMON_PREFIX)],
            "search, one hit": [Question(search=v.name) for v in voices if self._only(v)],
            "search, no hit": [Question(search="wxqz-7718")],
            "label, a third have it": [Question(label="use=audiobook")],
            "label, five have it": [Question(label=f"campaign={v.campaign}") for v in voices],
            "404, a slip": [Question(reference=wrong) for wrong in self._slips(voices, keys)],
            "404, a slip in a crowd": [Question(reference=f"narator warm {r} 1") for r in ROLES],
            "404, unlike any": [Question(reference="wxqz-7718-undefined")],
        }

    def _cursors(self, voices: list[Known]) -> list[str]:
        """The `next` of a page of one narrowed to some prefix, which is a place in the whole."""
        pages = [self.store.page(1, None, v.name[: 2 + i % 3], ()) for i, v in enumerate(voices)]
        found = [page.next for page in pages if page.next]
        return [c for c in found if len(self.store.page(PAGE, c, "", ()).voices) == PAGE]

    def _only(self, voice: Known) -> bool:
        return len(self.store.page(2, None, voice.name, ()).voices) == 1

    def _slips(self, voices: list[Known], keys: set[str]) -> list[str]:
        slips = [slip(self.random, voice.name) for voice in voices]
        return [wrong for wrong in slips if name_key(wrong) not in keys]


def slip(random: Random, name: str) -> str:
    """The name with one character left out, doubled, or swapped with the next."""
    at = random.randrange(1, len(name) - 1)
    before, here, after = name[:at], name[at], name[at + 1 :]
    return random.choice(
        [before + after, before + 2 * here + after, before + after[0] + here + after[1:]]
    )


def main() -> None:
    asked = parsed()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=asked.folder) as folder, ExitStack() as s:
        registries = [opened(s, Path(folder) / str(size), size) for size in asked.sizes]
        reads = measure_reads(registries, asked.repeat)
        writes = asyncio.run(measure_writes(registries, asked.adds, asked.whole_adds))
    print_reads(reads, asked.sizes)
    print_writes(writes)
    found = {"reads": reads, "writes": writes}
    measure.record(asked.results, "registry_scale", vars(asked), found)


def parsed() -> argparse.Namespace:
    parser = measure.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="voices")
    parser.add_argument("--repeat", type=int, default=120, help="of each operation at each size")
    parser.add_argument("--adds", type=int, default=500, help="at each size, the clip decoded")
    parser.add_argument("--whole-adds", type=int, default=10, help="at each size, with decoding")
    parser.add_argument("--folder", type=Path, help="where the data directories go")
    return parser.parse_args()


def opened(stack: ExitStack, folder: Path, size: int) -> Registry:
    data = DataDir(folder)
    store = VoiceStore(data)
    taken: list[float] = []
    with measure.stopwatch(taken):
        known = populate(store, size, MODEL)
    size_mib = data.database.stat().st_size / 2**20
    print(f"{size:,} voices: {size_mib:.1f} MiB, inserted in {taken[0]:.1f} s")
    http = stack.enter_context(client(folder))
    return Registry(size, store, FakeInference(data), http, known, Random(size))


def measure_reads(registries: list[Registry], repeat: int) -> dict[str, Any]:
    asked = [registry.questions() for registry in registries]
    return {
        operation: {
            "store": timed(registries, asked, operation, repeat, ask_store),
            "http": timed(registries, asked, operation, repeat, ask_http),
        }
        for operation in asked[0]
    }


def ask_store(registry: Registry, question: Question) -> None:
    question.at_store(registry.store)


def ask_http(registry: Registry, question: Question) -> None:
    question.over_http(registry.http)


def timed(
    registries: list[Registry],
    asked: list[dict[str, list[Question]]],
    operation: str,
    repeat: int,
    ask: Callable[[Registry, Question], None],
) -> dict[str, Any]:
    times_s: list[list[float]] = [[] for _ in registries]
    for turn in range(-3, repeat):  # three to warm up
        for registry, questions, into in zip(registries, asked, times_s, strict=True):
            question = questions[operation][turn % len(questions[operation])]
            taken_s = measure.seconds(lambda r=registry, q=question: ask(r, q))
            if turn >= 0:
                into.append(taken_s)
    return summary(registries, times_s)


def summary(registries: list[Registry], times_s: list[list[float]]) -> dict[str, Any]:
    sizes = {str(r.size): measure.p50_p99(t) for r, t in zip(registries, times_s, strict=True)}
    first, last = (sizes[str(registries[i].size)]["p50_ms"] for i in (0, -1))
    return sizes | {"ratio": round(last / first, 2)}


class PredecodedEnroller(Enroller):
    """The enroller without its decode child: the clip is decoded, only its bytes are new."""

    def __init__(self, registry: Registry, clip: ReferenceClip) -> None:
        super().__init__(registry.store, registry.inference)
        self._clip = clip

    async def decode(self, clip: Clip) -> ReferenceClip:
        return replace(self._clip, sha256=clip.sha256)


async def measure_writes(registries: list[Registry], adds: int, whole: int) -> dict[str, Any]:
    decoded = read_clip(CLIP.read_bytes(), ClipLimits())
    without = [PredecodedEnroller(registry, decoded) for registry in registries]
    real = [Enroller(registry.store, registry.inference) for registry in registries]
    uploads = list(clips(max(adds, whole)))
    return {
        "add, clip already decoded": await enrolled(registries, without, uploads[:adds], "added"),
        "add, whole": await enrolled(registries, real, uploads[:whole], "whole"),
        "decode child alone": measure.p50_p99([decode_s(upload) for upload in uploads[:whole]]),
    }


def clips(count: int) -> Iterator[bytes]:
    """The bundled clip, begun a little later each time, so that no two are the same file."""
    samples, rate = soundfile.read(CLIP, dtype="int16")
    for number in range(count):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples[number:], rate, format="WAV")
        yield buffer.getvalue()


def decode_s(upload: bytes) -> float:
    return measure.seconds(lambda: read_clip(upload, ClipLimits()))


async def enrolled(
    registries: list[Registry], enrollers: list[Enroller], uploads: list[bytes], prefix: str
) -> dict[str, Any]:
    times_s: list[list[float]] = [[] for _ in registries]
    for number, upload in enumerate(uploads):
        for enroller, into in zip(enrollers, times_s, strict=True):
            with measure.stopwatch(into):
                await enrol_bytes(
                    enroller,
                    f"{prefix} {number}",
                    upload,
                    "A transcript.",
                    labels={"use": "audiobook"},
                    language="english",
                )
    return summary(registries, times_s)


def print_reads(reads: dict[str, Any], sizes: list[int]) -> None:
    for level in ("store", "http"):
        shown = [f"{size:,} {p}" for size in sizes for p in ("p50", "p99")]
        rows = [[operation, *cells(found[level], sizes)] for operation, found in reads.items()]
        measure.table([f"ms, {level}", *shown, "ratio of p50"], rows)


def print_writes(writes: dict[str, Any]) -> None:
    adds = {name: found for name, found in writes.items() if "ratio" in found}
    sizes = [int(key) for key in next(iter(adds.values())) if key != "ratio"]
    shown = [f"{size:,} {p}" for size in sizes for p in ("p50", "p99")]
    rows = [[name, *cells(found, sizes)] for name, found in adds.items()]
    measure.table(["ms", *shown, "ratio of p50"], rows)
    measure.table(["ms", "p50", "p99"], [["decode child", *writes["decode child alone"].values()]])


def cells(found: dict[str, Any], sizes: list[int]) -> list[float]:
    return [v for size in sizes for v in found[str(size)].values()] + [found["ratio"]]


if __name__ == "__main__":
    main()
