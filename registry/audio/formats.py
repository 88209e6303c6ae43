"""Lists every format of sound: those that speech is sent as, and those that clips may have.

Standard library only, so that the command line may share it. A new format of speech is a line of
SPEECH, and an encoder in `encoders.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HERTZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OF_SAMPLES: Mapping[int, tuple[int, ...]] = dict.fromkeys(HERTZ, ())
FULL_BAND = (32, 64, 96, 128, 192)


@dataclass(frozen=True)
class Format:
    """The media type, the file endings and the rates of a format; all of it is mono."""

    media_type: str
    endings: tuple[str, ...]  # of a file's name that ask for it; the first is what we write
    rates: Mapping[int, tuple[int, ...]]  # sample rates in Hz, and the bit rates of each in kbit/s
    bit_rate: int | None = None  # where none is named
    parameters: str = ""  # of the media type, of what the sound itself does not say


SPEECH: dict[str, Format] = {
    "wav": Format("audio/wav", ("wav", "wave"), OF_SAMPLES),
    "flac": Format("audio/flac", ("flac",), OF_SAMPLES),
    "pcm": Format("audio/pcm", ("pcm", "raw"), OF_SAMPLES, None, ";rate={rate};channels=1"),
    "mp3": Format(
        "audio/mpeg",
        ("mp3",),
        {22_050: (32, 48, 64), 24_000: (32, 48, 64, 96, 128)}
        | dict.fromkeys((44_100, 48_000), FULL_BAND),
        64,
    ),
    "opus": Format(
        "audio/ogg",
        ("opus", "ogg", "oga"),
        {24_000: (32, 64, 96, 128), 48_000: FULL_BAND},
        64,
        ";codecs=opus",
    ),
    "aac": Format(
        "audio/aac",
        ("aac", "adts"),
        {24_000: (32, 64, 96)} | dict.fromkeys((44_100, 48_000), FULL_BAND),
        64,
    ),
    "ulaw": Format("audio/pcmu", ("ulaw", "ul"), {8_000: ()}, None, ";rate={rate};channels=1"),
    "alaw": Format("audio/pcma", ("alaw", "al"), {8_000: ()}, None, ";rate={rate};channels=1"),
}


@dataclass(frozen=True)
class AudioFormat:
    """A format as a request names it: `mp3`, or with all its rates, `mp3_44100_128`.

    Raises ValueError for one that SPEECH does not have.
    """

    name: str
    sample_rate: int | None = None  # Hz; None: as the model has it, or next above
    bit_rate: int | None = None  # kbit/s

    def __post_init__(self) -> None:
        if str(self) not in FORMATS:
            raise ValueError(f"There is no {self}: {formats_like(self.name)}.")

    def __str__(self) -> str:
        return spelled(self.name, self.sample_rate, self.bit_rate)

    @property
    def media_type(self) -> str:
        """The media type without its parameters."""
        return SPEECH[self.name].media_type

    @property
    def ending(self) -> str:
        return SPEECH[self.name].endings[0]

    def rates(self, model_rate: int) -> tuple[int, int | None]:
        """Return the sample rate and the bit rate for speech that a model makes at `model_rate`."""
        if self.sample_rate is not None:
            return self.sample_rate, self.bit_rate
        one = SPEECH[self.name]
        above = (rate for rate in one.rates if rate >= model_rate)
        return min(above, default=max(one.rates)), one.bit_rate

    def content_type(self, sample_rate: int) -> str:
        """Return the media type with what a player must be told of the sound."""
        return self.media_type + SPEECH[self.name].parameters.format(rate=sample_rate)


def spelled(name: str, *rates: int | None) -> str:
    return "_".join([name, *(str(rate) for rate in rates if rate is not None)])


def every_format() -> Iterator[tuple[str, tuple[str, int | None, int | None]]]:
    """Yield each format that may be asked for: how it is spelled, and what it consists of."""
    for name, one in SPEECH.items():
        yield name, (name, None, None)
        for hertz, kilobits in one.rates.items():
            for kilobit in kilobits or (None,):
                yield spelled(name, hertz, kilobit), (name, hertz, kilobit)


FORMATS = dict(every_format())


def format_named(text: str) -> AudioFormat:
    """Parse a format. Raises ValueError with what there is, and without the text itself."""
    if text not in FORMATS:
        raise ValueError(f"There is no such format: {formats_like(text.partition('_')[0])}.")
    return AudioFormat(*FORMATS[text])


def formats_like(name: str) -> str:
    """Say which formats there are, to a person who asked for another."""
    if name in SPEECH:
        rates = [text for text, (family, *_) in FORMATS.items() if family == name]
        return f"{name} is made as {', '.join(rates)}"
    return f"the formats are {', '.join(SPEECH)}, or with their rates, as mp3_44100_128"


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
