"""A trial sentence tells whether a transcript is right, and is in nobody's way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from api import CLIP, add
from conftest import ROOT
from fakes import SAMPLE_RATE, FakeInference, Pace
from faults import QuickEnroller
from serving import serving
from uploading import enrol_bytes, read_clip

from inference.models.catalog import locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.audio.clips import ClipLimits
from registry.contract import PromptRef, PromptSource
from registry.errors import Overloaded, SpeechFailed
from registry.settings import Settings
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.languages import ALSO
from registry.voices.trial import LIMIT_S, OPENING, SENTENCES, Trial


def sound(seconds: float, level: float = 0.3) -> np.ndarray:
    return np.full(round(seconds * SAMPLE_RATE), level, np.float32)


def tried(voice: dict[str, Any]) -> list[str]:
    return [warning for warning in voice["warnings"] if warning.startswith(OPENING)]


@pytest.fixture
def spare(fake: FakeInference) -> FakeInference:
    fake.spare = True
    return fake


@pytest.mark.parametrize(
    ("icl", "said"),
    [
        (sound(1.0), "is 1.0 s long in icl mode, and is 3.0 s long in x-vector mode"),
        (sound(0.02), "can't be heard in icl mode, and is 3.0 s long"),
        (sound(3.0, 0.0001), "can't be heard in icl mode"),
        (sound(6.0), "has words that are not in the clip"),
    ],
)
def test_another_length_than_without_the_transcript_is_told(
    client: httpx.Client, spare: FakeInference, icl: np.ndarray, said: str
) -> None:
    spare.sounds = [icl, sound(3.0)]
    voice = add(client, "alice").json()
    [warning] = tried(voice)
    assert said in warning and warning.endswith(".")
    assert client.get("/voices/alice").json() == voice
    assert [params.mode for params in spare.params] == ["icl", "xvec"]
    assert {params.seed for params in spare.params} == {1} and len(set(spare.started)) == 1


@pytest.mark.parametrize("icl_s", [2.2, 3.0, 4.4])
def test_about_the_same_length_is_no_matter(
    client: httpx.Client, spare: FakeInference, icl_s: float
) -> None:
    spare.sounds = [sound(icl_s), sound(3.0)]
    assert tried(add(client, "alice").json()) == []


def test_a_model_that_makes_nothing_without_the_transcript_tells_nothing(
    client: httpx.Client, spare: FakeInference
) -> None:
    spare.sounds = [sound(0.0), sound(3.0, 0.0)]
    assert tried(add(client, "alice").json()) == []


@pytest.mark.slow
def test_another_transcript_is_tried_again(client: httpx.Client, spare: FakeInference) -> None:
    spare.sounds = [sound(1.0), sound(3.0), sound(3.0), sound(3.0)]
    assert tried(add(client, "alice").json())
    patch = {"transcript": "hello to you"}
    assert tried(client.patch("/voices/alice", json=patch).json()) == []


@pytest.mark.slow
def test_a_rebuild_tells_again_and_keeps_what_it_could_not_try(
    client: httpx.Client, spare: FakeInference
) -> None:
    spare.sounds = [sound(1.0), sound(3.0), sound(1.5), sound(3.0)]
    first = tried(add(client, "alice").json())
    again = tried(client.post("/voices/alice/rebuild").json())
    assert "1.5 s long" in again[0] and again != first
    spare.spare = False
    assert tried(client.post("/voices/alice/rebuild").json()) == again
    spare.spare = True
    assert tried(client.post("/voices/alice/rebuild").json()) == []


def test_it_is_spoken_in_the_voice_s_language_or_that_of_its_script(
    client: httpx.Client, spare: FakeInference
) -> None:
    add(client, "alice", language="en")
    assert spare.params[-1].language == "english"
    add(client, "ming", transcript="大家早上好，我是小明。")  # noqa: RUF001
    assert (spare.started[-1], spare.params[-1].language) == (SENTENCES["chinese"], None)
    assert SENTENCES.keys() == ALSO.keys()


def test_nobody_is_kept_waiting_and_a_voice_without_words_is_not_tried(
    client: httpx.Client, fake: FakeInference
) -> None:
    add(client, "alice")
    fake.spare = True
    add(client, "bob", transcript="<absent>")
    assert fake.started == []


def test_it_can_be_turned_off(store: VoiceStore, spare: FakeInference) -> None:
    settings = Settings(home=store.data.root, trial="off")
    with serving(create_app(store, spare, settings)) as client:
        assert add(client, "alice").status_code == 201
    assert spare.started == []


@pytest.mark.slow
@pytest.mark.parametrize("error", [SpeechFailed("It broke."), Overloaded("Too many wait.", 1)])
def test_a_trial_that_fails_fails_no_enrolment(
    client: httpx.Client,
    spare: FakeInference,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(spare, "speak", broken)
    voice = add(client, "alice")
    assert voice.status_code == 201 and tried(voice.json()) == []


# In time


async def enrol(store: VoiceStore, fake: FakeInference, trial_s: float) -> StoredVoice:
    enroller = QuickEnroller(store, fake, trial_s)
    return await enrol_bytes(enroller, "alice", CLIP, "hello there")


def test_a_slow_model_tells_nothing_and_is_left(store: VoiceStore, spare: FakeInference) -> None:
    spare.pace = Pace(free=2)  # some of it is made, and no more
    voice = asyncio.run(enrol(store, spare, 0.2))
    assert not any(warning.startswith(OPENING) for warning in voice.enrolment.warnings)
    assert spare.chunks and all(chunks.was_closed_early for chunks in spare.chunks)


def test_whoever_leaves_meanwhile_ends_the_trial(store: VoiceStore, spare: FakeInference) -> None:
    spare.pace = Pace(free=2)

    async def leaves() -> None:
        left = asyncio.create_task(enrol(store, spare, LIMIT_S))
        await asyncio.to_thread(spare.pace.until_asked)  # type: ignore[union-attr]
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left

    asyncio.run(leaves())
    assert spare.chunks and all(chunks.was_closed_early for chunks in spare.chunks)
    assert store.page(10, None, "", "").voices == []


# The demo model


@contextmanager
def demo(data: DataDir) -> Iterator[LocalInference]:
    config = ServiceConfig(device="cpu", threads=1)
    inference = LocalInference(lambda: InferenceService(data, locate("demo", data), config))
    try:
        yield inference
    finally:
        inference.close()


@pytest.mark.slow
def test_half_a_transcript_is_noticed_and_the_right_one_is_not(data: DataDir) -> None:
    folder = ROOT / "cli" / "data"
    words = (folder / "alice.txt").read_text(encoding="utf-8").strip()
    clip = read_clip((folder / "alice.wav").read_bytes(), ClipLimits())

    async def told(inference: LocalInference, transcript: str) -> list[str] | None:
        source = PromptSource("voice_a", clip.sha256, transcript)
        data.conditioned(source).write_bytes(clip.conditioned_wav)
        prompt = await inference.extract_prompt(source)
        assert inference.is_spare()
        ref = PromptRef(source.voice_id, prompt.fingerprint, prompt.sha256)
        return await Trial(inference, 60.0).warnings(ref, transcript, None)

    async def both(inference: LocalInference) -> None:
        assert await told(inference, words) == []
        [warning] = await told(inference, " ".join(words.split()[:8])) or []
        assert "lacks words of the clip" in warning

    with demo(data) as inference:
        asyncio.run(both(inference))
