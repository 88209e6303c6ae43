"""A speech that can't be heard is made again: what its caller gets, and what stays taken."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from api import add, problem
from click.testing import CliRunner
from fakes import PATIENCE_S, SAMPLE_RATE, FakeInference, Pace, tone
from serving import serving

from cli.main import cli
from registry.app import create_app
from registry.errors import Overloaded
from registry.settings import Settings
from registry.storage.store import VoiceStore
from registry.voices.takes import derived_seed

REQUEST = {"voice": "alice", "text": "Hello there, you.", "seed": 3, "format": "pcm"}
SILENCE = np.zeros(SAMPLE_RATE // 6, np.float32)
CLICK = np.concatenate([SILENCE, tone("voice_click", 1)[:200], SILENCE])
SHORT = tone("voice_short", 2)  # 0.1 s, which 17 letters do not fit into
SEEDS = [3, derived_seed(3, 1), derived_seed(3, 2)]
WAYS = pytest.mark.parametrize("stream", [True, False])


@pytest.fixture
def alice(client: httpx.Client) -> httpx.Client:
    assert add(client, "alice").status_code == 201
    return client


def speak(http: httpx.Client, stream: bool, **fields: object) -> httpx.Response:
    return http.post("/speak", json=REQUEST | {"stream": stream} | fields)


def takes(fake: FakeInference) -> list[tuple[str | None, int | None]]:
    return [(params.mode, params.seed) for params in fake.params]


@pytest.mark.slow
@WAYS
def test_a_speech_that_is_heard_is_made_once(
    alice: httpx.Client, fake: FakeInference, stream: bool
) -> None:
    reply = speak(alice, stream)
    assert (reply.headers["x-retries"], reply.headers["x-mode"]) == ("0", "icl")
    assert reply.headers["x-fallback"] == "none"
    assert "retries" not in reply.headers["server-timing"]
    assert takes(fake) == [(None, 3)]


@WAYS
@pytest.mark.parametrize("bad", [SILENCE, CLICK, np.zeros(0, np.float32)], ids=len)
def test_a_silent_one_is_made_again_with_a_seed_of_its_own_seed(
    alice: httpx.Client, fake: FakeInference, stream: bool, bad: np.ndarray
) -> None:
    fake.sounds = [bad]
    again = speak(alice, stream)
    assert again.status_code == 200 and np.frombuffer(again.content, "<i2").any()
    headers = [again.headers[f"x-{name}"] for name in ("mode", "seed", "retries")]
    assert headers == ["icl", "3", "1"]
    timings = [part.split(";")[0] for part in again.headers["server-timing"].split(", ")]
    assert timings[:4] == ["retries", "queue", "prompt", "ttfa"]
    assert takes(fake) == [(None, seed) for seed in SEEDS[:2]]
    fake.sounds = [bad]
    assert speak(alice, stream).content == again.content
    assert takes(fake)[2:] == takes(fake)[:2], "the same request is made again alike"


def test_a_whole_one_too_short_for_its_text_is_made_again(
    alice: httpx.Client, fake: FakeInference
) -> None:
    fake.sounds = [SHORT, SHORT]
    reply = speak(alice, stream=False)
    assert (reply.status_code, reply.headers["x-retries"]) == (200, "2")
    assert float(reply.headers["x-audio-seconds"]) > 0.5


@WAYS
def test_after_that_x_vector_mode_speaks_and_the_answer_says_so(
    alice: httpx.Client, fake: FakeInference, stream: bool
) -> None:
    fake.sounds = [SILENCE] * 3
    reply = speak(alice, stream)
    assert reply.status_code == 200
    headers = [reply.headers[f"x-{name}"] for name in ("mode", "fallback", "retries", "seed")]
    assert headers == ["xvec", "xvec", "3", "3"]
    assert takes(fake) == [(None, seed) for seed in SEEDS] + [("xvec", 3)]


def test_every_header_of_an_answer_is_in_its_description(
    alice: httpx.Client, fake: FakeInference
) -> None:
    operation = alice.get("/openapi.json").json()["paths"]["/speak"]["post"]
    described = {name.lower() for name in operation["responses"]["200"]["headers"]}
    fake.sounds = [SILENCE] * 3
    sent = {name for name in speak(alice, False, loudness=-23).headers if name.startswith("x-")}
    sent -= {"x-request-id"}  # which every answer of any route has
    assert described == sent | {"server-timing", "x-audio-type"}  # the last is of events alone


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        (0, ""),
        (1, ", made again once because nothing could be heard"),
        (3, ", made again 3 times because nothing could be heard, in mode xvec in the end"),
    ],
)
def test_the_command_tells_it(
    alice: httpx.Client, fake: FakeInference, tmp_path: Path, silent: int, said: str
) -> None:
    fake.sounds = [SILENCE] * silent
    place = ["--url", str(alice.base_url), "speak", "alice", "Hello there, you.", "--seed", "3"]
    result = CliRunner().invoke(cli, [*place, "-o", str(tmp_path / "x.wav")])
    assert result.exit_code == 0, result.output
    assert result.stderr.rstrip("\n").endswith(f", seed 3{said}.")


@WAYS
def test_what_can_not_be_heard_in_any_mode_is_an_error(
    alice: httpx.Client, fake: FakeInference, stream: bool
) -> None:
    fake.sounds = [SILENCE] * 4
    reply = speak(alice, stream)
    assert problem(reply) == (500, "speech-inaudible")
    assert "nothing can be heard" in reply.json()["detail"]
    assert "3 more tries" in reply.json()["detail"] and "in any mode" in reply.json()["detail"]
    assert len(fake.started) == 4 and all(c.ended.is_set() for c in fake.chunks)


@WAYS
@pytest.mark.parametrize("mode", ["icl", "xvec"])
@pytest.mark.parametrize("asked", ["by the request", "by the voice"])
def test_a_mode_that_was_asked_for_is_never_changed(
    alice: httpx.Client, fake: FakeInference, stream: bool, mode: str, asked: str
) -> None:
    if asked == "by the voice":
        alice.patch("/voices/alice", json={"defaults": {"mode": mode}})
    fake.sounds = [SILENCE] * 3
    reply = speak(alice, stream, **({"mode": mode} if asked == "by the request" else {}))
    assert problem(reply) == (500, "speech-inaudible")
    assert f"in mode {mode}, which is asked for" in reply.json()["detail"]
    assert takes(fake) == [(mode, seed) for seed in SEEDS]


def test_auto_in_the_request_lifts_what_the_voice_says(
    alice: httpx.Client, fake: FakeInference
) -> None:
    alice.patch("/voices/alice", json={"defaults": {"mode": "icl"}})
    fake.sounds = [SILENCE] * 3
    assert speak(alice, False, mode="auto").headers["x-fallback"] == "xvec"


def test_without_sampling_another_seed_is_no_other_take(
    alice: httpx.Client, fake: FakeInference
) -> None:
    fake.sounds = [SILENCE]
    reply = speak(alice, False, temperature=0)
    assert (reply.headers["x-fallback"], reply.headers["x-retries"]) == ("xvec", "1")
    assert takes(fake) == [(None, 3), ("xvec", 3)]


def test_a_stream_that_turns_out_too_short_is_cut(
    alice: httpx.Client, fake: FakeInference, caplog: pytest.LogCaptureFixture
) -> None:
    fake.sounds = [SHORT]
    with alice.stream("POST", "/speak", json=REQUEST | {"stream": True}) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            reply.read()
    assert len(fake.started) == 1, "some of it was heard"
    [logged] = [record for record in caplog.records if record.name == "registry"]
    assert "broke off: Of 0.10 s of speech no more than 0.10 s can be heard" in logged.getMessage()


@WAYS
def test_a_queue_that_is_full_meanwhile_is_told(
    alice: httpx.Client, fake: FakeInference, stream: bool
) -> None:
    fake.sounds, fake.pace = [SILENCE], Pace(free=4)
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(speak, alice, stream)
        fake.pace.give(error=Overloaded("Too many wait.", 7))
    assert problem(reply.result()) == (503, "overloaded")
    assert reply.result().headers["retry-after"] == "7"


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 5, 6])
def test_whoever_leaves_while_it_is_made_again_frees_the_slot(
    alice: httpx.Client, fake: FakeInference, stream: bool, chunks: int
) -> None:
    """In the first take, before the second one is there, or while that goes on."""
    fake.sounds, fake.pace = [SILENCE], Pace(free=chunks)
    with pytest.raises(httpx.ReadTimeout):
        alice.post("/speak", json=REQUEST | {"stream": stream}, timeout=0.3).read()
    assert fake.pace.left.wait(PATIENCE_S)
    assert all(chunks.ended.wait(PATIENCE_S) for chunks in fake.chunks)
    assert len(fake.chunks) == (1 if chunks <= 4 else 2)


@pytest.fixture
def hasty(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    settings = Settings(home=store.data.root).model_copy(update={"answer_s": 0.5})
    with serving(create_app(store, fake, settings)) as http:
        assert add(http, "alice").status_code == 201
        yield http


@pytest.mark.slow
@WAYS
def test_the_time_for_an_answer_counts_over_all_takes(
    hasty: httpx.Client, fake: FakeInference, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.api.speech_response.BEGIN_S", -60.0)
    fake.sounds, fake.pace = [SILENCE] * 2, Pace(free=6)
    assert problem(speak(hasty, stream)) == (500, "speech-unfinished")
    assert len(fake.started) == 2 and all(chunks.ended.is_set() for chunks in fake.chunks)


def test_icl_without_a_transcript_is_refused_by_who_asks_for_it(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    voice = add(client, "bob", transcript="<absent>").json()
    refused = client.post("/speak", json={"voice": "bob", "text": "Hello", "mode": "icl"})
    assert problem(refused) == (422, "mode-unavailable")
    assert "which the request asks for" in refused.json()["detail"]
    with closing(sqlite3.connect(store.data.database)) as database, database:  # as of an old one
        database.execute("UPDATE voice SET defaults = json_set(defaults, '$.mode', 'icl')")
    for fields in ({}, {"mode": None}):
        refused = client.post("/speak", json={"voice": voice["id"], "text": "Hello"} | fields)
        assert problem(refused) == (422, "mode-unavailable")
        assert "which it speaks in by default" in refused.json()["detail"]
    assert fake.started == []
    reply = client.post("/speak", json={"voice": "bob", "text": "Hello", "mode": "auto"})
    assert reply.status_code == 200
