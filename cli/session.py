"""Connects a command to its registry: at a URL, or on a private socket over the data directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cli.output import visible

if TYPE_CHECKING:
    from cli.api.client import Registry


@contextmanager
def registry(context: click.Context) -> Iterator["Registry"]:
    """Connect to the registry that the options, the environment or the login name."""
    from cli.api.client import connect
    from cli.destination import destination

    if found := destination(context.obj):
        url, headers = found
        with connect(url, headers) as remote:
            yield remote
    else:
        from cli.server.private_server import private_registry

        with private_registry() as local:
            yield local


@contextmanager
def progress(message: str) -> Iterator[None]:
    """Show a spinner on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(visible(message))):
        yield
