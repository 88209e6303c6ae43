"""The pages that are made of the program itself: docs/cli.md and the table of settings.

python docs/generate.py          writes both
python docs/generate.py --check  fails if one of them is not what the program says
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from cli.main import cli
from registry.settings import Settings, variable

DOCS = Path(__file__).parent
WIDTH = 88  # of help texts; otherwise the terminal's would show in the page
BEGIN, END = "<!-- generated: python docs/generate.py -->", "<!-- end of the generated part -->"


def commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[click.Context, click.Command]]:
    """The command and all below it, in the order of `--help`."""
    context = click.Context(
        command, parent, info_name=name, terminal_width=WIDTH, **command.context_settings
    )
    yield context, command
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from commands(found, below, context)


def command_line() -> str:
    """The help of every command, as Markdown."""
    parts = []
    for context, command in commands(cli, "voices"):
        depth = "##" if context.parent is None else "###"
        help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"{depth} {context.command_path}\n\n```\n{help_text}\n```")
    return "\n\n".join(parts)


def settings() -> str:
    """Every setting of the service, its variable and its default, as a Markdown table."""
    rows = ["| variable | default | takes | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        has_none = field.is_required() or field.default in (None, "")
        default = "" if has_none else f"`{field.default}`"
        rows.append(f"| `{variable(name)}` | {default} | {takes(field)} | {field.description} |")
    return "\n".join(rows)


def takes(field: FieldInfo) -> str:
    """The values that a setting takes, where they are a list or a range."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    bounds = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(rule, name)
    }
    if "le" not in bounds:
        return ""
    low = f"above {bounds['gt']:g}, " if "gt" in bounds else f"{bounds['ge']:,} "
    return f"{low}to {bounds['le']:,}"


def page(path: Path, generated: str) -> str:
    """The page with its generated part made anew; what a person wrote around it stays."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def pages() -> dict[Path, str]:
    return {
        path: page(path, generated)
        for path, generated in (
            (DOCS / "cli.md", command_line()),
            (DOCS / "configuration.md", settings()),
        )
    }


def main() -> None:
    stale = [p for p, text in pages().items() if p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv and stale:
        sys.exit(f"Not what the program says: {', '.join(map(str, stale))}")
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")


if __name__ == "__main__":
    main()
