"""One thread that owns the device, and the queues before it. Knows nothing about speech.

It does `work` over and over while there is some: that is where an engine steps. Before each time
it runs all the short jobs that wait, and one of the others.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from registry.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Job:
    """A call for the thread to make, and the future that its caller waits for."""

    call: Callable[[], Any]
    future: "Future[Any]"

    def run(self, judge: Callable[[BaseException], BaseException]) -> None:
        """Do the work, unless its caller has left, who gets what `judge` makes of a failure."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except BaseException as error:  # it is the caller's: the thread goes on to the next job
            self.future.set_exception(judge(error))
        else:
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


def too_many(waiting: int, retry_after_s: float) -> Overloaded:
    reason = f"{waiting} requests are waiting already. Try again later."
    return Overloaded(reason, retry_after_s)


def too_slow(reason: str, waited_s: float, retry_after_s: float) -> Overloaded:
    said = f"The {reason}: this request waited {waited_s:g} s. Try again later."
    return Overloaded(said, retry_after_s)


def closing() -> Overloaded:
    return Overloaded("The service is shutting down. Try again later.", 5.0)


def _no_work() -> bool:
    return False


def _as_it_is(error: BaseException) -> BaseException:
    return error


class DeviceThread:
    """Runs jobs of a kind one after another, in order of arrival. Safe to use from any thread."""

    def __init__(
        self,
        name: str,
        queue_limit: int,
        work: Callable[[], bool] = _no_work,
        judge: Callable[[BaseException], BaseException] = _as_it_is,
    ) -> None:
        """`work` does a little and says whether there is more; it must not raise.

        `judge` is asked on the thread what a caller is told of an error that the job has raised.
        """
        self._name, self._queue_limit, self._work, self._judge = name, queue_limit, work, judge
        self._idle = True
        self._posted: deque[Job] = deque()
        self._short: deque[Job] = deque()
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.closed = False
        self._busy = False
        self._last_job_s = 1.0

    @property
    def queued(self) -> int:
        """How many callers wait; what was posted is nobody's."""
        with self._changed:
            return self._waiting() + sum(not job.future.cancelled() for job in self._short)

    @property
    def running(self) -> int:
        return int(self._busy)

    @property
    def has_died(self) -> bool:
        """True if the thread ended although nobody closed it."""
        return self._thread is not None and not self._thread.is_alive() and not self.closed

    @property
    def retry_after_s(self) -> float:
        """Guess when the queue will be empty: every job takes as long as the last one."""
        with self._changed:
            return max(1.0, round((self._waiting() + 1) * self._last_job_s, 1))

    def submit(self, call: Callable[[], T], room: int = 0) -> "Future[T]":
        """Queue `call`; cancelling the future before it starts takes it out.

        Overloaded if the queue is full; `room` more fit in while those who wait have a place to go.
        """
        with self._changed:
            if self._waiting() >= self._queue_limit + room:
                raise too_many(self._waiting(), self.retry_after_s)
            return self._queue(self._jobs, call)

    def submit_short(self, call: Callable[[], T]) -> "Future[T]":
        """Run a short `call` before the next piece of work; refused only when closed."""
        with self._changed:
            return self._queue(self._short, call)

    def post(self, call: Callable[[], object]) -> None:
        """Run a short `call` before all that is queued; never refused. Nothing waits for it."""
        with self._changed:
            self._posted.append(Job(call, Future()))
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Refuse new jobs, fail those queued but for the short; True if the rest ended in time."""
        with self._changed:
            self.closed = True
            waiting, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for job in waiting:
            job.fail(closing())
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _queue(self, jobs: deque[Job], call: Callable[[], T]) -> "Future[T]":
        if self.closed:
            raise closing()
        future: Future[T] = Future()
        jobs.append(Job(call, future))
        self._start()
        self._changed.notify()
        return future

    def _waiting(self) -> int:
        """Count the jobs whose callers are still there; the others are dropped."""
        if any(job.future.cancelled() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
        return len(self._jobs)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Do jobs and some work, or wait for either; False when closed and all is done."""
        jobs = self._next_jobs()
        if not jobs and self.closed and self._idle:
            return False
        for job in jobs:
            self._run(job)
        self._busy = False
        self._idle = not self._work()
        return True

    def _next_jobs(self) -> list[Job]:
        """Take all short jobs, and one of the others; wait if there is neither, nor work."""
        with self._changed:
            self._changed.wait_for(self._wanted)
            jobs = [*self._posted, *self._short, *islice(self._jobs, 1)]
            self._posted.clear()
            self._short.clear()
            if self._jobs:
                self._jobs.popleft()
            self._busy = bool(jobs)
        return jobs

    def _wanted(self) -> bool:
        return bool(self._posted or self._short or self._jobs or self.closed or not self._idle)

    def _run(self, job: Job) -> None:
        started_s = time.monotonic()
        job.run(self._judge)
        self._last_job_s = time.monotonic() - started_s


class ArrivalCounter:
    """Counts the callers that are on their way to the engine's own queue."""

    def __init__(self, thread: DeviceThread) -> None:
        self._thread, self._now = thread, 0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait: all but the one whose job runs."""
        return max(self._thread.queued, self._now - self._thread.running)

    @contextmanager
    def counted(self) -> Iterator[Callable[[], None]]:
        """Counts one caller until it calls what this gives, or the block ends."""
        with ExitStack() as counted:
            self._add(1)
            counted.callback(self._add, -1)
            yield counted.close

    def _add(self, change: int) -> None:
        with self._lock:
            self._now += change


@asynccontextmanager
async def to_its_end(job: "Future[Any]") -> AsyncIterator[None]:
    """Let whoever leaves wait for the job if it runs: it can't be stopped, and writes a file."""
    ended = asyncio.wrap_future(job)
    ended.add_done_callback(retrieve)
    try:
        yield
    finally:
        await asyncio.wait({ended})


def retrieve(waiting: "asyncio.Future[Any]") -> None:
    """Keep a failure that nobody waits for any more out of the log."""
    if not waiting.cancelled():
        waiting.exception()
