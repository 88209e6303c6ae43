"""Weights of a true shape with random values, made on the device; nothing is read.

The same seed gives the same numbers in every dtype, since all of them are bfloat16's. Their
deviations are those of inference.testing.checkpoint, whose rules these are.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.model_config import ModelConfig, TransformerConfig, read_model_config
from inference.engine.text import TextTokenizer
from inference.engine.weights import (
    LayerWeights,
    PredictorWeights,
    TalkerWeights,
    TextWeights,
    TransformerWeights,
    Weights,
)
from inference.testing.checkpoint import constant_of, deviation_of, write_configs

NEVER, SOMETIMES = 0.0, 1.5  # gains of the end token: its logit is 0, or at times the best
HEAD_GAIN = 3.0
TABLE_DEVIATION = 0.5
DILATED_UNITS = (2, 3, 4)  # of a decoder block
Sizes = dict[str, tuple[int, ...]]


def described(size: str) -> tuple[ModelConfig, TextTokenizer]:
    """The config of a size, and the byte-level tokenizer of inference.testing.text."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "speech_tokenizer").mkdir()
        write_configs(folder, size)
        return read_model_config(folder), load_tokenizer(folder)


class Noise:
    """Normal numbers from the device's own generator."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *size: int, deviation: float | None = None) -> Tensor:
        """One over the root of the last dimension, if no deviation is given."""
        made = torch.empty(size, dtype=torch.bfloat16, device=self.device)
        scale = 1 / math.sqrt(size[-1]) if deviation is None else deviation
        return made.normal_(0, scale, generator=self._generator).to(self.dtype)

    def ones(self, size: int) -> Tensor:
        return torch.ones(size, device=self.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, device=self.device)


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    end_gain: float = NEVER,
) -> Weights:
    """Ready for any stream: the device has made them when this returns."""
    noise = Noise(dtype, device, seed)
    talker = _talker(config, noise, end_gain)
    predictor = _predictor(config, noise, talker)
    made = Weights(_text(config, noise), talker, predictor, _decoder(config, noise))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return made


def _text(config: ModelConfig, noise: Noise) -> TextWeights:
    width, out = config.text_hidden_size, config.talker.hidden_size
    return TextWeights(
        embedding=noise(config.text_vocab_size, width, deviation=TABLE_DEVIATION),
        fc1=noise(width, width),
        fc1_bias=noise.zeros(width).to(noise.dtype),
        fc2=noise(out, width),
        fc2_bias=noise.zeros(out).to(noise.dtype),
    )


def _talker(config: ModelConfig, noise: Noise, end_gain: float) -> TalkerWeights:
    width, small = config.talker.hidden_size, config.code_predictor.hidden_size
    codec = noise(config.vocab_size, width, deviation=HEAD_GAIN / math.sqrt(width))
    codec[config.codec_tokens.eos] *= end_gain
    same = torch.eye(small, dtype=noise.dtype, device=noise.device)
    projection = same if small == width else noise(small, width)
    return TalkerWeights(
        transformer=_transformer(config.talker, noise),
        head=torch.cat([codec, projection]),
        head_bias=noise.zeros(small),
        first=noise(config.vocab_size, width, deviation=TABLE_DEVIATION),
        rest=noise(
            config.num_code_groups - 1, config.codebook_size, width, deviation=TABLE_DEVIATION
        ),
    )


def _predictor(config: ModelConfig, noise: Noise, talker: TalkerWeights) -> PredictorWeights:
    width = config.code_predictor.hidden_size
    gain = HEAD_GAIN / math.sqrt(width)
    same = width == config.talker.hidden_size
    return PredictorWeights(
        transformer=_transformer(config.code_predictor, noise),
        heads=noise(config.num_code_groups - 1, config.codebook_size, width, deviation=gain),
        first=talker.first if same else _projected(talker.first, talker, width),
        rest=talker.rest[:-1] if same else _projected(talker.rest[:-1], talker, width),
    )


def _projected(table: Tensor, talker: TalkerWeights, width: int) -> Tensor:
    return F.linear(table.float(), talker.head[-width:].float()).to(table.dtype)


def _transformer(config: TransformerConfig, noise: Noise) -> TransformerWeights:
    layers = tuple(_layer(config, noise) for _ in range(config.num_hidden_layers))
    return TransformerWeights(layers, noise.ones(config.hidden_size))


def _layer(config: TransformerConfig, noise: Noise) -> LayerWeights:
    return LayerWeights(
        input_norm=noise.ones(config.hidden_size),
        qkv=noise(config.q_size + 2 * config.kv_size, config.hidden_size),
        q_norm=noise.ones(config.head_dim),
        k_norm=noise.ones(config.head_dim),
        o=noise(config.hidden_size, config.q_size),
        post_norm=noise.ones(config.hidden_size),
        gate_up=noise(2 * config.intermediate_size, config.hidden_size),
        down=noise(config.hidden_size, config.intermediate_size),
    )


def _decoder(config: ModelConfig, noise: Noise) -> dict[str, Tensor]:
    """In float32, as it is stored."""
    scale = config.decoder_config["layer_scale_initial_scale"]
    return {
        name: _filled(name, size, noise, scale)
        for name, size in decoder_sizes(config.decoder_config).items()
    }


def _filled(name: str, size: tuple[int, ...], noise: Noise, layer_scale: float) -> Tensor:
    if name.endswith(".scale"):
        return torch.full(size, layer_scale, device=noise.device)
    constant = constant_of(f"decoder.{name}", size)
    if constant is not None:
        return torch.full(size, constant, device=noise.device)
    return noise(*size, deviation=deviation_of(f"decoder.{name}", size)).float()


def decoder_sizes(config: Any) -> Sizes:
    """Every tensor of the speech tokenizer's decoder, by its own name."""
    latent, width = config["latent_dim"], config["decoder_dim"]
    sizes = _conv("pre_conv.conv", latent, config["codebook_dim"], 3)
    sizes |= _quantizer(config) | _codec_transformer(config)
    for index, factor in enumerate(config["upsampling_ratios"]):
        sizes |= _upsampling(f"upsample.{index}", latent, factor)
    sizes |= _conv("decoder.0.conv", width, latent, 7)
    for index, rate in enumerate(config["upsample_rates"], 1):
        sizes |= _block(f"decoder.{index}.block", width, width // 2, rate)
        width //= 2
    last = len(config["upsample_rates"]) + 1
    return sizes | _snake(f"decoder.{last}", width) | _conv(f"decoder.{last + 1}.conv", 1, width, 7)


def _conv(name: str, out: int, width: int, kernel: int) -> Sizes:
    return {f"{name}.weight": (out, width, kernel), f"{name}.bias": (out,)}


def _linear(name: str, out: int, width: int) -> Sizes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _snake(name: str, width: int) -> Sizes:
    return {f"{name}.alpha": (width,), f"{name}.beta": (width,)}


def _quantizer(config: Any) -> Sizes:
    width, count = config["codebook_dim"], config["codebook_size"]
    half, sizes = width // 2, {}
    for part, books in (("rvq_first", 1), ("rvq_rest", config["num_quantizers"] - 1)):
        sizes[f"quantizer.{part}.input_proj.weight"] = (half, width, 1)
        sizes[f"quantizer.{part}.output_proj.weight"] = (width, half, 1)
        for book in range(books):
            name = f"quantizer.{part}.vq.layers.{book}._codebook"
            sizes[f"{name}.cluster_usage"] = (count,)
            sizes[f"{name}.embedding_sum"] = (count, half)
    return sizes


def _codec_transformer(config: Any) -> Sizes:
    width, latent, name = config["hidden_size"], config["latent_dim"], "pre_transformer"
    sizes = _linear(f"{name}.input_proj", width, latent)
    for index in range(config["num_hidden_layers"]):
        sizes |= dict(_transformer_layer(f"{name}.layers.{index}", config))
    sizes[f"{name}.norm.weight"] = (width,)
    return sizes | _linear(f"{name}.output_proj", latent, width)


def _transformer_layer(name: str, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield f"{name}.self_attn.q_proj.weight", (query, width)
    yield f"{name}.self_attn.k_proj.weight", (kv, width)
    yield f"{name}.self_attn.v_proj.weight", (kv, width)
    yield f"{name}.self_attn.o_proj.weight", (width, query)
    yield f"{name}.mlp.gate_proj.weight", (hidden, width)
    yield f"{name}.mlp.up_proj.weight", (hidden, width)
    yield f"{name}.mlp.down_proj.weight", (width, hidden)
    for vector in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        yield f"{name}.{vector}", (width,)
    for vector in ("self_attn_layer_scale.scale", "mlp_layer_scale.scale"):
        yield f"{name}.{vector}", (width,)


def _upsampling(name: str, width: int, factor: int) -> Sizes:
    """A transposed convolution and a ConvNeXt block."""
    block = f"{name}.1"
    return {
        **_conv(f"{name}.0.conv", width, width, factor),
        **_conv(f"{block}.dwconv.conv", width, 1, 7),
        f"{block}.norm.weight": (width,),
        f"{block}.norm.bias": (width,),
        **_linear(f"{block}.pwconv1", 4 * width, width),
        **_linear(f"{block}.pwconv2", width, 4 * width),
        f"{block}.gamma": (width,),
    }


def _block(name: str, width: int, out: int, rate: int) -> Sizes:
    sizes = _snake(f"{name}.0", width)
    sizes |= {f"{name}.1.conv.weight": (width, out, 2 * rate), f"{name}.1.conv.bias": (out,)}
    for unit in DILATED_UNITS:
        sizes |= _snake(f"{name}.{unit}.act1", out) | _snake(f"{name}.{unit}.act2", out)
        sizes |= _conv(f"{name}.{unit}.conv1.conv", out, out, 7)
        sizes |= _conv(f"{name}.{unit}.conv2.conv", out, out, 1)
    return sizes
