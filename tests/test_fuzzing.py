"""No input makes a parser raise what is not its own, or refuse in words that can't be sent."""

import json
import logging
from typing import Any

import click
import pytest
from fastapi.exceptions import RequestValidationError
from fuzzed_files import FILES
from fuzzed_requests import REQUESTS
from fuzzing import Parser, fuzz

from cli.output import visible
from registry.api.problems import _invalid, of_error, rendered
from registry.errors import RegistryError

PARSERS: dict[str, Parser[Any]] = REQUESTS | FILES


def told(refused: Exception) -> bytes:
    """As the one who sent it reads it."""
    if isinstance(refused, RegistryError):
        return bytes(rendered(of_error(refused)).body)
    if isinstance(refused, RequestValidationError):
        return bytes(rendered(_invalid(refused)).body)
    if isinstance(refused, click.ClickException):
        return visible(refused.format_message()).encode()
    return str(refused).encode()


def hold(name: str, calls: int, seed: int) -> None:
    parser = PARSERS[name]
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it tells of every bad header
    ends = fuzz(parser, calls, f"{name} {seed}", told)
    print(f"{name}: {dict(ends.most_common())}")
    assert ends["read"] > calls // 100, "too few are read: this proves little"
    assert not parser.refusals or len(ends) > 1, "none is refused"


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_what_is_not_read_is_refused_by_the_parsers_own_error(name: str) -> None:
    hold(name, 2000, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", PARSERS)
def test_a_million_inputs_are_read_or_refused(name: str) -> None:
    hold(name, 1_000_000, seed=2)


def echo(text: str) -> None:
    if not text.isascii():
        raise KeyError(text)


FAULTY: dict[str, Parser[Any]] = {
    "deep JSON": Parser(json.loads, (ValueError,), [b"[1]"], [b"[" * 2000]),
    "bytes that are no text": Parser(lambda data: data.decode(), (), [b"abc"], [b"x"]),
    "a refusal that no answer can hold": Parser(echo, (KeyError,), ["a"], ["\ud800"]),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_parser_that_is_wrong_is_noticed(fault: str) -> None:
    with pytest.raises((RecursionError, UnicodeError)) as caught:
        fuzz(FAULTY[fault], 2000, "1", lambda refused: refused.args[0].encode())
    assert "others, of" in caught.value.__notes__[0]
