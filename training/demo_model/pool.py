"""Processes that fill shared arrays without end, and the store on the device that keeps the newest.

The pool forks, so make it before CUDA is touched. Blocks cross through memory that parent and
children share; only their numbers go through a queue.
"""

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from training.demo_model.utterances import Arrays, Fields

Fill = Callable[[Arrays], None]  # writes one block
PATIENCE_S = 90.0


class Pool:
    """`workers` processes; each calls `start(seed)` once and its result for block after block."""

    def __init__(
        self, start: Callable[[int], Fill], fields: Fields, rows: int, workers: int, seed: int
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.rows, self.fields = rows, fields
        self._blocks = [_shared_block(fields, rows) for _ in range(3 * workers)]
        self._free: SimpleQueue[int] = context.SimpleQueue()
        self._full: SimpleQueue[int] = context.SimpleQueue()
        for index in range(len(self._blocks)):
            self._free.put(index)
        self._processes = [
            context.Process(target=self._work, args=(start, seed * 1000 + k), daemon=True)
            for k in range(workers)
        ]
        for process in self._processes:
            process.start()

    def _work(self, start: Callable[[int], Fill], seed: int) -> None:
        os.nice(5)
        fill = start(seed)
        while True:
            index = self._free.get()
            fill(self._blocks[index])
            self._full.put(index)

    def take(self, use: Callable[[Arrays], object]) -> bool:
        """Hand a finished block to `use`, which must copy it; False if there is none now."""
        if self._full.empty():
            return False
        index = self._full.get()
        use(self._blocks[index])
        self._free.put(index)
        return True

    def wait(self, use: Callable[[Arrays], object], blocks: int) -> None:
        """Take so many blocks; RuntimeError if the processes make none."""
        deadline = time.monotonic() + PATIENCE_S
        while blocks:
            if self.take(use):
                blocks -= 1
                deadline = time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                raise RuntimeError("No speech came from the synthesising processes.")
            else:
                time.sleep(0.01)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)


def _shared_block(fields: Fields, rows: int) -> Arrays:
    return {name: _shared((rows, *shape), np.dtype(kind)) for name, (shape, kind) in fields.items()}


def _shared(
    shape: tuple[int, ...], kind: np.dtype[np.generic]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), kind).reshape(shape)


class Store:
    """The newest blocks on the device, in tensors that never move."""

    def __init__(
        self, fields: Fields, rows: int, blocks: int, device: torch.device, kept: int = 0
    ) -> None:
        """The first `kept` blocks stay, and are not drawn."""
        self.rows, self.capacity, self.kept = rows, rows * blocks, rows * kept
        self.tensors = {
            name: torch.zeros((self.capacity, *shape), dtype=_dtype(kind), device=device)
            for name, (shape, kind) in fields.items()
        }
        self.filled = torch.zeros((), device=device)  # rows, a tensor so that a graph reads it
        self.blocks_seen = 0

    def add(self, block: Arrays) -> int:
        """Copy a block over the oldest one; its first row."""
        start = self.blocks_seen * self.rows
        if start >= self.capacity:
            start = self.kept + (start - self.kept) % (self.capacity - self.kept)
        for name, array in block.items():
            self.tensors[name][start : start + self.rows].copy_(torch.from_numpy(array))
        self.blocks_seen += 1
        self.filled.fill_(min(self.blocks_seen * self.rows, self.capacity))
        return start

    def random_rows(self, count: int) -> Tensor:
        """(count,) int64, of the rows filled so far."""
        drawn = torch.rand(count, device=self.filled.device) * (self.filled - self.kept)
        return drawn.long() + self.kept


def _dtype(kind: type) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, kind)).dtype
