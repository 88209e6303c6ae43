"""Prompt features: those of qwen_tts in float32, from its encoders alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRANSCRIPT, make_clip
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from speaking import run_python

from inference.engine.extract import ExtractedFeatures, Extractor, WindowedEncoder
from inference.engine.model_config import read_model_config
from registry.errors import ExtractionFailed, ModelUnavailable, Overloaded


@pytest.fixture(scope="module")
def extractor(checkpoint: Path) -> Extractor:
    torch.set_num_threads(1)
    return Extractor.load(checkpoint, read_model_config(checkpoint), "cpu")


def by_qwen_tts(stock: Any, clip: NDArray[np.float32], transcript: str | None) -> Any:
    only = transcript is None
    [item] = stock.create_voice_clone_prompt((clip, 24_000), transcript, x_vector_only_mode=only)
    return item


@pytest.mark.slow
@pytest.mark.parametrize("duration_s", [0.08, 0.081, 0.5, 1.0, 1.52, 2.3, 7.32, 59.0])
def test_features_are_bit_for_bit_those_of_qwen_tts(
    extractor: Extractor, stock: Any, duration_s: float
) -> None:
    clip = make_clip(int(duration_s * 100), duration_s)
    found, item = extractor.extract(clip, TRANSCRIPT), by_qwen_tts(stock, clip, TRANSCRIPT)
    assert found.ref_code is not None and found.ref_code.dtype == np.int16
    assert np.array_equal(found.ref_code, item.ref_code.numpy())
    assert len(found.ref_code) == -(-len(clip) // 1920)
    assert found.ref_spk_embedding.dtype == np.float32
    assert np.array_equal(found.ref_spk_embedding, item.ref_spk_embedding.numpy())
    assert found.ref_text == TRANSCRIPT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "filters"),
    [
        *((n, 16) for n in (1, 99, 100, 101, 150, 199.001, 200, 200.5, 333.3)),
        (101, 64),
        (200.5, 64),
    ],
)
def test_windows_give_every_bit_that_the_whole_gives(columns: float, filters: int) -> None:
    """At and around the ends of windows, with a quarter of the released width and with all."""
    from transformers import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiEncoder

    torch.manual_seed(0)
    torch.set_num_threads(1)
    encoder = MimiEncoder(MimiConfig(num_filters=filters)).eval()
    windows = WindowedEncoder(encoder)
    sound = torch.from_numpy(make_clip(3, 20.0))[None, None, :]
    sound = sound[..., : int(columns * windows._step)]
    with torch.inference_mode():
        assert torch.equal(windows(sound), encoder(sound))


LONGEST = """
import resource, sys, numpy as np, torch
from pathlib import Path
from inference.engine.extract import Extractor
from inference.models.catalog import DEMO_FOLDER, load_model_config
torch.set_num_threads(1)
extractor = Extractor.load(DEMO_FOLDER, load_model_config(DEMO_FOLDER), "cpu")
noise = np.random.default_rng(1).uniform(-0.1, 0.1, 59 * 24_000).astype(np.float32)
extractor.extract(noise[:24_000], "x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
extractor.extract(noise, "x")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown // (1 << 20 if sys.platform == "darwin" else 1 << 10))
"""


@pytest.mark.slow
def test_the_longest_clip_takes_little_memory() -> None:
    """460 MiB if it is encoded as a whole, by the demo, whose codec has a quarter of the width."""
    assert int(run_python(LONGEST).stdout) < 200


@pytest.mark.parametrize("clip", [np.zeros(24_000, np.float32), make_clip(1, 1.0) * 1e-4])
def test_silence_and_faint_clips_are_those_of_qwen_tts(
    extractor: Extractor, stock: Any, clip: NDArray[np.float32]
) -> None:
    found, item = extractor.extract(clip, "x"), by_qwen_tts(stock, clip, "x")
    assert np.array_equal(found.ref_code, item.ref_code.numpy())
    assert np.array_equal(found.ref_spk_embedding, item.ref_spk_embedding.numpy())


def test_codes_tell_clips_apart(extractor: Extractor) -> None:
    one, other = (extractor.extract(make_clip(i, 1.0), "x") for i in (1, 2))
    assert one.ref_code is not None and other.ref_code is not None
    assert (one.ref_code != other.ref_code).mean() > 0.5
    assert np.abs(one.ref_spk_embedding - other.ref_spk_embedding).max() > 1e-3


def test_without_a_transcript_the_codec_is_not_asked(extractor: Extractor) -> None:
    deaf = Extractor(extractor._speaker, None, extractor._mel, extractor._config, extractor._text)
    clip = make_clip(3, 1.0)
    with_text, without = extractor.extract(clip, TRANSCRIPT), deaf.extract(clip, None)
    assert without.ref_code is None and without.ref_text is None
    assert np.array_equal(without.ref_spk_embedding, with_text.ref_spk_embedding)


def test_everything_is_float32_and_only_what_is_needed_is_loaded(extractor: Extractor) -> None:
    modules = (extractor._speaker, extractor._codec)
    kinds = {t.dtype for module in modules for t in module.state_dict().values()}
    assert kinds == {torch.float32}
    assert extractor._codec.decoder is extractor._codec.upsample is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transcript", [TRANSCRIPT, None])
def test_one_sample_that_is_not_finite_is_refused(
    extractor: Extractor, value: float, transcript: str | None
) -> None:
    clip = make_clip(0, 1.0)
    clip[1000] = value
    with pytest.raises(ExtractionFailed, match="not finite"):
        extractor.extract(clip, transcript)


@pytest.mark.parametrize("samples", [0, 1, 200, 640, 1919])
@pytest.mark.parametrize("transcript", [TRANSCRIPT, None])
def test_a_clip_too_short_to_encode_is_refused(
    extractor: Extractor, samples: int, transcript: str | None
) -> None:
    with pytest.raises(ExtractionFailed, match=r"can't encode.* less than one frame of 0\.08 s"):
        extractor.extract(np.zeros(samples, np.float32), transcript)


class Full(torch.nn.Linear):
    """A module on a device without free memory."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_full_device_is_not_called_a_bad_clip(checkpoint: Path) -> None:
    found = load(checkpoint)
    full = Extractor(
        Full(1, 1), found._codec, found._mel, read_model_config(checkpoint), found._text
    )
    with pytest.raises(Overloaded, match="memory"):
        full.extract(make_clip(0, 1.0), None)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load(folder: Path, device: str = "cpu") -> Extractor:
    return Extractor.load(folder, read_model_config(folder), device)


def test_an_embedding_that_is_not_finite_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["speaker_encoder.fc.bias"].fill_(torch.nan)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ExtractionFailed, match="embedding is not finite"):
        load(copy).extract(make_clip(0, 1.0), None)


