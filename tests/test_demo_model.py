"""The bundled checkpoint speaks: the right words, in the right voice, whoever else speaks.

A small part of training/demo_model/evaluate.py that guards the engine. What is said is compared
with MFCCs of espeak-ng saying it (tests/demo_sentences.safetensors, made by
training/demo_model/clips.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from engines import PCM, Codes, Heard, hear, load
from numpy.typing import NDArray
from safetensors import safe_open

from cli.pitch import median_pitch_hz
from inference.engine import Engine, PreparedVoice, Request, SamplingParams
from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.extract import Extractor
from inference.models.catalog import DEMO_FOLDER
from registry import errors
from training.demo_model.matching import distance, mfcc

ROOT = Path(__file__).parent.parent
RATE = 24_000
NAMES = ("alice", "bob")
MODES = ("icl", "xvec")
GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Clip:
    sound: PCM
    transcript: str

    @classmethod
    def read(cls, name: str) -> "Clip":
        data = ROOT / "cli" / "data"
        sound, rate = soundfile.read(data / f"{name}.wav", dtype="float32")
        assert rate == RATE
        return cls(sound, (data / f"{name}.txt").read_text("utf-8").strip())


CLIPS = {name: Clip.read(name) for name in NAMES}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(DEMO_FOLDER, slots=12)


@pytest.fixture(scope="module")
def voices(engine: Engine) -> dict[str, PreparedVoice]:
    extractor = Extractor.load(DEMO_FOLDER, engine.model_config, device="cpu")
    found = {n: extractor.extract(clip.sound, clip.transcript) for n, clip in CLIPS.items()}
    return {
        name: engine.prepare(f.ref_spk_embedding, f.ref_code, f.ref_text)
        for name, f in found.items()
    }


@dataclass(frozen=True)
class Said:
    """Sentence `index`, in the voice of `name`."""

    name: str
    index: int
    request: Request
    heard: Heard


class Sentences:
    """Six of them, as espeak-ng says them in both voices."""

    def __init__(self) -> None:
        with safe_open(ROOT / "tests" / "demo_sentences.safetensors", "np") as file:
            self.texts = [text for _, text in sorted(file.metadata().items())]
            names = [f"{name}.{k}" for name in NAMES for k in range(len(self.texts))]
            self._mfcc = {name: file.get_tensor(name).astype(np.float64) for name in names}

    def nearest(self, name: str, sound: PCM) -> int:
        """The sentence that sounds most like this in the voice of `name`."""
        found = mfcc(sound)
        known = [self._mfcc[f"{name}.{k}"] for k in range(len(self.texts))]
        return int(np.argmin([distance(found, one) for one in known]))


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences()


@pytest.fixture(scope="module")
def said(engine: Engine, voices: dict[str, PreparedVoice], sentences: Sentences) -> list[Said]:
    """Every sentence in both voices, in one batch that everyone joins two steps later."""
    asked = []
    for index, text in enumerate(sentences.texts):
        for name in NAMES:
            mode = MODES[(index + (name == "bob")) % 2]
            sampling = SamplingParams(seed=index)
            request = Request(voices[name], text, "english", mode, sampling)  # type: ignore[arg-type]
            asked.append((name, index, request))
    heard = hear(engine, [request for _, _, request in asked], every=2)
    return [Said(*who, found) for who, found in zip(asked, heard, strict=True)]


@pytest.mark.slow
def test_it_stops_by_itself_about_when_espeak_does(said: list[Said]) -> None:
    assert all(one.heard.finished and one.heard.error is None for one in said)
    lengths = [len(one.heard.all_pcm()) / RATE for one in said]
    assert min(lengths) > 2 and max(lengths) < 5


def test_it_says_what_was_asked(said: list[Said], sentences: Sentences) -> None:
    found = [sentences.nearest(one.name, one.heard.all_pcm()) for one in said]
    assert found == [one.index for one in said]


def test_everyone_in_a_mixed_batch_keeps_their_pitch(said: list[Said]) -> None:
    clips = {name: median_pitch_hz(clip.sound, RATE) for name, clip in CLIPS.items()}
    assert clips["alice"] > 1.5 * clips["bob"]
    for one in said:
        assert median_pitch_hz(one.heard.all_pcm(), RATE) == pytest.approx(clips[one.name], rel=0.2)
    for name in NAMES:
        found = [median_pitch_hz(one.heard.all_pcm(), RATE) for one in said if one.name == name]
        assert np.median(found) == pytest.approx(clips[name], rel=0.1)


def test_it_is_loud_and_voiced_like_speech(said: list[Said]) -> None:
    for one in said:
        sound = one.heard.all_pcm()
        assert 0.2 < np.abs(sound).max() < 1
        assert 0.03 < float(np.sqrt(np.mean(sound**2))) < 0.2


@pytest.mark.slow
def test_alone_it_is_the_same_as_in_a_batch(engine: Engine, said: list[Said]) -> None:
    for one in said[:2]:
        [alone] = hear(engine, [one.request])
        assert np.array_equal(alone.all_codes(), one.heard.all_codes())


class Stock:
    """The unmodified qwen-tts, greedy."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        package: Any = import_qwen_tts()
        self._model = package.Qwen3TTSModel.from_pretrained(str(DEMO_FOLDER), dtype=torch.float32)

    def prompt(self, clip: Clip, mode: str) -> Any:
        vector = mode == "xvec"
        text = None if vector else clip.transcript
        make = self._model.create_voice_clone_prompt
        return make((clip.sound, RATE), text, x_vector_only_mode=vector)

    def speak(self, clip: Clip, mode: str, text: str) -> PCM:
        [sound], rate = self._model.generate_voice_clone(
            text=text,
            language="English",
            voice_clone_prompt=self.prompt(clip, mode),
            do_sample=False,
            subtalker_dosample=False,
            max_new_tokens=100,
        )
        assert rate == RATE
        return np.asarray(sound, np.float32)

    def decode(self, codes: Codes) -> PCM:
        with torch.no_grad():
            sound = self._model.model.speech_tokenizer.model.decoder(torch.tensor(codes.T[None]))
        return np.asarray(sound[0, 0])


@pytest.fixture(scope="module")
def stock() -> Iterator[Stock]:
    yield Stock()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_qwen_tts_says_the_same(
    stock: Stock, engine: Engine, voices: dict[str, PreparedVoice], mode: str
) -> None:
    text = "Nine people sing."
    theirs = stock.speak(CLIPS["alice"], mode, text)
    [heard] = hear(engine, [Request(voices["alice"], text, "english", mode, GREEDY)])  # type: ignore[arg-type]
    ours: NDArray[np.float32] = heard.all_pcm()
    assert len(ours) == len(theirs) > RATE / 2
    assert np.abs(ours - theirs).max() < 1e-4


def test_what_was_streamed_is_one_decode_of_the_whole(stock: Stock, said: list[Said]) -> None:
    for one in said[:2]:
        if one.request.mode == "xvec":
            whole = stock.decode(one.heard.all_codes())
            assert len(one.heard.pcm) > 3
            assert np.abs(whole - one.heard.all_pcm()).max() < 1e-4


def test_other_languages_are_refused_with_a_sentence(
    engine: Engine, voices: dict[str, PreparedVoice]
) -> None:
    with pytest.raises(errors.LanguageUnsupported, match=r"'german'\. It speaks english"):
        engine.submit(Request(voices["bob"], "Guten Tag.", "german"))
