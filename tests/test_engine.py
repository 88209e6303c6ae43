"""The engine on the tiny checkpoint, compared with qwen_tts called directly."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRANSCRIPT, make_clip
from speaking import TEXT, run_python, speak_directly

from inference import errors
from inference.checkpoint import Recipe, build_random_model
from inference.engine.params import SpeechParams, frame_budget
from inference.engine.qwen import import_qwen_tts
from inference.engine.stock import Features, StockEngine, default_dtype
from inference.weights import LocatedModel


def test_features_are_those_of_qwen_tts(engine: StockEngine, stock: Any) -> None:
    clip = make_clip(3, 1.5)
    found = engine.extract(clip, TRANSCRIPT)
    [item] = stock.create_voice_clone_prompt((clip, 24_000), TRANSCRIPT)
    assert found.ref_code is not None and found.ref_code.dtype == np.int16
    assert np.array_equal(found.ref_code, item.ref_code.numpy())
    assert np.array_equal(found.ref_spk_embedding, item.ref_spk_embedding.numpy())
    assert found.ref_text == item.ref_text == TRANSCRIPT


def test_without_a_transcript_there_are_no_codes(engine: StockEngine) -> None:
    with_text, without = (engine.extract(make_clip(3, 1.0), t) for t in (TRANSCRIPT, None))
    assert without.ref_code is None and without.ref_text is None
    assert np.array_equal(without.ref_spk_embedding, with_text.ref_spk_embedding)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_is_refused(engine: StockEngine, value: float) -> None:
    clip = make_clip(0, 1.0)
    clip[1000] = value
    with pytest.raises(errors.ExtractionFailed, match="not finite"):
        engine.extract(clip, TRANSCRIPT)


@pytest.mark.parametrize("samples", [0, 1, 200])
def test_a_clip_too_short_to_encode_is_refused(engine: StockEngine, samples: int) -> None:
    with pytest.raises(errors.ExtractionFailed, match="can't encode"):
        engine.extract(np.zeros(samples, np.float32), TRANSCRIPT)


ORDINARY = [
    "Hello.",
    "Grüße aus 北京, 안녕 🎉",
    " two  spaces ",
    "a\nb\n\nc",
    "it's 12,000 €",
    "e\u0301",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ids_of_ordinary_text_are_those_of_qwen_tts(
    engine: StockEngine, stock: Any, text: str
) -> None:
    [target] = stock._tokenize_texts([stock._build_assistant_text(text)])
    [reference] = stock._tokenize_texts([stock._build_ref_text(text)])
    assert engine._text.target(text) == target[0].tolist()
    assert engine._text.reference(text) == reference[0].tolist()


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<|im_start|>", "<tts_pad>", "<tts_text_eod>", "<think>", "<|endoftext|>"],
)
def test_control_tokens_that_a_user_writes_are_text(
    engine: StockEngine, stock: Any, token: str
) -> None:
    added = set(stock.processor.tokenizer.added_tokens_decoder)
    assert stock._tokenize_texts([token])[0].numel() == 1  # qwen_tts takes it for the token
    assert len(engine._text.ids(token)) > 1 and not added & set(engine._text.ids(token))
    assert engine._text.target(f"a{token}b")[3:-5] == engine._text.ids(f"a{token}b")
    assert engine._text.reference(token)[3:-2] == engine._text.ids(token)


def test_a_local_folder_keeps_qwens_pre_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    large = shutil.copytree(checkpoint, tmp_path / "large")
    vocabulary = json.loads((large / "vocab.json").read_text("utf-8"))
    fillers = {f"filler{i}": 400 + i for i in range(100_001)}
    (large / "vocab.json").write_text(json.dumps(vocabulary | fillers), "utf-8")
    engine = StockEngine.load(large, "cpu", None)
    splitter = engine._model.processor.tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("iPhone")] == ["iPhone"]
    replaced = import_qwen_tts().Qwen3TTSModel.from_pretrained(str(large)).processor.tokenizer
    splitter = replaced.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("iPhone")] == ["i", "Phone"]


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({}, {}),
        (
            {"temperature": 0.6, "top_k": 9, "top_p": 0.8},
            {
                "temperature": 0.6,
                "top_k": 9,
                "top_p": 0.8,
                "subtalker_temperature": 0.6,
                "subtalker_top_k": 9,
                "subtalker_top_p": 0.8,
            },
        ),
        ({"temperature": 0}, {"do_sample": False, "subtalker_dosample": False}),
        ({"language": "German"}, {"language": "german"}),
    ],
)
def test_params_reach_the_talker_and_its_subtalker(
    engine: StockEngine, stock: Any, params: dict[str, Any], options: dict[str, Any]
) -> None:
    clip = make_clip(1, 1.0)
    prompt = engine.prepare(engine.extract(clip, None))
    items = stock.create_voice_clone_prompt((clip, 24_000), None, x_vector_only_mode=True)
    pcm = engine.speak(prompt, TEXT, SpeechParams(seed=5, **params))
    assert np.array_equal(pcm, speak_directly(stock, items, TEXT, 5, **options))


def test_seeds_differ_when_sampled_and_agree_when_greedy(engine: StockEngine) -> None:
    prompt = engine.prepare(engine.extract(make_clip(1, 1.0), None))

    def differing(temperature: float) -> bool:
        a, b = (
            engine.speak(prompt, "Hi.", SpeechParams(seed=seed, temperature=temperature))
            for seed in (1, 2)
        )
        return not np.array_equal(a, b)

    assert differing(0.9) and not differing(0) and not differing(0.005)


@pytest.mark.parametrize("frames", range(1, 40, 3))
def test_the_length_is_a_whole_number_of_frames(engine: StockEngine, frames: int) -> None:
    codes = np.zeros((frames, 16), np.int16)
    prompt = engine.prepare(Features(codes, np.zeros(64, np.float32), "x"))
    assert len(engine.speak(prompt, "yz", SpeechParams(seed=1))) % 1920 == 0


def test_a_transcript_longer_than_its_codes_does_not_use_up_the_budget(engine: StockEngine) -> None:
    codes, transcript = np.zeros((10, 16), np.int16), "much more transcript than sound " * 3
    prompt = engine.prepare(Features(codes, np.zeros(64, np.float32), transcript))
    pcm = engine.speak(prompt, "Hi.", SpeechParams(seed=1))
    assert len(pcm) // 1920 == len(transcript) + 3 - 10 + 1 > frame_budget(3)


def test_speech_without_an_end_is_an_error_and_not_a_clip(endless_checkpoint: Path) -> None:
    engine = StockEngine.load(endless_checkpoint, "cpu", None, threads=1)
    prompt = engine.prepare(engine.extract(make_clip(1, 1.0), None))
    with pytest.raises(errors.SpeechUnfinished, match="within 56 frames"):
        engine.speak(prompt, "x", SpeechParams(seed=1))


def test_sound_that_is_not_finite_is_an_error(engine: StockEngine) -> None:
    nowhere = engine.prepare(Features(None, np.full(64, np.nan, np.float32), None))
    with pytest.raises(errors.SpeechFailed, match="failed while speaking"):
        engine.speak(nowhere, "Hi.", SpeechParams(seed=1))
    model = build_random_model(Recipe(), "cpu", "float32")
    model.model.speech_tokenizer.model.decoder.decoder[-1].conv.bias.data.fill_(np.nan)
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    with pytest.raises(errors.SpeechFailed, match="not finite"):
        StockEngine(model).speak(prompt, "Hi.", SpeechParams(seed=1))


def test_a_text_beyond_the_limit_names_it_in_frames_seconds_and_tokens(engine: StockEngine) -> None:
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    assert frame_budget(333) == 2048
    with pytest.raises(errors.TextTooLong, match=r"334 tokens.*333 at most.*2048 frames, 164 s"):
        engine.speak(prompt, "x" * 334, SpeechParams(seed=1))


@pytest.mark.parametrize("language", ["klingon", "en", "", "engl ish"])
def test_an_unknown_language_is_refused_with_the_known_ones(
    engine: StockEngine, language: str
) -> None:
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    with pytest.raises(errors.LanguageUnsupported, match=r"chinese, english, french"):
        engine.speak(prompt, "Hi.", SpeechParams(seed=1, language=language))


def test_languages_are_those_of_the_located_model(
    engine: StockEngine, located: LocatedModel
) -> None:
    assert sorted(engine.languages) == list(located.languages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "both"},
        {"seed": -1},
        {"seed": 2**31},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
    ],
)
def test_params_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpeechParams(**wrong)


def test_a_cpu_computes_in_float32(engine: StockEngine) -> None:
    assert default_dtype(torch.device("cpu")) == engine.dtype == "float32"
    assert engine.device == "cpu"


def test_an_explicit_dtype_wins(checkpoint: Path) -> None:
    assert StockEngine.load(checkpoint, "cpu", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("options", [("cpu", "int8"), ("no-such-device", None), ("cuda:99", None)])
def test_a_wrong_device_or_dtype_is_one_sentence(
    checkpoint: Path, options: tuple[str, str | None]
) -> None:
    with pytest.raises(errors.ModelUnavailable, match="did not load"):
        StockEngine.load(checkpoint, *options)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vocab.json", "speech_tokenizer/config.json"]
)
def test_damaged_weights_or_configs_are_one_sentence(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "damaged")
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(errors.ModelUnavailable, match="did not load"):
        StockEngine.load(copy, "cpu", None)


def test_import_loading_and_speaking_print_nothing(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from inference.engine.stock import StockEngine
from inference.engine.params import SpeechParams
engine = StockEngine.load(Path(sys.argv[1]), "cpu", None, threads=1)
clip = np.sin(np.arange(24000) / 20).astype(np.float32)
prompt = engine.prepare(engine.extract(clip, "Hi."))
engine.speak(prompt, "Hi.", SpeechParams(seed=1, temperature=0))
assert not {"torchaudio", "sox", "onnxruntime"} & set(sys.modules)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
