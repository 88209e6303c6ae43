"""An answer comes before whatever is in front of the server gives up, as Modal's edge does."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import httpx
import pytest
from api import add, problem
from fakes import FakeInference, Pace
from fastapi import Request
from serving import serving

from registry.api import speech_response
from registry.api.speech_response import Sending, SpeechReply
from registry.app import create_app
from registry.audio.encoding.rendering import Rendering
from registry.contract import Deadline
from registry.errors import TextTooLong
from registry.modal import app as deploy
from registry.settings import Settings
from registry.speech import modal
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.volume import database
from registry.text import spoken_s

EDGE_S = 150.0  # Modal's
MINUTE = "Word by word. " * 60  # to say
BODY = {"voice": "alice", "text": "Hello there."}


@pytest.fixture
def alice(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx.Client]:
    """A server that answers at once or not at all."""
    monkeypatch.setattr(speech_response, "BEGIN_S", -60.0)
    settings = Settings(home=store.data.root).model_copy(update={"answer_s": 0.2})
    with serving(create_app(store, fake, settings)) as http:
        assert add(http, "alice").status_code == 201
        yield http


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_speech_that_takes_too_long_ends_and_says_so(
    alice: httpx.Client, fake: FakeInference, free: int
) -> None:
    fake.pace = Pace(free=free)
    answer = alice.post("/speak", json=BODY)
    assert problem(answer) == (500, "speech-unfinished")
    assert "Stream it" in answer.json()["detail"]
    if free:
        assert fake.chunks[-1].was_closed_early, "its slot is free"


def test_a_stream_must_begin_in_time(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=0)
    assert problem(alice.post("/speak", json=BODY | {"stream": True})) == (500, "speech-unfinished")


def test_a_stream_that_has_begun_takes_its_time(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", "/speak", json=BODY | {"stream": True, "format": "pcm"}) as answer:
        parts = answer.iter_raw()
        heard = next(parts)
        assert not fake.chunks[-1].ended.wait(0.3), "cut off"
        fake.pace.give(3)
        assert len(heard + b"".join(parts)) == 2 * len(BODY["text"]) * 1200


def leaving_time(text: str, streams: bool, deadline: Deadline) -> Deadline:
    sending: Sending = "stream" if streams else "whole"
    return SpeechReply(Request({"type": "http"}), Rendering(), sending, 135.0).deadline(
        text, deadline
    )


def test_a_gpu_is_waited_for_as_long_as_leaves_time_to_speak() -> None:
    asked = Deadline()
    left = leaving_time(MINUTE, False, asked)
    assert left == Deadline(135.0 - spoken_s(MINUTE), asked.since_s)
    assert 70 < left.most_s < 80
    left = leaving_time(MINUTE, False, asked.at_most(5.0))
    assert left.most_s == 5.0, "who would wait for less does"


def test_a_stream_leaves_all_the_time_to_begin() -> None:
    asked = Deadline()
    assert leaving_time(2 * MINUTE + MINUTE, True, asked) == Deadline(135.0, asked.since_s)


def test_what_can_not_be_answered_in_time_must_be_streamed() -> None:
    with pytest.raises(TextTooLong, match=r"may take 120 s here\. .*, or stream it\."):
        leaving_time(3 * MINUTE, False, Deadline())


def test_a_deadline_counts_from_the_request_on() -> None:
    """A voice that is rebuilt asks the GPU twice, and waits once."""
    begun = Deadline(since_s=monotonic() - 60.0)
    assert begun.at_most(100.0).left_s() <= 40.0
    assert begun.at_most(100.0).at_most(200.0) == begun.at_most(100.0)


def test_all_that_a_deployed_registry_may_take_is_less_than_the_edge_waits() -> None:
    start_s = 10.0  # of a registry's container that was off
    assert deploy.ANSWER_S + start_s < EDGE_S
    assert deploy.plan.speak_limit_s <= deploy.ANSWER_S - speech_response.BEGIN_S, (
        "any text can be whole"
    )
    stored_s = database.PATIENCE_S  # after the GPU, at an enrolment
    assert modal.WAIT_S + stored_s < EDGE_S


@pytest.mark.filterwarnings("ignore:The api function:UserWarning")
def test_a_deployed_registry_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoiceStore(DataDir(tmp_path))
    monkeypatch.setattr(deploy, "open_store", lambda: store)
    app = deploy.api.local()
    assert app.state.services.settings.answer_s == deploy.ANSWER_S
    store.close()
