"""Checks whether a transcript can be the words of its clip, by how fast they would be spoken.

An icl voice reads its transcript against the clip. Words that are missing swallow the beginning of
what it is to speak, words too many are spoken first, and nothing but these checks tells of it.
"""

from registry.errors import TranscriptMismatch
from registry.storage.tables import MAX_TRANSCRIPT
from registry.text import clean_text, has_spaces, spoken_s

FASTEST, SLOWEST = 1.8, 1 / 3  # times the calm pace: whatever is beyond is rare among people
ABSURD_FAST, ABSURD_SLOW = 4.0, 0.1
LEAST_ROOM = 100  # tokens of a few letters each: two sentences
NO_TRANSCRIPT = (
    "No transcript was given: the voice speaks in x-vector mode, which follows its timbre but not "
    "its manner. Give it the words of its clip for the closer copy."
)


def checked_transcript(transcript: str | None) -> str | None:
    """Return the transcript as it is stored. Raises TextInvalid and TextTooLong."""
    if transcript is None:
        return None
    return clean_text(transcript, MAX_TRANSCRIPT, "The transcript")


def refuse_absurd(transcript: str | None, speech_s: float) -> None:
    """Raise TranscriptMismatch for words that can't be those of so many seconds."""
    if transcript is None:
        return
    pace = spoken_s(transcript) / speech_s
    if not ABSURD_SLOW <= pace <= ABSURD_FAST:
        raise TranscriptMismatch(f"{_figures(transcript, speech_s, pace)} {_ADVICE}")


def transcript_warnings(transcript: str | None, speech_s: float) -> list[str]:
    """Return what a person should know about the words of so many seconds."""
    if transcript is None:
        return [NO_TRANSCRIPT]
    pace = spoken_s(transcript) / speech_s
    if SLOWEST <= pace <= FASTEST:
        return []
    return [f"{_figures(transcript, speech_s, pace)} {_ADVICE}"]


def refuse_crowded(transcript: str | None, speech_s: float, room: int | None) -> None:
    """Raise TranscriptMismatch for words that leave too little room for a text in icl mode."""
    if transcript is None or room is None or room >= LEAST_ROOM:
        return
    raise TranscriptMismatch(
        f"The transcript has {_size(transcript)} for {speech_s:.1f} s of speech, and leaves room"
        f" for {room} tokens of text in icl mode, where {LEAST_ROOM} (of a few letters each) are"
        f" the least. {_ADVICE} Or enrol a shorter clip, or this one without its transcript."
    )


_ADVICE = "Give exactly the words that are heard in the clip, all of them and no others."


def _figures(transcript: str, speech_s: float, pace: float) -> str:
    many = "more" if pace > 1 else "less"
    return (
        f"The transcript has {_size(transcript)} for {speech_s:.1f} s of speech, about"
        f" {_compared(pace)} as people speak: it seems to say {many} than the clip does."
    )


def _size(transcript: str) -> str:
    if not has_spaces(transcript):
        return f"{len(transcript)} characters"
    words = len(transcript.split())
    return f"{words} word{'s' if words > 1 else ''}"


def _compared(pace: float) -> str:
    if pace > 1:
        return f"{pace:.1f} times as fast"
    return f"{1 / pace:.1f} times as slow"
