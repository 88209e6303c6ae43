"""Every format of sound that is named anywhere: what speech is sent as, and what clips may be.

Standard library only, so that the command line may share it. A new format of speech is a line here,
and an encoder in `encoders.py`.
"""

from dataclasses import dataclass
from typing import Literal

SpeechFormat = Literal["wav", "flac", "pcm"]


@dataclass(frozen=True)
class Format:
    """`endings` are those of a file's name that ask for it."""

    media_type: str
    endings: tuple[str, ...]


SPEECH: dict[SpeechFormat, Format] = {
    "wav": Format("audio/wav", ("wav", "wave")),
    "flac": Format("audio/flac", ("flac",)),
    "pcm": Format("audio/pcm", ("pcm", "raw")),
}

CLIP_ENDINGS = {  # by the media types that a clip is stored with
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/aac": "aac",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/webm": "webm",
    "audio/matroska": "mka",
}
