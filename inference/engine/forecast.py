"""When those who wait will have a slot: from what runs, and from the pace of the last steps.

It rather promises too much: who could still be served in time must not be sent away.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

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

    def line(self, running: Iterable[tuple[int, int, int]], slots: int, rows: int) -> "Line":
        """Before so many free slots and cache rows.

        Of those who run: (frames made, budget, rows). One that is overdue may end at any time.
        """
        step_s = sum(self._steps_s) / STEPS if len(self._steps_s) == STEPS else 0.0
        ends = [(max(0.0, self.frames(b) - made) * step_s, held) for made, b, held in running]
        return Line(ends, slots, rows, lambda budget: self.frames(budget) * step_s)


class Line:
    """Those who wait, each in turn, before slots and cache rows that become free in time."""

    def __init__(
        self,
        ends: list[tuple[float, int]],
        slots: int,
        rows: int,
        takes_s: Callable[[int], float],
    ) -> None:
        """`ends`: when so many rows are free, and a slot; `takes_s`: of one with such a budget."""
        heapify(ends)
        self._ends, self._slots, self._rows, self._takes_s = ends, slots, rows, takes_s
        self._now_s = 0.0

    def wait_s(self, rows: int) -> float:
        """Of whoever comes next, who needs so many rows."""
        ends, slots, free, now_s = list(self._ends), self._slots, self._rows, self._now_s
        while ends and not (slots and free >= rows):
            now_s, freed = heappop(ends)
            slots, free = slots + 1, free + freed
        return now_s

    def serves(self, patience_s: float, rows: int) -> bool:
        """Whether the next one may get in before its patience is over."""
        return self.wait_s(rows) <= SURE * max(0.0, patience_s)

    def join(self, budget: int, rows: int) -> None:
        while self._ends and not (self._slots and self._rows >= rows):
            self._now_s, freed = heappop(self._ends)
            self._slots, self._rows = self._slots + 1, self._rows + freed
        self._slots, self._rows = self._slots - 1, self._rows - rows
        heappush(self._ends, (self._now_s + self._takes_s(budget), rows))
