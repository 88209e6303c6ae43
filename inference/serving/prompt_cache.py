"""The voices in memory: least recently used prompts leave first, bounded in bytes.

Entries never go stale, since a PromptRef names the content. Safe to use from any thread; knows
neither torch nor where prompts come from.
"""

import threading
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from registry.contract import PromptRef


class HasNbytes(Protocol):
    """Anything that knows its size in bytes."""

    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=HasNbytes)


class PromptCache(Generic[P]):
    """Keeps prompts by their PromptRefs, of at most `limit_bytes` in all."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[PromptRef, P] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ref: PromptRef) -> P | None:
        """Find the prompt if it is here; it is then the last to leave."""
        with self._lock:
            if ref in self._kept:
                self._kept.move_to_end(ref)
            return self._kept.get(ref)

    def keep(self, ref: PromptRef, prompt: P) -> None:
        """Keep the prompt, and let others leave for it. One that is above the bound is not kept."""
        if prompt.nbytes > self._limit_bytes:
            return
        with self._lock:
            self._drop(ref)
            self._kept[ref] = prompt
            self.nbytes += prompt.nbytes
            while self.nbytes > self._limit_bytes:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def _drop(self, ref: PromptRef) -> None:
        if (dropped := self._kept.pop(ref, None)) is not None:
            self.nbytes -= dropped.nbytes
