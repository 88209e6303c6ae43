"""Make checkpoints of the true Qwen3-TTS 12 Hz Base format, with random weights.

The same size, seed and eos give the same bytes on every run. The sound is noise of a speech-like
level; `eos` says when it ends. Knows nothing about the data directory or where models are kept.
"""

import argparse
import math
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.testing import config as configs
from inference.testing.text import write_json, write_text_tokenizer

if TYPE_CHECKING:
    import torch

ENDINGS = ("text", "never", "random")
FLAG = 1  # the residual channel, and the text feature, that carry "the text is over"


@dataclass(frozen=True)
class Recipe:
    """A checkpoint to make. Speech ends with the text, `never` before the budget or at `random`."""

    size: str = "tiny"
    seed: int = 0
    eos: str = "text"

    def __post_init__(self) -> None:
        if self.size not in configs.SIZES:
            raise ValueError(f"No size {self.size!r}; there are {', '.join(configs.SIZES)}.")
        if self.eos not in ENDINGS:
            raise ValueError(f"No eos {self.eos!r}; there are {', '.join(ENDINGS)}.")


def make(folder: Path, recipe: Recipe) -> None:
    """Write a checkpoint into the new `folder`: talker bf16, speech tokenizer fp32."""
    import torch
    from safetensors.torch import save_file

    talker, speech = _modules(recipe, torch.device("cpu"), torch.float32, torch.float32)
    _fill_exactly(talker, recipe.seed)
    _fill_exactly(speech, recipe.seed + 1)
    _set_ending(talker, recipe.eos)
    speech_folder = folder / "speech_tokenizer"
    speech_folder.mkdir(parents=True)
    for module, dtype, place in (
        (talker, torch.bfloat16, folder),
        (speech, torch.float32, speech_folder),
    ):
        tensors = {k: v.to(dtype).contiguous() for k, v in module.state_dict().items()}
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    write_configs(folder, recipe.size)


def write_configs(folder: Path, size: str) -> None:
    """Write every file of a checkpoint but the weights."""
    speech_folder = folder / "speech_tokenizer"
    write_json(folder / "config.json", configs.main_config(size))
    write_json(folder / "generation_config.json", configs.GENERATION)
    write_json(speech_folder / "config.json", configs.speech_config(size))
    write_json(speech_folder / "preprocessor_config.json", configs.AUDIO_FEATURES, end="\n")
    write_text_tokenizer(folder)


def build_random_model(recipe: Recipe, device: str, dtype: str = "bfloat16") -> Any:
    """Build a Qwen3TTSModel on `device` in `dtype`; no weight file is read or written.

    Its weights come from the device's own generator, so they differ from those of `make`. The text
    tokenizer is the byte-level one, whose ids are valid at every size.
    """
    import torch

    qwen_tts = import_qwen_tts()
    place, kind = torch.device(device), getattr(torch, dtype)
    talker, speech = _modules(recipe, place, kind, kind)
    _fill_on_device(talker, recipe.seed)
    _fill_on_device(speech, recipe.seed + 1)
    _set_ending(talker, recipe.eos)
    talker.load_speech_tokenizer(_wrap_speech(qwen_tts, speech))
    talker.load_generate_config(dict(configs.GENERATION))
    return qwen_tts.Qwen3TTSModel(talker, _processor(), talker.generate_config)


def _modules(
    recipe: Recipe, device: "torch.device", dtype: "torch.dtype", speech_dtype: "torch.dtype"
) -> tuple[Any, Any]:
    """Build (talker with speaker encoder, speech tokenizer), as their constructors leave them."""
    import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    main = Qwen3TTSConfig(**configs.main_config(recipe.size))
    speech = Qwen3TTSTokenizerV2Config(**configs.speech_config(recipe.size))
    with device:
        talker = Qwen3TTSForConditionalGeneration._from_config(main, dtype=dtype)
        codec = Qwen3TTSTokenizerV2Model._from_config(speech, dtype=speech_dtype)
    return talker.eval(), codec.eval()


def _wrap_speech(qwen_tts: Any, module: Any) -> Any:
    from transformers import EncodecFeatureExtractor

    tokenizer = qwen_tts.Qwen3TTSTokenizer()
    tokenizer.model, tokenizer.config = module, module.config
    tokenizer.device = next(module.parameters()).device
    features = {k: v for k, v in configs.AUDIO_FEATURES.items() if k != "feature_extractor_type"}
    tokenizer.feature_extractor = EncodecFeatureExtractor(**features)
    return tokenizer


def _processor() -> Any:
    from qwen_tts.core.models import Qwen3TTSProcessor
    from transformers import Qwen2TokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        write_text_tokenizer(Path(folder))
        tokenizer = Qwen2TokenizerFast.from_pretrained(folder)  # nosec B615 # no download
        return Qwen3TTSProcessor(tokenizer=tokenizer)


