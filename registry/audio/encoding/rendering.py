"""Makes what is sent of the samples that a model makes: loudness, speed, sample rate, format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry.audio.encoding.effects import Effect, Resampler, Tempo
from registry.audio.encoding.encoders import encoder, refuse_unsound
from registry.audio.encoding.loudness import RunningLoudness, WholeLoudness
from registry.audio.formats import AudioFormat
from registry.contract import Samples

PART_S = 1.0  # of sound at most that is worked on at a time once a speech has ended


WAV = AudioFormat("wav")


@dataclass(frozen=True)
class Rendering:
    """How a speech is to sound and be sent; by default it is as the model made it, in wav."""

    format: AudioFormat = WAV
    speed: float = 1.0
    loudness: float | None = None  # LUFS


class Renderer:
    """Renders one speech. One that is sent whole may be looked at whole before."""

    def __init__(self, asked: Rendering, model_rate: int, *, whole: bool) -> None:
        self._encoder = encoder(asked.format, model_rate)
        self._loudness: WholeLoudness | RunningLoudness | None = None
        self._effects: list[Effect] = []
        if asked.loudness is not None:
            kind = WholeLoudness if whole else RunningLoudness
            self._loudness = kind(model_rate, asked.loudness)
            self._effects.append(self._loudness)
        if asked.speed != 1:
            self._effects.append(Tempo(model_rate, asked.speed))
        if self._encoder.sample_rate != model_rate:
            self._effects.append(Resampler(model_rate, self._encoder.sample_rate))
        self._part = round(PART_S * model_rate)

    @property
    def content_type(self) -> str:
        return self._encoder.format.content_type(self._encoder.sample_rate)

    @property
    def seconds(self) -> float:
        """How long what was made so far plays."""
        return self._encoder.frames / self._encoder.sample_rate

    @property
    def loudness(self) -> str | None:
        """The LUFS that a whole speech came to; None if nothing was asked."""
        if self._loudness is None:
            return None
        return "running" if self._loudness.reached is None else f"{self._loudness.reached:.1f}"

    def feed(self, samples: Samples) -> bytes:
        """Take samples; return the bytes that are ready. Raises ValueError as Encoder.feed does."""
        refuse_unsound(samples)
        return self._encoded(samples, self._effects)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest, in parts none of which takes long to make."""
        for number, effect in enumerate(self._effects, start=1):
            rest = effect.finish()
            for at in range(0, len(rest), self._part):
                yield self._encoded(rest[at : at + self._part], self._effects[number:])
        yield self._encoder.finish()

    def whole(self, streamed: bytes) -> bytes:
        """Turn all that was streamed into a file that tells its length."""
        return self._encoder.whole(streamed)

    def _encoded(self, samples: Samples, effects: Sequence[Effect]) -> bytes:
        for effect in effects:
            samples = effect.feed(samples)
        return self._encoder.feed(samples)