def test_codes_beyond_the_codebook_are_refused(checkpoint: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["talker_config"]["code_predictor_config"]["vocab_size"] = 4
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ExtractionFailed, match="outside of the model's codebook"):
        load(copy).extract(make_clip(0, 1.0), "x")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "speaker_encoder.fc.bias"),
        ("speech_tokenizer/model.safetensors", "encoder.downsample.conv.weight"),
    ],
)
def test_a_missing_tensor_is_named(copy: Path, file: str, name: str) -> None:
    tensors = load_file(copy / file)
    del tensors[name]
    save_file(tensors, copy / file)
    with pytest.raises(ModelUnavailable, match=f"has no tensor {name}"):
        load(copy)


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[" * 50_000, '{"speaker_encoder_config": {"a": 1}}']
)
def test_a_damaged_config_is_one_sentence(checkpoint: Path, copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, "utf-8")
    with pytest.raises(ModelUnavailable):
        Extractor.load(copy, read_model_config(checkpoint), "cpu")


KERNELS = "someone/kernels-of-theirs"  # transformers would fetch and run it


@pytest.mark.parametrize("file", ["config.json", "speech_tokenizer/config.json"])
@pytest.mark.parametrize(
    "named",
    [
        {"_attn_implementation_internal": KERNELS},
        {"_attn_implementation": KERNELS},
        {"attn_implementation": KERNELS},
        {"attn_implementation": {"": KERNELS}},
        {"auto_map": {"AutoModel": f"{KERNELS}--model.Model"}},
    ],
    ids=lambda named: next(iter(named)),
)
def test_a_config_cannot_choose_code(
    extractor: Extractor, copy: Path, file: str, named: dict[str, object]
) -> None:
    def plant(config: dict[str, object]) -> dict[str, object]:
        inner = {k: plant(v) if isinstance(v, dict) else v for k, v in config.items()}
        return inner | named

    config = json.loads((copy / file).read_text("utf-8"))
    (copy / file).write_text(json.dumps(plant(config)), "utf-8")
    clip, loaded = make_clip(0, 1.0), load(copy)
    assert loaded._codec.config._attn_implementation == "sdpa"
    assert (loaded.extract(clip, "x").ref_code == extractor.extract(clip, "x").ref_code).all()


@pytest.mark.parametrize("device", ["no-such-device", "cuda:99"])
def test_a_wrong_device_is_one_sentence(checkpoint: Path, device: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"encoders in .* did not load"):
        load(checkpoint, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_cuda_are_those_of_the_cpu(checkpoint: Path, extractor: Extractor) -> None:
    clip = make_clip(5, 3.0)
    there, here = load(checkpoint, "cuda").extract(clip, "x"), extractor.extract(clip, "x")
    assert isinstance(there, ExtractedFeatures) and there.ref_code is not None
    assert (there.ref_code == here.ref_code).mean() > 0.99
    np.testing.assert_allclose(there.ref_spk_embedding, here.ref_spk_embedding, atol=1e-5)


@pytest.mark.slow
def test_importing_needs_no_qwen_tts_and_loading_prints_nothing(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from inference.engine.extract import Extractor
from inference.engine.model_config import read_model_config
assert not {"transformers", "qwen_tts", "librosa"} & set(sys.modules)
folder = Path(sys.argv[1])
clip = np.sin(np.arange(24000) / 20).astype(np.float32)
found = Extractor.load(folder, read_model_config(folder), "cpu").extract(clip, "Hi.")
assert found.ref_code.shape == (13, 16)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
