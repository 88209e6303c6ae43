"""constraints.txt against pyproject.toml: what was tested is what may be installed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def constraints() -> dict[str, Version]:
    lines = [line for line in LINES if not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {normal(one.name): Version(next(iter(one.specifier)).version) for one in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("wanted", requirements(), ids=str)
def test_every_requirement_was_tested_in_a_version_that_it_allows(wanted: Requirement) -> None:
    assert constraints()[normal(wanted.name)] in wanted.specifier
