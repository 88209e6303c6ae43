"""The arguments of `voices speak`, with those that let a clip speak that is not enrolled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from cli.input import WORDS, read_clip, read_text

F = TypeVar("F", bound=Callable[..., Any])


def clone_options(command: F) -> F:
    for option in (
        click.option(
            "--transcript", type=WORDS, help="The words of that clip, `@file`, or - for stdin."
        ),
        click.option(
            "--reference",
            metavar="AUDIO",
            help="Speak like this clip (- for stdin), without enrolling it: VOICE is left out.",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class SpeakArguments:
    """Whom to let speak, a voice or a clip, and what to say."""

    voice: str | None
    text: str
    reference: str | None
    transcript: str | None

    @classmethod
    def of(
        cls,
        first: str,
        second: str | None,
        reference: str | None,
        transcript: str | None,
    ) -> "SpeakArguments":
        """Sort VOICE and TEXT, of which the first is missing if a clip speaks.

        Raises UsageError if arguments contradict each other.
        """
        if reference is None:
            if second is None:
                raise click.UsageError("Missing argument 'TEXT'.")
            if transcript is not None:
                raise click.UsageError("--transcript is of a clip: give that with --reference.")
            return cls(first, second, None, None)
        if second is not None:
            raise click.UsageError(
                "With --reference the clip is the voice: give TEXT alone, and no VOICE."
            )
        if [first, reference, transcript].count("-") > 1:
            raise click.UsageError("Only one of clip, transcript and text can come from stdin.")
        return cls(None, first, reference, transcript)

    @property
    def speaker(self) -> str:
        return self.voice or "The clip"

    @property
    def file(self) -> str:
        """The name that the file of the speech gets."""
        return self.voice or "speech"

    def request(self) -> dict[str, Any]:
        """Return the fields of the request that say who speaks and what."""
        who = {"voice": self.voice, "transcript": self.transcript and read_text(self.transcript)}
        said = {name: value for name, value in who.items() if value is not None}
        return said | {"text": read_text(self.text)}

    def clip(self) -> bytes | None:
        return None if self.reference is None else read_clip(self.reference)
