"""The weights as the engine multiplies with them: packed, in the serving dtype, on one device.

Vectors that scale (norms) are float32. In fp16 the feed-forward is folded: up by 2**-k, down by
2**k, since the 0.6B predictor's product would pass the largest half.
"""

from dataclasses import dataclass

from torch import Tensor

GATE_INTERLEAVE = 8  # gate and up take turns by 8 outputs: a tile of 16 holds 8 pairs


@dataclass(frozen=True)
class LayerWeights:
    """One layer; D, F and the head widths are those of its TransformerConfig."""

    input_norm: Tensor  # (D,) float32
    qkv: Tensor  # (query + 2 kv width, D)
    q_norm: Tensor  # (head width,) float32
    k_norm: Tensor  # (head width,) float32
    o: Tensor  # (D, query width)
    post_norm: Tensor  # (D,) float32
    gate_up: Tensor  # (2 F, D): 8 outputs of gate, 8 of up, and so on
    down: Tensor  # (D, F)


@dataclass(frozen=True)
class TransformerWeights:
    """The layers of a transformer, and the norm after them."""

    layers: tuple[LayerWeights, ...]
    norm: Tensor  # (D,) float32


@dataclass(frozen=True)
class TextWeights:
    """Text token → talker width: a table and the two-layer projection after it."""

    embedding: Tensor  # (text vocabulary, text width)
    fc1: Tensor  # (text width, text width)
    fc1_bias: Tensor
    fc2: Tensor  # (D, text width)
    fc2_bias: Tensor  # (D,)


@dataclass(frozen=True)
class TalkerWeights:
    """The talker: its transformer, its embeddings, and its head."""

    transformer: TransformerWeights
    head: Tensor  # (vocabulary + predictor width, D): codec_head, then small_to_mtp_projection
    head_bias: Tensor  # (predictor width,) float32: of the second part
    first: Tensor  # (vocabulary, D): embeddings of codebook 0
    rest: Tensor  # (groups - 1, codes, D): of codebooks 1 to 15


@dataclass(frozen=True)
class PredictorWeights:
    """The code predictor. Its inputs are the talker's embeddings, projected once, at loading."""

    transformer: TransformerWeights
    heads: Tensor  # (groups - 1, codes, predictor width)
    first: Tensor  # (vocabulary, predictor width): codebook 0, projected
    rest: Tensor  # (groups - 2, codes, predictor width): codebooks 1 to 14, projected


@dataclass(frozen=True)
class Weights:
    """All weights of a checkpoint."""

    text: TextWeights
    talker: TalkerWeights
    predictor: PredictorWeights
    decoder: dict[str, Tensor]  # speech_tokenizer's decoder.*, by its own names without `decoder.`
