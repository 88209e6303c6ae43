"""Import qwen_tts next to any torch, without a word on stdout or stderr.

`import qwen_tts` also imports its 25 Hz tokenizer, which a 12 Hz model never uses and which needs
a torchaudio linked to the same torch, the sox program, onnxruntime and flash-attn (a notice on
stdout). A stand-in takes the place of that one module, so none of them is touched.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from types import ModuleType
from typing import Any

UNUSED = "qwen_tts.core.tokenizer_25hz.modeling_qwen3_tts_tokenizer_v1"


class Qwen3TTSTokenizerV1Model:
    """Stands where the 25 Hz speech tokenizer would; it can be registered, never built."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise RuntimeError("The 25 Hz speech tokenizer is not available here.")


def import_qwen_tts() -> Any:
    """The qwen_tts package, offline, with transformers' log at errors only; ImportError."""
    if UNUSED not in sys.modules:
        stand_in = ModuleType(UNUSED)
        stand_in.__dict__["Qwen3TTSTokenizerV1Model"] = Qwen3TTSTokenizerV1Model
        sys.modules[UNUSED] = stand_in
    if not has_cache_folder():
        give_cache_folder()
    go_offline()
    package = importlib.import_module("qwen_tts")
    logging = importlib.import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return package


def go_offline() -> None:
    """From now on this process asks the hub nothing: what a checkpoint names must be in it.

    HF_HUB_OFFLINE would be read when these are imported, and handed on to other programs.
    """
    vars(importlib.import_module("huggingface_hub.constants"))["HF_HUB_OFFLINE"] = True
    if "transformers" in sys.modules:  # which copies it
        vars(importlib.import_module("transformers.utils.hub"))["_is_offline_mode"] = True


def has_cache_folder() -> bool:
    """False in a container that runs under a number, without a home or with one to read only."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.path.isabs(folder) and os.access(folder, os.W_OK)


def give_cache_folder() -> None:
    """qwen_tts imports librosa, which can't be imported without one, and numba, which writes there.

    It is this process's own, for numba runs what it finds in it.
    """
    folder = tempfile.mkdtemp(prefix="voices-cache-")  # its mode is 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = os.environ["NUMBA_CACHE_DIR"] = folder
