"""An enrolment, an edit or a rebuild that gets no row leaves the directory as it was."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from deployments import DEPLOYMENTS
from fakes import FakeInference
from faults import QuickEnroller, Trusting, age, noise, quick_app
from serving import serving
from uploading import clip_of, enrol_bytes

from cli.server.brief_server import BriefServer
from cli.server.private_server import serving_privately
from registry.api import services
from registry.contract import Deadline, PromptSource
from registry.errors import (
    DatabaseDamaged,
    NameTaken,
    Overloaded,
    RegistryError,
    StorageReadOnly,
    StorageUnavailable,
    VoiceNotFound,
)
from registry.settings import Settings
from registry.storage.data_dir import DataDir, clip_key, sha256_of
from registry.storage.rows.edits import VoiceEdit
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.volume.store import VolumeStore
from registry.threads import to_its_end
from registry.voices import unfinished
from registry.voices.enrolment import Change, TranscriptEdit

ALICE, BOB = noise(Random("alice")), noise(Random("bob"))
NEW = Change(words=TranscriptEdit("hello there"))
Work = Callable[[QuickEnroller], Awaitable[StoredVoice]]
WORK: dict[str, Work] = {
    "enrolment": lambda enroller: enrol_bytes(enroller, "bob", BOB),
    "enrolment of a clip that is there": lambda enroller: enrol_bytes(enroller, "bob", ALICE),
    "edit": lambda enroller: enroller.edit("alice", NEW, None),
    "rebuild": lambda enroller: enroller.rebuild(enroller._store.get("alice"), ""),
}
ROWS = {"enrolment": "insert", "edit": "edit", "rebuild": "record_features"}  # what writes them
every_work = pytest.mark.parametrize("work", WORK)


@pytest.fixture(params=DEPLOYMENTS[::2])
def deployment(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def enroller(store: VoiceStore, fake: FakeInference) -> QuickEnroller:
    """Of a directory with alice. Transcripts are tried."""
    fake.spare = True
    enroller = QuickEnroller(store, fake)
    asyncio.run(enrol_bytes(enroller, "alice", ALICE))
    return enroller


def state(store: VoiceStore) -> dict[str, bytes | int]:
    """All that is kept, to the byte, but for a Volume's snapshots and the copies of what went."""
    root = store.data.root
    if isinstance(store, VolumeStore):
        store._mount.reload()
    found = {str(path.relative_to(root)): path for path in root.rglob("*")}
    kept: dict[str, bytes | int] = {
        name: path.read_bytes() if path.is_file() else 0
        for name, path in found.items()
        if not name.startswith(("snapshots", "removed"))
    }
    return kept


def writer(work: str) -> str:
    return ROWS[work.split()[0]]


