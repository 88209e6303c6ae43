"""Counts who comes to speak until the model counts them itself, and refuses too many at once.

A refusal costs no thread and no question to the database, so that those who are refused keep nobody
else waiting.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from registry.contract import Inference


class Line:
    """Counts speech requests that have not reached the model's own queue."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self.coming = 0

    def refuse_full(self) -> None:
        """Raise Overloaded if those who come fill the model's queue."""
        self._inference.refuse_full(self.coming)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Count a request while the block hands it to the model. Raises Overloaded."""
        self.refuse_full()
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1
