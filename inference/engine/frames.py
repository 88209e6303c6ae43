"""Makes one frame for a batch of streams: the device replays two graphs, the host reads late.

Frame n + 1 is issued before the codes of frame n are known, so the device never waits; what was
made for a stream that had ended is dropped.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine.config import Setup
from inference.engine.device import (
    Event,
    GraphRunner,
    Lane,
    on_device,
    padded_size,
    sizes_to_capture,
)
from inference.engine.generator import Generator
from inference.engine.speech_stream import SpeechStream
from inference.engine.state import State


@dataclass(frozen=True)
class PendingStep:
    """A step that the device was asked for, and the host has not read yet."""

    streams: Sequence[SpeechStream]
    report: Tensor  # (B, groups + 1) int64 on the host: codes, then 1 if the row went bad
    event: Event


class FrameRunner:
    """Issues frames on the talker lane, in batches of any streams."""

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
        self._pending: deque[PendingStep] = deque()
        padding = [(self._slots, state.scratch)]
        self._sample = GraphRunner(self._sample_frame, lane, padding)
        self._advance = GraphRunner(self._advance_talker, lane, padding)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def captures(self, streams: int) -> Iterator[int]:
        """Capture what batches of up to `streams` need, a graph at each turn."""
        for size in sizes_to_capture(self._sizes, streams):
            yield from self._sample.captures([size])
            yield from self._advance.captures([size])

    def issue(self, streams: Sequence[SpeechStream]) -> Event:
        """Issue a frame of each stream; the event happens when their codes are in the State."""
        for stream in streams:
            stream.made += 1
        if not self._lane.pads:
            self._span = max(stream.prompt_len + stream.made for stream in streams)
        with self._lane.on():
            self._write_slots([stream.slot for stream in streams])
            batch = self._padded(len(streams))
            frame = self._sample(batch)[: len(streams)]
            made = self._lane.record_event()
            report = self._lane.fetch(frame)
            self._pending.append(PendingStep(streams, report, self._lane.record_event()))
            self._advance(batch)
        return made

    def pop_done(self) -> PendingStep | None:
        """The oldest pending step if the device is done with it, else None."""
        if self._pending and self._pending[0].event.done():
            return self._pending.popleft()
        return None

    def _padded(self, count: int) -> int:
        """The batch that is run for so many streams: on a CPU no more than they are."""
        return padded_size(self._sizes, count) if self._lane.pads else count

    def _write_slots(self, slots: list[int]) -> None:
        """Write the batch's slots where the graphs read them; the rest are scratch."""
        if slots != self._batch:
            padded = [*slots, *[self._state.scratch] * (len(self._slots) - len(slots))]
            self._slots.copy_(on_device(padded, torch.int32, self._slots.device))
            self._batch = slots

    def _sample_frame(self, batch: int) -> Tensor:
        return self._generator.sample_frame(self._slots[:batch])

    def _advance_talker(self, batch: int) -> Tensor:
        return self._generator.advance(self._slots[:batch], self._span)
