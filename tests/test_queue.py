"""The queue before the model: who leaves, who waits too long, what closing does."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from conftest import Enrol, ServiceFactory
from speaking import run

from inference.models.catalog import LocatedModel
from inference.serving.service import InferenceService
from inference.serving.worker import ArrivalCounter, DeviceThread
from registry import errors
from registry.contract import ExtractedPrompt, PromptRef, PromptSource, SpeechRequest
from registry.storage.data_dir import DataDir

NOBODY = PromptRef("voice_nobody", "0" * 64, "0" * 64)


class Gate:
    """A model finder that waits until it is opened, so that the device thread is busy at will."""

    def __init__(self, model: LocatedModel) -> None:
        self.model = model
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> LocatedModel:
        self.entered.set()
        assert self.open.wait(60)
        return self.model


@pytest.fixture
def gate(located: LocatedModel) -> Iterator[Gate]:
    gate = Gate(located)
    yield gate
    gate.open.set()


async def busy(service: InferenceService, gate: Gate, source: PromptSource) -> "asyncio.Task[Any]":
    """A first request that holds the device thread until the gate opens."""
    first = asyncio.create_task(service.extract_prompt(source))
    await asyncio.to_thread(gate.entered.wait, 60)
    return first


def test_a_queued_caller_who_leaves_never_starts(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate, data: DataDir
) -> None:
    service = service_factory(gate)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        left = asyncio.create_task(service.extract_prompt(enrol(2)))
        stayed = asyncio.create_task(service.extract_prompt(enrol(3)))
        await asyncio.sleep(0)
        assert (service.status().queued, service.status().running) == (2, 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert service.status().queued == 1
        gate.open.set()
        await asyncio.gather(first, stayed)

    run(go())
    assert {path.name for path in (data.root / "prompts").iterdir()} == {"voice_1", "voice_3"}


def test_a_running_caller_who_leaves_is_discarded_and_the_next_is_served(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate)

    async def go() -> ExtractedPrompt:
        first = await busy(service, gate, enrol(1))
        first.cancel()
        following = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await first  # once the file that is being made is there
        return await following

    assert run(go()).frames == 25


def test_a_full_queue_refuses_at_once(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate, queue_limit=1)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        queued = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="1 requests are waiting") as refused:
            await service.extract_prompt(enrol(3))
        assert refused.value.retry_after_s >= 1
        queued.cancel()
        await asyncio.wait({queued})
        following = asyncio.create_task(service.extract_prompt(enrol(4)))
        gate.open.set()
        await asyncio.gather(first, following)

    run(go())


def test_waiting_too_long_is_refused_while_another_job_still_runs(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate, data: DataDir
) -> None:
    service = service_factory(gate, queue_timeout_s=0.05)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        with pytest.raises(errors.Overloaded, match=r"waited 0\.05 s"):
            await service.extract_prompt(enrol(2))
        assert service.status().running == 1 and not first.done()
        gate.open.set()
        await first

    run(go())
    assert [path.name for path in (data.root / "prompts").iterdir()] == ["voice_1"]


@pytest.mark.slow
def test_a_failed_load_is_told_to_each_caller_and_tried_again(
    service_factory: ServiceFactory, located: LocatedModel
) -> None:
    attempts = iter([errors.ModelUnavailable("no disk"), errors.ModelUnavailable("no disk"), None])

    def find() -> LocatedModel:
        if failure := next(attempts):
            raise failure
        return located

    service = service_factory(find)
    assert service.status().state == "cold"
    for _ in range(2):
        with pytest.raises(errors.ModelUnavailable, match="no disk"):
            run(service.speak(NOBODY, SpeechRequest("Hi.")))
        assert (service.status().state, service.status().error) == ("failed", "no disk")
    with pytest.raises(errors.PromptMissing):
        run(service.speak(NOBODY, SpeechRequest("Hi.")))
    assert (service.status().state, service.status().error) == ("warm", None)


def test_a_request_that_waits_for_the_model_too_long_is_told_so(
    service_factory: ServiceFactory, gate: Gate
) -> None:
    service = service_factory(gate, queue_timeout_s=0.05)

    async def go() -> None:
        service.warm()
        await asyncio.to_thread(gate.entered.wait, 60)
        with pytest.raises(errors.Overloaded, match=r"still loading.*waited 0\.05 s"):
            await service.speak(NOBODY, SpeechRequest("Hi."))
        gate.open.set()

    run(go())


def test_without_qwen_tts_the_package_to_install_is_named(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qwen_tts", None)  # as if it were not installed
    service = service_factory()
    with pytest.raises(
        errors.ModelUnavailable, match="pip install 'voice-registry\\[inference\\]'"
    ):
        run(service.extract_prompt(enrol()))


def test_describing_loads_nothing_until_warmed(
    service_factory: ServiceFactory, gate: Gate, located: LocatedModel
) -> None:
    cold = service_factory().describe()
    assert (cold.model, cold.source) == (located.ref, located.source)
    assert (cold.languages, cold.sample_rate) == (located.languages, 24_000)
    assert (cold.dtype, cold.device) == (None, None)
    service = service_factory(gate)
    service.warm()
    assert gate.entered.wait(60) and service.status().state == "warming"
    gate.open.set()
    with pytest.raises(errors.PromptMissing):
        run(service.speak(NOBODY, SpeechRequest("Hi.")))
    warm = service.describe()
    assert (service.status().state, warm.dtype, warm.device) == ("warm", "float32", "cpu")


def test_closing_fails_the_queued_and_lets_the_running_finish(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        queued = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        assert service.close(timeout_s=0.01) is False
        with pytest.raises(errors.Overloaded, match="shutting down"):
            await queued
        with pytest.raises(errors.Overloaded, match="shutting down"):
            await service.extract_prompt(enrol(3))
        gate.open.set()
        assert await asyncio.to_thread(service.close, 60)
        assert (await first).frames == 25

    run(go())


def test_the_device_thread_outlives_any_failure_of_a_job() -> None:
    thread = DeviceThread("test", queue_limit=8)

    def fail(error: BaseException) -> None:
        raise error

    failures = (ValueError("a"), MemoryError("b"), SystemExit(3), KeyboardInterrupt())
    jobs: list[Future[None]] = [thread.submit(lambda e=e: fail(e)) for e in failures]  # type: ignore[misc]
    assert [type(job.exception(60)) for job in jobs] == [type(e) for e in failures]
    assert thread.submit(lambda: 5).result(60) == 5
    assert thread.close(60)


def test_jobs_run_in_order_of_arrival_on_one_thread() -> None:
    thread = DeviceThread("test", queue_limit=100)
    jobs = [thread.submit(lambda i=i: (i, threading.get_ident())) for i in range(50)]  # type: ignore[misc]
    results = [job.result(60) for job in jobs]
    assert [number for number, _ in results] == list(range(50))
    assert len({ident for _, ident in results}) == 1
    assert results[0][1] != threading.get_ident() and thread.close(60)


def test_work_goes_on_between_jobs_until_there_is_none() -> None:
    done: list[int] = []

    def work() -> bool:
        done.append(len(done))
        return len(done) < 5

    thread = DeviceThread("test", queue_limit=8, work=work)
    assert thread.submit(lambda: len(done)).result(60) == 0
    assert thread.close(60) and len(done) == 5


def test_what_is_told_comes_before_the_queue() -> None:
    thread, gate, order = DeviceThread("test", queue_limit=8), threading.Event(), list[str]()
    first = thread.submit(lambda: gate.wait(60))
    last = thread.submit(lambda: order.append("queued"))
    thread.post(lambda: order.append("told"))
    gate.set()
    last.result(60)
    assert first.result(60) and order == ["told", "queued"] and thread.close(60)


def test_what_is_told_and_who_left_are_not_counted_as_waiting() -> None:
    """A crowd that is refused, or hangs up, would fill the queue for others with what it left."""
    thread, gate = DeviceThread("test", queue_limit=8), threading.Event()
    arrivals, done = ArrivalCounter(thread), list[int]()
    first = thread.submit(lambda: gate.wait(60))
    while not thread.running:
        pass
    for number in range(32):
        thread.post(lambda number=number: done.append(number))  # type: ignore[misc]
        assert thread.submit_short(lambda: None).cancel()
    assert (thread.queued, arrivals.waiting) == (0, 0)
    kept = thread.submit_short(lambda: None)
    assert (thread.queued, arrivals.waiting) == (1, 1)
    gate.set()
    assert first.result(60) and kept.exception(60) is None and thread.close(60)
    assert done == [*range(32)]


def test_short_jobs_run_together_and_others_one_between_two_pieces_of_work() -> None:
    order: list[str] = []
    gate = threading.Event()

    def work() -> bool:
        order.append("work")
        return False

    thread = DeviceThread("test", queue_limit=2, work=work)
    thread.submit(lambda: gate.wait(60))
    while not thread.running:
        pass
    jobs: list[Future[None]] = [thread.submit(lambda: order.append("long")) for _ in range(2)]
    jobs += [thread.submit_short(lambda: order.append("short")) for _ in range(3)]
    with pytest.raises(errors.Overloaded, match="2 requests are waiting"):
        thread.submit(lambda: None)
    gate.set()
    assert [job.exception(60) for job in jobs] == [None] * 5 and thread.close(60)
    assert order[:7] == ["work", *["short"] * 3, "long", "work", "long"]
