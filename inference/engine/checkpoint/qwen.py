"""Import qwen_tts next to any torch, without a word on stdout or stderr.

`import qwen_tts` also imports its 25 Hz tokenizer, which a 12 Hz model never uses and which needs
a torchaudio linked to the same torch, the sox program, onnxruntime and flash-attn (a notice on
stdout). A stand-in takes the place of that one module, so none of them is touched.
"""

import atexit
import fcntl
import importlib
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from types import ModuleType
from typing import Any

CACHE_PREFIX = "voices-cache-"
UNUSED = "qwen_tts.core.tokenizer_25hz.modeling_qwen3_tts_tokenizer_v1"

_made = list[str]()  # the folder of this process


class Qwen3TTSTokenizerV1Model:
    """Stands where the 25 Hz speech tokenizer would; it can be registered, never built."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise RuntimeError("The 25 Hz speech tokenizer is not available here.")


def import_qwen_tts() -> Any:
    """Import the qwen_tts package, offline, with transformers' log at errors only.

    ImportError; OSError where a folder that an import makes can't be made.
    """
    if UNUSED not in sys.modules:
        stand_in = ModuleType(UNUSED)
        stand_in.__dict__["Qwen3TTSTokenizerV1Model"] = Qwen3TTSTokenizerV1Model
        sys.modules[UNUSED] = stand_in
    go_offline()  # the hub's library now knows where its own cache is
    give_cache_folders()
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


def give_cache_folders() -> None:
    """Make a folder of this process's own for what imports write, unless the environment names one.

    What is found in these folders is run, or keeps the import from working: transformers imports
    torch's compiler, which makes one in TMPDIR by a name that every account knows; librosa can't
    be imported without one, and numba keeps programs there.
    """
    wanted = {"TORCHINDUCTOR_CACHE_DIR"}
    if not has_cache_folder():
        wanted |= {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}
    named = {name for name in wanted - {"XDG_CACHE_HOME"} if os.environ.get(name)}
    if unnamed := wanted - named:
        os.environ.update(dict.fromkeys(unnamed, _make_cache_folder()))


def _make_cache_folder() -> str:
    """Make a folder that is locked for as long as this process lives, and goes with it.

    Those of processes that a signal ended, which run nothing at their end, go now.
    """
    _drop_abandoned()
    while True:
        folder = tempfile.mkdtemp(prefix=CACHE_PREFIX)  # its mode is 0700
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(folder):
            _made.append(folder)
            return folder
        os.close(lock)  # it was dropped before it was locked


def _drop_abandoned() -> None:
    with os.scandir(tempfile.gettempdir()) as found:
        folders = [one for one in found if one.name.startswith(CACHE_PREFIX)]
    for folder in folders:
        with suppress(OSError):  # it is locked, or goes meanwhile
            if folder.stat(follow_symlinks=False).st_uid == os.geteuid():
                _drop_unlocked(folder.path)


def _drop_unlocked(folder: str) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


@atexit.register
def remove_cache_folder() -> None:
    """Remove the folder that this process has made, if any; a signal that ends it does not."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


def has_cache_folder() -> bool:
    """False in a container that runs under a number, without a home or with one to read only.

    Nor is it one where others may write, as the home of many a daemon is.
    """
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    while folder and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not (os.path.isabs(folder) and os.path.isdir(folder) and os.access(folder, os.W_OK)):
        return False
    return not os.stat(folder).st_mode & stat.S_IWOTH
