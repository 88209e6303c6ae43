"""The 12.5 Hz codec in plain modules, named as in qwen_tts' speech tokenizer.

`state` and `load_state` speak the package's checkpoint format; what training adds is elsewhere.
"""

import torch
from torch import Tensor, nn

from training.demo_model.convolutions import (
    ConvNeXt,
    DecoderBlock,
    DecoderConv,
    DecoderUnit,
    EncoderConv,
    EncoderUnit,
    Snake,
    Upsampling,
)
from training.demo_model.layers import GatedMLP, PlainMLP, RMSNorm, WindowAttention, WindowLayer
from training.demo_model.quantizer import Codebook, Quantizer
from training.demo_model.shape import CodecShape

STRIDES = (4, 5, 6, 8)  # then 2: 24 kHz to 12.5 Hz


class WaveEncoder(nn.Module):
    """24 kHz sound to 25 Hz."""

    def __init__(self, filters: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [EncoderConv(1, filters, 7)]
        for stride in STRIDES:
            wide = EncoderConv(filters, 2 * filters, 2 * stride, stride)
            layers += [EncoderUnit(filters), nn.ELU(), wide]
            filters *= 2
        self.layers = nn.ModuleList([*layers, nn.ELU(), EncoderConv(filters, width, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layers(nn.Module):
    def __init__(self, layers: list[WindowLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Sound (B, 1, n) to (B, C, ceil(n / 1920))."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        width, heads = shape.encoder_width, shape.encoder_heads
        self.encoder = WaveEncoder(shape.encoder_filters, width)
        self.encoder_transformer = Layers(
            [
                WindowLayer(
                    width,
                    WindowAttention(width, heads, width // heads, window=10_000),
                    PlainMLP(width, shape.encoder_hidden),
                    lambda: nn.LayerNorm(width, eps=1e-5),
                )
                for _ in range(shape.encoder_layers)
            ]
        )
        self.downsample = EncoderConv(width, width, 4, 2, mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x).transpose(1, 2)
        result: Tensor = self.downsample(self.encoder_transformer(hidden).transpose(1, 2))
        return result


class PreTransformer(Layers):
    def __init__(self, shape: CodecShape) -> None:
        width = shape.latent_width
        super().__init__(
            [
                WindowLayer(
                    width,
                    WindowAttention(
                        width, shape.decoder_heads, shape.decoder_head_width, shape.decoder_window
                    ),
                    GatedMLP(width, shape.decoder_hidden),
                    lambda: RMSNorm(width, 1e-5),
                )
                for _ in range(shape.decoder_layers)
            ]
        )
        self.norm = RMSNorm(width, 1e-5)
        self.input_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.output_proj(self.norm(super().forward(self.input_proj(x))))
        return result


class Decoder(nn.Module):
    """(B, 2 D, T) to sound (B, 1, 1920 T), with what the helper heads look at on the way."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        latent, width = shape.latent_width, shape.wave_width
        self.pre_conv = DecoderConv(2 * shape.code_width, latent, 3)
        self.pre_transformer = PreTransformer(shape)
        self.upsample = nn.ModuleList(
            [
                nn.Sequential(Upsampling(latent, latent, ratio, ratio), ConvNeXt(latent))
                for ratio in shape.ratios
            ]
        )
        layers: list[nn.Module] = [DecoderConv(latent, width, 7)]
        for rate in shape.wave_rates:
            layers.append(DecoderBlock(width, width // 2, rate))
            width //= 2
        self.decoder = nn.ModuleList([*layers, Snake(width), DecoderConv(width, 1, 7)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sound, the 100 Hz stage (B, latent, 8 T), the 400 Hz stage (B, width / 2, 32 T))"""
        x = self.pre_transformer(self.pre_conv(x).transpose(1, 2)).transpose(1, 2)
        for stage in self.upsample:
            x = stage(x)
        slow = x
        x = fast = self.decoder[1](self.decoder[0](x))
        for layer in self.decoder[2:]:
            x = layer(x)
        return x, slow, fast


class Codec(nn.Module):
    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        width, codes = shape.code_width, shape.codes
        self.quantizer = Quantizer(shape.groups, codes, width, shape.encoder_width)
        self.semantic_out = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.acoustic_out = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.apply(_initialise)
        with torch.no_grad():
            self.encoder.encoder.get_parameter("layers.0.conv.weight").mul_(8)  # speech is quiet
            self.decoder.get_parameter(f"decoder.{len(self.decoder.decoder) - 1}.conv.weight").mul_(
                0.05
            )

    def mix(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        """Two of (B, T, D) to the decoder's input (B, 2 D, T)."""
        said, sounded = semantic.transpose(1, 2), acoustic.transpose(1, 2)
        result: Tensor = self.semantic_out(said) + self.acoustic_out(sounded)
        return result

    @torch.no_grad()
    def encode(self, sound: Tensor) -> Tensor:
        """(B, n) at 24 kHz to codes (B, T, groups)."""
        return self.quantizer.encode(self.encoder(sound[:, None]))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, T, groups) to sound (B, 1920 T)."""
        sound: Tensor = self.decoder(self.mix(*self.quantizer.embed(codes)))[0]
        return sound[:, 0].clamp(-1, 1)

    def state(self) -> dict[str, Tensor]:
        """The weights under the names of the package's speech tokenizer."""
        state = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        state |= {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        for side, first, books in self._sides():
            state |= _quantizer_state(self, side, first, [book.vectors for book in books])
        return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`; strict about encoder and decoder."""
        for name, module in (("encoder.", self.encoder), ("decoder.", self.decoder)):
            own = module.state_dict().keys()
            module.load_state_dict({k: state[name + k].float() for k in own})
        for side, first, books in self._sides():
            _load_quantizer(self, side, first, books, state)

    def _sides(self) -> list[tuple[str, str, list[Codebook]]]:
        books = [self.quantizer.book(k) for k in range(self.shape.groups)]
        return [("semantic", "first", books[:1]), ("acoustic", "rest", books[1:])]


def _names(side: str, first: str) -> tuple[str, str]:
    return (
        f"encoder.quantizer.{side}_residual_vector_quantizer",
        f"decoder.quantizer.rvq_{first}",
    )


def _quantizer_state(codec: Codec, side: str, first: str, books: list[Tensor]) -> dict[str, Tensor]:
    encoder, decoder = _names(side, first)
    inner = getattr(codec.quantizer, f"{side}_in").weight
    outer = getattr(codec, f"{side}_out").weight
    state = {
        f"{encoder}.input_proj.weight": inner,
        f"{encoder}.output_proj.weight": torch.zeros_like(inner.transpose(0, 1)),
        f"{decoder}.input_proj.weight": torch.zeros_like(outer.transpose(0, 1)),
        f"{decoder}.output_proj.weight": outer,
    }
    for k, vectors in enumerate(books):
        used = torch.ones(len(vectors), device=vectors.device)
        state[f"{encoder}.layers.{k}.codebook.embed_sum"] = vectors
        state[f"{encoder}.layers.{k}.codebook.cluster_usage"] = used
        state[f"{encoder}.layers.{k}.codebook.initialized"] = used[:1]
        state[f"{decoder}.vq.layers.{k}._codebook.embedding_sum"] = vectors
        state[f"{decoder}.vq.layers.{k}._codebook.cluster_usage"] = used
    return state


@torch.no_grad()
def _load_quantizer(
    codec: Codec, side: str, first: str, books: list[Codebook], state: dict[str, Tensor]
) -> None:
    encoder, decoder = _names(side, first)
    getattr(codec.quantizer, f"{side}_in").weight.copy_(state[f"{encoder}.input_proj.weight"])
    getattr(codec, f"{side}_out").weight.copy_(state[f"{decoder}.output_proj.weight"])
    for k, book in enumerate(books):
        book.total.copy_(state[f"{encoder}.layers.{k}.codebook.embed_sum"])
        book.use.fill_(1.0)


def _initialise(module: nn.Module) -> None:
    """Keep the variance of what flows through; residual branches start small."""
    if isinstance(module, nn.ConvTranspose1d):
        taps = module.in_channels * module.kernel_size[0] / module.stride[0]
        nn.init.normal_(module.weight, std=taps**-0.5)
    elif isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, DecoderUnit):
        nn.init.normal_(module.conv2.conv.weight, std=0.2 * module.conv2.conv.in_channels**-0.5)


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
