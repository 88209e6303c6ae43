"""The speech tokenizer's decoder as the engine multiplies with it: folded in float64, then cast.

Sound is (B, T, C) here, so a convolution's weight is (C_out, width, C_in). What is linear in a row
becomes one matrix: codebooks and their projection, pre_conv and input_proj, output_proj and the
first upsampling, layer scales, ConvNeXt's gamma. A transposed convolution is one of width 2 over
(previous, current) input whose outputs are cut into `rate` samples. Biases wait for the next snake.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DILATIONS = (1, 3, 9)  # of a block's three units
SNAKE_EPSILON = 1e-9


@dataclass(frozen=True)
class SnakeWeights:
    """y + inverse_beta * sin(alpha * y)**2 of y = x + bias; all (C,)."""

    alpha: Tensor
    inverse_beta: Tensor
    bias: Tensor  # of everything linear before it


@dataclass(frozen=True)
class CodecLayerWeights:
    """One transformer layer of width D, H heads of width W, hidden width F."""

    input_norm: Tensor  # (D,)
    qkv: Tensor  # (3 H W, D)
    o: Tensor  # (D, H W), scaled
    post_norm: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F), scaled


@dataclass(frozen=True)
class UpsampleWeights:
    """Makes `ratio` samples of one, then a ConvNeXt block."""

    expand: Tensor  # (ratio C, C_in)
    expand_bias: Tensor  # (ratio C,)
    taps: Tensor  # (7, C): a depthwise convolution
    taps_bias: Tensor  # (C,)
    norm: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    widen: Tensor  # (4 C, C)
    widen_bias: Tensor  # (4 C,)
    narrow: Tensor  # (C, 4 C), scaled
    narrow_bias: Tensor  # (C,), scaled


@dataclass(frozen=True)
class UnitWeights:
    """A residual unit: snake, dilated convolution, snake, convolution of width 1."""

    before: SnakeWeights
    dilated: Tensor  # (C, 7, C)
    dilation: int
    between: SnakeWeights
    mix: Tensor  # (C, C)


@dataclass(frozen=True)
class BlockWeights:
    """A snake, then `rate` samples of one, then three units."""

    before: SnakeWeights
    expand: Tensor  # (rate C, 2, C_in)
    units: tuple[UnitWeights, ...]
    width: int  # C


@dataclass(frozen=True)
class CodecWeights:
    """The weights that turn codes into sound."""

    table: Tensor  # (groups * codes, codebook dim)
    pre_conv: Tensor  # (D, 3, codebook dim)
    pre_conv_bias: Tensor  # (D,)
    layers: tuple[CodecLayerWeights, ...]
    norm: Tensor  # (D,)
    upsamples: tuple[UpsampleWeights, ...]
    open: Tensor  # (C, 7, latent dim)
    blocks: tuple[BlockWeights, ...]
    last: SnakeWeights
    taps: Tensor  # (8, C): the 7 of the last convolution and a row of zeros
    taps_bias: Tensor  # (1,)


def fold(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> CodecWeights:
    """Fold the decoder's weights; KeyError names what `weights` or `config` lack."""
    return _Folder(weights, config, device, dtype).codec()


