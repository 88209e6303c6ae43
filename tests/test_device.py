"""Sizes of captured graphs: the least that fits, and those that groups up to a size need."""

import pytest
import torch

from inference.engine.device import GraphRunner, Lane, padded_size, sizes_to_capture

SIZES = (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [2, 1]), (3, [4, 2, 1]), (8, [8, 4, 2, 1])]
)
def test_sizes_that_groups_need_fall(most: int, expected: list[int]) -> None:
    assert sizes_to_capture(SIZES, most) == expected
    assert padded_size(SIZES, most) == expected[0]


def test_groups_beyond_the_largest_size_are_split() -> None:
    assert sizes_to_capture(SIZES, 100) == [8, 4, 2, 1]


def test_a_cpu_captures_nothing_and_calls_as_it_is() -> None:
    graphs = GraphRunner(lambda n: torch.arange(n), Lane(torch.device("cpu")), [])
    assert list(graphs.captures([1, 2])) == []
    assert graphs(3).tolist() == [0, 1, 2]
