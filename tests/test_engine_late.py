"""The engine as on CUDA, on a CPU: events that happen late, prompts and batches with padding."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Heard, ask, hear, hear_one, load, make_voice, pad_as_on_cuda

from inference.engine import Engine, PreparedVoice, Request
from inference.engine.codec.vocoder import PendingSound
from inference.engine.device import Event, Lane
from inference.engine.speech_stream import SpeechStream
from registry import errors

LOOKS = 6  # an event has happened before so many have been taken at it
STEPS = 10_000  # more than any of this takes
LIMITS = {"positions": 4096, "request_positions": 320, "queue_limit": 100}
NOBODY = PreparedVoice(torch.zeros(1), None, None)


class LateEvent(Event):
    """Done after some looks at it: the device is behind, and its lanes not alike."""

    def __init__(self, looks: int) -> None:
        super().__init__(None)
        self._looks = looks

    def done(self) -> bool:
        self._looks -= 1
        return self._looks < 0


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes all events late from now on, by a seed."""

    def begin(seed: int) -> None:
        chance = random.Random(seed)
        monkeypatch.setattr(Lane, "record_event", lambda _: LateEvent(chance.randrange(LOOKS)))

    return begin


def test_sound_whose_codes_are_not_known_is_kept() -> None:
    sound = PendingSound(torch.ones(1, 4 * 1920), Event(None))
    stream = SpeechStream(Request(NOBODY, "Hi."), 0, [], 1, 9, 0.0, 0.0)
    stream.append_chunk(sound, 0, 4)
    for known in range(4):
        assert len(stream.take_ready()[0]) == 0
        stream.append_frame(np.full(16, known), 99, bad=False)
    assert len(stream.take_ready()[0]) == 4 * 1920


def padded(folder: Path, slots: int = 2) -> Engine:
    return pad_as_on_cuda(load(folder, slots=slots, **LIMITS))


@dataclass
class Crowd:
    """Requests that join an engine, leave it and are heard, all by chance."""

    engine: Engine
    coming: list[Request]
    chance: random.Random

    def __post_init__(self) -> None:
        self.heard = {request: Heard() for request in self.coming}
        self.here: list[Request] = []
        self.gone: set[Request] = set()

    def run(self) -> None:
        for _ in range(STEPS):
            if not self.coming and not self.engine.busy:
                return
            if self.coming and self.chance.random() < 0.4:
                self.join()
            if self.here and self.chance.random() < 0.04:
                self.leave()
            self.listen()
        pytest.fail("Somebody never came to an end.")

    def join(self) -> None:
        self.here.append(self.coming.pop(0))
        self.engine.submit(self.here[-1])

    def leave(self) -> None:
        request = self.here.pop(self.chance.randrange(len(self.here)))
        self.gone.add(request)
        self.engine.cancel(request)

    def listen(self) -> None:
        for output in self.engine.step():
            assert output.request not in self.gone
            self.heard[output.request].add(output)
            if output.finished:
                self.here.remove(output.request)


def many(engine: Engine, count: int) -> list[Request]:
    voices = [make_voice(engine, seed, frames=13 * (seed % 3)) for seed in range(6)]
    texts = ["abcdefghijklmnopqrstuvwxyz and on"[: 1 + i * 7 % 33] for i in range(count)]
    return [ask(voices[i % 6], text, seed=i) for i, text in enumerate(texts)]


@pytest.mark.slow
def test_a_late_device_and_padding_change_nobodys_sound(
    checkpoint: Path, late: Callable[[int], None]
) -> None:
    plain, engine = load(checkpoint, slots=4), padded(checkpoint, slots=4)
    alone = [hear_one(plain, request) for request in many(plain, 20)]
    late(1)
    crowd = Crowd(engine, many(engine, 20), random.Random(1))
    crowd.run()
    assert 0 < len(crowd.gone) < 10 and engine.counters.largest_batch == 4
    assert (len(engine._free), engine._pages.free_entries) == (4, 4096)
    for (request, heard), expected in zip(crowd.heard.items(), alone, strict=True):
        if request not in crowd.gone:
            assert heard.finished and np.array_equal(heard.all_codes(), expected.all_codes())
            assert np.abs(heard.all_pcm() - expected.all_pcm()).max() < 1 / 32768


