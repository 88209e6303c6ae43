"""Who waits for a slot, in which order they get in, and whose patience is over."""

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

from inference.engine.cache_rows import whole
from inference.engine.forecast import Line
from inference.engine.layout import Script
from inference.engine.request import Request
from inference.engine.state import ResolvedSampling
from inference.errors import Overloaded

OVERTAKEN = 8  # how often a request too long for the free cache may be passed by shorter ones


@dataclass(eq=False)
class Waiting:
    """A request that was found good. It holds nothing on the device but its voice."""

    request: Request
    script: Script
    sampling: ResolvedSampling
    prompt: int  # positions to prefill
    ahead: int  # positions read while it speaks
    budget: int  # frames
    submitted_s: float
    overtaken: int = 0

    @property
    def positions(self) -> int:
        """Cache rows it may come to use: the prompt, its frames, and the one past the budget."""
        return self.prompt + self.budget + 1

    @property
    def patience_left_s(self) -> float:
        return self.request.patience_s - (time.perf_counter() - self.submitted_s)

    @property
    def late(self) -> bool:
        return self.patience_left_s < 0

    def hopeless(self, wait_s: float) -> Overloaded:
        """What to tell if a slot is that far away."""
        may_s = self.request.patience_s
        return Overloaded(
            f"This request has waited {may_s - self.patience_left_s:.1f} s for a slot and would"
            f" wait about {wait_s:.0f} s more, longer than the {may_s:.3g} s that it may."
            " Try again then.",
            max(1.0, round(wait_s, 1)),
        )


class Queue:
    """First come, first served, but what fits passes what does not, a bounded number of times."""

    def __init__(self, limit: int, prefill_positions: int) -> None:
        """`prefill_positions`: of those who get in together, so that running streams go on soon."""
        self._limit, self._prefill_positions = limit, prefill_positions
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def behind(self, line: Line) -> Line:
        """Where whoever comes next stands."""
        for waiting in self._waiting:
            line.join(waiting.budget, whole(waiting.positions))
        return line

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._limit

    def push(self, waiting: Waiting) -> None:
        """The queue must not be full."""
        self._waiting.append(waiting)

    def admit(self, slots: int, rows: int) -> tuple[list[Waiting], list[Waiting]]:
        """Who gets in, with so many slots and cache rows free, and whose patience is over.

        Nobody's is while there is only too much to prefill: the next step lets in more.
        """
        admitted: list[Waiting] = []
        prefilled = 0
        while len(admitted) < slots and (waiting := self._take(rows)):
            admitted.append(waiting)
            rows -= whole(waiting.positions)
            prefilled += waiting.prompt
            if prefilled >= self._prefill_positions:
                return admitted, []
        return admitted, self._take_late()

    def take_hopeless(self, line: Line) -> list[tuple[Waiting, float]]:
        """Who can't have a slot in time, in whatever time it would."""
        hopeless = []
        for waiting in list(self._waiting):
            rows = whole(waiting.positions)
            if line.serves(waiting.patience_left_s, rows):
                line.join(waiting.budget, rows)
            else:
                hopeless.append((waiting, line.wait_s(rows)))
                self._waiting.remove(waiting)
        return hopeless

    def _take(self, rows: int) -> Waiting | None:
        """The next that fits; None if nobody does, or if the first was passed too often."""
        for index, waiting in enumerate(self._waiting):
            if waiting.positions <= rows:
                for passed in islice(self._waiting, index):
                    passed.overtaken += 1
                del self._waiting[index]
                return waiting
            if waiting.overtaken >= OVERTAKEN:
                return None
        return None

    def _take_late(self) -> list[Waiting]:
        late = [waiting for waiting in self._waiting if waiting.late]
        for waiting in late:
            self._waiting.remove(waiting)
        return late

    def remove(self, request: Request) -> bool:
        """True if it was waiting."""
        for index, waiting in enumerate(self._waiting):
            if waiting.request is request:
                del self._waiting[index]
                return True
        return False

    def position(self, request: Request) -> int | None:
        """How many wait before it."""
        for index, waiting in enumerate(self._waiting):
            if waiting.request is request:
                return index
        return None
