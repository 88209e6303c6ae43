"""tests/README.md: a line for each file here, which names what the file covers."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
LINES = re.findall(
    r"^\| `([\w/]+\.py)` \| (.+) \|$", (TESTS / "README.md").read_text("utf-8"), re.M
)


def test_there_is_a_line_for_each_file_and_no_other() -> None:
    assert sorted(name for name, _ in LINES) == sorted(
        str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py")
    )


def test_what_a_file_of_tests_covers_is_there() -> None:
    for name, covers in LINES:
        paths = re.findall(r"`([\w/.]+[/.]\w*)`", covers)
        assert paths or not name.startswith("test_"), name
        assert [path for path in paths if not (TESTS.parent / path).exists()] == [], name
