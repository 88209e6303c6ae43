"""A checkpoint's two weight files → Weights, without qwen_tts or transformers.

The layout of the names is that of qwen_tts' Qwen3TTSForConditionalGeneration. A fault is a
ModelUnavailable that names the tensor and the file. It reads no config: that is given.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.checkpoint.tensor_file import TensorFile
from inference.engine.checkpoint.transfer import Memory, Piece, Transferred, transfer
from inference.engine.model_config import ModelConfig, TransformerConfig
from inference.engine.weights import (
    GATE_INTERLEAVE,
    LayerWeights,
    PredictorWeights,
    TalkerWeights,
    TextWeights,
    TransformerWeights,
    Weights,
)
from registry.errors import ModelUnavailable

FOLD = 3  # in fp16: up by 2**-FOLD, down by 2**FOLD, both exact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """The seconds and bytes that one load took."""

    transferred: Transferred
    seconds: float  # all of it; what the transfer did not take went into projections


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Weights:
    """Load the weights of the checkpoint in `folder`, in `dtype` on `device`; ModelUnavailable."""
    return load_with_report(folder, config, dtype, device)[0]


def load_with_report(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Weights, LoadReport]:
    """Do as `load_weights` does, and say what it took, which is logged too."""
    begun = time.perf_counter()
    main = _Plan(TensorFile(folder / "model.safetensors"), dtype, device)
    speech = _Plan(
        TensorFile(folder / "speech_tokenizer" / "model.safetensors"), torch.float32, device
    )
    text, talker = _text(main, config), _talker(main, config)
    predictor, decoder = _predictor(main, config, talker), _decoder(speech)
    moved = transfer([*main.pieces, *speech.pieces], device)
    _project(talker, predictor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the caller may go on in any stream
    report = LoadReport(moved, time.perf_counter() - begun)
    _log(report, [main, speech])
    return Weights(text, talker, predictor, decoder), report


def move(weights: Weights, device: torch.device) -> Weights:
    """Copy weights to `device`; from the host to CUDA they go in pieces, through pinned memory."""
    pieces: list[Piece] = []

    def place(tensor: Tensor) -> Tensor:
        if device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(device)
        target = torch.empty_like(tensor, device=device)
        pieces.append(Piece(Memory(tensor), 0, tensor.dtype, target))
        return target

    moved: Weights = _changed(weights, place)
    if pieces:
        transfer(pieces, device)
    return moved


class _Plan:
    """Allocates what is to be filled from one file, and notes which tensor goes where."""

    def __init__(self, file: TensorFile, dtype: torch.dtype, device: torch.device) -> None:
        self.file, self.dtype, self.device = file, dtype, device
        self.pieces: list[Piece] = []

    @property
    def fold(self) -> float:
        return 2.0**FOLD if self.dtype == torch.float16 else 1.0

    def empty(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def fill(
        self, target: Tensor, name: str, size: Sequence[int] | None = None, scale: float = 1.0
    ) -> None:
        """Fill `target` from a tensor stored with `size`, the target's own if not given."""
        stored = self.file.find(name, target.shape if size is None else size)
        self.pieces.append(Piece(self.file, stored.offset, stored.dtype, target, scale))

    def tensor(self, name: str, *size: int, scale: float = 1.0) -> Tensor:
        made = self.empty(*size)
        self.fill(made, name, scale=scale)
        return made

    def vector(self, name: str, size: int) -> Tensor:
        """A vector (size,), which is float32 whatever the dtype of the weights."""
        made = torch.empty(size, device=self.device)
        self.fill(made, name)
        return made

    def joined(self, outputs: dict[str, int], width: int) -> Tensor:
        """Allocate (sum of outputs, width): the named tensors follow each other."""
        made = self.empty(sum(outputs.values()), width)
        for name, part in zip(outputs, made.split_with_sizes(list(outputs.values())), strict=True):
            self.fill(part, name)
        return made

    def tables(self, pattern: str, count: int, codes: int, width: int) -> Tensor:
        """Allocate (count, codes, width): the tensors that `pattern` names with a number."""
        made = self.empty(count, codes, width)
        for i, part in enumerate(made):
            self.fill(part, pattern.format(i))
        return made

    def interleaved(self, gate: str, up: str, outputs: int, width: int) -> Tensor:
        """Allocate (2 outputs, width): gate and up take turns by GATE_INTERLEAVE outputs."""
        if outputs % GATE_INTERLEAVE:
            raise ModelUnavailable(
                f"{gate} has {outputs} rows, not a multiple of {GATE_INTERLEAVE}."
            )
        made = self.empty(2 * outputs, width)
        parts = made.view(-1, 2, GATE_INTERLEAVE, width).unbind(1)
        self.fill(parts[0], gate, (outputs, width))
        self.fill(parts[1], up, (outputs, width), 1 / self.fold)
        return made


def _text(plan: _Plan, config: ModelConfig) -> TextWeights:
    width, out, name = (
        config.text_hidden_size,
        config.talker.hidden_size,
        "talker.text_projection.linear_",
    )
    return TextWeights(
        embedding=plan.tensor("talker.model.text_embedding.weight", config.text_vocab_size, width),
        fc1=plan.tensor(f"{name}fc1.weight", width, width),
        fc1_bias=plan.tensor(f"{name}fc1.bias", width),
        fc2=plan.tensor(f"{name}fc2.weight", out, width),
        fc2_bias=plan.tensor(f"{name}fc2.bias", out),
    )


