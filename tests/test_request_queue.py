"""In which order requests get a slot: each client has one turn in a round."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
import torch

from inference.engine import PreparedVoice, Request
from inference.engine.prompt_builder import TokenizedPrompt
from inference.engine.request_queue import (
    OVERTAKEN,
    REMEMBERED,
    SPARING_S,
    QueuedRequest,
    RequestQueue,
)

NOBODY = PreparedVoice(torch.zeros(1), None, None)
ENOUGH = 1_000_000


def queued(client: str, budget: int = 10, patience_s: float = 60) -> QueuedRequest:
    request = Request(NOBODY, "Hi.", client=client, patience_s=patience_s)
    prompt = TokenizedPrompt.__new__(TokenizedPrompt)  # what the queue only hands on
    return QueuedRequest(request, prompt, 10, 0, budget, 0.0)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[RequestQueue]:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    yield RequestQueue(1000, ENOUGH, 8)


def push(queue: RequestQueue, *clients: str) -> None:
    for client in clients:
        queue.push(queued(client))


def served(queue: RequestQueue, number: int, entries: int = ENOUGH) -> str:
    """The clients of the next to get in, one slot at a time."""
    return "".join(
        admitted.request.client
        for _ in range(number)
        for admitted in queue.admit(1, entries, Counter())[0]
    )


def test_of_one_client_requests_get_in_as_they_came(queue: RequestQueue) -> None:
    waiting = [queued("a") for _ in range(5)]
    for one in waiting:
        queue.push(one)
    assert [queue.admit(1, ENOUGH, Counter())[0] for _ in waiting] == [[one] for one in waiting]


def test_whoever_has_many_waiting_keeps_others_waiting_for_one(queue: RequestQueue) -> None:
    push(queue, *"aaaaaaaaa")
    assert served(queue, 2) == "aa"
    push(queue, *"bcb")
    assert served(queue, 10) == "bcabaaaaaa"


def test_whoever_asks_again_and_again_starves_nobody(queue: RequestQueue) -> None:
    """Two that ask anew as soon as they are served, beside one who waits with many."""
    push(queue, *"aaaaaabc")
    order = ""
    for _ in range(15):
        client = served(queue, 1)
        order += client
        if client in "bc":
            push(queue, client)
    assert order == "abcabcabcabcabc"


def test_rounds_of_a_client_that_gave_up_are_over(queue: RequestQueue) -> None:
    given_up = [queued("a") for _ in range(20)]
    for one in given_up:
        queue.push(one)
    push(queue, *"bbb")
    for one in given_up:
        assert queue.remove(one.request)
    push(queue, "a")
    assert served(queue, 4) == "babb"


def test_who_leaves_and_asks_again_has_no_turn_more(queue: RequestQueue) -> None:
    """Beside one who waits with two: each time that it is let in, it has asked and left before."""
    order = ""
    push(queue, *"bb")
    for _ in range(6):
        left = queued("a")
        queue.push(left)
        assert queue.remove(left.request)
        push(queue, "a")
        order += served(queue, 1)
        push(queue, order[-1])
    assert "aa" not in order[1:] and order.count("b") >= 2


def test_one_that_passes_others_ends_no_round(queue: RequestQueue) -> None:
    queue.push(queued("a", budget=500))
    push(queue, *"b" * 9)
    for _ in range(5):
        assert served(queue, 1, entries=100) == "b"
    push(queue, "c")
    assert served(queue, 3) == "acb"


def test_the_last_slot_is_for_others_where_there_are_any(queue: RequestQueue) -> None:
    held = Counter(a=7)
    push(queue, "a")
    assert [len(queue.admit(1, ENOUGH, held)[0]), held["a"]] == [1, 8], "nobody else has asked"
    held["a"] = 7
    queue.note("b")
    push(queue, "a")
    assert queue.admit(1, ENOUGH, held) == ([], [])
    push(queue, *"bb")
    assert served_beside(queue, held) == "b"
    held.update(a=-1, b=-1)
    assert served_beside(queue, held) == "ab", "it has six again, and then its seven"


def served_beside(queue: RequestQueue, held: Counter[str]) -> str:
    """The clients that get in while 8 slots are not all held."""
    admitted, _ = queue.admit(8 - held.total(), ENOUGH, held)
    return "".join(waiting.request.client for waiting in admitted)


def test_who_is_passed_as_it_leaves_a_slot_to_others_holds_up_nobody(queue: RequestQueue) -> None:
    held = Counter(a=7)
    queue.note("b")
    push(queue, "a", *"b" * 2 * OVERTAKEN)
    for _ in range(2 * OVERTAKEN):
        assert served_beside(queue, held) == "b"
        held["b"] = 0


def test_other_clients_are_forgotten_after_a_time(
    queue: RequestQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.note("b")
    monkeypatch.setattr("time.perf_counter", lambda: SPARING_S + 1)
    queue.note("a")
    push(queue, "a")
    assert served_beside(queue, Counter(a=7)) == "a"


@pytest.mark.parametrize(("slots", "sparing"), [(1, False), (3, False), (4, True), (32, True)])
def test_an_engine_with_few_slots_gives_them_all(slots: int, sparing: bool) -> None:
    queue = RequestQueue(1000, ENOUGH, slots)
    queue.note("b")
    queue.note("a")
    queue.push(queued("a"))
    admitted, _ = queue.admit(1, ENOUGH, Counter(a=slots - 1))
    assert bool(admitted) is not sparing


def test_what_a_newcomer_waits_for_is_what_comes_before_it(queue: RequestQueue) -> None:
    push(queue, *"aaaaa")
    simulated = [Simulated(), Simulated(), Simulated()]
    queue.simulate(simulated[0], "b")  # type: ignore[arg-type]
    queue.simulate(simulated[1], "a")  # type: ignore[arg-type]
    queue.simulate(simulated[2])  # type: ignore[arg-type]
    assert [one.admitted for one in simulated] == [1, 5, 5]


class Simulated:
    admitted = 0

    def admit(self, budget: int, entries: int) -> None:
        self.admitted += 1


def test_no_client_is_remembered_whose_rounds_are_over(queue: RequestQueue) -> None:
    chance = Random(1)
    for number in range(2000):
        push(queue, f"{number}", "a", "a")
        assert len(queue.admit(3, ENOUGH, Counter())[0]) == 3
        if chance.random() < 0.1:
            push(queue, "a")
    assert len(queue._rounds) < 50


def test_so_many_clients_are_remembered_and_no_more(queue: RequestQueue) -> None:
    """Each comes once, so that no round ends; the one who waits keeps its place."""
    push(queue, *"aa")
    for number in range(3 * REMEMBERED):
        push(queue, f"{number}")
        assert len(queue.admit(1, ENOUGH, Counter())[0]) == 1
    assert len(queue._rounds) <= REMEMBERED and len(queue._served) <= REMEMBERED
    assert served(queue, 2).endswith("a")


def test_one_too_long_for_the_free_cache_is_passed_so_often_and_no_more(
    queue: RequestQueue,
) -> None:
    queue.push(queued("a", budget=500))
    push(queue, *"b" * (OVERTAKEN + 2))
    assert served(queue, OVERTAKEN + 2, entries=100) == "b" * OVERTAKEN
    assert served(queue, 2) == "ab"
