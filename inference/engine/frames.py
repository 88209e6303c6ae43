"""One frame for a batch of streams: two replays on the device, and a report the host reads late.

Frame n + 1 is issued before the codes of frame n are known, so the device never waits; what was
made for a stream that had ended is dropped.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine.config import Setup
from inference.engine.device import Lane, Mark, Replays, falling, least, on_device
from inference.engine.generator import Generator
from inference.engine.speech_stream import SpeechStream
from inference.engine.state import State


@dataclass(frozen=True)
class Flight:
    """A step that the device was asked for."""

    streams: Sequence[SpeechStream]
    report: Tensor  # (B, groups + 1) int64 on the host: codes, then 1 if the row went bad
    mark: Mark


class Frames:
    """Issues frames on `lane`, in batches of any streams."""

    def __init__(self, generator: Generator, state: State, setup: Setup, lane: Lane) -> None:
        self._generator, self._state, self._lane = generator, state, lane
        self._sizes = setup.sizes
        self._slots = torch.full(
            (setup.limits.slots,), state.scratch, dtype=torch.int32, device=setup.device
        )
        self._batch: list[int] = []
        self._span = (
            setup.limits.request_positions
        )  # a graph must look as far as any request may get
        self._flights: deque[Flight] = deque()
        padding = [(self._slots, state.scratch)]
        self._speak = Replays(self._speak_rows, lane, padding)
        self._listen = Replays(self._listen_rows, lane, padding)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def captures(self, streams: int) -> Iterator[int]:
        """Capture what batches of up to `streams` need, a graph at each turn."""
        for size in falling(self._sizes, streams):
            yield from self._speak.captures([size])
            yield from self._listen.captures([size])

    def issue(self, streams: Sequence[SpeechStream]) -> Mark:
        """One more frame of each stream; the mark is set when their codes are in the State."""
        for stream in streams:
            stream.made += 1
        if not self._lane.pads:
            self._span = max(stream.prompt_len + stream.made for stream in streams)
        with self._lane.on():
            self._seat([stream.slot for stream in streams])
            batch = self._batch_of(len(streams))
            frame = self._speak(batch)[: len(streams)]
            made = self._lane.mark()
            report = self._lane.fetch(frame)
            self._flights.append(Flight(streams, report, self._lane.mark()))
            self._listen(batch)
        return made

    def land(self) -> Flight | None:
        """The oldest step if the device is done with it."""
        if self._flights and self._flights[0].mark.done():
            return self._flights.popleft()
        return None

    def _batch_of(self, count: int) -> int:
        """The batch that is run for so many streams: on a CPU no more than they are."""
        return least(self._sizes, count) if self._lane.pads else count

    def _seat(self, slots: list[int]) -> None:
        """Write the batch's slots where the graphs read them; the rest are scratch."""
        if slots != self._batch:
            padded = [*slots, *[self._state.scratch] * (len(self._slots) - len(slots))]
            self._slots.copy_(on_device(padded, torch.int32, self._slots.device))
            self._batch = slots

    def _speak_rows(self, batch: int) -> Tensor:
        return self._generator.speak(self._slots[:batch])

    def _listen_rows(self, batch: int) -> Tensor:
        return self._generator.listen(self._slots[:batch], self._span)