def test_sound_waits_for_its_codes(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec may be done before the host has read a report."""
    engine = load(checkpoint, slots=1)
    expected = hear_one(engine, ask(make_voice(engine), "Hello."))
    monkeypatch.setattr(engine._lane, "record_event", lambda: LateEvent(LOOKS))
    heard = hear_one(engine, ask(make_voice(engine), "Hello."))  # `add` compares their lengths
    assert np.array_equal(heard.all_pcm(), expected.all_pcm())


def broken_voice(engine: Engine, frames: int = 0) -> PreparedVoice:
    voice = make_voice(engine, 9, frames)
    part = voice.speaker if voice.reference is None else voice.reference.codes
    part.fill_(torch.nan)
    return voice


def test_a_broken_prompt_is_not_in_the_padding_of_the_next(checkpoint: Path) -> None:
    for engine in (load(checkpoint, slots=4), padded(checkpoint, slots=4)):
        bad = hear_one(engine, ask(broken_voice(engine, frames=30), "Hi."))
        assert isinstance(bad.error, errors.SpeechFailed)
        voices = [make_voice(engine, frames=frames) for frames in (3, 33, 17)]
        heard = hear(engine, [ask(voice, "Hi.") for voice in voices])
        assert [one.error for one in heard] == [None] * 3


@pytest.mark.parametrize("cancel", [True, False])
def test_the_entries_of_who_broke_are_clean_for_the_next(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cancel: bool
) -> None:
    """Beside a longer neighbour a short one looks at entries beyond its end, with no weight."""
    engine = padded(checkpoint)
    broken = ask(broken_voice(engine, frames=30), "Hi.")
    if cancel:
        monkeypatch.setattr(engine._lane, "record_event", lambda: LateEvent(LOOKS))
        engine.submit(broken)
        engine.step()
        assert engine.running == 1  # its report is under way
        engine.cancel(broken)
    else:
        assert hear_one(engine, broken).error is not None
    assert engine._generator._cache.values.isfinite().all()
    short, long = make_voice(engine), make_voice(engine, frames=36)
    heard = hear(engine, [ask(short, "Hi."), ask(long, "Hi.")])
    assert [one.error for one in heard] == [None] * 2


@pytest.mark.slow
def test_padding_writes_to_nobodys_entries(checkpoint: Path) -> None:
    """A prompt may be padded beyond its entries, where its slot's last owner had some."""
    limits = {"slots": 2, "positions": 2048, "request_positions": 1024}
    other, engine = (pad_as_on_cuda(load(checkpoint, **limits)) for _ in range(2))
    plain, long = make_voice(engine), make_voice(engine, 1, frames=510)
    expected = hear_one(other, ask(make_voice(other), "z" * 100))
    owner, filler = ask(long, "x" * 45), ask(plain)
    heir, padded = ask(plain, "z" * 100), ask(long, "Hi.")
    heard = {request: Heard() for request in (owner, filler, heir, padded)}

    def begin(request: Request) -> None:
        engine.submit(request)
        for output in engine.step():
            heard[output.request].add(output)

    begin(owner)
    engine.cancel(owner)  # slots and pages that were free last are taken first
    begin(filler)
    begin(heir)  # in the other slot, on a page of the owner's
    engine.cancel(filler)
    begin(padded)
    for output in engine.run():
        heard[output.request].add(output)
    assert np.array_equal(heard[heir].all_codes(), expected.all_codes())


def test_who_breaks_beside_others_breaks_alone(checkpoint: Path) -> None:
    """Prompts that are padded beyond their rows share the row that is nobody's."""
    engine = pad_as_on_cuda(load(checkpoint, slots=3, positions=4096, request_positions=1024))
    voices = [make_voice(engine, 1, frames=510), broken_voice(engine, frames=510)]
    heard = hear(engine, [ask(voice, "Hi.") for voice in (*voices, make_voice(engine))])
    assert [type(one.error) for one in heard] == [type(None), errors.SpeechFailed, type(None)]
