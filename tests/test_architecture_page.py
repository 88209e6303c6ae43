"""docs/architecture.md against the code: its two walks, its pictures, a line for every room."""

import re
from pathlib import Path

import pytest

from registry.contract import PromptSource
from registry.modal.plan import Deployment
from registry.storage.data_dir import DataDir

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = ("A speech, step by step", "An enrolment, step by step")
FILE = re.compile(r"(?:\w+/)+\w+\.py")


def steps(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d\. (.*(?:\n   .*)*)", section, re.MULTILINE)


@pytest.mark.parametrize("heading", WALKS)
def test_a_walk_has_eight_steps_through_files_and_names_that_are_there(heading: str) -> None:
    assert len(steps(heading)) == 8
    for step in steps(heading):
        quoted = re.findall(r"`([^`]+)`", step)
        files = [name for name in quoted if FILE.fullmatch(name)]
        names = [name for name in quoted if re.fullmatch(r"\w+(\.\w+)?", name)]
        assert files and names, step
        assert [name for name in files if not (ROOT / name).exists()] == []
        sources = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
        for name in names:
            for part in name.split("."):
                assert re.search(rf"\b(def|class) {part}\b", sources), (part, step)


def test_every_folder_of_the_tree_says_what_it_is_for() -> None:
    block = PAGE.partition("\n## Files")[2].split("```")[1]
    lines = [line.split() for line in block.splitlines()]
    folders = [words for words in lines if words and words[0].endswith("/")]
    assert len(folders) > 20
    assert [words[0] for words in folders if len(words) == 1] == []


def test_the_pictures_show_the_files_and_the_apps_that_there_are(tmp_path: Path) -> None:
    machine, data = picture("service.svg"), DataDir(tmp_path)
    source = PromptSource("voice_1", "a" * 64, None)
    folders = (data.clip("a" * 64).parent, data.conditioned(source).parent)
    for name in (data.database.name, *(f"{folder.name}/" for folder in folders), "prompts/"):
        assert f">{name}<" in machine, name
    assert data.prompts("voice_1").parent.name == "prompts"
    made = {value for value in values_of(Deployment()) if value.startswith("voices-")}
    assert set(re.findall(r"voices-\w+", picture("service-modal.svg"))) == made


def picture(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def values_of(deployment: Deployment) -> list[str]:
    kinds = vars(Deployment).items()
    names = [name for name, kind in kinds if isinstance(kind, property)]
    return [value for value in (getattr(deployment, n) for n in names) if isinstance(value, str)]
