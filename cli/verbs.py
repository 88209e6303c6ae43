"""Collects all verbs: imports one when it is asked for or listed, and says how it ended."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from cli.exits import INTERRUPTED, exit_code

ELSEWHERE = {
    "speak": "cli.commands.speak",
    "clip": "cli.commands.speak",
    "edit": "cli.commands.edit",
    "alias": "cli.commands.alias",
    "serve": "cli.commands.serve",
    "demo": "cli.commands.demo",
    "model": "cli.commands.model",
    "bench": "cli.commands.bench",
    "doctor": "cli.commands.doctor",
    "backup": "cli.commands.backup",
    "restore": "cli.commands.backup",
    "deploy": "cli.commands.deploy",
    "keys": "cli.commands.keys",
    "login": "cli.commands.login",
    "logout": "cli.commands.login",
    "where": "cli.commands.login",
    "version": "cli.commands.doctor",
}
LIKE_WORDS = re.compile(r"-[^-a-zA-Z]|--?[^=]*\s")  # no option of ours
DASHES = "A text that begins with '-' goes after `--`, as in: voices speak alice -- '-5 degrees'"


class Verbs(click.Group):
    """A click group whose verbs are imported when they are needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*self.commands, *ELSEWHERE]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in ELSEWHERE:
            command: click.Command = getattr(import_module(ELSEWHERE[name]), name)
            return command
        return super().get_command(context, name)

    def main(self, *given: Any, **options: Any) -> Any:
        """Run a verb as click does, but end as cli.exits says."""
        words = given[0] if given else options.get("args") or sys.argv[1:]
        if any(re.match("-h.", word) for word in words):  # "-hello there" asks for no help
            options["help_option_names"] = ["--help"]

        def run() -> object:
            with hinted(words):
                return super(Verbs, self).main(*given, **options | {"standalone_mode": False})

        if options.get("standalone_mode", True):
            sys.exit(exit_code(run))
        return run()

    def __call__(self, *given: Any, **options: Any) -> Any:
        """Run as the process: after Ctrl-C it waits for no thread, for nothing is lost."""
        try:
            return self.main(*given, **options)
        except SystemExit as ended:
            if ended.code == INTERRUPTED:
                os._exit(INTERRUPTED)
            raise


@contextmanager
def hinted(words: Sequence[str]) -> Iterator[None]:
    """Say what `--` is for, where words were taken for an option."""
    try:
        yield
    except click.UsageError as error:
        if not any(LIKE_WORDS.match(word) for word in words):
            raise
        raise click.UsageError(f"{error.format_message()} {DASHES}", error.ctx) from error
