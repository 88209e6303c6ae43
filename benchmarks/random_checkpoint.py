"""Write a checkpoint of the true names and shapes with random values, without qwen_tts.

Its encoders are left out: no start reads them. The same size gives the same bytes.
"""

import random
from pathlib import Path

import torch
from random_weights import Sizes, decoder_sizes
from safetensors.torch import save_file

from inference.engine.checkpoint import loading
from inference.engine.checkpoint.tensor_file import Stored
from inference.engine.model_config import ModelConfig, read_model_config
from inference.testing.checkpoint import constant_of, deviation_of, write_configs
from inference.testing.text import ADDED_TOKENS, _tokenizer_config, bpe, write_json

FILES = ("model.safetensors", "speech_tokenizer/model.safetensors")
RELEASED = ("0.6b", "1.7b")
TEXT_TOKENS = 151_643  # in the released vocabulary, before the added ones


def write(folder: Path, size: str) -> None:
    """Configs, tokenizer and weights of `size` into an empty folder."""
    (folder / "speech_tokenizer").mkdir()
    write_configs(folder, size)
    if size in RELEASED:
        _write_vocabulary(folder)
    config = read_model_config(folder)
    torch.manual_seed(0)
    _write_tensors(folder / FILES[0], main_sizes(config), torch.bfloat16)
    speech = {f"decoder.{name}": s for name, s in decoder_sizes(config.decoder_config).items()}
    _write_tensors(folder / FILES[1], speech, torch.float32)


def main_sizes(config: ModelConfig) -> Sizes:
    """Every tensor that loading asks of the main file."""
    asked = _Asked()
    plan = loading._Plan(asked, torch.bfloat16, torch.device("meta"))  # type: ignore[arg-type]
    loading._text(plan, config)
    loading._predictor(plan, config, loading._talker(plan, config))
    return asked.sizes


class _Asked:
    """Stands where a TensorFile would, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.sizes: Sizes = {}

    def find(self, name: str, shape: tuple[int, ...]) -> Stored:
        self.sizes[name] = tuple(shape)
        return Stored(name, torch.bfloat16, tuple(shape), 0)


def _write_tensors(path: Path, sizes: Sizes, dtype: torch.dtype) -> None:
    tensors = {name: _filled(name, size, dtype) for name, size in sizes.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _filled(name: str, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Even noise of the deviation that `inference.testing.checkpoint` gives, or its constant."""
    made, constant = torch.empty(size, dtype=dtype), constant_of(name, size)
    if constant is not None:
        return made.fill_(constant)
    reach = 3**0.5 * deviation_of(name, size)
    return made.uniform_(-reach, reach)


def _write_vocabulary(folder: Path) -> None:
    """A byte-level BPE of the released size; all but its first tokens join arbitrary others."""
    vocabulary, merges, _ = bpe()
    tokens, choice = list(vocabulary), random.Random(0).choice
    while len(tokens) < TEXT_TOKENS:
        pair = choice(tokens), choice(tokens)
        if (joined := "".join(pair)) not in vocabulary and len(joined) < 12:
            vocabulary[joined] = len(tokens)
            tokens.append(joined)
            merges.append(pair)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    added = {token: TEXT_TOKENS + i for i, token in enumerate(ADDED_TOKENS)}
    write_json(folder / "tokenizer_config.json", _tokenizer_config(added))
