"""The class with the GPU, called in this process as Modal calls it there.

Each call runs on a thread of its own, to its end, whether somebody still listens or not; what it is
given and what it answers is pickled on the way.
"""

import asyncio
import json
import pickle
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

import modal
import pytest
from conftest import PYTHON, ROOT
from modal._partial_function import _find_callables_for_obj, _PartialFunctionFlags
from modal_server import ModalServer

from inference import deploy
from inference.model_folder import MARKER, Marker
from inference.weights import LocatedModel, parse
from registry.modal_inference import Load

PATIENCE_S = 60


class FakeVolume:
    """Counts; `others` is what a reload brings to light."""

    def __init__(self) -> None:
        self.commits = self.reloads = 0
        self.others: Callable[[], object] = lambda: None
        self.failure: Exception | None = None

    def commit(self) -> None:
        self._fail()
        self.commits += 1

    def reload(self) -> None:
        self._fail()
        self.reloads += 1
        self.others()

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class LocalRemote:
    """A registry.modal_inference.Remote over the `.local()` of the class."""

    def __init__(self, voices: Any) -> None:
        self.voices = voices
        self.load_now = Load(1, 0, 0)
        self.forgotten: list[str] = []
        self.threads: list[threading.Thread] = []

    async def speak(
        self, call: str, ref: Any, text: str, params: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            with suppress(RuntimeError):  # the caller is gone, and its loop with it
                loop.call_soon_threadsafe(items.put_nowait, item)

        def work() -> None:
            for item in self.voices.speak.local(*copied((call, dict(ref), text, dict(params)))):
                put(copied(item))
            put(None)

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        while (item := await items.get()) is not None:
            yield item

    async def extract_prompt(self, source: Any) -> dict[str, Any]:
        local = self.voices.extract_prompt.local
        answer: dict[str, Any] = await asyncio.to_thread(local, copied(dict(source)))
        return copied(answer)

    async def forget(self, call: str) -> None:
        self.forgotten.append(call)
        await asyncio.to_thread(self.voices.forget.local, call)

    def load(self) -> Load:
        return self.load_now

    def until_silent(self) -> None:
        """Until no call is left, and no speech."""
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a call goes on for nobody"
        until(lambda: not self.voices.status.local()["running"])


def until(found: Callable[[], bool]) -> None:
    """Look again and again, but not for ever."""
    deadline_s, never = monotonic() + PATIENCE_S, threading.Event()
    while not found():
        assert monotonic() < deadline_s, "it did not happen"
        never.wait(0.01)


def copied(value: Any) -> Any:
    """What crosses is plain."""
    assert_plain(value)
    return pickle.loads(pickle.dumps(value))


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (str, int, float, bytes, bool), type(value)


def put_model(root: Path, model: LocatedModel, **changed: Any) -> None:
    """Make `root` a Volume that holds the model, under the name that is deployed."""
    root.mkdir(exist_ok=True)
    (root / "model").symlink_to(model.path)
    source = str(parse(deploy.plan.model))
    marker = replace(Marker.of(replace(model, path=root / "model", source=source), root), **changed)
    (root / MARKER).write_text(json.dumps(asdict(marker)))


def leave(voices: Any) -> None:
    """The container's end, which `.local()` has not."""
    instance = voices._cached_user_cls_instance()
    for hook in _find_callables_for_obj(instance, _PartialFunctionFlags.EXIT).values():
        hook()


@contextmanager
def container(state: Path, weights: Path, volume: Any) -> Iterator[Any]:
    """The class as in a container with these Volumes, from its start to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "STATE", str(state))
        patch.setattr(deploy, "WEIGHTS", str(weights))
        patch.setattr(deploy, "state", volume)
        voices: Any = deploy.Voices()
        voices.status.local()  # which starts it
        try:
            yield voices
        finally:
            if voices.remote._thread.is_alive():
                leave(voices)


@contextmanager
def deployed(**variables: str) -> Iterator[ModalServer]:
    """The fake control plane after `modal deploy -m inference.deploy`; this process finds it."""
    line = [PYTHON, "-m", "modal", "deploy", "-m", "inference.deploy"]
    with ModalServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environ | variables).items():
            patch.setenv(name, value)
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        with modal.Client.from_env():
            yield server
