"""The key/value cache's entries, handed out by pages to requests of very different lengths.

An entry holds one position of one request. The pages of a request need not be neighbours.
"""

PAGE_SIZE = 64


def whole_pages(count: int) -> int:
    """Round `count` entries up to whole pages."""
    return -(-count // PAGE_SIZE) * PAGE_SIZE


class PageAllocator:
    """Hands out cache entries in pages of 64. Entry 0 is nobody's: padding writes there."""

    def __init__(self, entries: int) -> None:
        self._free = list(range(entries // PAGE_SIZE - 1, -1, -1))

    @property
    def free_entries(self) -> int:
        return len(self._free) * PAGE_SIZE

    def allocate(self, count: int) -> list[int]:
        """Take at least `count` entries; `count` must be at most `free_entries`."""
        pages = [self._free.pop() for _ in range(whole_pages(count) // PAGE_SIZE)]
        return [1 + page * PAGE_SIZE + entry for page in pages for entry in range(PAGE_SIZE)]

    def release(self, entries: list[int]) -> None:
        self._free.extend((entry - 1) // PAGE_SIZE for entry in entries[::PAGE_SIZE])
