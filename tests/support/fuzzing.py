"""Calls of a parser with inputs near to good ones, all from one seed: it reads them, or refuses."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Generic, TypeVar

LONGEST = 4096  # bytes or characters of an input
JSON_TOKENS: tuple[bytes, ...] = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udfff", b"null"),
    *(b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"1" * 4301, b"0.5", b"2147483648", b"\xff"),
    *(b"\xef\xbb\xbf", b"\0", b"[" * 2000, b'{"a":' * 800, b" ", b'"name"', b'"labels"', b'"mode"'),
)
T = TypeVar("T", bytes, str)


@dataclass(frozen=True)
class Parser(Generic[T]):
    """`read` raises nothing but `refusals`; `tokens` are what means something to it."""

    read: Callable[[T], object]
    refusals: tuple[type[Exception], ...]
    corpus: Sequence[T]
    tokens: Sequence[T]


def fuzz(
    parser: Parser[T], calls: int, seed: str, told: Callable[[Exception], object] = str
) -> Counter[str]:
    """How many inputs ended how. What is no refusal is raised, and so is a refusal that can't be
    `told`, each with its input."""
    ends: Counter[str] = Counter()
    for data in islice(mutated(parser.corpus, parser.tokens, Random(seed)), calls):
        try:
            ends[_end(parser, data, told)] += 1
        except Exception as error:
            error.add_note(f"after {sum(ends.values()):,} others, of {data!r}")
            raise
    return ends


def _end(parser: Parser[T], data: T, told: Callable[[Exception], object]) -> str:
    try:
        parser.read(data)
    except parser.refusals as refused:
        told(refused)
        return type(refused).__name__
    return "read"


def mutated(
    corpus: Sequence[T], tokens: Sequence[T], random: Random, longest: int = LONGEST
) -> Iterator[T]:
    """Of each what one to five changes make of it, without an end."""
    while True:
        data = random.choice(corpus)
        for _ in range(min(5, 1 + int(random.expovariate(1)))):
            change = random.choice(CHANGES)
            data = change(data, random.choice(tokens), random.choice(corpus), random)
        yield data[:longest]


def cut(data: T, token: T, other: T, random: Random) -> T:
    return data[: _place(data, random)]


def drop(data: T, token: T, other: T, random: Random) -> T:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def repeat(data: T, token: T, other: T, random: Random) -> T:
    start, end = _span(data, random)
    times = random.choice((2, 3, 20, 300))
    return data[:start] + (data[start:end] * times)[:LONGEST] + data[end:]


def insert(data: T, token: T, other: T, random: Random) -> T:
    at = _place(data, random)
    return data[:at] + token + data[at:]


def replace(data: T, token: T, other: T, random: Random) -> T:
    at = _place(data, random)
    return data[:at] + token + data[at + len(token) :]


def splice(data: T, token: T, other: T, random: Random) -> T:
    return data[: _place(data, random)] + other[_place(other, random) :]


def swap(data: T, token: T, other: T, random: Random) -> T:
    """Two neighbouring parts."""
    start, end = _span(data, random)
    middle = random.randint(start, end)
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def flip(data: T, token: T, other: T, random: Random) -> T:
    """One bit of bytes; of text one character, which any other takes the place of."""
    if not data:
        return token
    at = random.randrange(len(data))
    if isinstance(data, bytes):
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    return data[:at] + chr(random.randrange(random.choice(PLANES))) + data[at + 1 :]


CHANGES: tuple[Callable[..., bytes | str], ...] = (  # type: ignore[assignment]
    *(cut, drop, repeat, insert, insert, replace, splice, swap, flip, flip),
)
PLANES = (0x80, 0x100, 0x800, 0x10000, 0x110000)  # the surrogates are in the last two


def _place(data: T, random: Random) -> int:
    return int(random.random() * (len(data) + 1))


def _span(data: T, random: Random) -> tuple[int, int]:
    """Short ones more often than long ones."""
    start = _place(data, random)
    return start, min(len(data), start + int(random.expovariate(1 / 8)) + 1)
