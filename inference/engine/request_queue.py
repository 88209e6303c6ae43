"""The requests that wait for a slot: in which order they get in, and which are told to give up."""

import time
from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice

from inference.engine.forecast import QueueSimulation
from inference.engine.page_allocator import whole_pages
from inference.engine.prompt_builder import TokenizedPrompt
from inference.engine.request import Request
from registry.errors import Overloaded

PREFILL_GRAIN = 32  # positions: prompts this alike are prefilled together
REMEMBERED = 4096  # clients whose last round is known, but for those who wait
OVERTAKEN = 8  # how often a request too long for the free cache may be passed by shorter ones
SPARING_SLOTS = 4  # an engine with as many keeps the last slot from a client that has all others,
SPARING_S = 600.0  # for so long after another client has asked


@dataclass(eq=False)
class QueuedRequest:
    """A request that was found good. It holds nothing on the device but its voice."""

    request: Request
    prompt: TokenizedPrompt
    prompt_len: int  # positions to prefill
    trailing_len: int  # positions read while it speaks
    budget: int  # frames
    submitted_s: float
    overtaken: int = 0
    round: int = 0  # in which it has its turn: each client has one of its own in a round

    @property
    def positions(self) -> int:
        """Cache entries it may come to use: the prompt, its frames, and the one past the budget."""
        return self.prompt_len + self.budget + 1

    @property
    def grain(self) -> int:
        """Requests of the same grain have prompts of like length."""
        return -(-self.prompt_len // PREFILL_GRAIN)

    @property
    def patience_left_s(self) -> float:
        return self.request.patience_s - (time.perf_counter() - self.submitted_s)

    @property
    def is_late(self) -> bool:
        return self.patience_left_s < 0

    def refusal(self, wait_s: float) -> Overloaded:
        """Make the error for a caller whose slot is that far away."""
        may_s = self.request.patience_s
        return Overloaded(
            f"This request has waited {may_s - self.patience_left_s:.1f} s for a slot and would"
            f" wait about {wait_s:.0f} s more, longer than the {may_s:.3g} s that it may."
            " Try again then.",
            max(1.0, round(wait_s, 1)),
        )


class RequestQueue:
    """Lets requests in as they came, one of each client at a time.

    One that fits passes one that does not, OVERTAKEN times. A client that has all slots but one
    leaves that to others, if there are any: a speech may be longer than others can wait.
    """

    def __init__(self, limit: int, prefill_positions: int, slots: int) -> None:
        """After `prefill_positions` in one step nobody else gets in, so that what runs goes on."""
        self._limit, self._prefill_positions = limit, prefill_positions
        self._most = slots - 1 if slots >= SPARING_SLOTS else slots  # of one client, among others
        self._asked: dict[str, float] = {}  # when, by the two clients that asked last
        self._waiting: deque[QueuedRequest] = deque()  # by rounds
        self._round = 0  # the present one
        self._rounds: dict[str, int] = {}  # the last of each client, unless it is over
        self._served: dict[str, int] = {}  # the last in which it got in, unless it is over

    def __len__(self) -> int:
        return len(self._waiting)

    def simulate(self, simulation: QueueSimulation, client: str | None = None) -> QueueSimulation:
        """Admit who waits in `simulation`, which then tells of whoever comes next.

        With a `client`, of its next request: only those are admitted that will be before it.
        """
        round = None if client is None else self._next_round(client)
        for waiting in self._waiting:
            if round is None or waiting.round <= round:
                simulation.admit(waiting.budget, whole_pages(waiting.positions))
        return simulation

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._limit

    def note(self, client: str) -> None:
        """Remember that this client asks, even if it is refused."""
        self._asked.pop(client, None)
        self._asked[client] = time.perf_counter()
        if len(self._asked) > 2:
            del self._asked[next(iter(self._asked))]

    def push(self, waiting: QueuedRequest) -> None:
        """Queue a request; the queue must not be full.

        Its round is the one after its client's last, or the present one: so whoever has many
        waiting keeps no one else waiting for all of them, and who asks again comes after those.
        """
        if len(self._rounds) >= REMEMBERED:
            self._forget_absent()
        client = waiting.request.client
        waiting.round = self._rounds[client] = self._next_round(client)
        behind = len(self._waiting)
        while behind and self._waiting[behind - 1].round > waiting.round:
            behind -= 1
        self._waiting.insert(behind, waiting)

    def _next_round(self, client: str) -> int:
        return max(self._rounds.get(client, self._round - 1) + 1, self._round)

    def admit(
        self, slots: int, entries: int, held: Counter[str]
    ) -> tuple[list[QueuedRequest], list[QueuedRequest]]:
        """Take out the requests that get in, with so many slots and entries free, and the late.

        `held` counts the slots that each client has, and comes to count those of the requests that
        get in. No request times out in a step that stopped at the prefill budget: the next step
        lets in more.
        """
        admitted: list[QueuedRequest] = []
        prefilled = 0
        while len(admitted) < slots and (waiting := self._take(entries, held)):
            admitted.append(waiting)
            held[waiting.request.client] += 1
            entries -= whole_pages(waiting.positions)
            prefilled += waiting.prompt_len
            if prefilled >= self._prefill_positions:
                return admitted, []
        return admitted, self._take_late()

    def take_hopeless(self, simulation: QueueSimulation) -> list[tuple[QueuedRequest, float]]:
        """Remove the requests that can't have a slot in time, each with the wait that it faces."""
        hopeless = []
        for waiting in list(self._waiting):
            entries = whole_pages(waiting.positions)
            if simulation.may_serve(waiting.patience_left_s, entries):
                simulation.admit(waiting.budget, entries)
            else:
                hopeless.append((waiting, simulation.wait_s(entries)))
                self._drop(waiting)
        return hopeless

    def _take(self, entries: int, held: Counter[str]) -> QueuedRequest | None:
        """Take the next that fits; None if none does, or if the first was passed too often."""
        sparing = self._sparing(held)
        for index, waiting in enumerate(self._waiting):
            if waiting.request.client == sparing:
                continue
            if waiting.positions <= entries:
                for passed in islice(self._waiting, index):
                    passed.overtaken += passed.request.client != sparing
                del self._waiting[index]
                self._served[waiting.request.client] = waiting.round
                first = self._waiting[0] if self._waiting else waiting
                self._begin(min(first.round, waiting.round))  # it may have passed others
                return waiting
            if waiting.overtaken >= OVERTAKEN:
                return None
        return None

    def _sparing(self, held: Counter[str]) -> str | None:
        """The client that leaves the last slot to others."""
        since_s = time.perf_counter() - SPARING_S
        for client, slots in held.most_common(1):
            others = (asked_s for other, asked_s in self._asked.items() if other != client)
            if slots >= self._most and any(asked_s >= since_s for asked_s in others):
                return client
        return None

    def _begin(self, round: int) -> None:
        """Forget whose last round is over: such a client is like one that has never been here."""
        if round > self._round:
            self._round = round
            self._rounds = {c: last for c, last in self._rounds.items() if last >= round}
            self._served = {c: last for c, last in self._served.items() if last >= round}

    def _forget_absent(self) -> None:
        """Remember only who waits: a round goes on for as long as new clients come."""
        here = {waiting.request.client for waiting in self._waiting}
        self._rounds = {c: last for c, last in self._rounds.items() if c in here}
        self._served = {c: last for c, last in self._served.items() if c in here}

    def _take_late(self) -> list[QueuedRequest]:
        late = [waiting for waiting in self._waiting if waiting.is_late]
        for waiting in late:
            self._drop(waiting)
        return late

    def remove(self, request: Request) -> bool:
        """Take a request out; True if it was waiting."""
        for waiting in self._waiting:
            if waiting.request is request:
                self._drop(waiting)
                return True
        return False

    def _drop(self, waiting: QueuedRequest) -> None:
        """Take one out that gets no slot; the rounds of its client end with those it still has, or
        has had: who leaves does not come again before others."""
        self._waiting.remove(waiting)
        client = waiting.request.client
        left = [other.round for other in self._waiting if other.request.client == client]
        served = self._served.get(client, self._round - 1)
        self._rounds[client] = max([*left, served])

    def position(self, request: Request) -> int | None:
        """How many requests wait before this one; None if it does not wait."""
        for index, waiting in enumerate(self._waiting):
            if waiting.request is request:
                return index
        return None
