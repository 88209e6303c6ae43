"""The least time that a frame can take: its weights are read once, at the speed of a copy.

Counts the weights alone. A row's keys and values add under 1 % at a few hundred positions.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from random_weights import decoder_sizes

from inference.engine.model_config import ModelConfig, TransformerConfig

T4_BYTES_S = 300e9
T4_FLOPS = 65e12  # fp16 with tensor cores
CODEC_FLOP = 4.96e9  # a frame of the released decoder
CODEC_CHUNK = 8  # frames that share one reading of the decoder
COPIES = 10


@dataclass(frozen=True)
class Frame:
    """What one frame needs at least."""

    language_parameters: int  # read for every frame, whatever the batch
    codec_parameters: int  # read for every chunk

    @classmethod
    def of(cls, config: ModelConfig) -> "Frame":
        talker, predictor = config.talker, config.code_predictor
        passes = config.num_code_groups - 1
        parameters = stack_parameters(talker) + passes * stack_parameters(predictor)
        parameters += (config.vocab_size + predictor.hidden_size) * talker.hidden_size
        parameters += passes * config.codebook_size * predictor.hidden_size
        sizes = decoder_sizes(config.decoder_config)
        codec = sum(math.prod(size) for name, size in sizes.items() if "codebook" not in name)
        return cls(parameters, codec)

    def nbytes(self, itemsize: int) -> float:
        return itemsize * (self.language_parameters + self.codec_parameters / CODEC_CHUNK)

    @property
    def flop(self) -> float:
        """Of one row, on the released decoder."""
        return 2 * self.language_parameters + CODEC_FLOP


def stack_parameters(config: TransformerConfig) -> int:
    attention = config.hidden_size * (2 * config.q_size + 2 * config.kv_size)
    return config.num_hidden_layers * (
        attention + 3 * config.hidden_size * config.intermediate_size
    )


def floor(config: ModelConfig, itemsize: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a frame at the speed at which this device copies."""
    nbytes, speed = Frame.of(config).nbytes(itemsize), copy_bytes_s(device)
    return {
        "gb_per_frame": round(nbytes / 1e9, 3),
        "copy_gb_s": round(speed / 1e9, 1),
        "floor_ms": round(1000 * nbytes / speed, 3),
    }


def t4_estimate(config: ModelConfig) -> dict[str, object]:
    """A roofline, not a measurement: the larger of reading the weights and multiplying."""
    frame = Frame.of(config)
    reading_s = frame.nbytes(2) / T4_BYTES_S
    return {
        "estimate": f"roofline at {T4_BYTES_S / 1e9:.0f} GB/s and {T4_FLOPS / 1e12:.0f} TFLOP/s",
        **{
            f"ms_per_frame_{rows}": round(1000 * max(reading_s, rows * frame.flop / T4_FLOPS), 2)
            for rows in (1, 8, 32)
        },
    }


def copy_bytes_s(device: torch.device) -> float:
    """Bytes read and written a second by a copy within the device's memory."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = _on_cuda if device.type == "cuda" else _on_cpu
    return 2 * size / median(timed(lambda: target.copy_(source)) for _ in range(COPIES))


def _on_cpu(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _on_cuda(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
