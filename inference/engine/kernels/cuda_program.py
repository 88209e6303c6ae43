"""CUDA source → functions that can be launched, through NVRTC and NVIDIA's own Python bindings.

To compile takes no GPU: only to load and launch does.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | int | float | None


class KernelsUnavailable(RuntimeError):
    """This machine can't compile or run our kernels; plain torch does the same, slower."""


class Program:
    """Launches the functions of one compiled source on torch's current stream."""

    def __init__(self, image: bytes) -> None:
        """`image` is what `compiled` made for the device that is current."""
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise KernelsUnavailable(f"cuda-bindings is not installed: {error}") from error
        self._driver = driver
        loaded = ctypes.create_string_buffer(image)
        self._module = checked(driver.cuModuleLoadData(ctypes.addressof(loaded)))
        self._functions: dict[str, Any] = {}

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]
    ) -> None:
        """Run `name`: tensors as pointers (None is null), ints as int, floats as float.

        A Long is an int of 64 bits. Every tensor must be on the device that is current.
        """
        if name not in self._functions:
            found = self._driver.cuModuleGetFunction(self._module, name.encode())
            self._functions[name] = checked(found)
        stream = self._driver.CUstream(torch.cuda.current_stream().cuda_stream)
        values, kinds = zip(*map(_passed, arguments), strict=True)
        function = self._functions[name]
        checked(
            self._driver.cuLaunchKernel(
                function, *grid, 1, threads, 1, 1, 0, stream, (values, kinds), 0
            )
        )


def target(capability: tuple[int, int]) -> str:
    """Name machine code of a GPU with this compute capability as NVRTC does.

    A driver loads code of any CUDA of its major version. PTX it would compile itself, but only if
    it is as new as the NVRTC that made it.
    """
    return f"sm_{capability[0]}{capability[1]}"


@cache  # a process compiles each once, before or after it has a device
def compiled(source: str, defines: tuple[str, ...], target: str) -> bytes:
    """Compile to a cubin for `sm_75` and the like, to PTX for `compute_75`. KernelsUnavailable."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelsUnavailable(f"cuda-bindings is not installed: {error}") from error
    try:
        created = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], [])
    except RuntimeError as error:  # the first call looks for the library
        raise KernelsUnavailable(f"NVRTC is not installed: {error}") from error
    program = checked(created)
    options = [option.encode() for option in (f"-arch={target}", *defines)]
    [result] = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program)))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        reason = log.decode(errors="replace")
        raise KernelsUnavailable(f"The kernels do not compile for {target}: {reason}")
    cubin = target.startswith("sm_")
    size = nvrtc.nvrtcGetCUBINSize if cubin else nvrtc.nvrtcGetPTXSize
    image = bytes(checked(size(program)))
    checked((nvrtc.nvrtcGetCUBIN if cubin else nvrtc.nvrtcGetPTX)(program, image))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return image


def checked(answer: tuple[Any, ...]) -> Any:
    """Take the error code off what a call of the bindings answers, and raise if it is one."""
    result, *rest = answer
    if int(result):
        raise KernelsUnavailable(f"A call of the CUDA driver or of NVRTC failed: {result}.")
    return rest[0] if rest else None


class Long(int):
    """An int that the kernel takes as 64 bits."""


def _passed(argument: Argument) -> tuple[Any, Any]:
    if argument is None:
        return 0, ctypes.c_void_p
    if isinstance(argument, Tensor):
        return argument.data_ptr(), ctypes.c_void_p
    if isinstance(argument, float):
        return argument, ctypes.c_float
    return int(argument), ctypes.c_longlong if isinstance(argument, Long) else ctypes.c_int
