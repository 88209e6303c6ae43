"""What a command takes: labels, texts from files and stdin, options that many verbs share."""

import sys
from pathlib import Path

import click

FORMATS = ("wav", "flac", "pcm")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
labels_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; may be repeated."
)


def parse_labels(labels: tuple[str, ...]) -> dict[str, str]:
    pairs = [label.partition("=") for label in labels]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise click.UsageError(f"A label is KEY=VALUE, not {key!r}.")
    return {key: value for key, _, value in pairs}


def labels_after(
    labels: dict[str, str], added: dict[str, str], dropped: tuple[str, ...]
) -> dict[str, str]:
    missing = [key for key in dropped if key not in labels]
    if missing:
        raise click.ClickException(f"The voice has no label {missing[0]!r}.")
    return {k: v for k, v in labels.items() if k not in dropped} | added


def format_of(output: Path | None) -> str:
    """The audio format that a file's ending asks for."""
    ending = output.suffix.lstrip(".").lower() if output is not None else ""
    return ending if ending in FORMATS else "wav"


def read_text(given: str) -> str:
    """The words themselves, those in `@file`, or those on stdin for `-`."""
    if given == "-":
        raw = sys.stdin.buffer.read()
    elif given.startswith("@"):
        path = Path(given[1:])
        if not path.is_file():
            raise click.UsageError(f"There is no file {str(path)!r}.")
        raw = path.read_bytes()
    else:
        return given
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{given} is not UTF-8 text: {error}.") from error
