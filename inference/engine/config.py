"""How an engine is set up: what a caller may choose, and what becomes of it on a device."""

import logging
from dataclasses import dataclass

import torch

from inference.engine.frame_budget import MAX_FRAMES
from inference.engine.ops import TorchOps
from inference.engine.page_allocator import whole_pages
from inference.engine.state import EngineLimits

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of captured batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """The settings that a caller may choose; None leaves one to the device."""

    device: str | None = None  # cuda before cpu
    dtype: str | None = None  # float32 on a cpu, bfloat16 where a GPU computes it, else float16
    slots: int | None = None  # requests that speak at once: 32, on a cpu 8
    positions: int | None = None  # of all prompts and frames together: 1,024 a slot
    request_positions: int = 2816  # of one; both are rounded up to pages of 64
    trailing_text_tokens: int = 512  # tokens of one that are read while it speaks
    prefill_positions: int = 512  # between two frames
    queue_limit: int = 64
    threads: int | None = None  # torch's, on a cpu


@dataclass(frozen=True)
class Setup:
    """The settings of an engine on its device, made of an EngineConfig."""

    device: torch.device
    dtype: torch.dtype
    codec_dtype: torch.dtype
    ops: TorchOps
    codec_ops: TorchOps
    sizes: tuple[int, ...]  # of batches
    limits: EngineLimits
    prefill_positions: int
    queue_limit: int

    @classmethod
    def of(cls, config: EngineConfig) -> "Setup":
        """Resolve `config`: ValueError for an unknown dtype, RuntimeError for a missing device."""
        device, dtype = place(config)
        if device.type == "cuda":
            _set_up_torch()
        half = device.type == "cuda" and dtype != torch.float32
        codec_dtype = torch.float16 if half else torch.float32
        ops = _ops(device, dtype)
        slots = config.slots or (32 if device.type == "cuda" else 8)
        return cls(
            device=device,
            dtype=dtype,
            codec_dtype=codec_dtype,
            ops=ops,
            codec_ops=ops if codec_dtype == dtype else _ops(device, codec_dtype),
            sizes=(*(size for size in SIZES if size < slots), slots),
            limits=EngineLimits(
                slots=slots,
                cache_entries=whole_pages(
                    config.positions or max(slots * 1024, config.request_positions)
                ),
                request_positions=whole_pages(config.request_positions),
                request_frames=MAX_FRAMES + 1,
                trailing_text=config.trailing_text_tokens,
            ),
            prefill_positions=config.prefill_positions,
            queue_limit=config.queue_limit,
        )


def place(config: EngineConfig) -> tuple[torch.device, torch.dtype]:
    """Choose the device and the dtype of the weights; ValueError for a dtype that is none."""
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = DTYPES.get(config.dtype or default_dtype(device))
    if dtype is None:
        raise ValueError(f"dtype is {', '.join(DTYPES)}, not {config.dtype!r}.")
    return device, dtype


def default_dtype(device: torch.device) -> str:
    """The dtype that `device` computes natively; before 8.0 cuda only emulates bfloat16."""
    if device.type != "cuda":
        return "float32"
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if modern else "float16"


def _set_up_torch() -> None:
    """Set what holds for the whole process: sums of halves are float32."""
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _ops(device: torch.device, dtype: torch.dtype) -> TorchOps:
    """Choose our kernels where they run, else plain torch."""
    if device.type != "cuda" or dtype == torch.float32:
        return TorchOps()
    from inference.engine.kernels.cuda_ops import CudaOps, KernelsUnavailable

    try:
        return CudaOps(device, dtype)
    except KernelsUnavailable as error:
        log.warning("Frames are made without our CUDA kernels: %s", error)
        return TorchOps()