CONSTANTS = (
    (r"\.(cluster_usage|initialized)$", 1.0),
    (r"\.gamma$", 0.1),  # ConvNeXt's layer scale is built as 1e-6: nothing would pass
    (r"\.(alpha|beta|bias)$", 0.0),
)
# The first match wins. These keep the sound at the level of speech and off the clamp at 1.
GAINS = (
    (r"^decoder\.decoder\.6\.conv\.weight$", 0.15),
    (r"^decoder\.decoder\..*\.conv2\.conv\.", 0.3),
    (r"\.block\.1\.conv\.", 0.7),
    (r"^speaker_encoder\.fc\.weight$", 0.1),
    (r"codec_head\.weight$|\.lm_head\.", 3.0),
)


def constant_of(name: str, shape: tuple[int, ...]) -> float | None:
    """Return the number that fills the whole weight `name`; None if noise does."""
    for pattern, value in CONSTANTS:
        if re.search(pattern, name):
            return value
    return 1.0 if len(shape) == 1 else None  # what is left of the vectors are norms


def deviation_of(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of the noise that fills the weight `name`."""
    if name.endswith(("embed_sum", "embedding_sum")):
        return 1.0
    if "embedding" in name:
        return 0.5
    gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
    return gain / math.sqrt(_fan_in(name, shape))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Count inputs per output; a transposed convolution is stored (in, out, width)."""
    if ".block.1.conv." in name:
        return 2 * shape[0]
    if name.startswith("decoder.upsample.") and ".0.conv." in name:
        return shape[0]
    return math.prod(shape[1:])


def _to_fill(module: Any) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Set the constant tensors; yields those that get noise, in order of name."""
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith(".scale"):  # LayerScale: the constructor's value, from the config
            continue
        value = constant_of(name, tuple(tensor.shape))
        if value is None:
            yield name, tensor.detach()
        else:
            tensor.detach().fill_(value)


def _fill_exactly(module: Any, seed: int) -> None:
    import torch

    for name, tensor in _to_fill(module):
        deviation = deviation_of(name, tuple(tensor.shape))
        tensor.copy_(torch.from_numpy(_noise(name, tuple(tensor.shape), deviation, seed)))


def _noise(name: str, shape: tuple[int, ...], deviation: float, seed: int) -> np.ndarray:
    """Make uniform noise of PCG64's raw words, exactly: no library's sampler can change it."""
    count = math.prod(shape)
    generator = np.random.PCG64([seed, zlib.crc32(name.encode())])
    words = generator.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    step = np.float32(deviation * math.sqrt(12.0) / 65536.0)
    return ((words.astype(np.float32) - np.float32(32767.5)) * step).reshape(shape)


def _fill_on_device(module: Any, seed: int) -> None:
    import torch

    generator: torch.Generator | None = None
    for name, tensor in _to_fill(module):
        generator = generator or torch.Generator(tensor.device).manual_seed(seed)
        tensor.normal_(0.0, deviation_of(name, tuple(tensor.shape)), generator=generator)


def _set_ending(model: Any, eos: str) -> None:
    """Edit the weights so that the codec's end token wins exactly when `eos` says.

    One residual channel is kept free of everything but the text projection, which writes -1 for a
    text token and, for "text", +1 for tts_pad; the end token's row of codec_head reads it alone.
    """
    if eos == "random":
        return
    import torch

    with torch.no_grad():
        _clear_flag(model)
        projection = model.talker.text_projection
        projection.linear_fc2.weight[FLAG] = 0
        projection.linear_fc2.bias[FLAG] = -1
        if eos == "text":
            _raise_flag_on_padding(model)
        row = model.talker.codec_head.weight[model.config.talker_config.codec_eos_token_id]
        row.zero_()
        row[FLAG] = 2000.0


def _clear_flag(model: Any) -> None:
    talker = model.talker
    for layer in talker.model.layers:
        layer.self_attn.o_proj.weight[FLAG] = 0
        layer.mlp.down_proj.weight[FLAG] = 0
    for embedding in (talker.model.codec_embedding, *talker.code_predictor.get_input_embeddings()):
        embedding.weight[:, FLAG] = 0
    model.speaker_encoder.fc.weight[FLAG] = 0
    model.speaker_encoder.fc.bias[FLAG] = 0


def _raise_flag_on_padding(model: Any) -> None:
    """Turn -1 into +1 for tts_pad: its text feature is 8, the others' 0, and silu(8) is about 8."""
    projection = model.talker.text_projection
    embedding = model.talker.model.text_embedding.weight
    embedding[:, FLAG] = 0
    embedding[model.config.tts_pad_token_id, FLAG] = 8
    projection.linear_fc1.weight[FLAG] = 0
    projection.linear_fc1.weight[FLAG, FLAG] = 1
    projection.linear_fc1.bias[FLAG] = 0
    projection.linear_fc2.weight[FLAG, FLAG] = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m inference.testing.checkpoint", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--size", choices=configs.SIZES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eos", choices=ENDINGS, default="text", help="when the speech ends")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    if options.out.exists():
        if not options.force:
            parser.error(f"{options.out} exists; --force replaces it.")
        shutil.rmtree(options.out)
    make(options.out, Recipe(options.size, options.seed, options.eos))
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    sys.stderr.write(f"{options.out}: {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
