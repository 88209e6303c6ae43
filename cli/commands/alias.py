"""`voices alias`: other names of voices, for programs that can say no other."""

import click

from cli.completion import VOICE
from cli.exits import if_interrupted
from cli.input import WORDS, json_option
from cli.output import one_paragraph, print_json, print_table, report, say
from cli.session import registry

HEADINGS = ("ALIAS", "VOICE", "ID")


@click.command()
@click.argument("alias", type=WORDS, required=False)
@click.argument("voice", type=VOICE, required=False)
@click.option("--remove", is_flag=True, help="Take the alias away.")
@json_option
@click.pass_context
def alias(
    context: click.Context, alias: str | None, voice: str | None, remove: bool, as_json: bool
) -> None:
    """Let ALIAS stand for VOICE, show what it stands for, or list all aliases.

    OpenAI's names of voices (alloy, echo, nova, …) are such aliases once they are set.

    \b
    Examples:
      voices alias alloy alice
      voices alias alloy --remove
      voices alias
    """
    if remove and (alias is None or voice is not None):
        raise click.UsageError("--remove takes an alias and no voice.")
    with registry(context) as voices:
        if alias is not None and voice is not None:
            with if_interrupted("It may have been set: `voices alias` tells."):
                made = voices.put_alias(alias, voice)
            return report(made, as_json, f"{made['alias']} stands for {made['voice']} now.")
        if alias is not None and remove:
            with if_interrupted("It may have been removed: `voices alias` tells."):
                voices.remove_alias(alias)
            return say(one_paragraph(f"{alias} stands for no voice any more."))
        known = voices.list_aliases()
    found = [one for one in known if alias is None or one["alias"].casefold() == alias.casefold()]
    if alias is not None and not found:
        raise click.ClickException(f"There is no alias {alias!r}: `voices alias` lists all.")
    if as_json:
        print_json(found)
    elif found:
        rows = [[one["alias"], one["voice"], one["voice_id"]] for one in found]
        print_table(HEADINGS, rows, ("ALIAS", "VOICE"))
    else:
        say("No aliases yet; `voices alias alloy VOICE` sets one.")