def _talker(plan: _Plan, config: ModelConfig) -> TalkerWeights:
    width, table = (
        config.talker.hidden_size,
        "talker.code_predictor.model.codec_embedding.{}.weight",
    )
    head, bias = _head(plan, config)
    return TalkerWeights(
        transformer=_transformer(plan, "talker.model", config.talker),
        head=head,
        head_bias=bias,
        first=plan.tensor("talker.model.codec_embedding.weight", config.vocab_size, width),
        rest=plan.tables(table, config.num_code_groups - 1, config.codebook_size, width),
    )


def _head(plan: _Plan, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The head and its bias. Between equal widths qwen_tts has no projection but an identity."""
    codec, small = "talker.codec_head.weight", "talker.code_predictor.small_to_mtp_projection"
    width, out = config.talker.hidden_size, config.code_predictor.hidden_size
    if width != out:
        head = plan.joined({codec: config.vocab_size, f"{small}.weight": out}, width)
        return head, plan.vector(f"{small}.bias", out)
    head = plan.empty(config.vocab_size + out, width)
    plan.fill(head[: config.vocab_size], codec)
    torch.nn.init.eye_(head[config.vocab_size :])
    return head, torch.zeros(out, device=plan.device)


def _predictor(plan: _Plan, config: ModelConfig, talker: TalkerWeights) -> PredictorWeights:
    """Allocate the code predictor; `_project` fills its inputs once the talker's are there."""
    name, width = "talker.code_predictor", config.code_predictor.hidden_size
    same = width == config.talker.hidden_size
    rest = config.num_code_groups - 2
    return PredictorWeights(
        transformer=_transformer(plan, f"{name}.model", config.code_predictor),
        heads=plan.tables(
            f"{name}.lm_head.{{}}.weight", config.num_code_groups - 1, config.codebook_size, width
        ),
        first=talker.first if same else plan.empty(config.vocab_size, width),
        rest=talker.rest[:rest] if same else plan.empty(rest, config.codebook_size, width),
    )


def _project(talker: TalkerWeights, predictor: PredictorWeights) -> None:
    """Fill predictor.first and .rest: the talker's embeddings through small_to_mtp, in float32."""
    if predictor.first is talker.first:
        return
    weight = talker.head[-predictor.first.shape[1] :].float()
    pairs = [(talker.first, predictor.first), *zip(talker.rest, predictor.rest, strict=False)]
    for table, target in pairs:
        target.copy_(F.linear(table.float(), weight, talker.head_bias))


def _transformer(plan: _Plan, name: str, config: TransformerConfig) -> TransformerWeights:
    layers = [_layer(plan, f"{name}.layers.{i}", config) for i in range(config.num_hidden_layers)]
    return TransformerWeights(tuple(layers), plan.vector(f"{name}.norm.weight", config.hidden_size))


def _layer(plan: _Plan, name: str, config: TransformerConfig) -> LayerWeights:
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    width, hidden, query, kv = (
        config.hidden_size,
        config.intermediate_size,
        config.q_size,
        config.kv_size,
    )
    outputs = {
        f"{attention}.{part}_proj.weight": n for part, n in (("q", query), ("k", kv), ("v", kv))
    }
    gate, up = f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"
    return LayerWeights(
        input_norm=plan.vector(f"{name}.input_layernorm.weight", width),
        qkv=plan.joined(outputs, width),
        q_norm=plan.vector(f"{attention}.q_norm.weight", config.head_dim),
        k_norm=plan.vector(f"{attention}.k_norm.weight", config.head_dim),
        o=plan.tensor(f"{attention}.o_proj.weight", width, query),
        post_norm=plan.vector(f"{name}.post_attention_layernorm.weight", width),
        gate_up=plan.interleaved(gate, up, hidden, width),
        down=plan.tensor(f"{mlp}.down_proj.weight", width, hidden, scale=plan.fold),
    )


def _decoder(plan: _Plan) -> dict[str, Tensor]:
    prefix = "decoder."
    found = {
        name.removeprefix(prefix): plan.tensor(name, *plan.file.find(name).shape)
        for name in plan.file.names(prefix)
    }
    if not found:
        raise ModelUnavailable(f"{plan.file.path} has no tensors named {prefix}*.")
    return found


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy `value` with every tensor in its dataclasses, tuples and dicts changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    assert is_dataclass(value) and not isinstance(value, type)
    parts = {f.name: _changed(getattr(value, f.name), change) for f in fields(value)}
    return replace(value, **parts)


def _log(report: LoadReport, plans: Sequence[_Plan]) -> None:
    took = report.transferred
    logger.info(
        "Loaded %.2f GB in %.2f s: %.2f s of transfer, %.2f s of it reading.",
        *(took.nbytes / 1e9, report.seconds, took.seconds, took.reading_s),
    )
    pairs = Counter((p.dtype, p.target.dtype) for plan in plans for p in plan.pieces)
    for (stored, used), count in pairs.items():
        if stored != used:
            logger.info("Converted %d tensors from %s to %s.", count, stored, used)
