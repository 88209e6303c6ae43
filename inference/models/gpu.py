"""Is there the GPU that was asked for? Asked of the driver: importing torch takes seconds."""

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

from registry.errors import ModelUnavailable

DRIVER = "libcuda.so.1"


def refuse_missing_gpu(device: str) -> None:
    """Raise ModelUnavailable if `device` is cuda or cuda:N, and there is no such GPU."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return
    if _torch_is_for_cpus():
        raise ModelUnavailable(
            f"The device {device} can't be used: PyTorch was installed without CUDA here."
        )
    count = gpu_count()
    if count <= int(number or 0):
        found = ", ".join(f"cuda:{n}" for n in range(count))
        there = f"there is {found}" if found else "there is no GPU with CUDA"
        raise ModelUnavailable(f"The device {device} can't be used: {there} here.")


def gpu_count() -> int:
    """Count the GPUs that the driver shows this process, CUDA_VISIBLE_DEVICES considered."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _torch_is_for_cpus() -> bool:
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False  # that it is missing is said elsewhere
    version = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b.*= None$", version, re.MULTILINE) is not None
