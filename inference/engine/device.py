"""Ordered queues of device work, and events in them. On a CPU work is done when it is issued."""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

K = TypeVar("K", bound=Hashable)


def on_device(
    values: Sequence[Any] | NDArray[Any], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Copy `values` into a tensor on the device, without waiting for the device."""
    host = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)


class Event:
    """A place in a lane's work: a CUDA event, or on a CPU one that has always happened."""

    def __init__(self, cuda_event: "torch.cuda.Event | None") -> None:
        self.cuda_event = cuda_event

    def done(self) -> bool:
        return self.cuda_event is None or bool(self.cuda_event.query())  # type: ignore[no-untyped-call]


class Lane:
    """A CUDA stream, or on a CPU nothing: `with lane.on():` issues work to it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream(device)
        self.pads = self.stream is not None  # work is rounded up to sizes that have graphs
        self.pool = None if self.stream is None else torch.cuda.graph_pool_handle()

    def on(self) -> AbstractContextManager[Any]:
        """Issue what follows to this lane."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def record_event(self) -> Event:
        """Record an event that happens when all work issued so far is done."""
        return Event(None if self.stream is None else self.stream.record_event())

    def wait_event(self, event: Event) -> None:
        """Let what is issued from here on start when `event` has happened."""
        if self.stream is not None and event.cuda_event is not None:
            self.stream.wait_event(event.cuda_event)

    def uses(self, tensor: Tensor) -> None:
        """Keep a tensor of another lane from being reused before this lane's work is done."""
        if self.stream is not None:
            tensor.record_stream(self.stream)

    def fetch(self, tensor: Tensor) -> Tensor:
        """Copy to the host; the copy is there once an event recorded after it has happened."""
        if self.stream is None:
            return tensor.clone()
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
            tensor, non_blocking=True
        )

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()

    def wait_for_device(self) -> None:
        """Wait until every lane is done, and what was issued to none."""
        if self.stream is not None:
            torch.cuda.synchronize(self.device)


class GraphRunner(Generic[K]):
    """Calls a function of a shape, as one CUDA graph for each shape that it is called with.

    It reads and writes tensors that stay where they are. On a CPU it is called as it is.
    """

    def __init__(
        self,
        call: Callable[[K], Tensor],
        lane: Lane,
        inputs: Sequence[tuple[Tensor, int]],
    ) -> None:
        """The call reads `inputs`, each with a padding value that touches no stream's state."""
        self._call, self._lane, self._inputs = call, lane, inputs
        self._graphs: dict[K, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, shape: K) -> Tensor:
        """Run it for `shape`; on CUDA the next call on this lane may overwrite the output."""
        if self._lane.stream is None:
            return self._call(shape)
        if shape not in self._graphs:
            self._capture(shape)
        graph, output = self._graphs[shape]
        graph.replay()
        return output

    def captures(self, shapes: Iterable[K]) -> Iterator[K]:
        """Capture one more of `shapes` at each turn; on a CPU there are no turns."""
        for shape in shapes:
            if self._lane.stream is not None and shape not in self._graphs:
                with self._lane.on():
                    self._capture(shape)
                yield shape

    def _capture(self, shape: K) -> None:
        """Capture `shape` while the inputs hold padding, so that nobody's state changes."""
        given = [tensor.clone() for tensor, _ in self._inputs]
        for tensor, padding in self._inputs:
            tensor.fill_(padding)
        self._graphs[shape] = self._captured(shape)
        for (tensor, _), before in zip(self._inputs, given, strict=True):
            tensor.copy_(before)

    def _captured(self, shape: K) -> "tuple[torch.cuda.CUDAGraph, Tensor]":
        self._call(shape)  # libraries initialise outside of a capture
        self._lane.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._lane.pool, capture_error_mode="thread_local")
        output = self._call(shape)
        graph.capture_end()
        return graph, output


def padded_size(sizes: Sequence[int], count: int) -> int:
    """The first of the rising `sizes` that holds `count`."""
    return next(size for size in sizes if size >= count)


def sizes_to_capture(sizes: Sequence[int], most: int) -> list[int]:
    """The rising `sizes` that groups of at most `most` need, the largest first.

    Captured in this order, a graph finds the memory that the one before it has given back.
    """
    last = padded_size(sizes, min(most, sizes[-1]))
    return [size for size in reversed(sizes) if size <= last]


def _stream(device: torch.device) -> "torch.cuda.Stream | None":
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
