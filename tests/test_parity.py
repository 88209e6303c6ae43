"""The engine's codes and sound against qwen_tts' own, frame by frame: greedy, float32, on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import PCM, Codes, Heard, hear, load
from numpy.typing import NDArray

from inference.engine import Engine, Request, SamplingParams
from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.frame_budget import frame_budget
from inference.testing.checkpoint import Recipe, make
from registry import errors

ENDS = ("text", "never")


@dataclass(frozen=True)
class Case:
    """One request, in terms that both sides understand."""

    text: str
    frames: int = 0  # of the reference; 0 is x-vector mode
    language: str | None = None
    penalty: float = 1.05
    transcript: str = "What the clip says."
    seed: int = 0

    def codes(self) -> NDArray[np.int16] | None:
        if not self.frames:
            return None
        generator = np.random.default_rng(self.frames)
        return generator.integers(0, 128, (self.frames, 16)).astype(np.int16)

    def embedding(self) -> NDArray[np.float32]:
        return np.random.default_rng(len(self.text)).normal(0, 0.3, 64).astype(np.float32)


CASES = [
    Case("Hello there."),
    Case("A longer text, in context, that is read while frames are made.", 12, "english"),
    Case("Hi.", 30),
    Case("Guten Tag, wie geht es?", 0, "german", penalty=1.5),
    Case("你好吗", 40, "chinese", penalty=1.0),
    Case("Bonjour à tous.", 3, "french", penalty=2.0),
    Case("x", 0, "Japanese"),
]


class Reference:
    """qwen_tts itself, in float32, greedy."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._qwen = import_qwen_tts().Qwen3TTSModel.from_pretrained(
            str(folder), dtype=torch.float32
        )
        self._text = load_tokenizer(folder)

    def codes(self, case: Case, most: int) -> Codes:
        """(frames, 16), `most` at most."""
        codes, icl = case.codes(), bool(case.frames)
        reference = torch.tensor([self._text.reference(case.transcript)]) if icl else None
        [found], _ = self._qwen.model.generate(
            input_ids=[torch.tensor([self._text.target(case.text)])],
            ref_ids=[reference],
            voice_clone_prompt={
                "ref_code": [None if codes is None else torch.tensor(codes.astype(np.int64))],
                "ref_spk_embedding": [torch.tensor(case.embedding())],
                "x_vector_only_mode": [not icl],
                "icl_mode": [icl],
            },
            languages=[case.language or "Auto"],
            non_streaming_mode=False,
            do_sample=False,
            subtalker_dosample=False,
            repetition_penalty=case.penalty,
            max_new_tokens=most + 1,
        )
        return np.asarray(found)

    def sound(self, case: Case, codes: Codes) -> PCM:
        """The whole decode of the reference's codes and these, without the reference's part."""
        before = case.codes()
        whole = codes if before is None else np.concatenate([before.astype(np.int64), codes])
        decoder = self._qwen.model.speech_tokenizer.model.decoder
        with torch.no_grad():
            pcm = decoder(torch.tensor(whole.T[None]))[0, 0].numpy()
        return np.asarray(pcm[-len(codes) * 1920 :])


@pytest.fixture(scope="module", params=["tiny", "tiny-0.6b"])
def size(request: pytest.FixtureRequest) -> str:
    """Both layouts: with and without a projection between talker and predictor."""
    return str(request.param)


@pytest.fixture(scope="module")
def folders(size: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint for each way of ending."""
    folders = {eos: tmp_path_factory.mktemp("models") / f"{size}-{eos}" for eos in ENDS}
    for eos, folder in folders.items():
        make(folder, Recipe(size, eos=eos))
    return folders


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {eos: Reference(folder) for eos, folder in folders.items()}


def request_of(engine: Engine, case: Case) -> Request:
    codes = case.codes()
    voice = engine.prepare(case.embedding(), codes, None if codes is None else case.transcript)
    sampling = SamplingParams(seed=case.seed, temperature=0, repetition_penalty=case.penalty)
    return Request(voice, case.text, case.language, "auto", sampling)


def speak(engine: Engine, cases: Sequence[Case], every: int = 0) -> list[Heard]:
    """Speak all; the next one joins after `every` steps, or all at once."""
    return hear(engine, [request_of(engine, case) for case in cases], every)


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "every"), [(8, 0), (3, 0), (8, 2), (1, 0)])
def test_codes_of_a_mixed_batch_are_those_of_qwen_tts(
    folders: dict[str, Path], references: dict[str, Reference], slots: int, every: int
) -> None:
    engine = load(folders["text"], slots=slots)
    for case, heard in zip(CASES, speak(engine, CASES, every), strict=True):
        expected = references["text"].codes(case, 300)
        assert heard.finished and 2 <= len(expected) < 300
        assert np.array_equal(heard.all_codes(), expected), case
    assert engine.counters.largest_batch == min(slots, len(CASES)) or every


@pytest.mark.slow
def test_codes_up_to_the_budget_are_those_of_qwen_tts(
    folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    engine = load(folders["never"], slots=3)
    cases = [Case("Hi."), Case("Yes", 30, "english"), Case("No", 40)]
    for case, heard in zip(cases, speak(engine, cases), strict=True):
        budget, found = frame_budget(len(case.text)), heard.all_codes()
        assert isinstance(heard.error, errors.SpeechUnfinished) and str(budget) in str(heard.error)
        assert budget - 8 <= len(found) <= budget
        assert np.array_equal(found, references["never"].codes(case, len(found))), case


@pytest.mark.slow
def test_the_joined_sound_is_the_whole_decode(
    folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    engine = load(folders["text"], slots=4)
    for case, heard in zip(CASES, speak(engine, CASES, 1), strict=True):
        expected = references["text"].sound(case, heard.all_codes())
        assert np.abs(expected).max() > 0.05
        assert np.abs(heard.all_pcm() - expected).max() < 2e-5
