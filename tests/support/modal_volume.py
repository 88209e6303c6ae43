"""Modal's Volume (v1) and Dict as folders of one process, for tests of what kills and overlaps do.

It imports nothing of modal, sees open files through /proc and refuses to start where there is none.
Documented (guide, docstrings and client source of modal 1.6.4): a mount shows what was committed
when it was made, and others' commits after a reload; per file the last write wins; `commit`
publishes, then reloads unless the server answers `skip_reload`; a reload fails while a file is open
or the cwd is inside, in `commit` too, both by RuntimeError; the mount is empty while it runs;
background commits come at any time and do not reload; a failure of the last one is only logged;
Dict entries go after 7 days without a read or write, and keys are equal if their pickles are.

Assumed, the worst where the documents are silent: a reload "may implicitly" commit local changes,
so a coin decides, and if not they are lost. A publication is not atomic: files go one by one in any
order, whatever bytes are there, and a kill may come between. A removal is a change; the same bytes
again, or a newer mtime, are none. What is written to an empty mount is lost. A mapped file is open.
Listing a Dict or being refused a put is no use of an entry.
"""

import asyncio
import logging
import os
import pickle
import random
import re
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EROFS
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

PUBLICATIONS = ("commit", "background", "stop", "implicit")  # the last is a reload's
OPERATIONS = ("put", "get", "pop", "contains", "len", "keys", "items", "update", "clear")
BUSY = "there are open files preventing the operation"
EXPIRY_S = 7 * 24 * 3600.0
Hook = Callable[["Container"], object]
Entries = dict[bytes, tuple[bytes, float]]  # of a Dict: pickled key to pickled value, last use


class Killed(BaseException):
    """The container is gone. No Exception: code that goes on after any error must not go on."""


