"""When those who wait will have a slot: from what runs, and from the pace of the last steps.

It rather promises too much: who could still be served in time must not be sent away.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heapreplace

from inference.engine.params import BASE_FRAMES

STEPS = 64  # whose pace is taken; before that many there is no forecast
LEAD = 10  # frames that a speech of no length has: silence around it
SHARE = 0.2  # of its budget beyond BASE_FRAMES that a speech takes, before any has ended
WEIGHT = 600.0  # of that guess, in frames
KEPT = 0.9  # of what was known, when one more speech has ended
SURE = 1.5  # times as long as somebody would wait is too long for sure


class Forecast:
    def __init__(self) -> None:
        self._steps_s: deque[float] = deque(maxlen=STEPS)
        self._last_s: float | None = None
        self._taken, self._granted = SHARE * WEIGHT, WEIGHT  # frames of late, the last ones most

    def step(self, working: bool) -> None:
        """A step begins, and there is something to do in it, or not."""
        now_s = time.perf_counter()
        if working and self._last_s is not None:
            self._steps_s.append(now_s - self._last_s)
        self._last_s = now_s if working else None

    def ended(self, frames: int, budget: int) -> None:
        self._taken = KEPT * self._taken + max(0, frames - LEAD)
        self._granted = KEPT * self._granted + budget - BASE_FRAMES

    def frames(self, budget: int) -> float:
        """That a speech will likely have."""
        return LEAD + (budget - BASE_FRAMES) * self._taken / self._granted

    def line(self, running: Iterable[tuple[int, int]], slots: int) -> "Line":
        """Of those who run: (frames made, budget). One that is overdue may end at any time."""
        step_s = sum(self._steps_s) / STEPS if len(self._steps_s) == STEPS else 0.0
        left_s = [max(0.0, self.frames(budget) - made) * step_s for made, budget in running]
        free_s = [*left_s, *[0.0] * (slots - len(left_s))]
        return Line(free_s, lambda budget: self.frames(budget) * step_s)


class Line:
    """Those who wait, each in turn, before slots that become free one after another."""

    def __init__(self, free_s: list[float], takes_s: Callable[[int], float]) -> None:
        """`takes_s`: how long one with such a budget keeps its slot."""
        heapify(free_s)
        self._free_s, self._takes_s = free_s, takes_s

    @property
    def wait_s(self) -> float:
        """Of whoever comes next."""
        return self._free_s[0]

    def serves(self, patience_s: float) -> bool:
        """Whether the next one may have a slot before its patience is over."""
        return self.wait_s <= SURE * max(0.0, patience_s)

    def join(self, budget: int) -> None:
        heapreplace(self._free_s, self.wait_s + self._takes_s(budget))
