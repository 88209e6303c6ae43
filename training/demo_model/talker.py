"""Talker, code predictor and speaker encoder for training, a whole sequence at a time.

Parameter names are the package's, so `Model(...).state_dict()` is model.safetensors. D is the
talker's width, G the number of code groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.demo_model.layers import RMSNorm, Table, TalkerLayer, rotation
from training.demo_model.shape import TalkerShape
from training.demo_model.speaker import SpeakerEncoder


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(inputs, inputs)
        self.linear_fc2 = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_fc2(F.silu(self.linear_fc1(x)))
        return y


class Stack(nn.Module):
    """Transformer layers; `forward` gives (normed output, the state after the middle layer)."""

    def __init__(self, layers: list[TalkerLayer], width: int, head_width: int, base: float) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), RMSNorm(width, 1e-6)
        self.head_width, self.base = head_width, base

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotation(x.shape[1], self.head_width, self.base, x.device)
        middle = x
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin)
            if index == len(self.layers) // 2:
                middle = x
        return self.norm(x), middle


class TalkerBody(Stack):
    def __init__(self, shape: TalkerShape) -> None:
        heads, wide = (shape.heads, shape.kv_heads, shape.head_width), shape.hidden
        layers = [TalkerLayer(shape.width, *heads, wide) for _ in range(shape.layers)]
        super().__init__(layers, shape.width, shape.head_width, shape.rope_base)
        self.codec_embedding = Table(shape.vocabulary, shape.width)
        self.text_embedding = Table(shape.text_tokens, shape.text_width)


class PredictorBody(Stack):
    def __init__(self, shape: TalkerShape) -> None:
        width, heads = shape.predictor_width, shape.predictor_heads
        layers = [
            TalkerLayer(width, heads, heads, shape.head_width, shape.predictor_hidden)
            for _ in range(shape.predictor_layers)
        ]
        super().__init__(layers, width, shape.head_width, shape.rope_base)
        tables = [Table(shape.codes, shape.width) for _ in range(shape.groups - 1)]
        self.codec_embedding = nn.ModuleList(tables)


class Predictor(nn.Module):
    """Codes 1 to G - 1 of a frame from the talker's state and code 0."""

    def __init__(self, shape: TalkerShape) -> None:
        super().__init__()
        self.model = PredictorBody(shape)
        self.small_to_mtp_projection = nn.Linear(shape.width, shape.predictor_width)
        heads = [
            nn.Linear(shape.predictor_width, shape.codes, bias=False)
            for _ in range(shape.groups - 1)
        ]
        self.lm_head = nn.ModuleList(heads)

    def forward(self, state: Tensor, first: Tensor, codes: Tensor) -> Tensor:
        """(n, D), code 0 embedded (n, D), codes (n, G) to logits (n, G - 1, codes)."""
        tables = list(self.model.codec_embedding)[:-1]
        later = [table(codes[:, k + 1]) for k, table in enumerate(tables)]
        x = self.small_to_mtp_projection(torch.stack([state, first, *later], 1))
        heard = self.model(x)[0]
        return torch.stack([head(heard[:, k + 1]) for k, head in enumerate(self.lm_head)], 1)


class Talker(nn.Module):
    def __init__(self, shape: TalkerShape) -> None:
        super().__init__()
        self.model, self.code_predictor = TalkerBody(shape), Predictor(shape)
        self.text_projection = Projection(shape.text_width, shape.width)
        self.codec_head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def embed_text(self, ids: Tensor) -> Tensor:
        y: Tensor = self.text_projection(self.model.text_embedding(ids))
        return y

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(..., G) to (..., D): the sum over a frame."""
        total: Tensor = self.model.codec_embedding(codes[..., 0])
        for k, table in enumerate(self.code_predictor.model.codec_embedding):
            total = total + table(codes[..., k + 1])
        return total


class Model(nn.Module):
    """All of model.safetensors."""

    def __init__(self, shape: TalkerShape) -> None:
        super().__init__()
        self.shape = shape
        self.talker, self.speaker_encoder = Talker(shape), SpeakerEncoder(shape)
        self.apply(_initialise)
        for stack in (self.talker.model, self.talker.code_predictor.model):
            _quieten(stack)
        with torch.no_grad():
            self.speaker_encoder.fc.weight.mul_(0.5)

    def inputs(
        self, text: Tensor, tag: Tensor, codes: Tensor, spoken: Tensor, voice: Tensor, at: Tensor
    ) -> Tensor:
        """Embeddings (B, S, D) of rows: ids text and tag (B, S), -1 for none.

        codes (B, S, G) count where spoken (B, S); voice (B, D) stands at position at (B,).
        """
        talker = self.talker
        x = talker.embed_text(text.clamp(min=0)) * (text >= 0)[..., None]
        x = x + talker.model.codec_embedding(tag.clamp(min=0)) * (tag >= 0)[..., None]
        x = x + talker.embed_codes(codes) * spoken[..., None]
        here = torch.arange(text.shape[1], device=text.device) == at[:, None]
        result: Tensor = x + voice[:, None] * here[..., None]
        return result


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.7 * module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _quieten(stack: Stack) -> None:
    """Residual branches start smaller the deeper the stack."""
    for name, weight in stack.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * len(stack.layers)) ** -0.5)
