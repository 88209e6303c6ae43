"""The voices in memory: least recently used prompts leave first, bounded in bytes.

Entries never go stale, since a PromptRef names the content. Belongs to one thread; knows neither
torch nor where prompts come from.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeVar

from registry.files import PromptRef


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Sized)


class PromptCache(Generic[P]):
    """PromptRef → prompt, of at most `limit_bytes` in all."""

    def __init__(self, read: Callable[[PromptRef], P], limit_bytes: int) -> None:
        """`read` fetches a missing prompt, and may raise."""
        self._read = read
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[PromptRef, P] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, ref: PromptRef) -> tuple[P, Literal["memory", "file"]]:
        """The prompt and where it was. A prompt above the bound is served, not kept."""
        if (kept := self._kept.get(ref)) is not None:
            self._kept.move_to_end(ref)
            return kept, "memory"
        prompt = self._read(ref)
        self._keep(ref, prompt)
        return prompt, "file"

    def _keep(self, ref: PromptRef, prompt: P) -> None:
        if prompt.nbytes > self._limit_bytes:
            return
        self._kept[ref] = prompt
        self.nbytes += prompt.nbytes
        while self.nbytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes
