"""The types of what the child that opens clips is asked, and of its answer: report or refusal.

The child keeps to them; its parent does not trust that, and checks.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval, Len, Predicate

LOWEST_HZ, HIGHEST_HZ, MOST_CHANNELS, TOO_LOUD = 4_000, 384_000, 32, 4.0
CHECKED = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

MediaType = Literal[
    "audio/wav",
    "audio/flac",
    "audio/mpeg",
    "audio/aac",
    "audio/ogg",
    "audio/mp4",
    "audio/webm",
    "audio/matroska",
]
Code = Literal[
    "audio-unsupported",
    "audio-empty",
    "audio-undecodable",
    "audio-cut-off",
    "audio-too-short",
    "audio-too-long",
    "audio-channels-differ",
    "audio-silent",
    "audio-dc-only",
    "audio-not-finite",
    "audio-too-loud",
]
Sentence = Annotated[str, Len(1, 500), Predicate(str.isprintable)]
ReportedSeconds = Annotated[float, Interval(ge=0, le=3600)]
Level = Annotated[float, Interval(ge=-200, le=200)]  # decibels
ReportedCount = Annotated[int, Interval(ge=0, le=1 << 32)]


class Refusal(Exception):
    """Says why a clip can't be a reference: a stable code, and a sentence for its sender."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Bounds:
    """The durations taken, in seconds, and the rate of the conditioned clip, in Hz."""

    min_s: float
    max_s: float
    rate: int


@dataclass(frozen=True)
class Report:
    """Describes the clip as it came; `samples` counts those of the conditioned one that follows."""

    __pydantic_config__: ClassVar[dict[str, Any]] = CHECKED

    media_type: MediaType
    sample_rate: Annotated[int, Interval(ge=LOWEST_HZ, le=HIGHEST_HZ)]
    channels: Annotated[int, Interval(ge=1, le=MOST_CHANNELS)]
    duration_s: ReportedSeconds
    peak_dbfs: Level
    rms_dbfs: Level
    clipped_fraction: Annotated[float, Interval(ge=0, le=1)]
    dc_offset: Annotated[float, Interval(ge=-TOO_LOUD, le=TOO_LOUD)]
    damaged_packets: ReportedCount
    speech_s: ReportedSeconds  # of the conditioned clip, without silent edges; pauses count
    gain_db: Level  # what brought it to the level of any conditioned clip
    notes: Annotated[list[Sentence], Len(0, 10)]  # on what was done beyond the ordinary
    samples: ReportedCount


@dataclass(frozen=True)
class Refused:
    """A refusal as the child writes it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = CHECKED

    code: Code
    message: Sentence
