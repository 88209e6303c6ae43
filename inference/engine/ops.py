"""What a transformer layer is made of: five operations, in plain torch.

This is the reference and what runs on a CPU; `kernels` has the same operations as CUDA kernels.
The residual stream, norms, rope and softmax are float32 in every dtype; GEMM inputs have the
weights' dtype. Shapes: B rows, D residual width, H query heads of width W, G key/value heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.weights import GATE_ROWS


@dataclass(frozen=True)
class Heads:
    """How the columns of one qkv product are split."""

    query: int  # H
    kv: int  # G, a divisor of H
    width: int  # W
    epsilon: float


@dataclass(frozen=True)
class Where:
    """Which positions the rows of a batch are at, and which cache rows hold their past.

    A row's query `t` of N stands at position `position + t`, and reads the cache rows
    `table[sequence, 0 .. position + t]`; its own key and value are written first.
    """

    sequence: Tensor  # (B,) int32: which line of the table
    position: Tensor  # (B,) int32: of the row's first query
    table: Tensor  # (sequences, positions) int32: cache row of each position
    span: int  # positions that any row may look at, at most the table's width


class TorchOps:
    """The operations in plain torch. Stateless."""

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """rms_norm(x) @ weight.T: (B, D) float32 → (B, M) in the weights' dtype."""
        return F.linear(rms_norm(x, norm, epsilon).to(weight.dtype), weight)

    def linear_add(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """x + y @ weight.T: x (B, D) float32, y (B, K) → (B, D) float32."""
        return x + F.linear(y, weight).float()

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """silu(gate) * up of rms_norm(x): (B, D) float32 → (B, F) in the weights' dtype."""
        both = self.norm_linear(x, norm, weight, epsilon)
        gate, up = both.unflatten(-1, (-1, 2, GATE_ROWS)).unbind(-2)
        return (F.silu(gate.float()) * up.float()).flatten(-2).to(weight.dtype)

    def attend(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor],
        rope: Tensor,
        cache: tuple[Tensor, Tensor],
        where: Where,
        heads: Heads,
    ) -> Tensor:
        """Norm and turn q and k, store k and v, attend to the past: (B·N, …) → (B·N, H·W).

        `qkv` has N consecutive queries of each row, `cache` is keys and values (rows, G, W), and
        `rope` (positions, 2, W/2) float32: cosines, then sines.
        """
        rows = len(where.sequence)
        split = (heads.query, heads.kv, heads.kv)
        q, k, v = qkv.view(rows, -1, sum(split), heads.width).split(split, dim=2)
        places = where.position[:, None] + torch.arange(q.shape[1], device=q.device)  # (B, N)
        table = where.table[where.sequence.long()].long()  # (B, positions)
        turn = rope[places]  # (B, N, 2, W/2)
        keys, values = cache
        written = table.gather(1, places.long())
        keys[written] = rotate(rms_norm(k, norms[1], heads.epsilon), turn).to(keys.dtype)
        values[written] = v
        seen = table[:, : where.span]
        mask = torch.arange(where.span, device=q.device) <= places[..., None]  # (B, N, span)
        out = F.scaled_dot_product_attention(
            rotate(rms_norm(q, norms[0], heads.epsilon), turn).to(v.dtype).transpose(1, 2),
            keys[seen].transpose(1, 2),
            values[seen].transpose(1, 2),
            attn_mask=mask[:, None],
            enable_gqa=True,
        )
        return out.transpose(1, 2).reshape(len(qkv), -1)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding of x (B, N, heads, W) by turn (B, N, 2, W/2): cosines and sines."""
    cosine, sine = turn.unsqueeze(2).unbind(3)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def rope_table(base: float, width: int, positions: int, device: torch.device) -> Tensor:
    """(positions, 2, width / 2) float32: the cosine and sine of every position's angles."""
    powers = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    angles = torch.arange(positions).float()[:, None] * (1.0 / base**powers)
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(device)
