"""Completes the names of voices in a shell: quickly or not at all, and without error messages."""

import os
import re
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.destination import DestinationOptions, destination
from cli.input import TextType
from cli.output import visible

MOST = 50
LONGEST = 256  # characters that may name a voice, as /speak has it
WAIT_S = 1.0
NOT_PLAIN = re.compile(r"([^\w@%+=:,./-])")


class VoiceNameType(TextType):
    """A voice's name or id.

    What can be neither is refused: in a URL, `..` would lead a folder up.
    """

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        name = super().convert(value, param, context)
        if name.strip() in ("", ".", "..") or len(name) > LONGEST:
            self.fail(f"No voice can be called {name[:LONGEST]!r}.", param, context)
        return name

    def shell_complete(
        self, context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        options = context.find_root().params
        local = bool(options.get("local"))
        asked = DestinationOptions(None if local else options.get("url") or None, local)
        return [CompletionItem(escaped(name)) for name in names(asked, incomplete)]


VOICE = VoiceNameType()


def names(asked: DestinationOptions, beginning: str) -> list[str]:
    """Return the names that begin so; none if the registry can't be asked."""
    try:
        found = destination(asked)
        known = _local(beginning) if found is None else _remote(*found, beginning)
    except (click.ClickException, OSError):
        return []
    return [name for name in known if visible(name) == name and "\n" not in name]


def _remote(url: str, headers: dict[str, str], beginning: str) -> list[str]:
    from cli.api import answers
    from cli.api.client import connect

    with connect(url, headers, WAIT_S) as voices:
        query = {"limit": str(MOST), "search": beginning}
        page = answers.parsed_json(voices.request("GET", "/voices", params=query), answers.PAGE)
    return [voice["name"] for voice in page["data"]]


def _local(beginning: str) -> list[str]:
    from cli import compose
    from registry.storage.data_dir import DataDir
    from registry.storage.rows.known_names import names_beginning

    data = DataDir(compose.home_of(compose.load_settings()))
    return names_beginning(data.database, beginning, MOST)


def escaped(name: str) -> str:
    """Escape a name for bash, which puts it on the line as it is; other shells do so themselves."""
    if os.environ.get("_VOICES_COMPLETE") != "bash_complete":
        return name
    return NOT_PLAIN.sub(r"\\\1", name)
