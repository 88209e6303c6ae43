"""`voices backup` and `voices restore`: all voices of this machine as one file, and back."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cli import compose
from cli.exits import ending_by_signals
from cli.output import one_paragraph, refuse_overwriting, say
from cli.session import progress

if TYPE_CHECKING:
    from registry.storage.store import VoiceStore
    from registry.upkeep.backup import Manifest

STDOUT = Path("-")
PACKED = (".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar", ".lz4")


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write, or - for stdout. Default: voices-DATE.tar here.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.pass_context
def backup(context: click.Context, output: Path | None, force: bool) -> None:
    """Write all voices of this machine to one file.

    Servers may run meanwhile. Exits with 1 if a reference clip is missing or damaged: the backup
    has all else. The file is its owner's alone, whatever the umask; what stdout is sent to is not.

    \b
    Examples:
      voices backup
      voices backup -o - | ssh nas 'cat > voices.tar'
    """
    compose.refuse_remote(context)
    output = output or Path(f"voices-{date.today():%Y-%m-%d}.tar")
    if output == STDOUT:
        refuse_terminal()
    else:
        refuse_packed(output)
        refuse_overwriting(output, force)
    with ending_by_signals(), progress("Writing a backup …"), opened() as store:
        manifest = write(store, output)
    say(one_paragraph(f"Wrote {shown(output)}: {contents(manifest)}."))
    tell_missing(manifest)
    if manifest.lost:
        raise SystemExit(1)


@contextmanager
def opened() -> Iterator["VoiceStore"]:
    settings = compose.load_settings()
    home = compose.home_of(settings)
    if not home.exists():
        raise click.ClickException(f"There is nothing to back up: {home} does not exist.")
    with closing(compose.open_store(settings)) as store, compose.sentences():
        yield store


def write(store: "VoiceStore", output: Path) -> "Manifest":
    from registry.upkeep.backup import save_backup, write_backup

    try:
        if output != STDOUT:
            return save_backup(store, output)
        manifest = write_backup(store, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return manifest
    except OSError as error:
        raise click.ClickException(f"Can't write {shown(output)}: {error.strerror}.") from error


def refuse_terminal() -> None:
    if sys.stdout.isatty():
        raise click.UsageError("`-o -` writes the backup to stdout: send it to a file or program.")


def refuse_packed(output: Path) -> None:
    if output.suffix.lower() in PACKED:
        raise click.UsageError(
            f"A backup is a plain tar, and {str(output)!r} would not hold what its name says. "
            "`voices backup -o - | gzip > FILE` packs it."
        )


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--force", is_flag=True, help="Also where voices are; they are moved aside.")
@click.pass_context
def restore(context: click.Context, file: BinaryIO, force: bool) -> None:
    """Make this machine's voices those of a backup FILE, or - for stdin.

    All of it is checked first, and nothing changes unless it is sound. Stop the server before: this
    is refused while a program has the voices open. What was in the data directory is moved aside,
    beside it, and stays there until you delete it.

    \b
    Example:
      voices restore voices-2026-11-23.tar
    """
    from registry.upkeep.restore import holds_voices, leftovers, restore_backup

    compose.refuse_remote(context)
    home = compose.home_of(compose.load_settings())
    if holds_voices(home) and not force:
        raise click.ClickException(f"{home} holds voices. Give --force to move them aside first.")
    for path in leftovers(home):
        left = f"Note: {path} is left of a restore that was cut off. Delete it when all is well."
        say(one_paragraph(left))
    try:
        with ending_by_signals(), progress("Checking the backup …"), compose.sentences():
            restored = restore_backup(file, home)
    except OSError as error:
        raise click.ClickException(f"Can't restore to {home}: {error.strerror}.") from error
    manifest = restored.manifest
    say(one_paragraph(f"Restored {contents(manifest)} to {home}, as of {manifest.created_at}."))
    tell_missing(manifest)
    if restored.keys_lost:
        say("Note: the keys that were here can't be read. `voices keys create` makes new ones.")
    if restored.before:
        say(one_paragraph(f"What was there before is in {restored.before}."))


def shown(output: Path) -> str:
    return "to stdout" if output == STDOUT else str(output)


def contents(manifest: "Manifest") -> str:
    voices = f"{manifest.voices:,} voice{'s' if manifest.voices != 1 else ''}"
    deleted = f" and {manifest.deleted:,} deleted" if manifest.deleted else ""
    return f"{voices}{deleted}, {manifest.size / 1e6:,.1f} MB"


def tell_missing(manifest: "Manifest") -> None:
    lost = {*manifest.lost}
    for name in manifest.missing:
        what = "lost, unless an older backup has it" if name in lost else "made anew when used"
        say(f"Note: {name} was missing or damaged and is not in the backup; it is {what}.")
