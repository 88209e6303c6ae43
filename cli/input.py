"""What a command takes: labels, texts from files and stdin, options that many verbs share."""

import sys
from pathlib import Path

import click

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
