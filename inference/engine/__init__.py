"""The engine's public face. Importing a name of it imports torch; the package alone does not."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.engine.config import EngineConfig
    from inference.engine.engine import Engine
    from inference.engine.request import Counters, Output, PreparedVoice, Request
    from registry.contract import SamplingParams

__all__ = [
    "Counters",
    "Engine",
    "EngineConfig",
    "Output",
    "PreparedVoice",
    "Request",
    "SamplingParams",
]

_HOMES = {
    "Engine": "inference.engine.engine",
    "EngineConfig": "inference.engine.config",
    "SamplingParams": "registry.contract",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "inference.engine.request")), name)
