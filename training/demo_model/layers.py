"""Transformer layers with the package's parameter names, whole sequences at a time, no cache."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Lookup(torch.autograd.Function):
    """Rows of a table. A CUDA graph can hold its gradient, unlike that of torch's embedding."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        total = torch.zeros(ctx.rows, grad.shape[-1], device=grad.device)
        return total.index_add_(0, ids.flatten(), grad.flatten(0, -2).float()), None


class Table(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = _Lookup.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        return rows


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(x.dtype)


class LayerScale(nn.Module):
    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class PlainMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


def rotation(length: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (length, width) of RoPE."""
    exponent = torch.arange(0, width, 2, device=device).float() / width
    angles = torch.outer(
        torch.arange(length, device=device).float(), torch.exp(-math.log(base) * exponent)
    )
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos + turned * sin).to(x.dtype)


class WindowAttention(nn.Module):
    """Causal, over the last `window` positions."""

    def __init__(self, width: int, heads: int, head_width: int, window: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.window = heads, head_width, window
        inner = heads * head_width
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        cos, sin = rotation(length, self.head_width, 10_000.0, x.device)
        q, k, v = (
            project(x).view(batch, length, self.heads, self.head_width).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        distance = torch.arange(length, device=x.device)
        distance = distance[:, None] - distance
        mask = (distance >= 0) & (distance < self.window)
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask
        )
        result: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return result


class WindowLayer(nn.Module):
    """Attention and feed-forward with layer scales: Mimi's layer, and the decoder's."""

    def __init__(
        self,
        width: int,
        attention: WindowAttention,
        mlp: nn.Module,
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn_layer_scale = LayerScale(width, 0.1)
        self.mlp_layer_scale = LayerScale(width, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x)))
        result: Tensor = x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))
        return result


class GroupedAttention(nn.Module):
    """Causal, over everything before, with normed queries and keys: the talker's."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head_width, 1e-6), RMSNorm(head_width, 1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, self.head_width)
        q = rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        k, v = k.to(v.dtype).repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k, v, is_causal=True)
        result: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return result


class TalkerLayer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = GroupedAttention(width, heads, kv_heads, head_width)
        self.mlp = GatedMLP(width, hidden)
        self.input_layernorm = RMSNorm(width, 1e-6)
        self.post_attention_layernorm = RMSNorm(width, 1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result
