"""The class with the GPU, called in this process as Modal calls it there."""

import asyncio
import inspect
import json
import pickle
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

import modal
import pytest
from conftest import PYTHON, ROOT
from modal._partial_function import _find_callables_for_obj, _PartialFunctionFlags
from modal._runtime.execution_context import _set_current_context_ids
from modal_server import ModalServer

from inference.modal import app
from inference.models.catalog import LocatedModel, parse
from inference.models.marker import MARKER, Marker
from registry.speech.modal import Load

Server = TypeVar("Server", bound=ModalServer)

PATIENCE_S = 60
OVER = object()


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


class Call:
    """One call of a method, a task of its own; what it says comes to `put`, and then OVER."""

    def __init__(self, name: str, put: Callable[[Any], None]) -> None:
        self.name, self.put = name, put
        self.ended = threading.Event()
        self.task: asyncio.Task[None] | None = None

    async def run(self, method: Callable[..., Any], given: Sequence[Any]) -> None:
        self.task = asyncio.current_task()
        forget_ids = _set_current_context_ids([f"in-{self.name}"], [self.name], [""])
        try:
            answer = method(*copied(given))
            if inspect.isasyncgen(answer):
                async with aclosing(answer) as items:
                    async for item in items:
                        self.put(copied(item))
            else:
                self.put(copied(await answer))
        except asyncio.CancelledError:
            self.put(modal.exception.RemoteError("The call was cancelled."))
        finally:
            forget_ids()
            self.put(OVER)
            self.ended.set()


class Container:
    """The class with the GPU in this process, run as Modal's entrypoint runs it.

    It has an event loop of its own, on which each call is a task; the hooks of its start and end
    run there, too. What a call is given and what it says is pickled on the way.
    """

    def __init__(self) -> None:
        voices: Any = app.Voices()
        self.instance = voices._cached_user_cls_instance()
        self.methods = _find_callables_for_obj(
            self.instance, _PartialFunctionFlags.CALLABLE_INTERFACE
        )
        self.calls: dict[str, Call] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="container")
        self._thread.start()
        self._hooks(_PartialFunctionFlags.ENTER_PRE_SNAPSHOT)
        self._hooks(_PartialFunctionFlags.ENTER_POST_SNAPSHOT)

    @property
    def remote(self) -> Any:
        return self.instance.remote

    def begin(self, method: str, *given: Any, put: Callable[[Any], None], name: str = "") -> Call:
        call = Call(name or f"fc-{len(self.calls)}", put)
        self.calls[call.name] = call
        work = call.run(self.methods[method], given)
        asyncio.run_coroutine_threadsafe(work, self._loop)
        return call

    def ask(self, method: str, *given: Any) -> Any:
        """The one thing that a method says."""
        [item] = self.listen(method, *given)
        return item

    def listen(self, method: str, *given: Any) -> Iterator[Any]:
        """All that it says, as it does; closing it cancels the call, and nothing else."""
        items: SimpleQueue[Any] = SimpleQueue()
        call = self.begin(method, *given, put=items.put)
        try:
            while (item := items.get(timeout=PATIENCE_S)) is not OVER:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.cancel(call.name)

    def speak(
        self, ref: Any, text: str, params: Any, until_s: float = float("inf")
    ) -> Iterator[Any]:
        return self.listen("speak", ref, text, params, until_s)

    def extract_prompt(self, source: Any, until_s: float = float("inf")) -> Any:
        return self.ask("extract_prompt", source, until_s)

    def cancel(self, name: str) -> None:
        call = self.calls[name]
        if call.task is not None and not call.ended.is_set():
            self._loop.call_soon_threadsafe(call.task.cancel)

    def until_silent(self) -> None:
        """Until no call is left, and no speech."""
        for call in self.calls.values():
            assert call.ended.wait(PATIENCE_S), "a call goes on for nobody"
        until(lambda: not self.ask("status")["running"])

    def leave(self) -> None:
        """Its end: what runs is cancelled, then comes the hook."""
        if self._thread.is_alive():
            for name, call in self.calls.items():
                self.cancel(name)
                assert call.ended.wait(PATIENCE_S)
            self._hooks(_PartialFunctionFlags.EXIT)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()

    def _hooks(self, flag: _PartialFunctionFlags) -> None:
        for hook in _find_callables_for_obj(self.instance, flag).values():
            answer = hook()
            if inspect.iscoroutine(answer):
                asyncio.run_coroutine_threadsafe(answer, self._loop).result(PATIENCE_S)


class LocalRemote:
    """A registry.speech.modal.Remote over a container, which may still have to come up.

    As at Modal, a call is there as soon as it was sent, whether its caller stays or not; closing
    what brings its items stops nothing.
    """

    def __init__(self, container: Container, *, cold: bool = False) -> None:
        self.container, self.cold = container, cold
        self.load_now = Load(1, 0, 0)
        self.sent: list[str] = []  # calls
        self.cancelled: list[str] = []
        self._waiting: list[Callable[[], object]] = []

    async def speak(
        self, ref: Any, text: str, params: Any, until_s: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        items = await self._send("speak", dict(ref), text, dict(params), until_s)
        while (item := await items.get()) is not OVER:
            if isinstance(item, Exception):
                raise item
            yield item

    async def extract_prompt(self, source: Any, until_s: float) -> dict[str, Any]:
        items = await self._send("extract_prompt", dict(source), until_s)
        answer: dict[str, Any] = await items.get()
        return answer

    async def cancel(self, call: str) -> None:
        self.cancelled.append(call)
        self.container.cancel(call)

    def load(self) -> Load:
        return self.load_now

    def come_up(self) -> None:
        """The container is there, and takes what waits for it."""
        self.cold = False
        for begin in self._waiting:
            begin()

    async def _send(self, method: str, *given: Any) -> asyncio.Queue[Any]:
        await asyncio.sleep(0)  # the way there, on which a caller may leave
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            with suppress(RuntimeError):  # the caller is gone, and its loop with it
                loop.call_soon_threadsafe(items.put_nowait, item)

        name = f"fc-sent-{len(self.sent)}"
        self.sent.append(name)
        begin = partial(self.container.begin, method, *given, put=put, name=name)
        self._waiting.append(begin) if self.cold else begin()
        return items


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
    source = str(parse(app.plan.model))
    marker = replace(Marker.of(replace(model, path=root / "model", source=source), root), **changed)
    (root / MARKER).write_text(json.dumps(asdict(marker)))


@contextmanager
def container(state: Path, weights: Path, volume: Any) -> Iterator[Container]:
    """A container with these Volumes, from its start to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "STATE", str(state))
        patch.setattr(app, "WEIGHTS", str(weights))
        patch.setattr(app, "state", volume)
        made = Container()
        try:
            yield made
        finally:
            made.leave()


@contextmanager
def deployed(kind: type[Server] = ModalServer, **variables: str) -> Iterator[Server]:  # type: ignore[assignment]
    """The fake control plane after `modal deploy -m inference.modal.app`; this process finds it."""
    line = [PYTHON, "-m", "modal", "deploy", "-m", "inference.modal.app"]
    with kind() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environ | variables).items():
            patch.setenv(name, value)
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        with modal.Client.from_env():
            yield server
