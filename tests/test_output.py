"""What a command prints: data for programs as it is, and nothing that commands a terminal."""

import json

import click
import pytest

from cli.compose import sentences
from cli.output import print_fields, print_json, print_line, report, say, warn
from registry.errors import BackupRefused

HOSTILE = "a\x1b]52;c;eA==\x07\u202eb\u200b\U000e0041\ud800\x9b\x7f\r"


def test_json_says_what_is_not_seen_in_its_own_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond U+FFFF in two of them: one of five digits would be another character."""
    hostile = HOSTILE.replace("\ud800", "")
    voice = {"name": hostile, hostile: ["Zoë 😂 क\u200dष", 1]}
    print_json(voice)
    said = capsys.readouterr().out
    assert json.loads(said) == voice
    assert not {c for c in said if not c.isprintable()} - {"\n", "\u200d"}
    assert "Zoë 😂" in said


@pytest.mark.parametrize("printed", [print_line, say, lambda text: print_fields({text: text})])
def test_what_is_printed_commands_nothing(
    printed: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(printed)
    printed(HOSTILE)
    said = "".join(capsys.readouterr())
    assert r"a\x1b]52;c;eA==\x07\u202eb\u200b\U000e0041\ud800\x9b\x7f\r" in said
    assert not {c for c in said if not c.isprintable()} - {"\n"}


def test_what_a_message_quotes_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "fine\nError: all is lost\r\n\u2028\x1b[2J"
    warn([evil])
    report({}, False, f"Edited {evil}.")
    with pytest.raises(click.ClickException) as refused, sentences():
        raise BackupRefused(f"{evil} is damaged.")
    told = [*capsys.readouterr().err.splitlines(), refused.value.message]
    shown = r"fine\nError: all is lost\r\n\u2028\x1b[2J"
    assert told == [f"Note: {shown}", f"Edited {shown}.", f"{shown} is damaged."]
