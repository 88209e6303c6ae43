"""`voices speak` and `voices clip`: sound from a registry into a file, or to stdout."""

from pathlib import Path
from typing import Any

import click

from cli.input import FORMATS, format_of, read_text
from cli.output import (
    new_file,
    refuse_overwriting,
    refuse_terminal,
    say,
    write_file,
    write_stdout,
)
from cli.session import progress, registry

STDOUT = Path("-")


@click.command()
@click.argument("voice")
@click.argument("text")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write, or - for stdout. Default: VOICE.FORMAT here.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--format", type=click.Choice(FORMATS), help="Default: by the file's ending, or wav.")
@click.option("--language", help="Default: the voice's own, else found from the text.")
@click.option("--mode", type=click.Choice(["auto", "icl", "xvec"]), help="Default: the voice's.")
@click.option("--seed", type=int, help="The same seed gives the same audio.")
@click.option("--temperature", type=float, help="0 (greedy) to 2.")
@click.option("--top-k", type=int, help="Sample among the K most probable codes.")
@click.option("--top-p", type=float, help="Sample among the codes that hold this probability.")
@click.pass_context
def speak(
    context: click.Context,
    /,
    voice: str,
    text: str,
    output: Path | None,
    force: bool,
    format: str | None,
    **params: Any,
) -> None:
    """Speak TEXT with a voice and write the audio to a file.

    TEXT is the words themselves, `@file`, or `-` for stdin.

    \b
    Examples:
      voices speak alice "Hello" -o hello.wav
      cat chapter.txt | voices speak alice - -o - --format flac | ffplay -
    """
    format = format or format_of(output)
    output = output or Path(f"{voice}.{format}")
    if output == STDOUT:
        refuse_terminal()
    else:
        refuse_overwriting(output, force)
    request = {"voice": voice, "text": read_text(text), "format": format}
    request |= {knob: value for knob, value in params.items() if value is not None}
    with registry(context) as voices, progress(f"{voice} speaks …"):
        if output == STDOUT:
            with voices.speech(request | {"stream": True}) as answer:
                return write_stdout(answer.iter_bytes())
        with new_file(output, force) as file:
            summary = voices.speak(request, file)
    say(f"Wrote {output}: {summary}.")


@click.command()
@click.argument("voice")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write, or - for stdout. Default: VOICE-clip with the clip's own ending.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.pass_context
def clip(context: click.Context, voice: str, output: Path | None, force: bool) -> None:
    """Get the reference clip of a voice back, as it was uploaded.

    \b
    Example:
      voices clip alice -o alice-reference.wav
    """
    from cli.client import MEDIA_ENDINGS, voice_path

    if output == STDOUT:
        refuse_terminal()
    with registry(context) as voices:
        response = voices.request("GET", voice_path(voice, "/clip"))
    if output == STDOUT:
        return write_stdout([response.content])
    media_type = response.headers["content-type"].partition(";")[0]
    path = output or Path(f"{voice}-clip.{MEDIA_ENDINGS.get(media_type, 'bin')}")
    refuse_overwriting(path, force)
    write_file(path, response.content, force)
    say(f"Wrote {path}.")
