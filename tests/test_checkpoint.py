"""The checkpoint maker, judged by the unmodified qwen_tts and by what is known of the release."""

import hashlib
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PYTHON, ROOT
from numpy.typing import NDArray

from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.testing import config as configs
from inference.testing.checkpoint import Recipe, build_random_model, main, make

TRANSCRIPT = "the words of the clip"


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def load(folder: Path) -> Any:
    torch.set_num_threads(1)
    return import_qwen_tts().Qwen3TTSModel.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Any:
    return load(checkpoint)


def speak(model: Any, text: str, prompt: Any, **options: Any) -> NDArray[np.float32]:
    [wav], rate = model.generate_voice_clone(
        text, voice_clone_prompt=prompt, **{"max_new_tokens": 300} | options
    )
    assert rate == 24_000
    return wav


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [PYTHON, "-W", "error", "-m", "inference.testing.checkpoint", str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert hashes(tmp_path / "other") == hashes(checkpoint)


def test_seed_and_eos_change_the_weights_only(checkpoint: Path, tmp_path: Path) -> None:
    make(tmp_path / "seed", Recipe(seed=1))
    make(tmp_path / "eos", Recipe(eos="random"))
    base = hashes(checkpoint)
    for other, changed in (
        ("seed", {"model.safetensors", "speech_tokenizer/model.safetensors"}),
        ("eos", {"model.safetensors"}),
    ):
        found = hashes(tmp_path / other)
        assert {name for name in base if base[name] != found[name]} == changed


@pytest.mark.slow
def test_deep_has_the_released_layers_and_the_tiny_widths(tmp_path: Path) -> None:
    make(tmp_path / "deep", Recipe("deep"))
    talker = load(tmp_path / "deep").model.talker
    assert len(talker.model.layers) == 28 and len(talker.code_predictor.model.layers) == 5
    assert talker.config.hidden_size == 64


@pytest.mark.slow
@pytest.mark.parametrize(("text", "frames"), [("Hi.", 4), ("Hello.", 7), ("a" * 53, 54)])
@pytest.mark.parametrize("sampled", [True, False])
def test_speech_ends_with_the_text(
    tiny: Any, clip: NDArray[np.float32], text: str, frames: int, sampled: bool
) -> None:
    prompt = tiny.create_voice_clone_prompt((clip, 24_000), None, x_vector_only_mode=True)
    wav = speak(tiny, text, prompt, do_sample=sampled, subtalker_dosample=sampled)
    assert len(wav) == frames * 1920


@pytest.mark.slow
def test_speech_with_a_transcript_ends_with_the_text_that_is_left(
    tiny: Any, clip: NDArray[np.float32]
) -> None:
    prompt = tiny.create_voice_clone_prompt((clip, 24_000), TRANSCRIPT)
    frames, text = len(prompt[0].ref_code), "Some words more than the codes can hold."
    wav = speak(tiny, text, prompt)
    assert len(wav) // 1920 == len(TRANSCRIPT) + len(text) - frames + 1


def test_endless_speech_fills_the_budget(
    endless_checkpoint: Path, clip: NDArray[np.float32]
) -> None:
    model = load(endless_checkpoint)
    prompt = model.create_voice_clone_prompt((clip, 24_000), None, x_vector_only_mode=True)
    assert len(speak(model, "Hi.", prompt, max_new_tokens=12)) == 11 * 1920


@pytest.mark.slow
def test_the_noise_has_the_level_of_speech(tiny: Any, clip: NDArray[np.float32]) -> None:
    prompt = tiny.create_voice_clone_prompt((clip, 24_000), None, x_vector_only_mode=True)
    wav = speak(tiny, "A sentence to listen to.", prompt)
    assert np.isfinite(wav).all()
    assert 0.05 < math.sqrt(np.mean(wav**2)) < 0.3 and np.abs(wav).max() < 0.99


def test_clips_make_different_features(tiny: Any, clip: NDArray[np.float32]) -> None:
    other = np.random.default_rng(5).normal(0, 0.1, len(clip)).astype(np.float32)
    [a], [b] = (tiny.create_voice_clone_prompt((x, 24_000), TRANSCRIPT) for x in (clip, other))
    assert a.ref_code.shape == (25, 16) and a.ref_code.unique().numel() > 20
    assert (a.ref_code != b.ref_code).float().mean() > 0.5
    assert (a.ref_spk_embedding - b.ref_spk_embedding).abs().max() > 0.01


@pytest.mark.parametrize("size", ["0.6b", "1.7b"])
def test_full_sizes_have_the_released_dimensions(size: str) -> None:
    hidden = {"0.6b": 1024, "1.7b": 2048}[size]
    talker = configs.main_config(size)["talker_config"]
    expected = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 3072,
        "text_vocab_size": 151936,
        "num_code_groups": 16,
        "codec_bos_id": 2149,
        "codec_eos_token_id": 2150,
        "codec_pad_id": 2148,
        "codec_think_id": 2154,
        "codec_nothink_id": 2155,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "rope_theta": 1000000,
    }
    assert {name: talker[name] for name in expected} == expected
    assert talker["codec_language_id"]["english"] == 2050
    assert talker["codec_language_id"]["portuguese"] == 2071
    assert talker["rope_scaling"]["mrope_section"] == [24, 20, 20]
    assert talker["code_predictor_config"]["num_hidden_layers"] == 5


@pytest.mark.parametrize(
    ("size", "released_bytes"), [("0.6b", 1_829_344_272), ("1.7b", 3_857_413_744)]
)
def test_full_sizes_weigh_what_the_release_weighs(size: str, released_bytes: int) -> None:
    import_qwen_tts()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    with torch.device("meta"):
        config = Qwen3TTSConfig(**configs.main_config(size))
        model = Qwen3TTSForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    assert 0 < released_bytes - sum(t.nbytes for t in model.state_dict().values()) < 100_000


@pytest.mark.parametrize(
    ("name", "sha256_start"),
    [
        ("generation_config.json", "f1b90b45"),
        ("preprocessor_config.json", "efdde102"),
        ("speech_tokenizer/preprocessor_config.json", "fcb3805e"),
    ],
)
def test_small_configs_are_those_of_the_release(
    checkpoint: Path, name: str, sha256_start: str
) -> None:
    assert hashes(checkpoint)[name].startswith(sha256_start)


def test_a_model_built_in_memory_speaks(clip: NDArray[np.float32]) -> None:
    model = build_random_model(Recipe(eos="never"), "cpu", "float32")
    prompt = model.create_voice_clone_prompt((clip, 24_000), TRANSCRIPT)
    wav = speak(model, "Hi.", prompt, max_new_tokens=5)
    assert len(wav) // 1920 == 4 and np.isfinite(wav).all() and np.abs(wav).max() > 0.01


def test_command_line_replaces_a_folder_only_when_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(SystemExit) as refused:
        main([str(tmp_path)])
    assert refused.value.code == 2 and "--force" in capsys.readouterr().err
    assert (tmp_path / "mine").exists()
    assert main([str(tmp_path), "--force", "--eos", "never"]) == 0
    assert not (tmp_path / "mine").exists()
    assert json.loads((tmp_path / "config.json").read_text())["tts_model_type"] == "base"


@pytest.mark.parametrize("wrong", [{"size": "7b"}, {"eos": "maybe"}])
def test_an_unknown_size_or_eos_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="there are"):
        Recipe(**wrong)  # type: ignore[arg-type]
