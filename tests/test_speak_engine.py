"""Many callers of the real engine over real sockets: shared batches, early bytes, freed slots."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import httpx
import numpy as np
import pytest
from api import problem
from click.testing import CliRunner
from clips import file
from conftest import TRANSCRIPT, make_clip
from numpy.typing import NDArray
from serving import serving

from cli.main import cli
from inference.models.catalog import LocatedModel, locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.settings import Settings
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.upkeep.doctor import examine

PATIENCE_S = 30.0
LOOK_S = 0.01
CALLERS = 16
TEXT = "Sixteen talk at once, and each is heard."
LONG = "And so it goes on. " * 17  # for a speech that never ends, 1,982 frames
VoiceAndSeed = tuple[str, int]  # a voice and a seed


@dataclass(frozen=True)
class Place:
    """A server, and what is behind it."""

    http: httpx.Client
    service: InferenceService
    data: DataDir

    def counted(self) -> dict[str, int]:
        counters = self.service.counters()
        assert counters is not None
        return asdict(counters)

    def since(self, before: dict[str, int]) -> dict[str, int]:
        return {name: count - before[name] for name, count in self.counted().items()}

    def until_silent(self) -> None:
        until(lambda: not self.service.status().running and not self.service.status().queued)


@contextmanager
def place(root: Path, model: LocatedModel, names: str, **config: Any) -> Iterator[Place]:
    """With a voice for each name; the last one has no transcript."""
    data = DataDir(root)
    data.create()
    options = ServiceConfig(device="cpu", threads=1, queue_timeout_s=PATIENCE_S, **config)
    service = InferenceService(data, model, options)
    store = VoiceStore(data)
    with serving(create_app(store, LocalInference(lambda: service), Settings(home=root))) as http:
        for seed, name in enumerate(names):
            form = {"name": name} | ({} if name == names[-1] else {"transcript": TRANSCRIPT})
            clip = file(make_clip(seed, 2.0)[None], 24_000)
            assert http.post("/voices", data=form, files={"audio": clip}).status_code == 201
        service.warm()
        until(lambda: service.status().state == "warm")
        yield Place(http, service, data)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, located: LocatedModel) -> Iterator[Place]:
    """Sixteen speak at once."""
    with place(tmp_path_factory.mktemp("many"), located, "abc", slots=CALLERS) as made:
        yield made


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, endless_checkpoint: Path) -> Iterator[Place]:
    """One speaks at once, and no speech ends."""
    model = locate(str(endless_checkpoint), DataDir(tmp_path_factory.mktemp("endless-hashes")))
    with place(tmp_path_factory.mktemp("narrow"), model, "ab", slots=1) as made:
        yield made


def until(found: Callable[[], bool]) -> None:
    """Look again and again, but not for ever."""
    deadline_s, never = monotonic() + PATIENCE_S, Event()
    while not found():
        assert monotonic() < deadline_s, "it did not happen"
        never.wait(LOOK_S)


def body(asked: VoiceAndSeed, text: str = TEXT, stream: bool = True) -> dict[str, object]:
    voice, seed = asked
    return {"voice": voice, "text": text, "seed": seed, "format": "pcm", "stream": stream}


def say(at: Place, asked: VoiceAndSeed, stream: bool = True) -> bytes:
    reply = at.http.post("/speak", json=body(asked, stream=stream))
    assert reply.status_code == 200, reply.text
    return reply.content


def start_and_leave(at: Place, text: str = LONG) -> bytes:
    """The first bytes of a stream whose connection is closed when they are here."""
    with at.http.stream("POST", "/speak", json=body(("a", 1), text)) as reply:
        assert reply.status_code == 200
        return next(reply.iter_raw())


def samples(pcm: bytes) -> NDArray[np.int32]:
    return np.frombuffer(pcm, "<i2").astype(np.int32)


@pytest.mark.slow
def test_sixteen_streams_of_three_voices_share_batches(many: Place) -> None:
    """And each of them is what its caller hears alone, but for the last bit."""
    wishes = [("abc"[seed % 3], seed) for seed in range(CALLERS)]
    alone = [say(many, asked) for asked in wishes[:4]]
    before = many.counted()
    with ThreadPoolExecutor(CALLERS) as callers:
        together = list(callers.map(lambda asked: say(many, asked), wishes))
    found = many.since(before)
    assert found["finished"] == found["submitted"] == CALLERS
    assert found["frames"] > 3 * found["steps"]
    for ours, its in zip(together, alone, strict=False):
        assert len(ours) == len(its)
        assert np.abs(samples(ours) - samples(its)).max() <= 1
    assert len(set(together)) == CALLERS


@pytest.mark.slow
@pytest.mark.parametrize("voice", ["a", "c"])
def test_a_stream_is_the_whole_answer_in_parts(many: Place, voice: str) -> None:
    with many.http.stream("POST", "/speak", json=body((voice, 7))) as reply:
        parts = list(reply.iter_raw())
    assert b"".join(parts) == say(many, (voice, 7), stream=False)
    assert len(parts) > 1


@pytest.mark.slow
def test_the_first_bytes_come_long_before_the_last_frame_is_made(narrow: Place) -> None:
    with narrow.http.stream("POST", "/speak", json=body(("a", 1), LONG)) as reply:
        before = narrow.counted()
        assert len(next(reply.iter_raw())) >= 1920 * 2
        assert narrow.since(before)["failed"] == 0 and narrow.service.status().running == 1
    until(lambda: narrow.since(before)["cancelled"] == 1)


def test_whoever_leaves_gives_the_only_slot_to_the_next(narrow: Place) -> None:
    before = narrow.counted()
    start_and_leave(narrow)
    assert start_and_leave(narrow)
    until(lambda: narrow.since(before)["cancelled"] == 2)
    found = narrow.since(before)
    assert found["submitted"] == 2 and found["failed"] == found["finished"] == 0


@pytest.mark.slow
def test_a_speech_that_does_not_end_cuts_its_stream(
    narrow: Place, caplog: pytest.LogCaptureFixture
) -> None:
    heard = b""
    with narrow.http.stream("POST", "/speak", json=body(("a", 1), "Hi.")) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            for part in reply.iter_raw():
                heard += part
    assert len(heard) >= 1920 * 2
    narrow.until_silent()
    logged = [record for record in caplog.records if record.name == "registry"]
    assert [record.levelno for record in logged] == [logging.WARNING]
    assert "POST /speak broke off: The speech did not end" in logged[0].getMessage()


@pytest.mark.slow
def test_a_command_whose_stream_breaks_says_so_once(
    narrow: Place, endless_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICES_HOME", str(narrow.data.root))
    monkeypatch.setenv("VOICES_MODEL", str(endless_checkpoint))
    result = CliRunner().invoke(cli, ["speak", "a", "Hi.", "-o", "-", "--format", "pcm"])
    assert result.exit_code == 1 and result.stdout_bytes
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ") and "broke off" in line


@pytest.mark.slow
def test_a_whole_speech_that_does_not_end_is_a_problem(narrow: Place) -> None:
    reply = narrow.http.post("/speak", json=body(("b", 1), "Hi.", stream=False))
    assert problem(reply) == (500, "speech-unfinished")
    assert "did not end" in reply.json()["detail"]


@pytest.mark.slow
def test_breaks_and_leavers_leave_nothing_behind(narrow: Place) -> None:
    voices, first = narrow.http.get("/voices").json(), start_and_leave(narrow)
    for _ in range(3):
        narrow.http.post("/speak", json=body(("b", 1), "Hi.", stream=False))
        start_and_leave(narrow)
    again = start_and_leave(narrow)
    narrow.until_silent()
    assert first[: 1920 * 2] == again[: 1920 * 2]
    assert narrow.http.get("/voices").json() == voices
    assert examine(narrow.data, read_data=True, repair=False) == []
