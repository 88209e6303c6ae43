"""Carry tensors to where they are used, a piece at a time, so that no second copy ever exists.

For CUDA some threads read into pinned buffers whose uploads run on their own streams; dtypes are
converted, and rows scattered, on the device. Knows nothing of models or file formats.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 8 * 1024 * 1024
READERS = 4  # for CUDA; a CPU converts with its own threads
BUFFERS = 2  # a reader fills one while the other is uploaded


class Source(Protocol):
    """Bytes that can be read at any offset, by several threads."""

    def read(self, offset: int, into: Tensor) -> None:
        """Fill `into`, uint8 in host memory."""


class Memory:
    """Reads from a tensor in host memory, which must be contiguous."""

    def __init__(self, tensor: Tensor) -> None:
        self._bytes = tensor.reshape(-1).view(torch.uint8).numpy()

    def read(self, offset: int, into: Tensor) -> None:
        np.copyto(into.numpy(), self._bytes[offset : offset + len(into)])


@dataclass(frozen=True)
class Piece:
    """Whole rows of one tensor: where they are stored and where they go."""

    source: Source
    offset: int  # bytes
    dtype: torch.dtype  # of the source
    target: Tensor  # any view, in any dtype
    scale: float = 1.0  # a power of two; multiplied before the conversion

    @property
    def nbytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize

    def split(self) -> Iterator["Piece"]:
        """Cut it into pieces of PIECE_BYTES, or of one row if a row is longer."""
        target = self.target if self.target.dim() else self.target.view(1)
        row = self.nbytes // len(target)
        rows = max(1, PIECE_BYTES // row)
        for i in range(0, len(target), rows):
            yield replace(self, offset=self.offset + i * row, target=target[i : i + rows])


@dataclass(frozen=True)
class Transferred:
    """The bytes and seconds that one transfer took."""

    nbytes: int  # in the sources
    seconds: float
    reading_s: float  # of them, of the slowest reader; it waited for the device in the others


def transfer(pieces: Sequence[Piece], device: torch.device) -> Transferred:
    """Carry every piece to its target on `device`; all are there when this returns."""
    begun = time.perf_counter()
    small = [part for piece in pieces for part in piece.split()]
    largest = max(part.nbytes for part in small)
    count = READERS if device.type == "cuda" else 1
    readers = [_Reader(device, largest) for _ in range(count)]
    shared = iter(small)  # a list's iterator gives each item to one thread
    with ThreadPoolExecutor(count) as pool:
        reading_s = max(pool.map(lambda reader: reader.run(shared), readers))
    nbytes = sum(piece.nbytes for piece in pieces)
    return Transferred(nbytes, time.perf_counter() - begun, reading_s)


class _Reader:
    """Reads and uploads pieces on one thread, with buffers and a CUDA stream of its own."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._buffers = [_Buffer(device, nbytes) for _ in range(BUFFERS)]

    def run(self, pieces: Iterator[Piece]) -> float:
        """Carry pieces until there are no more; returns the seconds spent on reading them."""
        with self._on_stream(), torch.inference_mode():
            seconds = sum(b.carry(p) for p, b in zip(pieces, cycle(self._buffers), strict=False))
            if self._stream is not None:
                self._stream.synchronize()
        return seconds

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class _Buffer:
    """A place for one piece in host memory and, for CUDA, one as large on the device."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        cuda = device.type == "cuda"
        self._host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=cuda)
        self._staged = self._host
        self._left: Any = None
        if cuda:
            self._staged = torch.empty(nbytes, dtype=torch.uint8, device=device)
            self._left = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def carry(self, piece: Piece) -> float:
        """Read a piece and send it to its target; returns the seconds that the reading took."""
        if self._left is not None:
            self._left.synchronize()  # what the buffer held before is uploaded
        begun = time.perf_counter()
        piece.source.read(piece.offset, self._host[: piece.nbytes])
        seconds = time.perf_counter() - begun
        self._send(piece)
        return seconds

    def _send(self, piece: Piece) -> None:
        staged = self._staged[: piece.nbytes]
        if self._left is not None:
            staged.copy_(self._host[: piece.nbytes], non_blocking=True)
            self._left.record()
        values = staged.view(piece.dtype).view(piece.target.shape)
        if piece.scale != 1.0:
            values.mul_(piece.scale)
        piece.target.copy_(values)
