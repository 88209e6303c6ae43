"""What the documentation site has beyond the pages in docs/; mkdocs.yml calls it.

The pages that lie elsewhere in the repository are brought in, with their links as they are there;
the reference is made of the code; and whatever a browser would load from another host is an error.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from registry.app import create_app
from registry.settings import Settings
from registry.speech.local import NoInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

ROOT = Path(__file__).parent.parent
BROUGHT = {  # where it lies, and where it is on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE",
    "NOTICE": "NOTICE",
    "tests/README.md": "tests.md",
    "training/demo_model/README.md": "training.md",
}
REFERENCE = {
    "reference/contract.md": "registry.contract",
    "reference/engine.md": "inference.engine",
}
SCHEMAS = """A server has the same at `/openapi.json`, with its routes.
[The HTTP API](../api.md) says what they are for, and what an error looks like."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
LOADED = re.compile(r'<(?:script|link|img|iframe|audio|source)\b[^>]*(?:src|href)="(?:https?:)?//')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {place: (ROOT / path).read_text(encoding="utf-8") for path, place in BROUGHT.items()}
    pages |= {place: f"# {name}\n\n::: {name}\n" for place, name in REFERENCE.items()}
    pages["reference/schemas.md"] = "\n".join(schemas())
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if "```mermaid" in markdown:
        raise PluginError(f"{page.file.src_uri}: a script of another host would draw this picture")
    return LINK.sub(lambda link: site_link(link[1], page.file.src_uri), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}…")
    return output


def site_link(target: str, place: str) -> str:
    """Where a link of the page at `place` leads, which is written as it is in the repository."""
    written = next((path for path in BROUGHT if BROUGHT[path] == place), f"docs/{place}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(written), target))
    found = BROUGHT.get(path, path.removeprefix("docs/"))
    return posixpath.relpath(found, posixpath.dirname(place) or ".")


def schemas() -> Iterator[str]:
    """What the API takes and answers, as OpenAPI says it."""
    with TemporaryDirectory() as home, closing(VoiceStore(DataDir(Path(home)))) as store:
        found = create_app(store, NoInference(), Settings(home=Path(home))).openapi()
    yield f"# Schemas of the HTTP API\n\n{SCHEMAS}"
    for name, schema in sorted(found["components"]["schemas"].items()):
        yield f"\n## {name}\n\n{schema.get('description', '')}\n"
        if "properties" in schema:
            yield "| field | type | default | meaning |\n|---|---|---|---|"
        for field, about in schema.get("properties", {}).items():
            default = f"`{json.dumps(about['default'])}`" if "default" in about else ""
            yield f"| `{field}` | {kind(about)} | {default} | {about.get('description', '')} |"


def kind(schema: dict[str, Any]) -> str:
    """The type of a field, as words and links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for joint in ("anyOf", "oneOf", "allOf"):
        if joint in schema:
            return " or ".join(kind(one) for one in schema[joint])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "items" in schema:
        return f"list of {kind(schema['items'])}"
    return str(schema.get("type", "any"))
