"""The verbs on voices. All of them talk HTTP, to a registry or to a private server of their own."""

import json
from shlex import quote as quoted

import click
from click.core import ParameterSource

from cli.completion import VOICE
from cli.destination import DestinationOptions
from cli.exits import if_interrupted
from cli.input import (
    WORDS,
    agreed,
    json_option,
    labels_option,
    parse_labels,
    read_clip,
    read_text,
)
from cli.output import (
    one_paragraph,
    print_fields,
    print_json,
    print_line,
    print_voices,
    report,
    say,
    warn,
)
from cli.session import progress, registry
from cli.verbs import Verbs


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
    context.obj = DestinationOptions(local=True) if local else DestinationOptions(url or None)


@cli.command()
@click.argument("name", type=WORDS)
@click.argument("audio", type=click.Path(allow_dash=True))
@click.argument("transcript", type=WORDS, required=False)
@click.option(
    "--language", type=WORDS, help="What the voice speaks by default, for example english."
)
@click.option("--description", type=WORDS, default="", help="A line about the voice.")
@labels_option
@json_option
@click.pass_context
def add(
    context: click.Context,
    /,
    name: str,
    audio: str,
    transcript: str | None,
    labels: tuple[str, ...],
    as_json: bool,
    **fields: str | None,
) -> None:
    """Enrol a voice from a reference clip and its transcript.

    AUDIO is wav, flac, mp3, ogg, m4a or webm, 1 to 60 s (3 to 30 s are best): a file, or `-` for
    stdin. TRANSCRIPT is the words of the clip, `@file`, or `-` for stdin; without it the voice
    speaks in x-vector mode. Prints the id of the voice.

    \b
    Examples:
      voices add alice ref.wav "the invention of movable metal letters"
      ffmpeg -i talk.mp4 -t 20 -f flac - | voices add bob - @words.txt
    """
    if audio == transcript == "-":
        raise click.UsageError("AUDIO and TRANSCRIPT can't both come from stdin.")
    form = {k: v for k, v in fields.items() if v is not None} | {"name": name}
    form["labels"] = json.dumps(parse_labels(labels))
    if transcript is not None:
        form["transcript"] = read_text(transcript)
    clip = read_clip(audio)
    with if_interrupted("Nothing was stored."), registry(context) as voices:
        enrolled = f"{name} may have been enrolled: `voices show {quoted(name)}` tells."
        with if_interrupted(enrolled), progress(f"Enrolling {name} …"):
            voice = voices.add(form, clip)
    warn(voice["warnings"])
    if as_json:
        return print_json(voice)
    say(one_paragraph(f"Enrolled {voice['name']}."))
    print_line(voice["id"])


@cli.command("list")
@click.option("--search", type=WORDS, default="", help="Only names with this in them, in any case.")
@click.option(
    "--label",
    "labels",
    type=WORDS,
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Only voices with this label; may be repeated.",
)
@json_option
@click.pass_context
def list_voices(
    context: click.Context, search: str, labels: tuple[str, ...], as_json: bool
) -> None:
    """List the voices.

    \b
    Example:
      voices list --label use=audiobook
    """
    with registry(context) as voices:
        pages = list(voices.pages(search, labels))
    found = [voice for page in pages for voice in page["data"]]
    damaged = sum(len(page["damaged"]) for page in pages)
    if as_json:
        print_json(found)
    elif found:
        print_voices(found)
    elif search or labels:
        say("No voice matches.")
    elif not damaged:
        say("No voices yet; `voices add --help` says how.")
    if damaged:
        voices_are = "1 voice is" if damaged == 1 else f"{damaged:,} voices are"
        say(f"Note: {voices_are} damaged and can't be shown; `voices doctor` says why.")


@cli.command()
@click.argument("voice", type=VOICE)
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
@click.argument("voice", type=VOICE)
@click.argument("new_name", type=WORDS)
@json_option
@click.pass_context
def rename(context: click.Context, voice: str, new_name: str, as_json: bool) -> None:
    """Give a voice another name; its id stays.

    \b
    Example:
      voices rename alice "Alice (studio)"
    """
    with registry(context) as voices:
        found = voices.voice(voice)
        with if_interrupted(f"It may have been renamed: `voices show {found['id']}` tells."):
            renamed = voices.patch(found, {"name": new_name})
    report(renamed, as_json, f"Renamed to {renamed['name']}.")


@cli.command()
@click.argument("voice", type=VOICE)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def rm(context: click.Context, voice: str, yes: bool) -> None:
    """Delete a voice. Its name is free at once.

    \b
    Example:
      voices rm alice --yes
    """
    with if_interrupted("Nothing was deleted."), registry(context) as voices:
        found = voices.voice(voice)
        if not yes and not agreed(f"Delete {found['name']} ({found['id']})?"):
            raise click.ClickException("Nothing was deleted.")
        with if_interrupted(f"It may have been deleted: `voices show {found['id']}` tells."):
            voices.delete(found)
    say(one_paragraph(f"Deleted {found['name']}."))


@cli.command()
@click.argument("voice", type=VOICE)
@json_option
@click.pass_context
def rebuild(context: click.Context, voice: str, as_json: bool) -> None:
    """Compute a voice's prompt features anew from its reference clip.

    \b
    Example:
      voices rebuild alice
    """
    outcome = (
        f"It may have been rebuilt, and speaks as before: `voices show {quoted(voice)}` tells."
    )
    with registry(context) as voices, if_interrupted(outcome), progress(f"Rebuilding {voice} …"):
        rebuilt = voices.rebuild(voice)
    report(rebuilt, as_json, f"Rebuilt {rebuilt['name']}.")


if __name__ == "__main__":
    cli()
