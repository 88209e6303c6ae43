"""What the child that opens clips is asked, and what it answers: a report, or a refusal."""

from dataclasses import dataclass


class Refusal(Exception):
    """Why a clip cannot be a reference: a stable code, and a sentence for its sender."""

    def __init__(self, code: str, message: str) -> None:
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
    """The clip as it came; `samples` counts those of the conditioned one that follows."""

    media_type: str
    sample_rate: int
    channels: int
    duration_s: float
    peak_dbfs: float
    rms_dbfs: float
    clipped_fraction: float
    dc_offset: float
    damaged_packets: int
    speech_s: float  # of the conditioned clip, which has lost its silent edges; pauses count
    gain_db: float  # what brought it to the level of any conditioned clip
    notes: list[str]  # sentences on what was done beyond the ordinary
    samples: int
