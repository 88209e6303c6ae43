"""One thread that owns the device, and the bounded queue before it. Knows nothing about speech."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from inference.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Job:
    call: Callable[[], Any]
    future: "Future[Any]"

    def run(self) -> None:
        """Do the work, unless its caller has left; whatever it raises goes to the caller."""
        if self.future.set_running_or_notify_cancel():
            with _FailureGoesTo(self.future):
                self.future.set_result(self.call())

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _FailureGoesTo:
    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self._future.set_exception(error)
        return True


class DeviceThread:
    """Runs jobs one after another, in order of arrival. Safe to use from any thread."""

    def __init__(self, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False
        self._last_job_s = 1.0

    @property
    def queued(self) -> int:
        with self._changed:
            return self._waiting()

    @property
    def running(self) -> int:
        return int(self._busy)

    @property
    def retry_after_s(self) -> float:
        """A guess at when the queue will be empty: every job as long as the last one."""
        with self._changed:
            return max(1.0, round((self._waiting() + 1) * self._last_job_s, 1))

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Queue `call`; cancelling the future before it starts takes it out. Overloaded if full."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise self._closing()
            if self._waiting() >= self._queue_limit:
                reason = f"{self._queue_limit} requests are waiting already. Try again later."
                raise Overloaded(reason, self.retry_after_s)
            self._jobs.append(Job(call, future))
            self._start()
            self._changed.notify()
        return future

    def close(self, timeout_s: float) -> bool:
        """Refuse new jobs, fail the queued ones; True if the running one ended in time."""
        with self._changed:
            self._closed = True
            waiting, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for job in waiting:
            job.fail(self._closing())
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _closing(self) -> Overloaded:
        return Overloaded("The service is shutting down. Try again later.", 5.0)

    def _waiting(self) -> int:
        """Jobs in the queue whose callers are still there; the others are dropped."""
        if any(job.future.cancelled() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
        return len(self._jobs)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Wait for one job and run it; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return False
            job = self._jobs.popleft()
            self._busy = True
        started_s = time.monotonic()
        job.run()
        self._last_job_s = time.monotonic() - started_s
        self._busy = False
        return True
