"""Containers that share a Volume, die at any moment and overlap; and stores that are wrong.

The world is modal_volume.Cloud. The registry's container runs the real store and enroller; a second
one, with a mount of its own, writes prompt files as the GPU's would.
"""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from fakes import FakeInference
from faults import QuickEnroller, noise
from modal_volume import Cloud, Container, Dict, Killed
from uploading import clip_of, enrol_bytes

from registry.contract import Deadline, PromptSource
from registry.errors import NameTaken, StorageUnavailable, VoiceNotFound
from registry.storage.data_dir import DataDir
from registry.storage.rows.edits import VoiceEdit
from registry.storage.store import VoiceStore
from registry.storage.volume.snapshots import Mount
from registry.storage.volume.store import SharedDict, SharedVolume, VolumeStore

FAILURES = (RuntimeError, OSError)
LOST_ANSWERS = 0.01
STALL_S = 0.15  # longer than a claim lives, in these tests
DAY_S = 86_400
BACKGROUND_S = 0.02  # between two commits of the platform's, on average
SHARED = tuple(noise(random.Random(f"shared {n}")) for n in range(3))  # by several voices
NAMES = [f"voice {letter}" for letter in "abcdefghijklmnopqrst"]


class Gpu(FakeInference):
    """Reads and writes through its own mount."""

    def __init__(self, container: Container) -> None:
        self.mount, self.gate = container.mount("state"), threading.Lock()
        super().__init__(DataDir(self.mount.path), encoders=99)  # owners have loops of their own

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        with self.gate:
            self.mount.reload()
            try:
                extracted = await super().extract_prompt(source)
            except FileNotFoundError as error:  # another's enrolment of this clip failed meanwhile
                raise StorageUnavailable("The clip went. Try again.") from error
            self.mount.commit()
            return extracted


@dataclass
class Site:
    """One registry container at work."""

    container: Container
    store: VoiceStore
    enroller: QuickEnroller
    turn: threading.Lock = field(default_factory=threading.Lock)  # with a clip of several voices

    @classmethod
    def start(
        cls, cloud: Cloud, store: type[VolumeStore] = VolumeStore, lineage: str = "vo-1"
    ) -> "Site":
        container = cloud.container("registry")
        mount = container.mount("state")
        shared = Mount(mount.path, SharedVolume(mount, FAILURES))
        claims = SharedDict(Dict(container, "claims"), lineage, FAILURES)
        opened = store(shared, claims, container.disk)
        return cls(container, opened, QuickEnroller(opened, Gpu(cloud.container("gpu"))))

    def enrol(self, name: str, upload: bytes, mark: str) -> str:
        """The id of a new voice that has the mark in two places."""
        made = enrol_bytes(self.enroller, name, upload, description=mark, labels={"mark": mark})
        with self.turn if upload in SHARED else nullcontext():  # each has an event loop of its own
            return asyncio.run(made).row.id


@dataclass(frozen=True)
class Known:
    """A voice as its owner last saw it."""

    id: str
    name: str
    mark: str
    row_version: int
    clip: bytes = field(repr=False)


@dataclass
class Owner:
    """Writes its own voices through any site, and remembers what was acknowledged."""

    rng: random.Random
    voices: dict[str, Known] = field(default_factory=dict)
    doubts: list[tuple[Known | None, Known | None]] = field(default_factory=list)
    acknowledged: int = 0
    refused: int = 0

    def work(self, site: Site, turns: int) -> None:
        """So many operations, or until the container is gone."""
        for _ in range(turns):
            try:
                self._operate(site)
            except NameTaken:
                self.doubts.pop()
            except StorageUnavailable:
                self.refused += 1  # it may be stored: an answer can get lost
                return
            except BaseException:
                if site.container.alive:
                    raise
                return
            else:
                self._settle()

    def _operate(self, site: Site) -> None:
        mine = list(self.voices.values())
        if len(mine) < 2 or (len(mine) < 4 and self.rng.random() < 0.4):
            self._add(site)
        else:
            verb = self.rng.choice([self._edit, self._rename, self._remove])
            verb(site.store, self.rng.choice(mine))

    def _settle(self) -> None:
        before, after = self.doubts.pop()
        if before is not None:
            del self.voices[before.id]
        if after is not None:
            self.voices[after.id] = after
        self.acknowledged += 1

    def _add(self, site: Site) -> None:
        upload, mark = self.rng.choice((noise(self.rng), *SHARED)), self._mark()
        wanted = Known("", self.rng.choice(NAMES), mark, 1, upload)
        self.doubts.append((None, wanted))
        voice_id = site.enrol(wanted.name, upload, mark)
        self.doubts[-1] = (None, replace(wanted, id=voice_id))

    def _edit(self, store: VoiceStore, voice: Known) -> None:
        after = replace(voice, mark=self._mark(), row_version=voice.row_version + 1)
        self.doubts.append((voice, after))
        change = VoiceEdit(None, after.mark, {"mark": after.mark}, None)
        store.edit(voice.id, change, None)

    def _rename(self, store: VoiceStore, voice: Known) -> None:
        others = [name for name in NAMES if name != voice.name]
        after = replace(voice, name=self.rng.choice(others), row_version=voice.row_version + 1)
        self.doubts.append((voice, after))
        store.edit(voice.id, VoiceEdit(after.name), None)

    def _remove(self, store: VoiceStore, voice: Known) -> None:
        self.doubts.append((voice, None))
        store.delete(voice.id, None)

    def _mark(self) -> str:
        return f"{self.rng.getrandbits(64):x}"

    # What a fresh container must show

    def check(self, store: VoiceStore) -> None:
        """Every acknowledged voice is there and whole; of what is in doubt, either outcome."""
        for before, after in self.doubts:
            self._resolve(store, before, after)
        self.doubts.clear()
        for voice in self.voices.values():
            assert seen(store, voice.id, voice.clip) == voice

    def _resolve(self, store: VoiceStore, before: Known | None, after: Known | None) -> None:
        if before is None and after is not None:
            with suppress(VoiceNotFound):
                found = store.get(after.name)
                if found.row.description == after.mark:
                    self.voices[found.row.id] = seen(store, found.row.id, after.clip)
                    assert self.voices[found.row.id] == replace(after, id=found.row.id)
        elif before is not None:
            self._resolve_change(store, before, after)

    def _resolve_change(self, store: VoiceStore, before: Known, after: Known | None) -> None:
        try:
            now = seen(store, before.id, before.clip)
        except VoiceNotFound:
            assert after is None, f"{before} is gone, and was not to be removed"
            del self.voices[before.id]
        else:
            assert now in (before, after), f"{now} is neither {before} nor {after}"
            self.voices[before.id] = now


