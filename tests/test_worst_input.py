"""No input costs the square of its length: each is so long that its square would take hours."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from string import ascii_lowercase

import pytest
from fastapi import Request

from registry.api.etags import Tags
from registry.api.events import accepted
from registry.api.file_answers import spans_of
from registry.api.forms import FormPart, _name
from registry.api.host_and_origin import Hosts, _parse_origin
from registry.api.requests import (
    _query_names,
    deadline_of,
    parse_json,
    refuse_other_type,
    refuse_repeated_parameters,
)
from registry.errors import RangeUnsatisfiable, RegistryError
from registry.names import check_name, name_key
from registry.storage.rows.renames import _renamed
from registry.text import clean_text
from registry.voices.languages import language_named
from registry.voices.transcript import checked_transcript

pytestmark = pytest.mark.timeout(60)  # seconds, where each takes less than three
N = 500_000
HEADERS = {
    "quotes": '"' * N,
    "escaped quotes": '"' + '\\"' * N,
    "a backslash at the end": '"' + '\\"' * N + "\\",
    "semicolons": ";" * N,
    "parameters": ";".join(f"a{i}" for i in range(N)),
    "quoted semicolons": 'a; b="' + ";" * N,
    "commas": "," * N + "x",
    "blanks": " " * N + "x",
    "commas and blanks": '"a"' + " ," * N + "x",
    "tags": '"a",' * N + "x",
    "weak tags": 'W/"a" ' * N,
    "ranges": "bytes=" + "0-1," * N,
    "digits": "bytes=" + "1" * N,
    "waits": "wait = " * N,
    "a wait": "wait" + " " * N + "=",
    "equal signs": "q=" * N,
    "dots": "." * N,
    "labels": "a." * N,
    "brackets": "[" * N + ":" * N,
    "colons": ":" * N,
    "slashes": "http://" * N,
}


def typed(header: str) -> Request:
    headers = [(b"content-type", f"application/json;{header}".encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers})


def part(header: str) -> FormPart:
    return FormPart({b"content-disposition": header.encode("latin-1")[:2048]})


READERS: dict[str, Callable[[str], object]] = {
    "a type": lambda header: refuse_other_type(typed(header), "application/json"),
    "parameters": lambda header: refuse_repeated_parameters("Content-Type", header[:2000]),
    "all parameters": lambda header: refuse_repeated_parameters("Content-Type", header),
    "a part": lambda header: _name(part(header)),
    "If-Match": Tags.of,
    "Accept": accepted,
    "Range": lambda header: spans_of(header, 1000),
    "a range": lambda header: spans_of(f"bytes={header}", 1000),
    "Prefer": lambda header: asyncio.run(deadline_of(header)),
    "Host": Hosts.of(["127.0.0.1"], ["*.example.org"]).know,
    "Origin": _parse_origin,
    "an origin": lambda header: _parse_origin(f"http://{header}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("reader", READERS)
def test_a_header_is_read_in_a_time_like_its_length(reader: str, header: str) -> None:
    with suppress(RegistryError, RangeUnsatisfiable):
        READERS[reader](HEADERS[header])


TEXTS = {
    "marks out of order": "a" + "\u0301" * N + "\u0323" * N,
    "marks between joiners": "a" + "\u0301\u034f\u0323\u034f" * N,
    "Hangul in pieces": "\u1100\u1161\u11a8" * N,
    "what becomes much": "\ufdfa" * N,
    "soft hyphens": "\u00ad" * N + " " * N,
    "hyphens at ends": "\u00ad \n" * N,
    "blanks": " " * N + "x",
    "line ends": "\r" * N,
    "blank lines": " \n" * N,
    "joiners": "\u200d" * N,
    "Persian joiners": "\u0645\u200c" * N,
}
TAKERS: dict[str, Callable[[str], object]] = {
    "a name": check_name,
    "a key": name_key,
    "a text": lambda text: clean_text(text, 5000),
    "a text of any length": lambda text: clean_text(text, len(text)),
    "a transcript": checked_transcript,
    "a language": lambda text: language_named(text[:32], ("english",)),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("taker", TAKERS)
def test_a_text_is_taken_in_a_time_like_its_length(taker: str, text: str) -> None:
    with suppress(RegistryError):
        TAKERS[taker](TEXTS[text])


@pytest.mark.slow
def test_a_key_of_json_that_is_there_twice_is_found_at_once() -> None:
    keys = {f"k{i}": 0 for i in range(N)}
    body = json.dumps(keys)[:-1] + f', "k{N - 1}": 0}}'
    with pytest.raises(RegistryError, match=f"'k{N - 1}' twice"):
        parse_json(body.encode())


@pytest.mark.slow
def test_names_that_become_one_are_numbered_at_once() -> None:
    odd = [(f"voice_{number:032x}", "a  b", "a b", True) for number in range(100_000)]
    found = [one.new for one in _renamed(odd, {"a b 7"})]
    assert found[:7] == ["a b", "a b 2", "a b 3", "a b 4", "a b 5", "a b 6", "a b 8"]
    assert len({*found}) == len(odd)


@pytest.mark.slow
def test_long_names_that_begin_alike_are_numbered_at_once() -> None:
    endings = ["".join(letters) for letters in product(ascii_lowercase, repeat=3)]
    names = [f"a {'b' * 59}{ending}" for ending in endings]  # of 64 characters
    odd = [(f"voice_{number:032x}", f"{name} ", name, True) for number, name in enumerate(names)]
    found = [one.new for one in _renamed(odd, set(names))]
    assert len({*found, *names}) == len(odd) + len(names)
    assert {len(name) for name in found} <= {*range(58, 65)}


@pytest.mark.parametrize("query", ["label=a&", "label&", "&", "=&", "a=&"])
def test_a_query_of_many_is_read_at_once(query: str) -> None:
    scope = {"type": "http", "query_string": query.encode() * N}
    with suppress(RegistryError):
        _query_names(Request(scope), {"label"})
