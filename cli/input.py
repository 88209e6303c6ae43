"""Reads what a command takes: texts, clips and labels, checked before anything else is done."""

import codecs
import sys
from typing import Any

import click

from cli.output import visible

MIB = 1 << 20
TEXT_LIMIT = MIB
CLIP_LIMIT = 20 * MIB  # the most that a registry takes
MARKS = (  # UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextType(click.ParamType):  # type: ignore[type-arg]  # which is generic since click 8.4
    """A text that can be sent: one that is not UTF-8, and so has lone surrogates, is refused."""

    name = "text"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        text = str(value)
        if any("\ud800" <= c <= "\udfff" for c in text):
            self.fail(f"{visible(text)!r} is not UTF-8 text.", param, context)
        return text


WORDS = TextType()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
labels_option = click.option(
    "--label",
    "labels",
    multiple=True,
    type=WORDS,
    metavar="KEY=VALUE",
    help="A label; may be repeated.",
)


def parse_labels(labels: tuple[str, ...]) -> dict[str, str]:
    pairs = [label.partition("=") for label in labels]
    for label, (key, equals, _) in zip(labels, pairs, strict=True):
        if not (key and equals):
            raise click.UsageError(
                f"A label has a key and a value, as in `--label use=audiobook`; {label!r} has not."
            )
    return {key: value for key, _, value in pairs}


def labels_after(
    labels: dict[str, str], added: dict[str, str], dropped: tuple[str, ...]
) -> dict[str, str]:
    missing = [key for key in dropped if key not in labels]
    if missing:
        raise click.ClickException(f"The voice has no label {missing[0]!r}.")
    return {k: v for k, v in labels.items() if k not in dropped} | added


def read_text(given: str) -> str:
    """Return the words themselves, those in `@file`, or on stdin for `-`; `@@` stands for an @."""
    if given.startswith("@@"):
        return given[1:]
    if given == "@":
        raise click.UsageError("`@` names no file; a text that begins with @ is written `@@…`.")
    if given != "-" and not given.startswith("@"):
        return given
    name = given.removeprefix("@")
    return decoded(read(name, TEXT_LIMIT, "text"), called(name))


def read_clip(name: str) -> bytes:
    """Read a recording from a file, a pipe, or stdin for `-`."""
    clip = read(name, CLIP_LIMIT, "clip")
    if not clip:
        raise click.UsageError(f"{called(name)} is empty.")
    return clip


def read(name: str, limit: int, what: str) -> bytes:
    """Read all of a file of any kind; a device that never ends is refused at the limit."""
    try:
        if name == "-":
            content = sys.stdin.buffer.read(limit + 1)
        else:
            with open(name, "rb") as file:
                content = file.read(limit + 1)
    except OSError as error:
        raise click.UsageError(f"Can't read {called(name)}: {error.strerror}.") from error
    except ValueError as error:
        raise click.UsageError(f"{called(name)} can't be the name of a file.") from error
    if len(content) > limit:
        raise click.UsageError(
            f"{called(name)} has more than {limit // MIB} MiB, too much for a {what}."
        )
    return content


def called(name: str) -> str:
    return "stdin" if name == "-" else repr(visible(name))


def decoded(raw: bytes, name: str) -> str:
    """Decode text as UTF-8, or as a byte order mark says."""
    encoding = next((found for mark, found in MARKS if raw.startswith(mark)), "utf-8-sig")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{name} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}. "
            f"If it is of another encoding, convert it: `iconv -f LATIN1 -t UTF-8`."
        ) from error
    if "\0" in text:
        raise click.UsageError(
            f"{name} holds bytes of 0, so it is no UTF-8 text. If it is UTF-16 without a mark at "
            "its beginning, convert it: `iconv -f UTF-16LE -t UTF-8`."
        )
    return text


def agreed(question: str) -> bool:
    """Ask on the terminal, or read the answer from a pipe."""
    try:
        return click.confirm(visible(question), err=True)
    except click.Abort as aborted:
        if sys.stdin.isatty() or isinstance(aborted.__context__, KeyboardInterrupt):
            raise
        raise click.UsageError("There is no terminal to ask: give --yes.") from None
