"""Brings mono float samples through filters of FFmpeg in a row, as they come.

PyAV is imported where it is used: it costs 0.12 s, which no speech without filters need pay.
"""

from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from registry.contract import Samples

if TYPE_CHECKING:
    from av.filter import Graph

NOTHING = np.empty(0, np.float32)


class FilterChain:
    """Runs one stream of samples through filters, as they come."""

    def __init__(self, sample_rate: int, *filters: tuple[str, str]) -> None:
        """Take each filter as its name and its options, as FFmpeg spells them."""
        self._sample_rate, self._filters = sample_rate, filters
        self._frames = 0
        self.metadata: dict[str, str] = {}  # what the filters say of the last of what came out

    def feed(self, samples: Samples) -> Samples:
        """Take samples; return those that are ready."""
        from av import AudioFrame

        if len(samples):
            frame = AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.sample_rate, frame.time_base = self._sample_rate, Fraction(1, self._sample_rate)
            frame.pts = self._frames
            self._frames += len(samples)
            self._graph.push(frame)
        return self._ready()

    def finish(self) -> Samples:
        """Return the rest."""
        self._graph.push(None)
        return self._ready()

    def _ready(self) -> Samples:
        from av import AudioFrame, error

        parts = [NOTHING]
        while True:
            try:
                frame = self._graph.pull()
            except (error.BlockingIOError, error.EOFError):
                return np.concatenate(parts)
            assert isinstance(frame, AudioFrame)
            self.metadata |= frame.metadata
            parts.append(frame.to_ndarray()[0].astype(np.float32))

    @cached_property
    def _graph(self) -> "Graph":
        from av.filter import Graph

        graph = Graph()
        graph.threads = 1  # each would have as many as there are cores
        source = graph.add_abuffer(
            sample_rate=self._sample_rate,
            format="flt",
            layout="mono",
            time_base=Fraction(1, self._sample_rate),
        )
        nodes = [graph.add(name, options) for name, options in self._filters]
        graph.link_nodes(source, *nodes, graph.add("abuffersink")).configure()
        return graph
