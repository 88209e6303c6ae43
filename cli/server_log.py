"""What `voices serve` says on stderr: one line each, with its time in UTC, as RFC 3339 has it."""

import time
from typing import Any

from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter, DefaultFormatter


class LogLine(DefaultFormatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class AccessLine(AccessFormatter):
    converter = staticmethod(time.gmtime)
    default_time_format = LogLine.default_time_format
    default_msec_format = LogLine.default_msec_format


def log_config() -> dict[str, Any]:
    """uvicorn's own, with times, all of it on stderr, and the lines of our own loggers."""
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
