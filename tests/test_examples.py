"""The commands that the pages and the help show: each parses, and the README's sessions are run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
VARYING = re.compile(r"(?<=date: ).*|voice_[0-9a-f]{32}|(?<= )/\S+|─+|\d[\d:.]*")


def shown() -> set[str]:
    """Every `voices …` in a fenced block, up to a pipe, a comment or the end of its command."""
    blocks = "\n".join(
        block
        for path in PAGES
        for block in re.findall(
            r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M
        )
    )
    found = re.findall(r"^ *(?:\$ |ls \$\()?(?:\w+=\S+ )*(voices [a-z].*)$", blocks, re.MULTILINE)
    return {without_the_rest(line) for line in found}


def without_the_rest(line: str) -> str:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.wordchars += "@…$:"
    words = []
    for word in lexer:
        if word in ("|", "&", ")"):
            break
        words.append(word)
    return shlex.join(words)


COMMANDS = sorted(shown())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the files that the examples name."""
    shutil.copytree(ROOT / "cli" / "data", tmp_path / "cli" / "data")
    for name in ("ref.wav", "ref.mp3"):
        shutil.copy(ROOT / "cli" / "data" / "alice.wav", tmp_path / name)
    (tmp_path / "voices-2026-11-23.tar").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_examples() -> None:
    verbs = {shlex.split(command)[1] for command in COMMANDS}
    assert verbs == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("folder")
def test_every_command_that_is_shown_parses(command: str) -> None:
    parse(cli, shlex.split(command)[1:])


def parse(group: click.Group, words: list[str], parent: click.Context | None = None) -> None:
    context = click.Context(group, parent=parent, **group.context_settings)
    _, rest, _ = group.make_parser(context).parse_args(list(words))
    if not rest:
        assert group.invoke_without_command
        group.make_context(group.name, words, parent=parent).close()
        return
    command = group.get_command(context, rest[0])
    assert command is not None
    if isinstance(command, click.Group):
        parse(command, rest[1:], context)
    else:
        command.make_context(rest[0], rest[1:], parent=context).close()


def sessions() -> Iterator[tuple[str, list[str]]]:
    """Each command of the README's sessions, and the lines that it printed."""
    for block in re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.replace("\\\n", "").partition("\n")
            yield command, constant(printed)


def constant(printed: str) -> list[str]:
    """The lines without what differs from run to run: ids, numbers, dates, places, widths."""
    return [VARYING.sub("#", line).rstrip() for line in printed.splitlines()]


@contextmanager
def served(command: str) -> Iterator[tuple[str, str]]:
    """`voices serve` in a process of its own, on a free port: what it printed, and its URL."""
    environ = {**os.environ, **dict(re.findall(r"(\w+)=(\S+) ", command))}
    words = [sys.executable, "-m", "cli.main", "serve", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environ, text=True) as server:
        assert server.stderr is not None
        printed = server.stderr.readline() + server.stderr.readline()
        try:
            yield printed, printed.split()[-1]
        finally:
            server.terminate()
            server.stderr.read()


def run(command: str) -> str:
    if command.startswith("voices "):
        return CliRunner().invoke(cli, shlex.split(command)[1:]).output
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_sessions_of_the_readme_print_what_it_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICES_HOME", str(folder / "voices"))
    monkeypatch.setenv("VOICES_DEVICE", "cpu")
    monkeypatch.delenv("VOICES_URL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    url = ""
    with ExitStack() as until_the_end:
        for command, shown in sessions():
            if "voices serve" in command:
                printed, url = until_the_end.enter_context(served(command))
            else:
                printed = run(command.replace("http://127.0.0.1:8000", url))
            assert constant(printed) == shown, command
    assert (folder / "hello.wav").stat().st_size > 44
