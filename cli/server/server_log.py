"""Formats the log of `voices serve` on stderr: a line each, with its time in UTC (RFC 3339).

What clients send is told too (a path, an X-Forwarded-For), so nothing of it may begin a line of its
own or command the terminal. The colours are uvicorn's, and come later.
"""

import time
from copy import copy
from logging import Formatter, LogRecord
from typing import Any

from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter, DefaultFormatter

from cli.output import visible

LONGEST = 500  # characters of a value, such as a path


class _Line(Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: LogRecord) -> str:
        shown = copy(record)
        shown.msg = _one_line(record.msg)
        if isinstance(record.args, tuple):
            shown.args = tuple(_one_line(value) for value in record.args)
        return super().format(shown)

    def formatException(self, ei: Any) -> str:
        return _without_keys(visible(super().formatException(ei)))


class LogLine(_Line, DefaultFormatter):
    """A line of the server's log."""

    pass


class AccessLine(_Line, AccessFormatter):
    """A line about one request."""

    pass


def _one_line(value: object) -> object:
    if isinstance(value, int | float):
        return value
    text = _without_keys(str(value))
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… ({len(text):,} characters)"
    return visible(text).replace("\n", "\\n")


def _without_keys(text: str) -> str:
    from registry.keys.secret import without_keys

    return without_keys(text)


def log_config() -> dict[str, Any]:
    """Return uvicorn's configuration, with times, all on stderr, and our own loggers in it."""
    formatters = {
        "default": {"()": LogLine, "fmt": f"%(asctime)s {_fmt('default')}"},
        "access": {"()": AccessLine, "fmt": f"%(asctime)s {_fmt('access')}"},
    }
    handlers = {
        name: {**handler, "stream": "ext://sys.stderr"}
        for name, handler in LOGGING_CONFIG["handlers"].items()
    }
    ours = dict.fromkeys(("registry", "inference"), LOGGING_CONFIG["loggers"]["uvicorn"])
    loggers = LOGGING_CONFIG["loggers"] | ours
    return LOGGING_CONFIG | {"formatters": formatters, "handlers": handlers, "loggers": loggers}


def _fmt(name: str) -> str:
    fmt: str = LOGGING_CONFIG["formatters"][name]["fmt"]
    return fmt