def seen(store: VoiceStore, voice_id: str, clip: bytes) -> Known:
    """What the store serves, all its parts held against each other."""
    voice = store.get(voice_id)
    assert voice.labels == {"mark": voice.row.description}, "half an edit"
    assert clip_of(store, voice) == clip, "another clip"
    assert store.prompt_content(voice).size, "no prompt"  # its hash is looked at
    return Known(voice_id, voice.row.name, voice.row.description, voice.row.row_version, clip)


class World:
    """Kills, overlaps, background commits, lost answers and quiet weeks, all from one seed."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        store: type[VolumeStore] = VolumeStore,
        overlap: float = 0.4,
        stalls: float = 0.01,
        life: tuple[int, int] = (10, 250),
    ) -> None:
        """How often two overlap, and a step is slow; after how many steps one dies."""
        self.rng, self.kind = random.Random(seed), store
        self.overlap, self.stalls, self.life = overlap, stalls, life
        self.cloud = Cloud(folder, seed)
        self.cloud.at = self._at
        self.cloud.clock = lambda: time.time() + self.days * DAY_S
        self.days = 0
        self.left: dict[Container, int] = {}  # points until it dies
        self.owners = [Owner(random.Random(f"{seed} {n}")) for n in range(4)]
        self.kills, self.quiet = 0, False
        self.failures: list[BaseException] = []

    def round(self) -> None:
        """One or two containers work until they die or are done; then a fresh one is asked."""
        sites = self._started(1 + (self.rng.random() < self.overlap))
        self._let_work(sites)
        with self.quietly():
            for site in sites:
                self._end(site)
            self.check().container.kill()
        self.days += self.rng.choice((0, 0, 1, 8))  # of quiet: after 8, the Dict is empty

    def _started(self, count: int) -> list[Site]:
        return [site for site in (self._site() for _ in range(count)) if site]

    def _let_work(self, sites: list[Site]) -> None:
        shares = [self.owners[n :: len(sites)] for n in range(len(sites))]
        threads = [
            threading.Thread(target=self._work, args=(site, owner))
            for site, owners in zip(sites, shares, strict=True)
            for owner in owners[:2]
        ]
        with self._platform([site.container for site in sites]):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]

    def check(self) -> Site:
        """A fresh container in which everything is as it was acknowledged."""
        site = Site.start(self.cloud, self.kind)
        for owner in self.owners:
            owner.check(site.store)
        return site

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Nobody dies, and no answer gets lost."""
        self.quiet = True
        yield
        self.quiet = False

    @contextmanager
    def _platform(self, containers: list[Container]) -> Iterator[None]:
        """Commits in the background at any moment, as Modal's does every few seconds."""
        over = threading.Event()

        def commit() -> None:
            rng = random.Random(self.rng.random())
            while containers and not over.wait(rng.expovariate(1 / BACKGROUND_S)):
                with suppress(Killed):
                    rng.choice(containers).background_commit()

        thread = threading.Thread(target=commit)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _work(self, site: Site, owner: Owner) -> None:
        try:
            owner.work(site, turns=owner.rng.randrange(1, 6))
        except BaseException as error:
            self.failures.append(error)

    def _site(self) -> Site | None:
        """A container at work, or none if it died while it started."""
        before = len(self.cloud.containers)
        try:
            return Site.start(self.cloud, self.kind)
        except BaseException as error:
            died = not all(container.alive for container in self.cloud.containers[before:])
            if not (died or isinstance(error, StorageUnavailable)):
                raise
            self.kills += died
            return None

    def _end(self, site: Site) -> None:
        self.kills += not site.container.alive
        if site.container.alive and self.rng.random() < 0.5:
            site.container.stop()
        site.container.kill()

    def _at(self, point: str, container: Container) -> None:
        """Called at every step of every container."""
        if self.quiet or container.name != "registry":
            return
        left = self.left[container] = self.left.get(container, self.rng.randrange(*self.life)) - 1
        if left <= 0:
            raise Killed(point)
        if self.rng.random() < self.stalls:
            time.sleep(STALL_S)
        if point.endswith(".after") and self.rng.random() < LOST_ANSWERS:
            raise ConnectionError("the answer got lost")
