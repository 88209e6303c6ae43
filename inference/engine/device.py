"""Ordered queues of device work, and marks in them. On a CPU work is done when it is issued."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(
    values: Sequence[Any] | NDArray[Any], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of `values` on the device, without waiting for the device."""
    host = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)


class Mark:
    """A place in a lane's work."""

    def __init__(self, event: "torch.cuda.Event | None") -> None:
        self.event = event

    def done(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]


class Lane:
    """A CUDA stream, or on a CPU nothing: `with lane:` issues work to it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream(device)
        self.pool = None if self.stream is None else torch.cuda.graph_pool_handle()

    def on(self) -> AbstractContextManager[Any]:
        """Issue what follows to this lane."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def mark(self) -> Mark:
        """All work issued so far."""
        return Mark(None if self.stream is None else self.stream.record_event())

    def after(self, mark: Mark) -> None:
        """What is issued from here on starts when `mark` is done."""
        if self.stream is not None and mark.event is not None:
            self.stream.wait_event(mark.event)

    def uses(self, tensor: Tensor) -> None:
        """Keep a tensor of another lane from being reused before this lane's work is done."""
        if self.stream is not None:
            tensor.record_stream(self.stream)

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy on the host that is there once a mark set after it is done."""
        if self.stream is None:
            return tensor.clone()
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
            tensor, non_blocking=True
        )

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


class Replays:
    """A function of a batch size, captured as one CUDA graph for each size in `sizes`.

    A call runs the least size that holds the batch; the rows beyond it must be padding. On a CPU
    the function is called as it is.
    """

    def __init__(
        self,
        call: Callable[[int], Tensor],
        sizes: Sequence[int],
        lane: Lane,
        inputs: Sequence[tuple[Tensor, int]],
    ) -> None:
        """`inputs`: what the call reads, each with the value that stands for padding."""
        self._call, self._sizes, self._lane, self._inputs = call, sizes, lane, inputs
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def capture(self) -> None:
        """Capture every size, the largest first so that the smaller ones reuse its memory."""
        if self._lane.stream is not None:
            for size in sorted(self._sizes, reverse=True):
                self._graph(size)

    def __call__(self, batch: int) -> Tensor:
        """The output of the batch; on CUDA a tensor that the next call overwrites."""
        if self._lane.stream is None:
            return self._call(batch)
        graph, output = self._graph(self.size_of(batch))
        graph.replay()
        return output[:batch]

    def size_of(self, batch: int) -> int:
        return next(size for size in self._sizes if size >= batch)

    def _graph(self, size: int) -> "tuple[torch.cuda.CUDAGraph, Tensor]":
        if size not in self._graphs:
            self._graphs[size] = self._captured(size)
        return self._graphs[size]

    def _captured(self, size: int) -> "tuple[torch.cuda.CUDAGraph, Tensor]":
        """Capture over padding alone, then put the inputs back."""
        given = [tensor.clone() for tensor, _ in self._inputs]
        for tensor, padding in self._inputs:
            tensor.fill_(padding)
        captured = self._capture(size)
        for (tensor, _), before in zip(self._inputs, given, strict=True):
            tensor.copy_(before)
        return captured

    def _capture(self, size: int) -> "tuple[torch.cuda.CUDAGraph, Tensor]":
        self._call(size)  # libraries initialise outside of a capture
        self._lane.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._lane.pool, stream=self._lane.stream, capture_error_mode="thread_local"
        ):
            output = self._call(size)
        return graph, output


def _stream(device: torch.device) -> "torch.cuda.Stream | None":
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
