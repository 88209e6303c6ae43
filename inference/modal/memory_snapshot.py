"""Reads what a memory snapshot of the GPU's container keeps: modules, kernels, and the model.

It is taken before there is a GPU: nothing here asks for one, or opens a connection. No voice is
read, for the snapshot outlives voices. Every container starts with the same of it, so that whatever
must differ between them is drawn from the system later, as the seeds of speech are.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from inference.models.catalog import LocatedModel
from inference.models.marker import marked
from inference.models.read_ahead import reading_ahead
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from inference.serving.voice_files import VoiceFiles
from registry.errors import ModelUnavailable

if TYPE_CHECKING:
    from inference.engine.checkpoint.host_checkpoint import HostCheckpoint

# Through them all that is heavy is imported.
MODULES = ("inference.serving.loaded_engine", "inference.engine.extract")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreloadedModel:
    """A model in host memory, as a memory snapshot keeps it."""

    model: LocatedModel
    checkpoint: "HostCheckpoint"


def read(
    root: Path, spec: str, dtype: str, architectures: Iterable[tuple[int, int]] = ()
) -> PreloadedModel | None:
    """Read the model of the folder `root` into host memory; None if it is not there, or not yet.

    The kernels are compiled for GPUs of these compute capabilities: any of them may come later.
    """
    with reading_ahead(root):
        for name in MODULES:
            import_module(name)
        import_module("inference.engine.checkpoint.qwen").import_qwen_tts()
    from inference.engine.checkpoint.host_checkpoint import HostCheckpoint

    compile_kernels(dtype, architectures)
    try:
        model = marked(root, spec)
        return PreloadedModel(model, HostCheckpoint.read(model.path, dtype))
    except ModelUnavailable as error:
        log.warning(
            "The snapshot is without a model, until the App is deployed again, which `voices deploy"
            " model` does when it has brought one: %s",
            error,
        )
        return None


def compile_kernels(dtype: str, architectures: Iterable[tuple[int, int]]) -> None:
    """Compile the kernels; without them the engine runs plain torch, and says so when it loads."""
    import torch

    from inference.engine.kernels.cuda_ops import KernelsUnavailable, compile_ahead

    try:
        compile_ahead(getattr(torch, dtype), architectures)
    except KernelsUnavailable as error:
        log.warning("The snapshot is without CUDA kernels: %s", error)


def service(
    preloaded: PreloadedModel | None,
    root: Path,
    spec: str,
    files: VoiceFiles,
    config: ServiceConfig,
) -> InferenceService:
    """Make a service that starts with what was preloaded, if the folder still holds that."""
    checkpoint = (
        preloaded.checkpoint if preloaded and preloaded.model == _there(root, spec) else None
    )
    return InferenceService(files, lambda: marked(root, spec), config, checkpoint)


def _there(root: Path, spec: str) -> LocatedModel | None:
    try:
        return marked(root, spec)
    except ModelUnavailable:
        return None
