"""The service under bursts, and when its engine breaks, in whatever moment that is."""

import asyncio
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import Enrol, ServiceFactory
from speaking import collect, enrolled, run, say

from inference.engine import Engine, Request
from inference.models.catalog import LocatedModel
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from inference.serving.voice_files import VoiceFiles
from registry import errors
from registry.contract import PromptRef, SpeakParams, SpeechRequest
from registry.storage.data_dir import DataDir

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


@pytest.mark.slow
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
        running = await service.speak(
            ref, SpeechRequest("Somebody who talks on and on. " * 4, SpeakParams(mode="xvec"))
        )
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


# An engine that breaks


def breaks(*_: Any, **__: Any) -> Any:
    raise ArithmeticError("the device is lost")


async def break_engine(
    service: InferenceService, ref: PromptRef, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One caller meets a failure in the engine's function `name`."""
    with monkeypatch.context() as broken:
        broken.setattr(Engine, name, breaks)
        with pytest.raises(errors.SpeechFailed, match="the device is lost"):
            await say(service, ref, "Hi.")


class Slow(VoiceFiles):
    """Prompt files that wait, when they are read, until they may be."""

    def __init__(self, data: DataDir) -> None:
        super().__init__(data)
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def prompt(self, ref: PromptRef) -> bytes:
        self.entered.set()
        assert self.open.wait(60)
        return super().prompt(ref)


@pytest.mark.slow
def test_who_reads_a_prompt_while_the_engine_breaks_is_told(
    data: DataDir, located: LocatedModel, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Slow(data)
    service = InferenceService(files, located, ServiceConfig(device="cpu", threads=1))

    async def go() -> None:
        ref, other = await enrolled(service, enrol()), await enrolled(service, enrol(1))
        await say(service, ref, "Hi.")
        files.entered.clear()
        files.open.clear()
        late = asyncio.create_task(say(service, other, "Hi."))
        await asyncio.to_thread(files.entered.wait, 60)
        await break_engine(service, ref, monkeypatch, "step")
        files.open.set()
        with pytest.raises(errors.SpeechFailed, match="the device is lost"):
            await late
        assert len(await say(service, other, "Hi."))

    run(go())
    assert service.close(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["submit", "prepare"])
def test_an_engine_that_breaks_in_a_job_is_loaded_again(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    service = service_factory(prompt_cache_bytes=0)

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.")
        running = await service.speak(ref, SpeechRequest("Somebody who talks on and on. " * 4))
        await break_engine(service, ref, monkeypatch, name)
        assert service.status().state == "failed"
        assert service.status().error == "ArithmeticError: the device is lost"
        with pytest.raises(errors.SpeechFailed, match="the device is lost"):
            await collect(running)
        assert len(await say(service, ref, "Hi.")) and service.status().state == "warm"

    run(go())


@pytest.mark.slow
def test_a_full_device_refuses_a_new_voice_and_nobody_else(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_factory()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    async def go() -> None:
        known, new = await enrolled(service, enrol()), await enrolled(service, enrol(1))
        running = await service.speak(known, SpeechRequest("Somebody who talks on and on. " * 4))
        with monkeypatch.context() as small:
            small.setattr(Engine, "prepare", full)
            with pytest.raises(errors.Overloaded, match="memory"):
                await say(service, new, "Hi.")
        assert len(await collect(running)) and service.status().state == "warm"
        again = await service.speak(known, SpeechRequest("Hi."))
        assert again.prompt_cache == "file"  # what could be let go of was
        await again.chunks.aclose()
        assert len(await say(service, new, "Hi."))

    run(go())


@pytest.mark.slow
def test_a_reload_that_fails_says_why(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_factory()

    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.")
        await break_engine(service, ref, monkeypatch, "step")
        with monkeypatch.context() as broken:
            broken.setattr(Engine, "capture", full)
            with pytest.raises(errors.ModelUnavailable, match="CUDA out of memory"):
                await say(service, ref, "Hi.")
        assert service.status().state == "failed"
        assert "CUDA out of memory" in (service.status().error or "")
        assert len(await say(service, ref, "Hi."))

    run(go())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "submit"])
def test_an_engine_that_broke_is_gone_before_the_next_is_made(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever listened to it may still be there."""
    service, made, left = service_factory(), list[weakref.ref[Engine]](), list[int]()
    make = Engine.load

    def load(*arguments: Any) -> Engine:
        left.append(sum(engine() is not None for engine in made))
        engine = make(*arguments)
        made.append(weakref.ref(engine))
        return engine

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.")
        running = await service.speak(ref, SpeechRequest("Somebody who talks on and on. " * 4))
        await break_engine(service, ref, monkeypatch, name)
        assert len(await say(service, ref, "Hi."))
        await running.chunks.aclose()

    monkeypatch.setattr(Engine, "load", load)
    run(go())
    assert left == [0, 0]


def test_a_graph_that_is_not_captured_costs_no_engine(
    service_factory: ServiceFactory,
    enrol: Enrol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = service_factory()

    def captures(engine: Engine, streams: int | None = None) -> Iterator[object]:
        if streams is None:
            raise RuntimeError("CUDA out of memory")
        yield from ()

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.")
        await until(lambda: "captures no more CUDA graphs" in caplog.text)
        before = count(service, "finished")
        assert len(await say(service, ref, "Hi.")) and count(service, "finished") == before + 1

    monkeypatch.setattr(Engine, "captures", captures)
    run(go())


def test_who_waited_long_for_the_model_may_still_wait_for_a_slot(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = run(enrolled(service_factory(), enrol()))
    service, asked = service_factory(queue_timeout_s=50.0), list[float]()
    clock, submit = time.perf_counter, Engine.submit

    def noted(engine: Engine, request: Request) -> int:
        asked.append(request.patience_s)
        return submit(engine, request)

    def capture(*_: Any) -> None:
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 100)

    monkeypatch.setattr(Engine, "submit", noted)
    monkeypatch.setattr(Engine, "capture", capture)
    assert len(run(say(service, ref, "Hi.")))
    assert 0 < asked[0] <= 50


# The end


@pytest.mark.slow
def test_closing_refuses_who_waits_for_a_slot_and_lets_the_speaker_end(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory(slots=1)
    long = "Somebody who talks on and on. " * 4

    async def go() -> None:
        ref = await enrolled(service, enrol())
        running = await service.speak(ref, SpeechRequest(long, SpeakParams(mode="xvec")))
        burst = [asyncio.create_task(say(service, ref, long, mode="xvec")) for _ in range(3)]
        await until(lambda: service.status().queued == 3)
        assert await asyncio.to_thread(service.close, 60)
        for refused in burst:
            with pytest.raises(errors.Overloaded, match="shutting down"):
                await refused
        assert len(await collect(running)) == (len(long) + 1) * 1920
        with pytest.raises(errors.Overloaded, match="shutting down"):
            await say(service, ref, "Hi.")
        assert count(service, "finished") == 1

    run(go())


def test_closing_still_hears_who_leaves_and_captures_no_more(
    data: DataDir, located: LocatedModel, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServiceConfig(device="cpu", threads=1, slots=1)
    service, captured = InferenceService(data, located, config), list[bool]()

    def captures(engine: Engine, streams: int | None = None) -> Iterator[object]:
        while streams is None:
            captured.append(service._thread.closed)
            yield engine

    async def go() -> None:
        ref = await enrolled(service, enrol())
        running = await service.speak(
            ref, SpeechRequest("Somebody who talks on and on. " * 4, SpeakParams(mode="xvec"))
        )
        with held(monkeypatch, "step") as step:
            await asyncio.to_thread(step.entered.wait, 60)
            await running.chunks.aclose()
            assert not service.close(0.0)
            step.open.set()
            assert await asyncio.to_thread(service.close, 60)
        assert (count(service, "cancelled"), count(service, "finished")) == (1, 0)
        assert not any(captured)

    monkeypatch.setattr(Engine, "captures", captures)
    run(go())
