"""The documentation site: every page is on it, and its links are those of the repository.

`make docs` builds it, where a broken link is an error; here is what holds without its packages.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
HOOKS = ROOT / "docs" / "site_pages.py"
SOURCE = HOOKS.read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed: make docs")
    spec = importlib.util.spec_from_file_location("site_pages", HOOKS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "site_pages", module)
    spec.loader.exec_module(module)
    return module


def test_the_site_leads_to_every_page() -> None:
    listed = set(re.findall(r"^ +- [^:\n]+: (\S+\.md)$", CONFIG, re.MULTILINE))
    brought = set(re.findall(r'": "(\S+\.md)",$', SOURCE, re.MULTILINE))
    made = set(re.findall(r'"(reference/\w+\.md)"', SOURCE))
    assert listed == {path.name for path in ROOT.glob("docs/*.md")} | brought | made
    assert len(brought) >= 5 and len(made) == 3


def test_every_page_of_the_root_is_brought_to_the_site() -> None:
    assert [path.name for path in ROOT.glob("*.md") if f'"{path.name}": ' not in SOURCE] == []


def test_the_reference_is_of_modules_that_are_there() -> None:
    named = re.findall(r'^    "reference/\w+\.md": "([\w.]+)",$', SOURCE, re.MULTILINE)
    assert len(named) == 2
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_have_no_picture_that_a_script_draws(path: Path) -> None:
    """A browser would load that script from another host, which need not be to be had."""
    assert "```mermaid" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "target", "found"),
    [
        ("index.md", "docs/api.md#speak", "api.md#speak"),
        ("index.md", "docs/audio/bob.flac", "audio/bob.flac"),
        ("index.md", "CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("security.md", "../SECURITY.md", "SECURITY.md"),
        ("demo-model.md", "../training/demo_model/README.md", "training.md"),
        ("engine.md", "engine-load.svg", "engine-load.svg"),
        ("api.md", "#errors", "#errors"),
        ("api.md", "https://example.com/docs/x", "https://example.com/docs/x"),
        ("reference/schemas.md", "../api.md", "../api.md"),
    ],
)
def test_a_link_leads_to_the_page_that_it_leads_to_in_the_repository(
    hooks: ModuleType, place: str, target: str, found: str
) -> None:
    class Named:
        src_uri = place

    class Shown:
        file = Named

    assert hooks.on_page_markdown(f"[x]({target})", Shown, None, None) == f"[x]({found})"


@pytest.mark.parametrize("tag", ['<script src="//a.b/c.js">', '<img alt="" src="https://a.b/c">'])
def test_what_a_browser_would_load_from_elsewhere_is_refused(hooks: ModuleType, tag: str) -> None:
    assert hooks.LOADED.search(tag)
    assert not hooks.LOADED.search('<a href="https://a.b/c">x</a><img src="../c.png">')


def test_the_schemas_are_those_of_the_api(hooks: ModuleType) -> None:
    page = "\n".join(hooks.schemas())
    assert "\n## SpeakRequest\n" in page
    assert '| `format` | `wav`, `flac`, `pcm` | `"wav"` |' in page
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links and links <= {name.lower() for name in re.findall(r"^## (\w+)$", page, re.M)}