class Hooked:
    """Runs `at` before or after a step, on the thread of the step if it has one."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str, when: str) -> None:
        self._patch, self._owner, self._name, self._when = patch, owner, name, when

    def run(self, at: Callable[[], Any]) -> None:
        step = getattr(self._owner, self._name)

        def hooked(*args: Any, **options: Any) -> Any:
            if self._when == "before":
                at()
            done = step(*args, **options)
            if self._when == "after":
                at()
            return done

        async def awaited(*args: Any, **options: Any) -> Any:
            if self._when == "before":
                at()
                await asyncio.sleep(0)
            done = await step(*args, **options)
            if self._when == "after":
                at()
                await asyncio.sleep(0)
            return done

        is_async = asyncio.iscoroutinefunction(step)
        self._patch.setattr(self._owner, self._name, awaited if is_async else hooked)


STEPS = [
    (step, when)
    for step in ("keep_clip", "extract_prompt", "speak", "writer")
    for when in ("before", "after")
]
every_step = pytest.mark.parametrize(("step", "when"), STEPS, ids=map(" ".join, STEPS))


@pytest.fixture
def hook(
    store: VoiceStore, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, str], Hooked]:
    def of(work: str, step: str, when: str) -> Hooked:
        owner = fake if step in ("extract_prompt", "speak") else store
        return Hooked(monkeypatch, owner, writer(work) if step == "writer" else step, when)

    return of


@pytest.mark.slow
@every_work
@every_step
def test_whoever_leaves_at_any_step_leaves_nothing(
    store: VoiceStore,
    enroller: QuickEnroller,
    hook: Callable[[str, str, str], Hooked],
    work: str,
    step: str,
    when: str,
) -> None:
    """Unless the row is being written: no thread is stopped, and what it has written is whole."""
    before, left = state(store), list[bool]()

    async def leave() -> None:
        task = asyncio.ensure_future(WORK[work](enroller))
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:  # on a thread, which goes on when the task has heard of it
                asyncio.run_coroutine_threadsafe(cancelled(), loop).result()
            else:
                task.cancel()

        async def cancelled() -> None:
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
            left.append(task.done())

        hook(work, step, when).run(cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert not any(left), "a thread still writes"
    if step == "writer":
        name = "bob" if work.startswith("enrolment") else "alice"
        assert store.prompt_content(store.get(name)).size and clip_of(store, store.get(name))
    else:
        assert state(store) == before


FAILING = [
    (step, when, error)
    for step, when in STEPS[:-1]  # after the last, the row is written
    for error in (StorageUnavailable, OSError)
    if (step, error) != ("speak", StorageUnavailable)  # a trial that is refused tells nothing
]


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["server"])
def test_a_client_that_leaves_leaves_nothing(
    store: VoiceStore, fake: FakeInference, enroller: QuickEnroller, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, before = threading.Event(), state(store)

    async def never(source: PromptSource, deadline: Deadline | None) -> None:
        assert store.data.clip(source.clip_sha256).exists()
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(fake, "extract_prompt", never)
    with serving(quick_app(store, fake, Settings(home=store.data.root))) as client:
        form = {"name": "bob", "transcript": "hi"}
        with pytest.raises(httpx.ReadTimeout):
            client.post("/voices", data=form, files={"audio": BOB}, timeout=2)
        assert begun.wait(60)
        for _ in range(5000):
            if names(state(store)) - {"uploads"} == names(before) - {"uploads"}:
                break
            assert client.get("/healthz").status_code == 200
    assert names(state(store)) - {"uploads"} == names(before) - {"uploads"}


@pytest.mark.slow
@every_work
@pytest.mark.parametrize(("step", "when", "error"), FAILING)
def test_what_fails_at_any_step_leaves_nothing(
    store: VoiceStore,
    enroller: QuickEnroller,
    hook: Callable[[str, str, str], Hooked],
    work: str,
    step: str,
    when: str,
    error: type[Exception],
) -> None:
    before = state(store)

    def fail() -> None:
        raise error("Not now.")

    hook(work, step, when).run(fail)
    with pytest.raises((error, ExceptionGroup)):
        asyncio.run(WORK[work](enroller))
    assert state(store) == before


@pytest.mark.parametrize("work", [work for work in WORK if work != "rebuild"])
def test_features_that_leave_no_room_are_not_kept(
    store: VoiceStore, fake: FakeInference, enroller: QuickEnroller, work: str
) -> None:
    before, fake.room = state(store), 1
    with pytest.raises(RegistryError):
        asyncio.run(WORK[work](enroller))
    assert state(store) == before


def meanwhile(fake: FakeInference, patch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Once, while features are made."""
    extract = fake.extract_prompt

    async def hooked(source: PromptSource, deadline: Deadline | None) -> object:
        patch.setattr(fake, "extract_prompt", extract)
        made = await extract(source)
        await asyncio.to_thread(then)
        return made

    patch.setattr(fake, "extract_prompt", hooked)


