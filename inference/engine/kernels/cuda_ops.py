"""The operations of `ops` as the CUDA kernels of kernels.cu; what those don't fit, torch does.

A few rows multiply with weights that are read once, by tensor cores; many go to cuBLAS.
"""

from collections.abc import Iterable
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.kernels.cuda_program import (
    Argument,
    KernelsUnavailable,
    Long,
    Program,
    compiled,
    target,
)
from inference.engine.ops import (
    AttentionConfig,
    AttentionMetadata,
    LogitsRules,
    TorchOps,
    TrailingText,
)
from inference.engine.sampler import SamplingTensors

__all__ = ["CudaOps", "KernelsUnavailable"]

FEW = 32  # rows up to which our matrix product is faster than cuBLAS
FEW_NORMED = 8  # the same with the norm in it
TERMS = 256  # its K is a multiple of this: a step of 32 for each of 8 warps
SCORES = 4096  # the largest vocabulary that `sample` holds in registers
OLDEST = (7, 5)


class CudaOps(TorchOps):
    """Runs the kernels on the current CUDA device, for weights in float16 or bfloat16."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compile them; KernelsUnavailable if that fails, or the device can't run them."""
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST or (dtype == torch.bfloat16 and capability < (8, 0)):
            gpu = ".".join(map(str, capability))
            raise KernelsUnavailable(
                f"Our kernels do not run in {dtype} on a GPU of compute capability {gpu}."
            )
        torch.cuda.current_stream(device).synchronize()  # the device's context exists from here on
        self._program = Program(image(dtype, target(capability)))
        self._dtype = dtype

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if not _fits(x, weight, FEW_NORMED):
            return F.linear(self._normed(x, norm, epsilon), weight)
        out = x.new_empty(len(x), len(weight), dtype=self._dtype)
        self._skinny("norm_linear", weight, x, norm, None, out, epsilon)
        return out

    def linear_add(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        if _fits(y, weight, FEW):
            self._skinny("linear_add", weight, y, None, x, out, 0.0)
        else:
            count = x.numel() // 4
            self._program.launch(
                "add", (-(-count // 256), 1), 256, [x, F.linear(y, weight), out, count]
            )
        return out

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out = x.new_empty(len(x), len(weight) // 2, dtype=self._dtype)
        if _fits(x, weight, FEW_NORMED):
            self._skinny("norm_gated", weight, x, norm, None, out, epsilon)
        else:
            both, count = F.linear(self._normed(x, norm, epsilon), weight), out.numel() // 8
            self._program.launch("silu_and_mul", (-(-count // 256), 1), 256, [both, out, count])
        return out

    def attend(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor],
        rope: Tensor,
        cache: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        config: AttentionConfig,
    ) -> Tensor:
        if (config.num_heads, config.head_dim) != (2 * config.num_kv_heads, 128):
            return super().attend(qkv, norms, rope, cache, metadata, config)
        rows, queries = len(metadata.sequence), len(qkv) // len(metadata.sequence)
        out = qkv.new_empty(len(qkv), config.num_heads * config.head_dim)
        placed: list[Argument] = [
            metadata.sequence,
            metadata.position,
            metadata.table,
            metadata.table.shape[1],
        ]
        sizes: list[Argument] = [config.num_heads, config.num_kv_heads, config.rms_norm_eps]
        inputs: list[Argument] = [qkv, *norms, rope, *cache, *placed]
        if queries <= 2:
            threads = 512 if metadata.max_seq_len > 32 else 128  # long pasts take more hands
            self._program.launch(
                f"attend_{queries}", (config.num_kv_heads, rows), threads, [*inputs, 1, out, *sizes]
            )
        else:
            stored: list[Argument] = [qkv, norms[1], rope, *cache, *placed, queries, *sizes]
            self._program.launch("store_kv", (len(qkv), 1), 256, stored)
            self._program.launch(
                "attend_stored",
                (config.num_kv_heads, len(qkv)),
                128,
                [*inputs, queries, out, *sizes],
            )
        return out

    def sample(
        self,
        logits: Tensor,
        rules: LogitsRules,
        sampling: SamplingTensors,
        slots: Tensor,
        group: int,
        bad: Tensor,
    ) -> Tensor:
        rows, count = logits.shape
        if count > SCORES:
            return super().sample(logits, rules, sampling, slots, group, bad)
        codes = torch.empty(rows, dtype=torch.int64, device=logits.device)
        self._program.launch(
            "sample",
            (rows, 1),
            512,
            [
                *(logits, logits.stride(0), count, rules.seen, rules.allowed, rules.eos),
                *(
                    sampling.temperature,
                    sampling.top_k,
                    sampling.top_p,
                    sampling.repetition_penalty,
                    sampling.key,
                ),
                *(sampling.step, slots, group, bad, codes),
            ],
        )
        return codes

    def embed(self, table: Tensor, codes: Tensor) -> Tensor:
        out = torch.empty(len(codes), table.shape[1], device=table.device)
        self._program.launch(
            "embed", (len(codes), 1), 256, [table, codes.contiguous(), out, table.shape[1]]
        )
        return out

    def frame_embed(
        self,
        codes: Tensor,
        tables: tuple[Tensor, Tensor],
        text: TrailingText,
        sampling: SamplingTensors,
        slots: Tensor,
    ) -> Tensor:
        first, rest = tables
        (rows, groups), width = codes.shape, first.shape[1]
        out = torch.empty(rows, width, device=first.device)
        self._program.launch(
            "frame_embed",
            (-(-width // 256), rows),
            256,
            [
                *(
                    codes.contiguous(),
                    groups,
                    first,
                    rest,
                    rest.shape[1],
                    text.tokens,
                    text.tokens.shape[1],
                ),
                *(text.length, text.pad, sampling.step, slots, out, width),
            ],
        )
        return out

    def snake(
        self,
        x: Tensor,
        alpha: Tensor,
        inverse_beta: Tensor,
        bias: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        rows, length, channels = x.shape
        if x.dtype != torch.float16 or self._dtype != torch.float16 or channels % 8:
            return super().snake(x, alpha, inverse_beta, bias, out)
        made = x.new_empty(x.shape) if out is None else out
        count = rows * length * channels // 8
        self._program.launch(
            "snake",
            (-(-count // 256), 1),
            256,
            [
                *(x, Long(x.stride(0)), alpha, inverse_beta, bias),
                *(made, Long(made.stride(0)), length, channels, count),
            ],
        )
        return made

    def _normed(self, x: Tensor, norm: Tensor, epsilon: float) -> Tensor:
        out = torch.empty_like(x, dtype=self._dtype)
        self._program.launch("rms_norm", (len(x), 1), 256, [x, norm, out, x.shape[1], epsilon])
        return out

    def _skinny(
        self,
        name: str,
        weight: Tensor,
        x: Tensor,
        norm: Tensor | None,
        residual: Tensor | None,
        out: Tensor,
        epsilon: float,
    ) -> None:
        outputs, terms = weight.shape
        tiles = next(tiles for tiles in (1, 2, 4) if len(x) <= 8 * tiles)
        self._program.launch(
            f"{name}_{tiles}",
            (outputs // 16, 1),
            256,
            [weight, x, norm, residual, out, outputs, terms, len(x), epsilon],
        )


def image(dtype: torch.dtype, target: str) -> bytes:
    """Compile the kernels for weights in `dtype`; no GPU is needed for it."""
    source = (files("inference.engine.kernels") / "kernels.cu").read_text("utf-8")
    return compiled(source, (f"-DBF16={int(dtype == torch.bfloat16)}",), target)


def compile_ahead(dtype: torch.dtype, architectures: Iterable[tuple[int, int]]) -> None:
    """Compile for engines that this process loads later on such GPUs. KernelsUnavailable."""
    for architecture in architectures:
        for kind in {dtype, torch.float16}:  # which the codec has
            image(kind, target(architecture))


def _fits(x: Tensor, weight: Tensor, most: int) -> bool:
    """Tell whether our own matrix product takes these, and is worth it."""
    return len(x) <= most and weight.shape[1] % TERMS == 0 and len(weight) % 16 == 0
