"""The key/value cache's rows, handed out by pages to requests of very different lengths."""

PAGE = 64


def whole(count: int) -> int:
    """The rows of the pages that `count` rows take."""
    return -(-count // PAGE) * PAGE


class CacheRows:
    """`rows` cache rows in pages of 64. Row 0 is nobody's: what padding writes goes there."""

    def __init__(self, rows: int) -> None:
        self._free = list(range(rows // PAGE - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free) * PAGE

    def take(self, count: int) -> list[int]:
        """At least `count` rows; `count` must be at most `free`."""
        pages = [self._free.pop() for _ in range(whole(count) // PAGE)]
        return [1 + page * PAGE + row for page in pages for row in range(PAGE)]

    def give_back(self, rows: list[int]) -> None:
        self._free.extend((row - 1) // PAGE for row in rows[::PAGE])
