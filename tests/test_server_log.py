"""The server's log, as a terminal shows it: a line is a line, and commands nothing."""

import io
import logging
from pathlib import Path

import pytest
from test_serve import served

from cli.server.server_log import AccessLine, LogLine

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x7f\b\r"
HEADERS = ("X-Forwarded-For", "X-Forwarded-Proto", "User-Agent", "Referer", "Prefer", "If-Match")


@pytest.mark.slow
def test_no_header_of_a_client_commands_the_terminal(tmp_path: Path) -> None:
    with served(tmp_path, "--no-inference", proxies="127.0.0.1") as server:
        for name in HEADERS:
            for value in ("1.2.3.4\x1b]52;c;ZXZpbA==\x07", "1.2.3.4\x1b[2J", "1.2.3.4\x7f\b"):
                server.ask("GET", "/voices", **{name: value})
        server.ask("GET", "/voices/%1b%5b2J%0aINFO:%20all%20is%20well")
    log = "".join(server.log)
    assert r"1.2.3.4\x1b]52;c;ZXZpbA==\x07" in log  # it is told, and so was looked at
    assert not {c for c in log if not c.isprintable()} - {"\n"}
    assert not [line for line in log.splitlines() if not line.startswith("20")]


@pytest.mark.slow
def test_a_line_is_no_longer_than_what_it_tells(tmp_path: Path) -> None:
    with served(tmp_path, "--no-inference") as server:
        assert server.ask("GET", "/" + "%01" * 5000)[0] == 404
        assert server.ask("GET", "/voices?search=" + "a" * 15_000)[0] == 422
        assert server.ask("GET", "/" + "a" * 20_000)[0] == 400  # its head is too long
    assert "characters)" in "".join(server.log)
    assert max(map(len, server.log)) < 1000


@pytest.mark.parametrize("line", [LogLine, AccessLine])
def test_what_is_logged_is_one_line_without_commands(line: type[logging.Formatter]) -> None:
    """A message, its values, an error among them, and the error that it is logged with."""
    told = io.StringIO()
    logger = logging.Logger("registry.voices.enrolment")
    handler = logging.StreamHandler(told)
    handler.setFormatter(line("%(asctime)s %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    if line is AccessLine:
        logger.info('%s - "%s %s HTTP/%s" %d', HOSTILE, "GET", f"/{HOSTILE}\nINFO: ", "1.1", 200)
    else:
        logger.warning("A clip %s (%r, %s) of %d bytes", HOSTILE, HOSTILE, OSError(HOSTILE), 7)
        logger.warning("first\nINFO: all is well%s", "\nINFO: all is well")
        logger.warning(HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("It failed")
    said = told.getvalue()
    assert r"\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m" in said
    assert not {c for c in said if not c.isprintable()} - {"\n"}
    assert "\nINFO" not in said
    assert line is AccessLine or ("of 7 bytes" in said and "Traceback" in said)
