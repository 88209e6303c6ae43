"""What a command prints: data for programs as it is, and nothing that commands a terminal."""

import json

import pytest

from cli.output import print_fields, print_json, print_line, say

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
