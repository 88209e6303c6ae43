"""A .safetensors file: what its header says of each tensor, and the bytes of any part of one.

Every fault is a ModelUnavailable that names the file and the tensor. Knows nothing of models.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.errors import ModelUnavailable

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in its file, and what it is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file


class TensorFile:
    """Reads parts of a file. Safe to call from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._bytes = os.fstat(file.fileno()).st_size
                self._header, self._data = _header(file.read(8), file.read, self._bytes)
        except FileNotFoundError as error:
            raise ModelUnavailable(_missing(path)) from error
        except OSError as error:
            raise ModelUnavailable(f"{path} can't be read: {error}.") from error
        except (ValueError, RecursionError) as error:
            raise ModelUnavailable(f"{path} is not a safetensors file: {error}.") from error

    def names(self, prefix: str) -> Iterator[str]:
        """The tensors whose names begin with `prefix`, in the file's order."""
        return (name for name in self._header if name.startswith(prefix))

    def find(self, name: str, shape: Sequence[int] | None = None) -> Stored:
        """The tensor `name`; if a shape is given it must have that one."""
        if name not in self._header:
            raise ModelUnavailable(f"{self.path} has no tensor {name}.")
        stored, end = self._stored(name)
        if end > self._bytes:
            raise ModelUnavailable(f"{self.path} is truncated: it ends before tensor {name} does.")
        if shape is not None and stored.shape != tuple(shape):
            raise ModelUnavailable(
                f"Tensor {name} in {self.path} has shape {list(stored.shape)},"
                f" but the config asks for {list(shape)}."
            )
        return stored

    def read(self, offset: int, into: Tensor) -> None:
        """Fill `into`, uint8 in host memory, with the file's bytes from `offset` on."""
        view = into.numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                while view and (count := file.readinto(view)):
                    view = view[count:]
        except OSError as error:
            raise ModelUnavailable(f"{self.path} can't be read: {error}.") from error
        if view:
            raise ModelUnavailable(f"{self.path} became shorter while it was read.")

    def _stored(self, name: str) -> tuple[Stored, int]:
        """The tensor and where it ends."""
        entry = self._header[name]
        try:
            dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelUnavailable(f"The header of {self.path} is wrong at {name}.") from error
        if dtype not in DTYPES:
            raise ModelUnavailable(
                f"Tensor {name} in {self.path} is stored as {dtype}, not as {', '.join(DTYPES)}."
            )
        kind = DTYPES[dtype]
        if begin < 0 or end - begin != math.prod(shape) * kind.itemsize:
            raise ModelUnavailable(f"The header of {self.path} is wrong at {name}.")
        return Stored(name, kind, shape, self._data + begin), self._data + end


def _header(head: bytes, read: Any, size: int) -> tuple[dict[str, Any], int]:
    """Read each tensor's entry, and where their data begins; ValueError says what is wrong."""
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, HEADER_LIMIT_BYTES):
        raise ValueError("it is truncated, or its header has no valid length")
    header = json.loads(read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _missing(path: Path) -> str:
    if path.with_name(f"{path.name}.index.json").exists():
        return f"{path.parent} is a sharded checkpoint; only a single {path.name} can be loaded."
    return f"{path} is missing."
