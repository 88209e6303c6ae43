"""Prints what a command says: data on stdout, talk on stderr."""

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

import click

from cli.folders import real

WIDE = 10_000
SHORT_ID = 14  # voice_ and 8 digits
HEADINGS = ("NAME", "MODES", "CLIP", "LABELS", "DESCRIPTION", "ID")
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # Persian and Hindi are written with them


def visible(text: str) -> str:
    """Escape what could command the terminal, or hide there; lines and tabs stay."""
    return "".join(c if _is_harmless(c) else _escape(c) for c in text)


def _is_harmless(character: str) -> bool:
    return (
        character.isprintable()
        or character in "\n\t"
        or character in JOINERS
        or unicodedata.category(character) not in UNSEEN
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_paragraph(text: str) -> str:
    """Escape line ends, so that quoted text cannot fake a line of output."""
    return visible(text).replace("\n", "\\n")


def print_line(line: str = "") -> None:
    """Print data on stdout, parts of which a server, a model or a file may have written."""
    click.echo(visible(line))


def print_path(path: object) -> None:
    """Print a path as it is, for whoever goes there; escaped on a terminal."""
    click.echo(visible(str(path)) if sys.stdout.isatty() else str(path))


def say(message: str) -> None:
    """Print on stderr; one that is full, or whose reader has left, is no reason to stop."""
    with suppress(OSError):
        click.echo(visible(message), err=True)


def warn(warnings: Iterable[str]) -> None:
    """Print what a person should know of the clip that they gave."""
    for warning in warnings:
        say(one_paragraph(f"Note: {warning}"))


def print_json(value: object) -> None:
    """Print JSON, with escapes for what is not seen, and for what stdout can't encode."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    click.echo("".join(c if _is_harmless(c) else json.dumps(c)[1:-1] for c in text))


def report(voice: dict[str, Any], as_json: bool, message: str) -> None:
    if as_json:
        print_json(voice)
    else:
        say(one_paragraph(message))


def print_voices(voices: list[dict[str, Any]]) -> None:
    """Print voices; on a terminal names are whole and ids short, in a pipe both are whole."""
    rows = [[_cell(text) for text in _table_row(voice)] for voice in voices]
    if _width_of(rows) > _width():
        rows = [[*row[:-1], f"{row[-1][:SHORT_ID]}…"] for row in rows]
    print_table(HEADINGS, rows, ("LABELS", "DESCRIPTION"))


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], wrapped: Collection[str]
) -> None:
    """Print a table; on a terminal, long cells of `wrapped` columns wrap, and others are cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        wraps = heading in wrapped
        table.add_column(heading, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(markup=False, highlight=False, width=_width()).print(table)


def _cell(text: str) -> str:
    return visible(" ".join(text.split()))


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def _width_of(rows: list[list[str]]) -> int:
    from rich.cells import cell_len

    columns = zip(HEADINGS, *rows, strict=True)
    return sum(max(map(cell_len, column)) + 3 for column in columns) - 3


def _table_row(voice: dict[str, Any]) -> list[str]:
    labels = " ".join(f"{k}={v}" for k, v in voice["labels"].items())
    length = f"{voice['clip']['duration_s']:.1f} s"
    modes = ", ".join(voice["modes"])
    return [voice["name"], modes, length, labels, voice["description"], voice["id"]]


def print_fields(voice: dict[str, Any]) -> None:
    for field, value in voice.items():
        for key, shown in _flat(field, value):
            lines = visible(shown).replace("\n", "\n" + " " * 21)
            print_line(f"{key:<20} {lines}")


def _flat(field: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{field}.{key}", inner)
    elif isinstance(value, list):
        yield field, "; ".join(map(str, value))
    elif value is not None:
        yield field, str(value)


def refuse_overwriting(path: Path, force: bool) -> None:
    """Refuse a path before the work, so that nobody waits for audio that is then lost."""
    real(path)
    if path.is_symlink() and path.lstat().st_uid != os.geteuid():
        raise click.ClickException(f"{path} is a link of another account; name another -o.")
    if path.is_dir():
        raise click.UsageError(f"{str(path)!r} is a folder; name a file.")
    if path.exists() and not path.is_file():
        raise click.UsageError(f"{str(path)!r} is no file; `-o - > {path}` writes to it.")
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists. Give --force to replace it, or another -o.")


@contextmanager
def new_file(
    path: Path, force: bool, opener: Callable[[str, int], int] | None = None
) -> Iterator[BinaryIO]:
    """Open a file that gets its name when all is written: it is whole, or it is not there."""
    refuse_overwriting(path, force)
    target = real(path)
    part = target.with_name(f".voices-{token_hex(8)}")
    try:
        with open(part, "xb", opener=opener) as file:
            yield file
        refuse_overwriting(path, force)
        part.replace(target)
    except OSError as error:
        raise click.ClickException(f"Can't write {path}: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_private_file(path: Path, content: bytes, force: bool) -> None:
    """Write for the owner alone, whatever the umask, replacing one open to others."""
    from registry.storage import private

    with new_file(path, force, private.opener) as file:
        file.write(content)


def write_wave(file: BinaryIO, pcm: Iterable[bytes], sample_rate: int) -> None:
    """Write 16-bit mono samples as they come; the sizes in the header follow at the end."""
    import wave

    with wave.open(file, "wb") as out:
        out.setparams((1, 2, sample_rate, 0, "NONE", ""))
        for part in pcm:
            out.writeframesraw(part)


def write_stdout(parts: Iterable[bytes]) -> None:
    """Write each part to stdout before the next one is asked for."""
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def refuse_terminal() -> None:
    if sys.stdout.isatty():
        raise click.UsageError("`-o -` writes audio to stdout: send it to a file or a program.")
