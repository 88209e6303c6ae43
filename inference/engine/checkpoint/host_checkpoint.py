"""A checkpoint in host memory: all that an engine is made of, before there is a device.

Reading it asks nothing of any GPU, so that it can happen where there is none yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from inference.engine.checkpoint.loading import load_weights
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.config import DTYPES
from inference.engine.model_config import CONFIG_ERRORS, ModelConfig, read_model_config
from inference.engine.text import TextTokenizer
from inference.engine.weights import Weights
from registry.errors import ModelUnavailable

LOAD_ERRORS: tuple[type[Exception], ...] = (
    *CONFIG_ERRORS,
    RuntimeError,
    AssertionError,
    MemoryError,
)


@dataclass(frozen=True, eq=False)
class HostCheckpoint:
    """Config, weights and tokenizer of one checkpoint."""

    model_config: ModelConfig
    weights: Weights  # on the CPU, in the dtype that is served
    text: TextTokenizer

    @classmethod
    def read(cls, folder: Path, dtype: str) -> "HostCheckpoint":
        """Read the checkpoint in `folder`, in float32, float16 or bfloat16; ModelUnavailable."""
        with loading(f"The model in {folder}"):
            model_config = read_model_config(folder)
            weights = load_weights(folder, model_config, DTYPES[dtype], torch.device("cpu"))
            return cls(model_config, weights, load_tokenizer(folder))


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn what goes wrong inside into a ModelUnavailable that says why `what` did not load."""
    try:
        yield
    except ModelUnavailable:
        raise
    except LOAD_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelUnavailable(f"{what} did not load. {reason}") from error