class _Folder:
    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Mapping[str, Any],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._weights, self._config, self._device, self._dtype = weights, config, device, dtype

    def _read(self, name: str) -> Tensor:
        return self._weights[name].detach().to(self._device, torch.float64)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype).contiguous()

    def _plain(self, name: str) -> Tensor:
        return self._cast(self._read(name))

    def _kernel(self, name: str) -> Tensor:
        """A convolution's weight, (C_out, width, C_in)."""
        return self._read(f"{name}.conv.weight").transpose(1, 2)

    def codec(self) -> CodecWeights:
        enter, enter_bias = self._pre_conv()
        ratios, rates = self._config["upsampling_ratios"], self._config["upsample_rates"]
        bias = self._read("decoder.0.conv.bias")
        blocks = []
        for index in range(len(rates)):
            block, bias = self._block(f"decoder.{index + 1}.block", bias)
            blocks.append(block)
        end = len(rates) + 1
        taps = self._read(f"decoder.{end + 1}.conv.weight")[0].T
        return CodecWeights(
            table=self._table(),
            pre_conv=self._cast(enter),
            pre_conv_bias=self._cast(enter_bias),
            layers=tuple(map(self._layer, range(self._config["num_hidden_layers"]))),
            norm=self._plain("pre_transformer.norm.weight"),
            upsamples=tuple(map(self._upsample, range(len(ratios)))),
            open=self._cast(self._kernel("decoder.0")),
            blocks=tuple(blocks),
            last=self._snake(f"decoder.{end}", bias),
            taps=self._cast(torch.cat([taps, torch.zeros_like(taps[:1])])),
            taps_bias=self._plain(f"decoder.{end + 1}.conv.bias"),
        )

    def _table(self) -> Tensor:
        """Every code of every codebook as what it adds to a frame."""
        first = [self._codebook("quantizer.rvq_first", 0)]
        rest = range(self._config["num_quantizers"] - 1)
        return torch.cat(first + [self._codebook("quantizer.rvq_rest", index) for index in rest])

    def _codebook(self, quantizer: str, index: int) -> Tensor:
        name = f"{quantizer}.vq.layers.{index}._codebook"
        usage = self._read(f"{name}.cluster_usage").clamp(min=1e-5)
        entries = self._read(f"{name}.embedding_sum") / usage[:, None]
        return self._cast(entries @ self._read(f"{quantizer}.output_proj.weight")[..., 0].T)

    def _pre_conv(self) -> tuple[Tensor, Tensor]:
        """Fold pre_conv and input_proj into one convolution and a bias."""
        project = self._read("pre_transformer.input_proj.weight")
        bias = project @ self._read("pre_conv.conv.bias")
        kernel = torch.einsum("dl,lkc->dkc", project, self._kernel("pre_conv"))
        return kernel, bias + self._read("pre_transformer.input_proj.bias")

    def _layer(self, index: int) -> CodecLayerWeights:
        name = f"pre_transformer.layers.{index}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        scale = self._read(f"{name}.self_attn_layer_scale.scale")[:, None]
        mlp_scale = self._read(f"{name}.mlp_layer_scale.scale")[:, None]
        halves = [self._read(f"{mlp}.{part}_proj.weight") for part in ("gate", "up")]
        return CodecLayerWeights(
            input_norm=self._plain(f"{name}.input_layernorm.weight"),
            qkv=self._cast(torch.cat([self._heads(f"{attention}.{part}_proj") for part in "qkv"])),
            o=self._cast(scale * self._read(f"{attention}.o_proj.weight")),
            post_norm=self._plain(f"{name}.post_attention_layernorm.weight"),
            gate_up=self._cast(torch.cat(halves)),
            down=self._cast(mlp_scale * self._read(f"{mlp}.down_proj.weight")),
        )

    def _heads(self, name: str) -> Tensor:
        """A projection with as many heads as the queries have: shared ones are repeated."""
        weight = self._read(f"{name}.weight")
        heads = weight.view(-1, self._config["head_dim"], weight.shape[1])
        times = self._config["num_attention_heads"] // len(heads)
        return heads.repeat_interleave(times, 0).flatten(0, 1)

    def _upsample(self, index: int) -> UpsampleWeights:
        name = f"upsample.{index}.1"
        expand, bias = self._expand(f"upsample.{index}.0.conv")
        if index == 0:
            bias = bias + expand @ self._read("pre_transformer.output_proj.bias")
            expand = expand @ self._read("pre_transformer.output_proj.weight")
        gamma = self._read(f"{name}.gamma")
        return UpsampleWeights(
            expand=self._cast(expand),
            expand_bias=self._cast(bias),
            taps=self._cast(self._read(f"{name}.dwconv.conv.weight")[:, 0].T),
            taps_bias=self._plain(f"{name}.dwconv.conv.bias"),
            norm=self._plain(f"{name}.norm.weight"),
            norm_bias=self._plain(f"{name}.norm.bias"),
            widen=self._plain(f"{name}.pwconv1.weight"),
            widen_bias=self._plain(f"{name}.pwconv1.bias"),
            narrow=self._cast(gamma[:, None] * self._read(f"{name}.pwconv2.weight")),
            narrow_bias=self._cast(gamma * self._read(f"{name}.pwconv2.bias")),
        )

    def _expand(self, name: str) -> tuple[Tensor, Tensor]:
        """A transposed convolution as wide as its stride is a matrix."""
        weight, bias = self._read(f"{name}.weight"), self._read(f"{name}.bias")  # (C_in, C, ratio)
        return weight.permute(2, 1, 0).flatten(0, 1), bias.repeat(weight.shape[2])

    def _block(self, name: str, bias: Tensor) -> tuple[BlockWeights, Tensor]:
        """A block whose input lacks `bias`, and the bias that its output lacks."""
        before = self._snake(f"{name}.0", bias)
        bias = self._read(f"{name}.1.conv.bias")
        units = []
        for index, dilation in enumerate(DILATIONS):
            unit = f"{name}.{index + 2}"
            units.append(self._unit(unit, dilation, bias))
            bias = bias + self._read(f"{unit}.conv2.conv.bias")
        expand, width = self._expand_twice(f"{name}.1.conv.weight")
        return BlockWeights(before, self._cast(expand), tuple(units), width), bias

    def _expand_twice(self, name: str) -> tuple[Tensor, int]:
        """A transposed convolution twice as wide as its stride, and its output channels."""
        weight = self._read(
            name
        )  # (C_in, C, 2 rate): what an input adds now, then what it adds next
        now_next = weight.view(*weight.shape[:2], 2, -1)
        return now_next.flip(2).permute(3, 1, 2, 0).flatten(0, 1), weight.shape[1]

    def _unit(self, name: str, dilation: int, bias: Tensor) -> UnitWeights:
        return UnitWeights(
            before=self._snake(f"{name}.act1", bias),
            dilated=self._cast(self._kernel(f"{name}.conv1")),
            dilation=dilation,
            between=self._snake(f"{name}.act2", self._read(f"{name}.conv1.conv.bias")),
            mix=self._cast(self._read(f"{name}.conv2.conv.weight")[..., 0]),
        )

    def _snake(self, name: str, bias: Tensor) -> SnakeWeights:
        alpha, beta = self._read(f"{name}.alpha").exp(), self._read(f"{name}.beta").exp()
        inverse_beta = 1 / (beta + SNAKE_EPSILON)
        return SnakeWeights(self._cast(alpha), self._cast(inverse_beta), self._cast(bias))
