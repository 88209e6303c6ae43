"""`voices speak` and `voices clip`: sound from a registry into a file, or to stdout."""

from pathlib import Path
from typing import Any

import click

from cli.commands.clone import SpeakArguments, clone_options
from cli.completion import VOICE
from cli.exits import if_interrupted
from cli.filenames import FORMAT, file_for, format_for, refuse_other_ending
from cli.input import WORDS, json_option
from cli.output import (
    new_file,
    print_json,
    refuse_overwriting,
    refuse_terminal,
    say,
    warn,
    write_private_file,
    write_stdout,
)
from cli.session import progress, registry
from registry.audio.formats import SPEECH, AudioFormat

STDOUT = Path("-")


@click.command()
@click.argument("voice", type=VOICE, metavar="[VOICE]")
@click.argument("text", type=WORDS, required=False, metavar="TEXT")
@clone_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write, or - for stdout. Default: VOICE.FORMAT, or speech.FORMAT, here.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--format",
    type=FORMAT,
    help=f"{', '.join(SPEECH)}, or with its rates, as mp3_44100_128. Default: by the file's ending,"
    " or wav.",
)
@click.option("--speed", type=float, help="0.25 to 4, at the same pitch.")
@click.option("--loudness", type=float, metavar="LUFS", help="-40 to -12. Default: as spoken.")
@click.option("--language", type=WORDS, help="Default: the voice's own, else found from the text.")
@click.option("--mode", type=click.Choice(["auto", "icl", "xvec"]), help="Default: the voice's.")
@click.option("--seed", type=int, help="The same seed gives the same audio.")
@click.option("--temperature", type=float, help="0 (greedy) to 2.")
@click.option("--top-k", type=int, help="Sample among the K most probable codes.")
@click.option("--top-p", type=float, help="Sample among the codes that hold this probability.")
@json_option
@click.pass_context
def speak(
    context: click.Context,
    /,
    voice: str,
    text: str | None,
    reference: str | None,
    transcript: str | None,
    output: Path | None,
    force: bool,
    format: AudioFormat | None,
    as_json: bool,
    **params: Any,
) -> None:
    """Speak TEXT with a voice, or like a clip, and write the audio to a file.

    TEXT is the words themselves, `@file`, or `-` for stdin; `@@` begins a text with an @. A text
    that begins with - goes after `--`. A file whose ending says nothing of its format gets wav.
    One command speaks some 800 characters of English (333 tokens of the model); of a longer text
    nothing is spoken, and the error says how much of it fits.

    With --reference the clip is checked as `voices add` checks it, and nothing of it is kept.

    \b
    Examples:
      voices speak alice "Hello" -o hello.wav
      voices speak --reference ref.wav --transcript "the words of the clip" "Hello"
      cat page.txt | voices speak alice - -o - --format flac | ffplay -
    """
    words = SpeakArguments.of(voice, text, reference, transcript)
    format = format_for(output, format)
    if output == STDOUT:
        refuse_terminal()
        if as_json:
            raise click.UsageError("--json and `-o -` contradict each other: both use stdout.")
    else:
        output = output or file_for(words.file, f".{format.ending}")
        refuse_overwriting(output, force)
    request, clip = words.request() | {"format": str(format)}, words.clip()
    request |= {name: value for name, value in params.items() if value is not None}
    with registry(context) as voices, progress(f"{words.speaker} speaks …"):
        if output == STDOUT:
            with (
                if_interrupted("What stdout has got is not all of the speech."),
                voices.speech(request | {"stream": True}, clip) as (spoken, sound),
            ):
                warn(spoken.warnings)
                return write_stdout(sound)
        with if_interrupted("Nothing was written."), new_file(output, force) as file:
            spoken, seconds = voices.speak(request, file, clip)
    warn(spoken.warnings)
    if as_json:
        return print_json(
            {
                "voice": words.voice,
                "voice_id": spoken.voice_id,
                "reference": reference,
                "warnings": spoken.warnings,
                "seed": spoken.seed,
                "mode": spoken.mode,
                "seconds": round(seconds, 3),
                "loudness": spoken.loudness,
                "cache": spoken.cache,
                "retries": spoken.retries,
                "fallback": spoken.fallback,
                "format": str(format),
                "file": str(output),
            }
        )
    loudness = "" if spoken.loudness is None else f", {spoken.loudness:.1f} LUFS"
    made = f"prompt from {spoken.cache}, seed {spoken.seed}{spoken.made_again}"
    say(f"Wrote {output}: {seconds:.3f} s{loudness}, {made}.")


@click.command()
@click.argument("voice", type=VOICE)
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

    The file is its owner's alone, whatever the umask: who has the clip can clone the voice.

    \b
    Example:
      voices clip alice -o alice-reference.wav
    """
    if output == STDOUT:
        refuse_terminal()
    elif output is not None:
        refuse_overwriting(output, force)
    with registry(context) as voices, if_interrupted("Nothing was written."):
        content, ending = voices.clip(voice)
    if output == STDOUT:
        return write_stdout([content])
    path = output or file_for(voice, f"-clip.{ending}")
    refuse_other_ending(path, ending, f"The clip of {voice}")
    refuse_overwriting(path, force)
    write_private_file(path, content, force)
    say(f"Wrote {path}.")
