"""Runs the talker over prompts: a few at a time, of a few lengths, so that graphs can be replayed.

Short prompts are padded on the right, where causality keeps what follows from being seen.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from inference.engine.device import GraphRunner, Lane, on_device, padded_size, sizes_to_capture
from inference.engine.generator import Generator
from inference.engine.state import State

ROWS = (1, 2, 4)
LENGTHS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)


class Prefill:
    """Runs prompts through the talker; it belongs to the lane on which it is called."""

    def __init__(self, generator: Generator, state: State, lane: Lane) -> None:
        self._generator, self._scratch, self._lane = generator, state.scratch, lane
        device = state.x.device
        longest = min(LENGTHS[-1], state.table.shape[1])  # no prompt is padded beyond its table
        self._sizes = (*(length for length in LENGTHS if length < longest), longest)
        self._prompts = torch.zeros(ROWS[-1], longest, state.x.shape[1], device=device)
        self._slots = torch.full((ROWS[-1],), self._scratch, dtype=torch.int32, device=device)
        self._lengths = torch.ones_like(self._slots)
        padding = [(self._slots, self._scratch), (self._lengths, 1)]
        self._graphs = GraphRunner(self._run, lane, padding)

    def captures(self, prompts: int, longest: int) -> Iterator[tuple[int, int]]:
        """Capture what `prompts` prompts of `longest` positions need, a graph at each turn."""
        sizes = product(sizes_to_capture(self._sizes, longest), sizes_to_capture(ROWS, prompts))
        return self._graphs.captures((rows, length) for length, rows in sizes)

    def __call__(self, slots: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Run prompts (P, D) float32, each into the cache of its slot."""
        for begin in range(0, len(slots), ROWS[-1]):
            part = slice(begin, begin + ROWS[-1])
            self._few(slots[part], prompts[part])

    def _few(self, slots: Sequence[int], prompts: Sequence[Tensor]) -> None:
        lengths = [len(prompt) for prompt in prompts]
        if max(lengths) > self._sizes[-1]:
            self._one_by_one(slots, prompts)
            return
        rows, longest = self._shape(len(slots), max(lengths))
        spare = rows - len(slots)
        self._prompts[:rows, :longest] = 0  # what was not finite there would spoil who attends
        for row, prompt in enumerate(prompts):
            self._prompts[row, : len(prompt)] = prompt
        self._fill(self._slots[:rows], [*slots, *[self._scratch] * spare])
        self._fill(self._lengths[:rows], [*lengths, *[1] * spare])
        self._graphs((rows, longest))

    def _shape(self, rows: int, length: int) -> tuple[int, int]:
        """Round up to a size that has a graph; on a CPU there are none."""
        if not self._lane.pads:
            return rows, length
        return padded_size(ROWS, rows), padded_size(self._sizes, length)

    def _fill(self, line: Tensor, values: Sequence[int]) -> None:
        line.copy_(on_device(values, line.dtype, line.device))

    def _run(self, shape: tuple[int, int]) -> Tensor:
        rows, length = shape
        prompts = self._prompts[:rows, :length]
        return self._generator.prefill(self._slots[:rows], prompts, self._lengths[:rows])

    def _one_by_one(self, slots: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Run prompts that are too long for the graphs."""
        for slot, prompt in zip(slots, prompts, strict=True):
            where = [on_device([n], torch.int32, prompt.device) for n in (slot, len(prompt))]
            self._generator.prefill(where[0], prompt[None], where[1])
