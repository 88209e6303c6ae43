"""Names formats of sound, and files: by their ending, or after a voice.

A name and what is in the file never contradict each other.
"""

import os
import re
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.output import visible
from registry.audio.formats import FORMATS, SPEECH, AudioFormat, format_named, formats_like

ASKED_BY = {ending: name for name, one in SPEECH.items() for ending in one.endings}
OTHERS = frozenset(  # endings of sound and film
    """
    3g2 3gp ac3 aif aifc aiff alac amr ape au avi caf dsf dts eac3 f4a flv gsm m2a m4a m4b m4p m4r
    m4v mid midi mka mkv mov mp1 mp2 mp4 mpa mpc mpeg mpg ogv ra rf64 rm snd spx tta voc w64 weba
    webm wma wmv wv
    """.split()  # noqa: SIM905
)
CLIPS_BY = {  # other endings of what a clip may be, and the one that we write
    "adts": "aac",
    "mp4": "m4a",
    "oga": "ogg",
    "opus": "ogg",
    "wave": "wav",
    "weba": "webm",
}
LONGEST = 255  # bytes of a file's name, on nearly every file system
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on shared disks


class FormatType(click.ParamType):  # type: ignore[type-arg]  # which is generic since click 8.4
    """A format of speech by its name, with or without its rates."""

    name = "format"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> AudioFormat:
        if isinstance(value, AudioFormat):
            return value
        try:
            return format_named(str(value))
        except ValueError as error:
            self.fail(f"{visible(str(value))!r}: {error}", param, context)

    def shell_complete(
        self, context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in FORMATS if name.startswith(incomplete)]


FORMAT = FormatType()


def format_for(output: Path | None, asked: AudioFormat | None) -> AudioFormat:
    """Return the format to speak in: what was asked for, else what the ending says, else wav.

    Raises UsageError where they contradict, or the ending names a format that is not spoken.
    """
    ending = ending_of(output) if output is not None else ""
    found = ASKED_BY.get(ending)
    if ending in OTHERS:
        raise click.UsageError(f"There is no {ending} yet: {formats_like(ending)}.")
    if asked and found and asked.name != found:
        raise click.UsageError(
            f"--format {asked} and the name {str(output)!r} contradict each other."
        )
    return asked or AudioFormat(found or "wav")


def refuse_other_ending(path: Path, ending: str, what: str) -> None:
    """Refuse a name that says that a clip was converted: a clip stays what it is."""
    named = ending_of(path)
    kinds = OTHERS | ASKED_BY.keys()
    if named in kinds and CLIPS_BY.get(named, named) != ending and ending != "bin":
        raise click.UsageError(f"{what} is {ending}: {str(path)!r} would not hold what it says.")


def ending_of(path: Path) -> str:
    return path.suffix.lstrip(".").lower()


def file_for(voice: str, ending: str) -> Path:
    """Return a file here that is named after a voice, whatever the voice is called."""
    name = "".join("_" if is_unfit(character) else character for character in voice)
    if name.startswith((".", "-")) or RESERVED.fullmatch(name):
        name = f"_{name}"
    while len(f"{name}{ending}".encode()) > LONGEST:
        name = name[:-1]
    return Path(f"{name}{ending}")


def is_unfit(character: str) -> bool:
    return character in "/\\:\0" or visible(character) != character or not _is_encodable(character)


def _is_encodable(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return not "\ud800" <= character <= "\udfff"
