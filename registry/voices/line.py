"""Who comes to speak, counted until the model counts them itself: of too many, one is told at once.

A refusal costs no thread and no question to the database, so that those who are refused keep
nobody else waiting.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from registry.contract import Inference


class Line:
    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self.coming = 0

    def refuse_full(self) -> None:
        """Raises Overloaded."""
        self._inference.refuse_full(self.coming)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """From the first look at a request until it is handed to the model. Raises Overloaded."""
        self.refuse_full()
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1
