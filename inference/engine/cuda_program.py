"""CUDA source → functions that can be launched, through NVRTC and NVIDIA's own Python bindings."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | int | float | None


class KernelsUnavailable(RuntimeError):
    """This machine can't compile or run our kernels; plain torch does the same, slower."""


class Program:
    """One compiled source; its functions run on torch's current stream."""

    def __init__(self, source: str, defines: Sequence[str], architecture: tuple[int, int]) -> None:
        """For a compute capability: the device's, or an older one, whose code runs there too."""
        try:
            from cuda.bindings import driver, nvrtc
        except ImportError as error:
            raise KernelsUnavailable(f"cuda-bindings is not installed: {error}") from error
        self._driver, self._nvrtc = driver, nvrtc
        options = [f"-arch=compute_{architecture[0]}{architecture[1]}", *defines]
        image = ctypes.create_string_buffer(self._compile(source, options))
        self._module = self._checked(driver.cuModuleLoadData(ctypes.addressof(image)))
        self._functions: dict[str, Any] = {}

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]
    ) -> None:
        """Run `name`: tensors as pointers (None is null), ints as int, floats as float.

        A Long is an int of 64 bits. Every tensor must be on the device that is current.
        """
        if name not in self._functions:
            found = self._driver.cuModuleGetFunction(self._module, name.encode())
            self._functions[name] = self._checked(found)
        stream = self._driver.CUstream(torch.cuda.current_stream().cuda_stream)
        values, kinds = zip(*map(_passed, arguments), strict=True)
        function = self._functions[name]
        self._checked(
            self._driver.cuLaunchKernel(
                function, *grid, 1, threads, 1, 1, 0, stream, (values, kinds), 0
            )
        )

    def _compile(self, source: str, options: Sequence[str]) -> bytes:
        """PTX, which the driver compiles for the device that it has."""
        nvrtc = self._nvrtc
        program = self._checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
        encoded = [option.encode() for option in options]
        [result] = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelsUnavailable(f"The kernels do not compile: {self._log(program)}")
        image = bytes(self._checked(nvrtc.nvrtcGetPTXSize(program)))
        self._checked(nvrtc.nvrtcGetPTX(program, image))
        return image

    def _log(self, program: Any) -> str:
        log = bytes(self._checked(self._nvrtc.nvrtcGetProgramLogSize(program)))
        self._checked(self._nvrtc.nvrtcGetProgramLog(program, log))
        return log.decode(errors="replace")

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        """What a call of the bindings answers besides its error code."""
        result, *rest = answer
        if int(result):
            raise KernelsUnavailable(f"CUDA said {result}.")
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
