"""Which files this process opens, seen by the interpreter's own audit events."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_recording: list[list[str]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _recording:
        for record in _recording:
            if not isinstance(arguments[0], int):  # a descriptor is open already
                record.append(str(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths opened by any thread while the block runs."""
    record: list[str] = []
    _recording.append(record)
    try:
        yield record
    finally:
        _recording.remove(record)
