"""Who can't have a slot in time is told so at once, and nobody who could."""

from pathlib import Path

import pytest
from engines import Heard, ask, hear, load, make_voice

from inference.engine import Engine
from inference.engine.engine import LOOKS
from inference.engine.forecast import LEAD, SHARE, STEPS, SURE, Forecast
from registry import errors

SLOW_S = 1.0  # a step


def paced(step_s: float = SLOW_S) -> Forecast:
    """One that has seen enough steps, all of them alike."""
    forecast = Forecast()
    forecast._steps_s.extend([step_s] * STEPS)
    return forecast


def slow(folder: Path, slots: int = 1) -> Engine:
    """An engine that takes itself for slower than it is."""
    engine = load(folder, slots=slots)
    engine._forecast = paced()
    return engine


def test_without_a_pace_nobody_is_sent_away() -> None:
    forecast = Forecast()
    for _ in range(STEPS - 1):
        forecast.step(working=True)
    ahead = forecast.simulation([(0, 2000, 9)], 0, 9)
    ahead.admit(2000, 9)
    assert ahead.wait_s(9) == 0.0 and ahead.may_serve(0.0, 9)


def test_only_steps_with_work_make_the_pace() -> None:
    forecast = Forecast()
    for _ in range(STEPS):
        forecast.step(working=True)
        forecast.step(working=False)
    assert len(forecast._steps_s) == 0


def test_a_free_slot_is_there_at_once() -> None:
    ahead = paced().simulation([(10, 100, 1), (0, 100, 1)], 2, 9)
    assert [ahead.wait_s(9), ahead.may_serve(0.0, 9), ahead.may_serve(-1.0, 9)] == [0.0, True, True]


def test_those_who_wait_take_the_slots_as_they_become_free() -> None:
    ahead = paced().simulation([(10, 100, 1), (0, 100, 1)], 0, 0)  # free in 10 and in 20 s
    waits_s = []
    for budget in (100, 200, 100):  # of which 20, 40 and 20 will be made
        waits_s.append(ahead.wait_s(1))
        ahead.admit(budget, 1)
    assert waits_s == pytest.approx([10.0, 20.0, 30.0])
    assert ahead.wait_s(1) == pytest.approx(50.0)
    assert ahead.may_serve(50.1 / SURE, 1) and not ahead.may_serve(49.0 / SURE, 1)


def test_a_free_slot_without_cache_entries_is_none() -> None:
    ahead = paced().simulation([(10, 100, 4), (0, 100, 4)], 2, 1)  # 4 more in 10 s, 8 in 20
    assert [ahead.wait_s(1), ahead.wait_s(5), ahead.wait_s(9)] == pytest.approx([0.0, 10.0, 20.0])
    ahead.admit(100, 5)
    assert ahead.wait_s(1) == pytest.approx(20.0)


def test_a_speech_longer_than_expected_may_end_at_any_time() -> None:
    assert paced().simulation([(99, 100, 1)], 0, 0).wait_s(1) == 0.0


def test_how_much_of_its_budget_a_speech_takes_is_learnt() -> None:
    forecast = paced()
    for _ in range(100):
        forecast.ended(10 + 500, 50 + 1000)
    assert forecast.simulation([(0, 50 + 200, 1)], 0, 0).wait_s(1) == pytest.approx(
        10 + 100, rel=0.01
    )


def test_many_short_texts_do_not_tell_what_a_long_one_takes() -> None:
    """A word of 8 frames may have 56: a seventh, where a page takes two fifths."""
    forecast = paced()
    forecast.ended(550, 1430)
    before = forecast.frames(1430)
    for _ in range(5):
        forecast.ended(8, 56)
    assert forecast.frames(1430) == pytest.approx(before, rel=0.1)


def test_who_would_wait_too_long_is_refused_at_once(checkpoint: Path) -> None:
    engine = slow(checkpoint)
    voice = make_voice(engine)
    engine.submit(running := ask(voice, "x" * 300))
    engine.step()
    with pytest.raises(
        errors.Overloaded, match=r"would wait about \d+ s more, longer than"
    ) as told:
        engine.submit(ask(voice, patience_s=100))
    assert told.value.retry_after_s == pytest.approx(LEAD + SHARE * 1800, abs=2)
    assert engine.retry_after_s == told.value.retry_after_s
    assert engine.counters.refused == 1 and engine.queued == 0
    engine.submit(patient := ask(voice, patience_s=1000))
    engine.cancel(running)
    engine.cancel(patient)
    assert not engine.busy


@pytest.mark.slow
def test_those_in_the_queue_are_refused_when_the_pace_is_known(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=1)
    voice = make_voice(engine)
    asked = [ask(voice, "x" * 300), *(ask(voice, "x" * 100, patience_s=240) for _ in range(3))]
    heard = {request: Heard() for request in asked}
    for request in asked:
        engine.submit(request)
    engine.step()
    assert engine.queued == 3
    engine._forecast = paced()  # some 330 s for the first, 120 s for each of the others
    for output in [output for _ in range(LOOKS) for output in engine.step()]:
        heard[output.request].add(output)
    for output in engine.run():
        heard[output.request].add(output)
    refused = [isinstance(one.error, errors.Overloaded) for one in heard.values()]
    assert refused == [False, False, True, True]
    assert engine.counters.refused == 2 and not engine.busy


def test_whoever_fits_into_free_slots_is_served_however_slow_it_is(checkpoint: Path) -> None:
    engine = slow(checkpoint, slots=4)
    asked = [ask(make_voice(engine), patience_s=0) for _ in range(4)]
    assert all(one.finished for one in hear(engine, asked))
