"""Setups that only a benchmark asks for: a newer GPU that does what a T4 can, and plain torch."""

from dataclasses import replace

import torch

from inference.engine.config import EngineConfig, Setup, place
from inference.engine.kernels.cuda_ops import CudaOps, image
from inference.engine.kernels.cuda_program import Program
from inference.engine.ops import TorchOps

T4 = (7, 5)


class T4Ops(CudaOps):
    """A T4's kernels, which the driver compiles again for the GPU that is there."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        torch.cuda.current_stream(device).synchronize()  # the device's context exists from here on
        kind = "sm" if torch.cuda.get_device_capability(device) == T4 else "compute"
        self._program, self._dtype = Program(image(dtype, f"{kind}_75")), dtype


def setup_of(config: EngineConfig, as_on_t4: bool = False, plain_torch: bool = False) -> Setup:
    """The engine's own setup, changed where that is asked for.

    As on a T4 are the dtype, our kernels, and torch's attention; cuBLAS stays the device's. On a
    CPU nothing is.
    """
    as_on_t4 = as_on_t4 and place(config)[0].type == "cuda"
    setup = Setup.of(replace(config, dtype="float16") if as_on_t4 else config)
    if setup.device.type == "cuda":
        torch.backends.cuda.enable_flash_sdp(not as_on_t4)
        torch.backends.cuda.enable_cudnn_sdp(not as_on_t4)
    if plain_torch:
        return replace(setup, ops=TorchOps(), codec_ops=TorchOps())
    if as_on_t4:
        ops = T4Ops(setup.device, setup.dtype)
        return replace(setup, ops=ops, codec_ops=ops)
    return setup
