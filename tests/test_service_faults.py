"""The service under bursts, and when its engine breaks, in whatever moment that is."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Enrol, ServiceFactory
from speaking import enrolled, run, say

from inference.engine import Engine
from inference.service import InferenceService

CALLERS = 16


class Held:
    """A function of the engine that waits, when it is called, until it is opened."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self.calls = call, 0
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(60)
        return self._call(*arguments, **named)


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Held]:
    """The function `name` of every engine; in the end it is as it was."""
    function = Held(getattr(Engine, name))
    with monkeypatch.context() as patched:
        patched.setattr(Engine, name, lambda *a, **b: function(*a, **b))
        try:
            yield function
        finally:
            function.open.set()


async def until(found: Callable[[], object]) -> None:
    while not found():
        await asyncio.sleep(0.001)


def count(service: InferenceService, name: str) -> int:
    counters = service.counters()
    assert counters is not None
    return int(getattr(counters, name))


# Bursts


def test_a_burst_on_free_slots_is_spoken_and_prefilled_together(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_factory(slots=CALLERS, queue_limit=4)

    async def go() -> None:
        ref, other = await enrolled(service, enrol()), await enrolled(service, enrol(1))
        await say(service, ref, "Hi.", mode="xvec")
        before = count(service, "prefills")
        with held(monkeypatch, "prepare") as prepare:
            late = asyncio.create_task(say(service, other, "Hi.", mode="xvec"))
            await asyncio.to_thread(prepare.entered.wait, 60)
            speeches = (say(service, ref, "Hi.", seed=i, mode="xvec") for i in range(CALLERS - 1))
            burst = asyncio.gather(*speeches)
            await until(lambda: service.status().queued == CALLERS - 1)
            prepare.open.set()
            assert all(len(pcm) for pcm in [*await burst, await late])
        assert count(service, "prefills") - before <= 4

    run(go())


def test_more_than_can_wait_for_a_slot_are_refused(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory(slots=1, queue_limit=2)

    async def go() -> None:
        ref = await enrolled(service, enrol())
        running = await service.speak(ref, "Somebody who talks on and on. " * 4, {"mode": "xvec"})
        others = (say(service, ref, "Hi.", mode="xvec") for _ in range(4))
        burst = [asyncio.create_task(other) for other in others]
        await until(lambda: sum(one.done() for one in burst) == 2)
        await running.chunks.aclose()
        ends = await asyncio.gather(*burst, return_exceptions=True)
        assert Counter(type(end).__name__ for end in ends) == {"ndarray": 2, "Overloaded": 2}

    run(go())


def test_a_new_voice_is_prepared_once_for_all_who_want_it(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_factory(slots=CALLERS, queue_limit=4)

    async def go() -> None:
        ref, other = await enrolled(service, enrol()), await enrolled(service, enrol(1))
        await say(service, other, "Hi.", mode="xvec")
        with held(monkeypatch, "prepare") as prepare:
            speeches = (say(service, ref, "Hi.", seed=i, mode="xvec") for i in range(CALLERS))
            burst = asyncio.gather(*speeches)
            await until(lambda: service.status().queued == CALLERS - 1)
            prepare.open.set()
            assert all(len(pcm) for pcm in await burst)
        assert prepare.calls == 1

    run(go())
