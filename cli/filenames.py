"""Names files of sound: the format that an ending asks for, and a name made of a voice's.

A name and what is in the file never contradict each other.
"""

import os
import re
from pathlib import Path

import click

from cli.output import visible
from registry.audio.formats import SPEECH

ASKED_BY = {ending: name for name, one in SPEECH.items() for ending in one.endings}
OTHERS = frozenset(  # endings of sound and film
    """
    3g2 3gp aac ac3 adts aif aifc aiff alac amr ape au avi caf dsf dts eac3 f4a flv gsm m2a m4a
    m4b m4p m4r m4v mid midi mka mkv mov mp1 mp2 mp3 mp4 mpa mpc mpeg mpg oga ogg ogv opus ra
    rf64 rm snd spx tta voc w64 weba webm wma wmv wv
    """.split()  # noqa: SIM905
)
LONGEST = 255  # bytes of a file's name, on nearly every file system
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on shared disks


def format_for(output: Path | None, asked: str | None) -> str:
    """Return the format to speak in: what was asked for, else what the ending says, else wav.

    Raises UsageError where they contradict, or the ending names a format that is not spoken.
    """
    ending = ending_of(output) if output is not None else ""
    found = ASKED_BY.get(ending)
    if ending in OTHERS:
        raise click.UsageError(f"There is no {ending} yet: the formats are {', '.join(SPEECH)}.")
    if asked and found and asked != found:
        raise click.UsageError(
            f"--format {asked} and the name {str(output)!r} contradict each other."
        )
    return asked or found or "wav"


def refuse_other_ending(path: Path, ending: str, what: str) -> None:
    """Refuse a name that says that a clip was converted: a clip stays what it is."""
    named = ending_of(path)
    known = {"oga": "ogg", "opus": "ogg", "mp4": "m4a", "wave": "wav", "weba": "webm"}
    kinds = OTHERS | ASKED_BY.keys()
    if named in kinds and known.get(named, named) != ending and ending != "bin":
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
