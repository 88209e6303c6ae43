"""The version stands in one place, and what tells it agrees; pages name targets that there are."""

import re
import tomllib
from pathlib import Path

import httpx
import pytest
from packaging.version import Version

import registry

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_package_takes_its_version_from_the_registry() -> None:
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "registry.VERSION"}
    assert str(Version(registry.VERSION)) == registry.VERSION


def test_the_api_tells_the_version(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json()["info"]["version"] == registry.VERSION


def test_the_changelog_begins_with_the_version_and_what_it_is_in_short() -> None:
    headings = re.findall(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", CHANGELOG, re.MULTILINE)
    assert headings[0][0] == registry.VERSION
    assert len(headings) == CHANGELOG.count("\n## ")
    versions = [Version(number) for number, _ in headings]
    assert versions == sorted(versions, reverse=True)
    assert all(date != "unreleased" for _, date in headings[1:])
    assert re.findall(r"^##+ .*$", CHANGELOG, re.MULTILINE)[1] == "### In short"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_names_targets_of_make_that_there_are(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ((?:[a-z]+ ?)+?)(?=`| {2}|$)", page, re.MULTILINE)
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert [word for words in named for word in words.split() if word not in targets] == []