class Both(Generic[P, R]):
    """Decorates a method: `f(...)` blocks and `await f.aio(...)` does not, as with modal's."""

    def __init__(self, call: Callable[P, R]) -> None:
        self.call = call

    def __get__(self: "Both[Concatenate[S, Q], R]", owner: S, kind: type[S]) -> "Both[Q, R]":
        return Both(partial(self.call, owner))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.call(*args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(self.call, *args, **kwargs)


class Listing(Generic[R]):
    """The same for what lists: iterate over `f()`, or `async for` over `f.aio()`."""

    def __init__(self, call: Callable[[], list[R]]) -> None:
        self.call = call

    def __call__(self) -> Iterator[R]:
        return iter(self.call())

    async def aio(self) -> AsyncIterator[R]:
        for each in await asyncio.to_thread(self.call):
            yield each


@dataclass(frozen=True)
class Entry:
    """A file, or a folder if it has no content."""

    content: bytes | None = None
    mtime_ns: int = field(default=0, compare=False)
    mode: int | None = field(default=None, compare=False)  # None: as the umask has it


class Cloud:
    """What outlives containers, and a test's hooks.

    `at(point, container)` is called at each of `points` with no lock held but the mount's own: to
    raise Killed, or the server's RuntimeError or ConnectionError, or to let others work meanwhile.
    At each point outside of a publication a background commit comes by `background_chance`.
    """

    points = (
        *(f"{kind}.{at}" for kind in PUBLICATIONS for at in ("before", "file", "after")),
        *(f"reload.{at}" for at in ("before", "empty", "after")),
        *(f"dict.{operation}.{at}" for operation in OPERATIONS for at in ("before", "after")),
    )

    def __init__(self, folder: Path, seed: int = 0, *, background_chance: float = 0.0) -> None:
        if not Path("/proc/self/fd").is_dir():
            raise NotImplementedError("open files can be seen only where /proc is (Linux)")
        self.folder, self.seed, self.background_chance = folder.resolve(), seed, background_chance
        self.volumes: dict[str, dict[str, Entry]] = defaultdict(dict)
        self.dicts: dict[str, Entries] = defaultdict(dict)
        self.containers: list[Container] = []
        self.lock = threading.Lock()
        self.at: Callable[[str, Container], None] = lambda point, container: None
        self.during_reload: Hook = lambda container: time.sleep(container.chance.random() / 1000)
        self.reload_commits: Hook = lambda container: container.chance.random() < 0.5
        self.skip_reload = False  # what the server answers to a commit
        self.clock: Callable[[], float] = time.time

    def container(self, name: str) -> "Container":
        with self.lock:
            self.containers.append(Container(self, name, len(self.containers)))
            return self.containers[-1]

    def committed(self, volume: str) -> dict[str, Entry]:
        with self.lock:
            return dict(self.volumes[volume])


class Container:
    """One simulated container. `disk` is its local disk, which goes with it as its mounts do."""

    def __init__(self, cloud: Cloud, name: str, number: int) -> None:
        self.cloud, self.name = cloud, name
        self.chance = random.Random(f"{cloud.seed} {name} {number}")
        self.home = cloud.folder / f"{number}-{name}"
        self.disk = self.home / "disk"
        self.disk.mkdir(parents=True)
        self.mounts: dict[str, Mount] = {}
        self.alive = True

    def mount(self, volume: str, read_only: bool = False) -> "Mount":
        """Belongs to the container's start, before its code runs; asked again, it is the same."""
        self.check()
        self.mounts[volume] = self.mounts.get(volume) or Mount(self, volume, read_only)
        return self.mounts[volume]

    def check(self) -> None:
        if not self.alive:
            raise Killed(self.name)

    def point(self, name: str) -> None:
        self.check()
        quiet = name.startswith(("background", "stop", "implicit")) or name == "commit.file"
        if not quiet and self.chance.random() < self.cloud.background_chance:
            self.background_commit()
        try:
            self.cloud.at(name, self)
        except Killed:
            self.kill()
            raise
        self.check()

    def background_commit(self, kind: str = "background") -> None:
        """The platform's own: what the mounts hold at this moment, whole or not; no reload."""
        for mount in list(self.mounts.values()):
            try:
                mount.publish(kind)
            except (RuntimeError, ConnectionError) as error:
                logging.getLogger(__name__).error("the %s commit failed: %s", kind, error)

    def stop(self) -> None:
        """A clean shutdown with its last commit."""
        self.background_commit("stop")
        self.kill()

    def kill(self) -> None:
        """Another thread's call under way ends at its next point; this waits for it."""
        self.alive = False
        for mount in self.mounts.values():
            with mount.lock:
                shutil.rmtree(self.home, ignore_errors=True)


class Mount:
    """A Volume as one container has it. `path` is for ordinary file calls."""

    def __init__(self, container: Container, volume: str, read_only: bool) -> None:
        self.container, self.cloud, self.volume = container, container.cloud, volume
        self.read_only, self.lock = read_only, threading.RLock()
        self.path = container.home / "mounts" / volume
        self.path.mkdir(parents=True)
        self._show(self.cloud.committed(volume))

    @Both
    def commit(self) -> None:
        """Publish what changed, then reload. If the reload fails, all is published all the same."""
        with self.lock:
            self.publish("commit")
            if self.read_only:
                raise RuntimeError(f"the Volume {self.volume} is mounted read-only")
            if not self.cloud.skip_reload:
                self._reload(BUSY)

    @Both
    def reload(self) -> None:
        """Show what is committed now. While a file is open it fails and nothing changes."""
        with self.lock:
            self._reload(f"{BUSY}: {{}}")

    def publish(self, kind: str) -> None:
        """Everybody's next reload shows what this container changed since it last published."""
        with self.lock:
            self.container.point(f"{kind}.before")
            for path, entry in self._changes():
                with self.cloud.lock:
                    for state in (self.cloud.volumes[self.volume], self._base):
                        state.pop(path, None)
                        state |= {path: entry} if entry else {}
                self.container.point(f"{kind}.file")
            self.container.point(f"{kind}.after")

    def _changes(self) -> list[tuple[str, Entry | None]]:
        found, base = dict(self._scan()), self._base
        changes = [(n, found.get(n)) for n in sorted(base | found) if found.get(n) != base.get(n)]
        if changes and self.read_only:
            raise OSError(EROFS, os.strerror(EROFS), changes[0][0])
        return self.container.chance.sample(changes, len(changes))

    def _scan(self) -> Iterator[tuple[str, Entry]]:
        """What is there, read file by file in any order while others may go on writing."""
        paths = sorted(Path(at, name) for at, a, b in os.walk(self.path) for name in a + b)
        for path in self.container.chance.sample(paths, len(paths)):
            name = path.relative_to(self.path).as_posix()
            with suppress(FileNotFoundError):
                content = None if path.is_dir() else path.read_bytes()
                status = path.stat()
                yield name, Entry(content, status.st_mtime_ns, status.st_mode & 0o777)

    def _reload(self, complaint: str) -> None:
        self.container.point("reload.before")
        if busy := in_use(self.path):
            raise RuntimeError(complaint.format(busy))
        if self.read_only or self.cloud.reload_commits(self.container):
            self.publish("implicit")
        self._show({})
        self.cloud.during_reload(self.container)
        self.container.point("reload.empty")
        self._show(self.cloud.committed(self.volume))
        self.container.point("reload.after")

    def _show(self, state: dict[str, Entry]) -> None:
        """Replace what the mount holds; the new is built beside it and moved in by its tops."""
        self._base = state  # as published or loaded last
        old, new = (Path(tempfile.mkdtemp(dir=self.container.home)) for _ in ("old", "new"))
        for name, entry in state.items():
            path = new / name
            (path if entry.content is None else path.parent).mkdir(parents=True, exist_ok=True)
            if entry.content is not None:
                path.write_bytes(entry.content)
                os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
            if entry.mode is not None:
                path.chmod(entry.mode)
        for source, target in ((self.path, old), (new, self.path)):
            for top in list(source.iterdir()):
                top.rename(target / top.name)
        shutil.rmtree(old, ignore_errors=True)  # others may still write where they should not
        new.rmdir()


class Dict:
    """One shared dictionary as a container has it: linearizable, and it hands out copies."""

    def __init__(self, container: Container, name: str) -> None:
        self.container, self.cloud, self.name = container, container.cloud, name
        self.len = Both(lambda: len(self._listed("len")))
        self.keys = Listing(lambda: [key for key, _ in self._listed("keys")])
        self.items = Listing(lambda: self._listed("items"))

    @Both
    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """False only if `skip_if_exists` found the key taken."""
        with self._during("put") as entries:
            if added := not (skip_if_exists and pickle.dumps(key) in entries):
                entries |= self._packed({key: value})
            return added

    @Both
    def get(self, key: Any, default: Any | None = None) -> Any:
        with self._during("get") as entries:
            return self._use(entries, key, default)

    @Both
    def pop(self, key: Any, default: Any = ...) -> Any:
        with self._during("pop") as entries:
            value = self._use(entries, key, default)
            entries.pop(pickle.dumps(key), None)
        if value is ...:
            raise KeyError(f"{key} not in dict {self.name}")
        return value

    @Both
    def contains(self, key: Any) -> bool:
        with self._during("contains") as entries:
            return self._use(entries, key, ...) is not ...

    @Both
    def update(self, other: Mapping[Any, Any] | None = None, /, **kwargs: Any) -> None:
        with self._during("update") as entries:
            entries |= self._packed(dict(other or {}) | kwargs)

    @Both
    def clear(self) -> None:
        with self._during("clear") as entries:
            entries.clear()

    @contextmanager
    def _during(self, operation: str) -> Iterator[Entries]:
        """The entries that still live. An error raised at `.after` is an answer that got lost."""
        self.container.point(f"dict.{operation}.before")
        with self.cloud.lock:
            entries, now = self.cloud.dicts[self.name], self.cloud.clock()
            for key in [key for key, (_, used) in entries.items() if now - used > EXPIRY_S]:
                del entries[key]
            yield entries
        self.container.point(f"dict.{operation}.after")

    def _packed(self, items: Mapping[Any, Any]) -> Entries:
        now = self.cloud.clock()
        return {pickle.dumps(key): (pickle.dumps(value), now) for key, value in items.items()}

    def _use(self, entries: Entries, key: Any, default: Any) -> Any:
        if (name := pickle.dumps(key)) not in entries:
            return default
        entries[name] = entries[name][0], self.cloud.clock()
        return pickle.loads(entries[name][0])

    def _listed(self, operation: str) -> list[tuple[Any, Any]]:
        with self._during(operation) as entries:
            listed = [(pickle.loads(key), pickle.loads(v)) for key, (v, _) in entries.items()]
        return self.container.chance.sample(listed, len(listed))


def in_use(root: Path) -> str | None:
    """The first thing of this process that keeps `root` busy, in the client's own words."""
    if Path(os.readlink("/proc/self/cwd")).is_relative_to(root):
        return "cwd is inside volume"
    opened = re.findall(r" (/.*)", Path("/proc/self/maps").read_text())
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed since, or the listing's own
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    inside = [Path(path) for path in opened if f"{path}/".startswith(f"{root}/")]
    return f"path {inside[0].relative_to(root)} is open" if inside else None
