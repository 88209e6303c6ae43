"""`voices edit`: what a voice is called by, speaks with by default, and says in its clip."""

from typing import Any

import click

from cli.completion import VOICE
from cli.exits import if_interrupted
from cli.input import WORDS, json_option, labels_after, labels_option, parse_labels, read_text
from cli.output import report, warn
from cli.session import progress, registry

DEFAULTS = ("language", "mode", "temperature", "top-k", "top-p")


@click.command()
@click.argument("voice", type=VOICE)
@click.option("--description", type=WORDS, help="A line about the voice.")
@click.option(
    "--transcript", type=WORDS, help="The words of its clip, `@file`, or `-` for stdin; takes work."
)
@click.option("--no-transcript", is_flag=True, help="Leave x-vector mode alone.")
@labels_option
@click.option(
    "--remove-label", "dropped", type=WORDS, multiple=True, metavar="KEY", help="Take a label off."
)
@click.option("--language", type=WORDS, help="Default language; `auto` finds it from the text.")
@click.option("--mode", type=click.Choice(["auto", "icl", "xvec"]), help="Default mode.")
@click.option("--temperature", type=float, help="Default temperature.")
@click.option("--top-k", type=int, help="Default top-k.")
@click.option("--top-p", type=float, help="Default top-p.")
@click.option(
    "--unset", multiple=True, type=click.Choice(DEFAULTS), help="Leave it to the model; repeatable."
)
@json_option
@click.pass_context
def edit(
    context: click.Context,
    /,
    voice: str,
    description: str | None,
    transcript: str | None,
    no_transcript: bool,
    labels: tuple[str, ...],
    dropped: tuple[str, ...],
    unset: tuple[str, ...],
    as_json: bool,
    **defaults: Any,
) -> None:
    """Edit a voice's description, labels, transcript, or what it speaks with by default.

    Another transcript makes the prompt features anew from the stored clip; the id stays.

    \b
    Examples:
      voices edit alice --label use=audiobook --language english
      voices edit alice --transcript "the invention of movable metal letters"
      voices edit alice --unset temperature
    """
    change: dict[str, Any] = {} if description is None else {"description": description}
    change |= words(transcript, no_transcript)
    added, new = parse_labels(labels), changed_defaults(defaults, unset)
    if not (change or added or dropped or new):
        raise click.UsageError("Nothing to edit: give at least one option.")
    with registry(context) as voices:
        found = voices.voice(voice)
        if added or dropped:
            change["labels"] = labels_after(found["labels"], added, dropped)
        if new:
            change["defaults"] = found["defaults"] | new
        edited_perhaps = f"It may have been edited: `voices show {found['id']}` tells."
        with if_interrupted(edited_perhaps), progress(f"Editing {voice} …"):
            edited = voices.patch(found, change)
    if "transcript" in change:
        warn(edited["warnings"])
    told = f"Edited {edited['name']}."
    if edited["row_version"] == found["row_version"]:
        told = f"{edited['name']} is so already: nothing has changed."
    report(edited, as_json, told)


def words(transcript: str | None, no_transcript: bool) -> dict[str, str | None]:
    if transcript is not None and no_transcript:
        raise click.UsageError("--transcript and --no-transcript contradict each other.")
    if no_transcript:
        return {"transcript": None}
    return {} if transcript is None else {"transcript": read_text(transcript)}


def changed_defaults(given: dict[str, Any], unset: tuple[str, ...]) -> dict[str, Any]:
    """Return the new values, None for what is unset."""
    values = {field: value for field, value in given.items() if value is not None}
    for option in unset:
        field = option.replace("-", "_")
        if field in values:
            raise click.UsageError(f"--{option} and --unset {option} contradict each other.")
        values[field] = None
    return values
