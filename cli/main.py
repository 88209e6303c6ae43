"""The verbs on voices. Everything here is HTTP, to a registry or to a private server of its own."""

import json
from importlib import import_module
from typing import IO, Any

import click
from click.core import ParameterSource

from cli.destination import Asked
from cli.input import (
    json_option,
    labels_after,
    labels_option,
    parse_labels,
    read_text,
)
from cli.output import (
    print_fields,
    print_json,
    print_table,
    report,
    say,
)
from cli.session import progress, registry

VERBS = {
    "speak": "cli.speak",
    "clip": "cli.speak",
    "serve": "cli.serve",
    "demo": "cli.demo",
    "model": "cli.model",
    "bench": "cli.bench",
    "doctor": "cli.doctor",
    "backup": "cli.backup",
    "restore": "cli.backup",
    "deploy": "cli.deploy",
    "login": "cli.login",
    "logout": "cli.login",
    "where": "cli.login",
    "version": "cli.doctor",
}


class Verbs(click.Group):
    """Imports the verbs on this machine only when one is asked for, or listed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*self.commands, *VERBS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            command: click.Command = getattr(import_module(VERBS[name]), name)
            return command
        return super().get_command(context, name)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="VOICES_URL", help="A registry to talk to, in place of the login's.")
@click.option("--local", is_flag=True, help="This machine's voices, logged in or not.")
@click.pass_context
def cli(context: click.Context, url: str | None, local: bool) -> None:
    """Enrol a voice once, speak with it by name.

    The voices are those at --url (or VOICES_URL), else those of the registry that `voices login`
    stored, else those of this machine. For these nothing needs to be started: each command opens
    the data directory VOICES_HOME by itself. `voices where` says which it is.
    """
    if local and context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--url and --local contradict each other.")
    context.obj = Asked(local=True) if local else Asked(url or None)


@cli.command()
@click.argument("name")
@click.argument("audio", type=click.File("rb"))
@click.argument("transcript", required=False)
@click.option("--language", help="What the voice speaks by default, for example english.")
@click.option("--description", default="", help="A line about the voice.")
@labels_option
@json_option
@click.pass_context
def add(
    context: click.Context,
    /,
    name: str,
    audio: IO[bytes],
    transcript: str | None,
    labels: tuple[str, ...],
    as_json: bool,
    **fields: str | None,
) -> None:
    """Enrol a voice from a reference clip and its transcript.

    AUDIO is wav, flac, mp3, ogg, m4a or webm, 1 to 60 s (3 to 30 s are best). TRANSCRIPT is the
    words of the clip, `@file`, or `-` for stdin; without it the voice speaks in x-vector mode.

    \b
    Example:
      voices add alice ref.wav "the invention of movable metal letters"
    """
    form = {k: v for k, v in fields.items() if v is not None} | {"name": name}
    form["labels"] = json.dumps(parse_labels(labels))
    if transcript is not None:
        form["transcript"] = read_text(transcript)
    with registry(context) as voices, progress(f"Enrolling {name} …"):
        voice = voices.request("POST", "/voices", data=form, files={"audio": audio}).json()
    for warning in voice["warnings"]:
        say(f"Note: {warning}")
    report(voice, as_json, f"Enrolled {voice['name']} as {voice['id']}.")


@cli.command("list")
@click.option("--search", default="", help="Only names that begin so.")
@click.option("--label", default="", metavar="KEY[=VALUE]", help="Only voices with this label.")
@json_option
@click.pass_context
def list_voices(context: click.Context, search: str, label: str, as_json: bool) -> None:
    """List the voices.

    \b
    Example:
      voices list --label use=audiobook
    """
    with registry(context) as voices:
        found = list(voices.voices(search, label))
    if as_json:
        print_json(found)
    elif found:
        print_table(found)
    else:
        narrowed = bool(search or label)
        say("No voice matches." if narrowed else "No voices yet; `voices add --help` says how.")


@cli.command()
@click.argument("voice")
@json_option
@click.pass_context
def show(context: click.Context, voice: str, as_json: bool) -> None:
    """Show all about one voice, by name or id.

    \b
    Example:
      voices show alice
    """
    with registry(context) as voices:
        found = voices.voice(voice)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@cli.command()
@click.argument("voice")
@click.option("--description", help="A line about the voice.")
@labels_option
@click.option("--remove-label", "dropped", multiple=True, metavar="KEY", help="Take a label off.")
@click.option("--language", help="Default language; `auto` finds it from the text.")
@click.option("--mode", type=click.Choice(["auto", "icl", "xvec"]), help="Default mode.")
@click.option("--temperature", type=float, help="Default temperature.")
@click.option("--top-k", type=int, help="Default top-k.")
@click.option("--top-p", type=float, help="Default top-p.")
@json_option
@click.pass_context
def edit(
    context: click.Context,
    /,
    voice: str,
    description: str | None,
    labels: tuple[str, ...],
    dropped: tuple[str, ...],
    as_json: bool,
    **defaults: Any,
) -> None:
    """Edit a voice's description, labels, or what it speaks with by default.

    \b
    Example:
      voices edit alice --label use=audiobook --language english
    """
    added = parse_labels(labels)
    given = {knob: value for knob, value in defaults.items() if value is not None}
    if description is None and not (added or dropped or given):
        raise click.UsageError("Nothing to edit: give at least one option.")
    with registry(context) as voices:
        found = voices.voice(voice)
        change: dict[str, Any] = {} if description is None else {"description": description}
        if added or dropped:
            change["labels"] = labels_after(found["labels"], added, dropped)
        if given:
            change["defaults"] = found["defaults"] | given
        edited = voices.patch(found, change)
    report(edited, as_json, f"Edited {edited['name']}.")


@cli.command()
@click.argument("voice")
@click.argument("new_name")
@json_option
@click.pass_context
def rename(context: click.Context, voice: str, new_name: str, as_json: bool) -> None:
    """Give a voice another name; its id stays.

    \b
    Example:
      voices rename alice "Alice (studio)"
    """
    with registry(context) as voices:
        renamed = voices.patch(voices.voice(voice), {"name": new_name})
    report(renamed, as_json, f"Renamed to {renamed['name']}.")


@cli.command()
@click.argument("voice")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def rm(context: click.Context, voice: str, yes: bool) -> None:
    """Delete a voice. Its name is free at once.

    \b
    Example:
      voices rm alice --yes
    """
    from cli.client import etag, voice_path

    with registry(context) as voices:
        found = voices.voice(voice)
        if not yes:
            click.confirm(f"Delete {found['name']} ({found['id']})?", abort=True, err=True)
        voices.request("DELETE", voice_path(found["id"]), headers={"If-Match": etag(found)})
    say(f"Deleted {found['name']}.")


@cli.command()
@click.argument("voice")
@json_option
@click.pass_context
def rebuild(context: click.Context, voice: str, as_json: bool) -> None:
    """Compute a voice's prompt features anew from its reference clip.

    \b
    Example:
      voices rebuild alice
    """
    from cli.client import voice_path

    with registry(context) as voices, progress(f"Rebuilding {voice} …"):
        rebuilt = voices.request("POST", voice_path(voice, "/rebuild")).json()
    report(rebuilt, as_json, f"Rebuilt {rebuilt['name']}.")


if __name__ == "__main__":
    cli()
