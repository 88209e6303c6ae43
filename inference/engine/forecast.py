"""Says when those who wait will have a slot: from what runs, and from the pace of the last steps.

It rather promises too much: who could still be served in time must not be sent away.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from inference.engine.frame_budget import BASE_FRAMES

STEPS = 64  # whose pace is taken; before that many there is no forecast
LEAD = 10  # frames that a speech of no length has: silence around it
SHARE = 0.2  # of its budget beyond BASE_FRAMES that a speech takes, before any has ended
WEIGHT = 600.0  # of that guess, in frames
KEPT = 0.9  # of what was known, when one more speech has ended
SURE = 1.5  # times as long as somebody would wait is too long for sure


class Forecast:
    """Remembers how long steps took of late, and how much of their budgets speeches used."""

    def __init__(self) -> None:
        self._steps_s: deque[float] = deque(maxlen=STEPS)
        self._last_s: float | None = None
        self._taken, self._granted = SHARE * WEIGHT, WEIGHT  # frames of late, the last ones most

    def step(self, working: bool) -> None:
        """Note that a step begins; `working` says whether there is something to do in it."""
        now_s = time.perf_counter()
        if working and self._last_s is not None:
            self._steps_s.append(now_s - self._last_s)
        self._last_s = now_s if working else None

    def ended(self, frames: int, budget: int) -> None:
        """Note that a speech has ended after so many frames of its budget."""
        self._taken = KEPT * self._taken + max(0, frames - LEAD)
        self._granted = KEPT * self._granted + budget - BASE_FRAMES

    def frames(self, budget: int) -> float:
        """How many frames a speech with this budget will likely have."""
        return LEAD + (budget - BASE_FRAMES) * self._taken / self._granted

    def simulation(
        self, running: Iterable[tuple[int, int, int]], slots: int, entries: int
    ) -> "QueueSimulation":
        """Simulate the time to come, with so many slots and cache entries free and an empty queue.

        Each of `running` is (frames made, budget, cache entries); one that is overdue may end at
        any time.
        """
        step_s = sum(self._steps_s) / STEPS if len(self._steps_s) == STEPS else 0.0
        ends = [(max(0.0, self.frames(b) - made) * step_s, held) for made, b, held in running]
        return QueueSimulation(ends, slots, entries, lambda budget: self.frames(budget) * step_s)


class QueueSimulation:
    """Admits requests in turn, as slots and cache entries become free in simulated time."""

    def __init__(
        self,
        ends: list[tuple[float, int]],
        slots: int,
        entries: int,
        takes_s: Callable[[int], float],
    ) -> None:
        """At each of `ends` a slot and so many entries are free; `takes_s` is of one budget."""
        heapify(ends)
        self._ends, self._slots, self._entries, self._takes_s = ends, slots, entries, takes_s
        self._now_s = 0.0

    def wait_s(self, entries: int) -> float:
        """How long the next one waits, who needs so many entries."""
        ends, slots, free, now_s = list(self._ends), self._slots, self._entries, self._now_s
        while ends and not (slots and free >= entries):
            now_s, freed = heappop(ends)
            slots, free = slots + 1, free + freed
        return now_s

    def may_serve(self, patience_s: float, entries: int) -> bool:
        """Tell whether the next one may get in before its patience is over."""
        return self.wait_s(entries) <= SURE * max(0.0, patience_s)

    def admit(self, budget: int, entries: int) -> None:
        """Let the next one in as soon as it fits; whoever is asked about then comes after it."""
        while self._ends and not (self._slots and self._entries >= entries):
            self._now_s, freed = heappop(self._ends)
            self._slots, self._entries = self._slots + 1, self._entries + freed
        self._slots, self._entries = self._slots - 1, self._entries - entries
        heappush(self._ends, (self._now_s + self._takes_s(budget), entries))