def test_a_name_that_was_taken_meanwhile_leaves_nothing(
    store: VoiceStore,
    fake: FakeInference,
    enroller: QuickEnroller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meanwhile(fake, monkeypatch, lambda: store.edit("alice", VoiceEdit("bob"), None))
    before = state(store)
    with pytest.raises(NameTaken):
        asyncio.run(WORK["enrolment"](enroller))
    assert names(before) == names(state(store))


def names(state: dict[str, bytes | int]) -> set[str]:
    return {name for name in state if name != "registry.db"}


@pytest.mark.parametrize("work", ["edit", "rebuild"])
@pytest.mark.parametrize("purged", [False, True])
def test_a_voice_that_was_deleted_meanwhile_keeps_nothing_new(
    store: VoiceStore,
    fake: FakeInference,
    enroller: QuickEnroller,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
    purged: bool,
) -> None:
    def delete() -> None:
        store.delete("alice", None)
        with store._db.write() as session:
            later = "UPDATE voice SET deleted_at = '9999-01-01T00:00:00.000Z'"
            session.connection().exec_driver_sql(later)  # than the touch of the work
        if purged:
            assert store.purge_surplus(0) == 1

    before = state(store)
    meanwhile(fake, monkeypatch, delete)
    with pytest.raises(VoiceNotFound):
        asyncio.run(WORK[work](enroller))
    left = names(state(store))
    assert {name for name in left if "/" in name} == set() if purged else left == names(before)


@pytest.mark.parametrize("deployment", ["server"])
def test_what_can_not_be_removed_at_once_is_removed_later(
    store: VoiceStore, fake: FakeInference, enroller: QuickEnroller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What refuses the row, that many wait to write, refuses the removal too."""
    before, drop, refusals = state(store), store.drop_unfinished, iter([True, True, False])

    def busy(source: PromptSource, *, clip: bool) -> None:
        if next(refusals):
            raise StorageUnavailable("16 changes wait to be stored. Try again later.")
        drop(source, clip=clip)

    monkeypatch.setattr(unfinished, "WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(store, "drop_unfinished", busy)
    fake.room = 1
    with pytest.raises(RegistryError):
        asyncio.run(WORK["enrolment"](enroller))
    assert state(store) == before


@pytest.mark.parametrize("deployment", ["server"])
@pytest.mark.parametrize("is_stuck", [False, True])
@pytest.mark.parametrize(("path", "form"), [("/voices", "name"), ("/clone", "text")])
def test_a_server_that_ends_leaves_nothing_of_what_it_cuts_off(
    store: VoiceStore,
    fake: FakeInference,
    enroller: QuickEnroller,
    monkeypatch: pytest.MonkeyPatch,
    is_stuck: bool,
    path: str,
    form: str,
) -> None:
    """Work that takes longer than an orderly end has; a thread that is stuck can't be stopped."""
    before, at_it, go_on = files(store), threading.Semaphore(0), threading.Event()

    async def extract_prompt(source: PromptSource, deadline: Deadline | None) -> None:
        at_it.release()
        if is_stuck:
            await to_its_end(go_on.wait, 60)
        await asyncio.Event().wait()

    monkeypatch.setattr(fake, "extract_prompt", extract_prompt)
    monkeypatch.setattr(services, "TIDY_S", 0.5)
    app = quick_app(store, fake, Settings(home=store.data.root))
    monkeypatch.setattr(store, "close", lambda: None)  # to look at it afterwards
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    server = BriefServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"

    def ask() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(url, data={form: "bob"}, files={"audio": ("ref", BOB)}, timeout=60)

    with ThreadPoolExecutor(2) as clients:
        for _ in range(2):
            clients.submit(ask)
        assert at_it.acquire(timeout=60)
        server.stop()
        if is_stuck:
            assert wait_for(lambda: files(store) == before)
            go_on.set()
        thread.join(60)
    assert not thread.is_alive() and files(store) == before


def files(store: VoiceStore) -> dict[str, bytes | int]:
    return {name: content for name, content in state(store).items() if content != 0}


def wait_for(true: Callable[[], bool]) -> bool:
    """Within a minute, which guards against what never is."""
    for _ in range(6000):
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("deployment", ["server"])
@pytest.mark.parametrize("kind", [DatabaseDamaged, StorageReadOnly])
def test_what_no_waiting_mends_is_tried_once(
    store: VoiceStore,
    fake: FakeInference,
    enroller: QuickEnroller,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[RegistryError],
) -> None:
    tries = 0

    def refused(source: PromptSource, *, clip: bool) -> None:
        nonlocal tries
        tries += 1
        raise kind("Nothing can be written here.")

    monkeypatch.setattr(unfinished, "WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(store, "drop_unfinished", refused)
    fake.room = 1
    with pytest.raises(RegistryError):
        asyncio.run(WORK["enrolment"](enroller))
    assert tries == 1


# Others who need the same


class Held(FakeInference):
    """Each enrolment waits before its features are made, and after."""

    def __init__(self, data: DataDir) -> None:
        super().__init__(data, encoders=2)
        self.came: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> object:
        await self._wait()
        made = await super().extract_prompt(source)
        await self._wait()
        return made

    async def _wait(self) -> None:
        go = asyncio.Event()
        self.came.put_nowait(go)
        await go.wait()


@pytest.mark.parametrize("leaves", [0, 1])
def test_a_clip_that_another_enrolment_needs_goes_with_the_last(data: DataDir, leaves: int) -> None:
    async def enrol_twice(store: VoiceStore, last_leaves: bool) -> None:
        held = Held(data)
        enroller = QuickEnroller(store, held)
        tasks, turns = list[asyncio.Task[StoredVoice]](), list[asyncio.Event]()
        for name in ("ann", "ben"):
            tasks.append(asyncio.create_task(enrol_bytes(enroller, name, BOB)))
            turns.append(await held.came.get())
        tasks[leaves].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[leaves]
        assert data.clip(sha256_of(BOB)).exists()
        assert [*(data.root / "conditioned").glob(f"{sha256_of(BOB)}-*.wav")]
        turns[1 - leaves].set()
        turn = await held.came.get()  # its features are made
        if last_leaves:
            tasks[1 - leaves].cancel()
        turn.set()
        await asyncio.gather(tasks[1 - leaves], return_exceptions=True)

    with closing(VoiceStore(data)) as store:
        before = asyncio.run(enrolled_once(store)) and state(store)
        asyncio.run(enrol_twice(store, last_leaves=True))
        assert state(store) == before
        asyncio.run(enrol_twice(store, last_leaves=False))
        assert clip_of(store, store.get(("ann", "ben")[1 - leaves])) == BOB


async def enrolled_once(store: VoiceStore) -> StoredVoice:
    return await enrol_bytes(QuickEnroller(store, FakeInference(store.data)), "alice", ALICE)


@pytest.mark.parametrize(("kind", "kept"), [(VoiceStore, True), (Trusting, False)])
def test_a_clip_that_another_server_gives_up_is_stored_again(
    data: DataDir, kind: type[VoiceStore], kept: bool
) -> None:
    """Of two that enrol the same bytes one is refused, and knows nothing of the other."""

    class Refused(FakeInference):
        async def extract_prompt(
            self, source: PromptSource, deadline: Deadline | None = None
        ) -> Any:
            raise Overloaded("Not now.", 1)

    class RefusedMeanwhile(FakeInference):
        async def extract_prompt(
            self, source: PromptSource, deadline: Deadline | None = None
        ) -> Any:
            made = await super().extract_prompt(source)
            with closing(VoiceStore(data)) as other, pytest.raises(Overloaded):
                await enrol_bytes(QuickEnroller(other, Refused(data)), "ben", BOB)
            assert not data.clip(source.clip_sha256).exists()
            return made

    with closing(kind(data)) as store:
        asyncio.run(enrol_bytes(QuickEnroller(store, RefusedMeanwhile(data)), "ann", BOB))
        assert (store.read_blob(clip_key(sha256_of(BOB))) == BOB) is kept


@pytest.mark.parametrize("deployment", ["server"])
def test_of_many_enrolments_that_are_left_at_random_each_voice_keeps_its_clip(
    store: VoiceStore, fake: FakeInference, enroller: QuickEnroller
) -> None:
    rng, live = Random(7), 0
    before = state(store)

    async def one(name: str, patience: int) -> StoredVoice:
        task = asyncio.ensure_future(enrol_bytes(enroller, name, BOB))
        for _ in range(patience):
            if task.done():
                break
            await asyncio.sleep(0.0005)
        task.cancel()
        return await task

    async def some(number: int) -> list[StoredVoice | BaseException]:
        work = (one(f"b{number} {n}", rng.randrange(120)) for n in range(3))
        return await asyncio.gather(*work, return_exceptions=True)

    for number in range(8):
        found = asyncio.run(some(number))
        assert {type(one) for one in found} <= {StoredVoice, asyncio.CancelledError}
        for voice in store.page(200, None, "b", ()).voices:
            assert clip_of(store, voice) == BOB and store.prompt_content(voice).size
            store.delete(voice.row.id, None)
            live += 1
        age(store.data)
        store.purge_surplus(0)
        assert names(state(store)) == names(before)
    assert 0 < live < 24, "all were left, or none: this proves little"


# On a Volume


@pytest.mark.parametrize("deployment", ["volume"])
def test_what_has_written_nothing_publishes_nothing(
    store: VoiceStore, fake: FakeInference, enroller: QuickEnroller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: PromptSource, deadline: Deadline | None) -> None:
        raise Overloaded("Not now.", 1)

    monkeypatch.setattr(fake, "extract_prompt", refuse)
    assert isinstance(store, VolumeStore)
    number = store._db.number
    for work in WORK:
        if work != "enrolment":
            with pytest.raises(Overloaded):
                asyncio.run(WORK[work](enroller))
    assert store._db.number == number


ENDS = {
    signal.SIGINT: KeyboardInterrupt(),
    signal.SIGTERM: SystemExit(143),
    signal.SIGHUP: SystemExit(129),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize(("path", "form"), [("/voices", "name"), ("/clone", "text")])
@pytest.mark.parametrize("step", ["decode", "extract_prompt"])
@pytest.mark.parametrize("again", [None, *ENDS])
def test_a_signal_to_a_command_without_a_server_leaves_nothing(
    path: str,
    form: str,
    step: str,
    number: signal.Signals,
    again: signal.Signals | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command does not wait for a model that loads, and its server dies with it.

    Nor does it leave what it has begun to remove when it is told so `again`.
    """
    data = DataDir(tmp_path / "data")
    store, begun, go_on = VoiceStore(data), threading.Event(), threading.Event()
    fake = FakeInference(data)

    async def loading(*_: object) -> None:
        begun.set()
        await to_its_end(go_on.wait, 60)
        raise RuntimeError("nobody waits for it")

    app = quick_app(store, fake, Settings(home=data.root), is_server=False)
    services = app.state.services
    owner = {"decode": services.enroller, "extract_prompt": fake}[step]
    monkeypatch.setattr(owner, step, loading)
    drop = services.drop_unfinished

    def dropping() -> None:
        if again:
            os.kill(os.getpid(), again)
            time.sleep(0.2)
        drop()

    app.state.services = SimpleNamespace(**vars(services) | {"drop_unfinished": dropping})

    def ask(http: httpx.Client) -> None:
        with suppress(httpx.HTTPError):
            http.post(path, data={form: "alice"}, files={"audio": BOB})

    handler = signal.getsignal(number)
    with pytest.raises(type(ENDS[number])) as raised, serving_privately(app) as http:
        asking = threading.Thread(target=ask, args=(http,))
        asking.start()
        assert begun.wait(60)
        assert files_in(data)
        signal.raise_signal(number)
    assert raised.value.args == ENDS[number].args
    assert signal.getsignal(number) is handler
    left = files_in(data)
    go_on.set()
    asking.join(60)
    assert left == []


def files_in(data: DataDir) -> list[Path]:
    transient = [path for folder in data.transients() for path in folder.iterdir()]
    return [*data.content_files(), *data.leftovers(), *transient]
