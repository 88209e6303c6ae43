"""How much text fits beside a voice, and what a refusal says is in the way."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from engines import ask, load, make_voice

from cli.commands.speak import speak
from inference.engine import Engine, PreparedVoice, Request
from inference.engine.frame_budget import MAX_TOKENS
from inference.engine.room import room_beside
from registry import errors
from registry.api.native.speak import SpeakRequest

PAGES = ("api", "integrate", "configuration", "engine")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint, slots=1)


@pytest.mark.parametrize("text", ["x" * 2000, "Twelve words. " * 60, "你好吗" * 200, "a😂" * 90])
@pytest.mark.parametrize("frames", [0, 40])
def test_as_many_characters_fit_as_the_refusal_says(engine: Engine, text: str, frames: int) -> None:
    voice = make_voice(engine, frames=frames)
    with pytest.raises(errors.TextTooLong) as refused:
        engine.submit(ask(voice, text))
    told = re.search(r"about ([\d,]+) of these ([\d,]+) characters fit", str(refused.value))
    assert told is not None and int(told[2].replace(",", "")) == len(text)
    fitting = int(told[1].replace(",", ""))
    engine.submit(request := ask(voice, text[:fitting]))
    engine.cancel(request)
    with pytest.raises(errors.TextTooLong):
        engine.submit(ask(voice, text[: fitting + 20]))
    assert not engine.busy


def wordy_voice(engine: Engine, words: int, frames: int = 24) -> PreparedVoice:
    """With a transcript of so many tokens."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 128, (frames, 16)).astype(np.int16)
    return engine.prepare(generator.normal(0, 0.3, 64).astype(np.float32), codes, "w" * words)


def test_a_voice_that_leaves_no_room_is_the_cause_that_is_named(engine: Engine) -> None:
    voice = wordy_voice(engine, 600)
    reason = r"leaves no room.*transcript has 600 tokens for a clip of 24 frames \(1\.9 s\).*512"
    for text in ("a", "x" * 300):
        with pytest.raises(errors.ModeUnavailable, match=reason):
            engine.submit(ask(voice, text))
    assert "words of its clip alone" in str(refusal(engine, ask(voice, "a")))
    engine.submit(request := ask(voice, "x" * 300, mode="xvec"))
    engine.cancel(request)


@pytest.mark.parametrize(("frames", "words"), [(24, 20), (24, 300), (24, 535), (750, 900)])
def test_the_room_beside_a_voice_is_told_before_anyone_speaks(
    engine: Engine, frames: int, words: int
) -> None:
    voice, room = wordy_voice(engine, words, frames), room_beside(frames, words)
    engine.submit(request := ask(voice, "x" * room))
    engine.cancel(request)
    with pytest.raises(errors.TextTooLong):
        engine.submit(ask(voice, "x" * (room + 1)))


def test_words_that_outlast_the_clip_by_too_much_leave_no_room(engine: Engine) -> None:
    assert room_beside(24, 536) == 0 == room_beside(24, 3000)
    with pytest.raises(errors.ModeUnavailable):
        engine.submit(ask(wordy_voice(engine, 536), "x"))


def refusal(engine: Engine, request: Request) -> errors.RegistryError:
    with pytest.raises(errors.RegistryError) as refused:
        engine.submit(request)
    return refused.value


def test_a_voice_that_leaves_little_room_is_named_beside_the_text(engine: Engine) -> None:
    refused = refusal(engine, ask(wordy_voice(engine, 500), "x" * 200))
    assert isinstance(refused, errors.TextTooLong)
    assert "speaks 36 at most (of this voice, its transcript has 500 tokens" in str(refused)
    engine.submit(request := ask(wordy_voice(engine, 500), "x" * 36))
    engine.cancel(request)
    assert not engine.busy


def test_every_place_that_tells_the_limit_tells_the_true_one() -> None:
    told = f"{MAX_TOKENS} tokens"
    field = SpeakRequest.model_fields["text"].description
    help_text = " ".join((speak.help or "").split())
    pages = [(ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in PAGES]
    for place in (field or "", help_text, *pages):
        assert told in place
