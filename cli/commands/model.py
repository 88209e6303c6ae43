"""`voices model …`: which checkpoints are on this machine, and which one the voices use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cli import compose
from cli.input import WORDS, json_option
from cli.output import print_json, print_line, print_path, say

if TYPE_CHECKING:
    from registry.storage.store import VoiceStore


@click.group()
@click.pass_context
def model(context: click.Context) -> None:
    """Download, list and choose the models of this machine."""
    compose.refuse_remote(context)


@contextmanager
def opened() -> Iterator[tuple[Any, "VoiceStore"]]:
    settings = compose.load_settings()
    store = compose.open_store(settings)
    try:
        with compose.sentences():
            yield settings, store
    finally:
        store.close()


@model.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the known models, and which one the voices use.

    \b
    Example:
      voices model list
    """
    from inference.models.catalog import DEMO, MODELS, is_downloaded, size_on_disk

    with opened() as (settings, store):
        used = compose.model_spec(settings, store)
        known = [DEMO, *(f"{name}@{known.revision}" for name, known in MODELS.items())]
        named = {spec.partition("@")[0]: spec for spec in known}
        specs = dict.fromkeys([*known, named.get(used, used)])
        rows = [
            {
                "model": spec,
                "used": spec == named.get(used, used),
                "here": is_downloaded(spec),
                "bytes": size_on_disk(spec),
            }
            for spec in specs
        ]
    if as_json:
        return print_json(rows)
    for row in rows:
        mark = "*" if row["used"] else " "
        print_line(f"{mark} {row['model']}  {_state(row)}")
    say("* is what the voices here use, or would.")


def _state(row: dict[str, Any]) -> str:
    if row["here"]:
        return f"here, {row['bytes'] / 1e6:,.0f} MB"
    return "not downloaded"


@model.command()
@click.argument("spec", type=WORDS, metavar="[MODEL]", required=False)
def path(spec: str | None) -> None:
    """Print the folder of a model's files. Default: the model in use.

    \b
    Example:
      ls $(voices model path demo)
    """
    from inference.models.catalog import locate

    with opened() as (settings, store):
        located = locate(spec or compose.model_spec(settings, store), store.data)
    print_path(located.path)


@model.command()
@click.argument("spec", type=WORDS, metavar="[MODEL]", required=False)
def download(spec: str | None) -> None:
    """Download a model from the Hugging Face hub; an interrupted download goes on where it was.

    Without MODEL: Qwen/Qwen3-TTS-12Hz-1.7B-Base at its pinned revision.

    \b
    Example:
      voices model download Qwen/Qwen3-TTS-12Hz-0.6B-Base
    """
    from inference.models.catalog import DEFAULT, download

    with opened() as (_, store):
        located = download(spec or DEFAULT, store.data)
    say(f"{located.ref.id} at {located.ref.revision} is here:")
    print_path(located.path)


@model.command()
@click.argument("spec", type=WORDS, metavar="MODEL")
def use(spec: str) -> None:
    """Choose the model of this data directory: demo, a folder, or a hub id.

    Voices enrolled for another model become stale; each is rebuilt from its clip when it next
    speaks, or by `voices rebuild`.

    \b
    Example:
      voices model use demo
    """
    from inference.models.catalog import locate

    with opened() as (_, store):
        located = locate(spec, store.data)
        store.choose_model(located.source, located.ref)
    say(f"The voices here now use {located.ref.id} at {located.ref.revision[:12]}.")
