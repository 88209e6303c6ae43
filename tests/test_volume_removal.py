"""A removal on a Volume that does not count takes no clip from a voice that was enrolled meanwhile.

Two containers, A removes a clip and B enrols the same one again; whatever A's commits do.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

import pytest
from faults import noise
from modal_volume import Cloud, Container, Killed
from uploading import clip_of
from volume_faults import Site

from registry.contract import PromptSource
from registry.errors import ClipDamaged, StorageUnavailable, VoiceNotFound
from registry.storage import data_dir as files
from registry.storage.blobs import write_once
from registry.storage.data_dir import DataDir
from registry.storage.volume import database
from registry.storage.volume.store import VolumeStore
from registry.upkeep.backup import write_backup
from registry.upkeep.restore import unpack_backup

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the stand-in sees open files through /proc"
)
CLIP = noise(Random("a clip that is enrolled twice"))
SHA256 = hashlib.sha256(CLIP).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim dies at once."""
    for name, value in {"EXPIRY_S": 0.05, "LOOK_S": 0.005}.items():
        monkeypatch.setattr(database, name, value)


def world(folder: Path) -> tuple[Cloud, Site, Site]:
    """A and B; the clip is that of a deleted voice."""
    cloud = Cloud(folder)
    cloud.reload_commits = lambda container: False
    a, b = Site.start(cloud), Site.start(cloud)
    a.enrol("alice", CLIP, "m")
    a.store.delete("alice", None)
    return cloud, a, b


def purge(site: Site) -> None:
    """An hour after the deletion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        site.store.purge_surplus(0)


def drop(site: Site) -> None:
    """As an enrolment does that gets no row; the deleted voice is gone by then."""
    purge(site)
    write_once(site.store.data.clip(SHA256), CLIP)
    volume_store(site)._mount.commit()
    source = PromptSource("voice_" + "1" * 32, SHA256, None)
    site.store.drop_unfinished(source, clip=True)


def volume_store(site: Site) -> VolumeStore:
    assert isinstance(site.store, VolumeStore)
    return site.store


def at_commit(cloud: Cloud, site: Site, number: int, act: Callable[[], object]) -> None:
    """`act` before A's commit of this number, once."""
    commits = iter(range(1, 100))

    def at(point: str, container: Container) -> None:
        if container is site.container and point == "commit.before" and next(commits) == number:
            act()

    cloud.at = at


def failing_from(cloud: Cloud, site: Site, number: int) -> None:
    """None of A's commits from this number on comes to anything."""
    commits = iter(range(1, 100))

    def at(point: str, container: Container) -> None:
        if container is site.container and point == "commit.before" and next(commits) >= number:
            raise ConnectionError("the commit got lost")

    cloud.at = at


def dying_in(cloud: Cloud, a: Site, b: Site, commit: int, file: int) -> None:
    """B enrols the clip before A's commit of this number, and A dies after its file of this one."""
    commits, files = iter(range(1, 100)), iter(range(1, 100))

    def at(point: str, container: Container) -> None:
        if container is not a.container:
            return
        if point == "commit.before" and next(commits) == commit:
            b.enrol("bob", CLIP, "m")
        if point == "commit.file" and next(files) == file:
            raise Killed(point)

    cloud.at = at


def nothing(point: str, container: Container) -> None:
    """What happens at the points of a cloud in which all is well."""


def bobs_clip(cloud: Cloud) -> bytes:
    store = Site.start(cloud).store
    return clip_of(store, store.get("bob"))


def commits_and_files(folder: Path, work: Callable[[Site], None]) -> tuple[int, int]:
    """How many commits the removal makes, and how many files they publish."""
    cloud, a, _ = world(folder)
    points = Counter[str]()

    def count(point: str, container: Container) -> None:
        points[point] += container is a.container

    cloud.at = count
    work(a)
    return points["commit.before"], points["commit.file"]


@pytest.mark.slow
@pytest.mark.parametrize("work", [purge, drop])
@pytest.mark.parametrize("end", ["goes on", "is killed", "stops"])
def test_a_clip_that_is_enrolled_while_its_removal_stalls_is_kept(
    tmp_path: Path, work: Callable[[Site], None], end: str
) -> None:
    """At each of the removal's commits in turn."""
    commits, _ = commits_and_files(tmp_path / "counted", work)
    for number in range(1, commits + 1):
        cloud, a, b = world(tmp_path / f"{number}")
        at_commit(cloud, a, number, partial(b.enrol, "bob", CLIP, "m"))
        with suppress(StorageUnavailable):
            work(a)
        if end == "goes on":
            a.enrol("carol", noise(Random("another")), "m")
        if end != "is killed":
            a.container.stop()
        a.container.kill()
        assert bobs_clip(cloud) == CLIP, f"at commit {number}"


@pytest.mark.slow
@pytest.mark.parametrize("work", [purge, drop])
@pytest.mark.parametrize("end", ["goes on", "stops"])
def test_a_clip_that_is_enrolled_after_its_removal_failed_is_kept(
    tmp_path: Path, work: Callable[[Site], None], end: str
) -> None:
    """What A has removed on its mount is published later."""
    commits, _ = commits_and_files(tmp_path / "counted", work)
    for number in range(1, commits + 1):
        cloud, a, b = world(tmp_path / f"{number}")
        failing_from(cloud, a, number)
        with suppress(StorageUnavailable):
            work(a)
        b.enrol("bob", CLIP, "m")
        cloud.at = nothing
        if end == "goes on":
            a.enrol("carol", noise(Random("another")), "m")
        a.container.stop()
        assert bobs_clip(cloud) == CLIP, f"from commit {number} on"


@pytest.mark.slow
@pytest.mark.parametrize("work", [purge, drop])
def test_a_container_that_dies_in_a_late_commit_takes_no_clip(
    tmp_path: Path, work: Callable[[Site], None]
) -> None:
    """In the commit of the removal, after any of its files; the other has enrolled the clip."""
    commits, published = commits_and_files(tmp_path / "counted", work)
    for file in range(published - 3, published + 2):
        hold(tmp_path, work, commits - 1, file)


@pytest.mark.soak
@pytest.mark.parametrize("work", [purge, drop])
def test_whichever_commit_it_dies_in_a_container_takes_no_clip(
    tmp_path: Path, work: Callable[[Site], None]
) -> None:
    commits, published = commits_and_files(tmp_path / "counted", work)
    for commit, file in product(range(1, commits + 1), range(1, published + 1)):
        hold(tmp_path, work, commit, file)


def hold(folder: Path, work: Callable[[Site], None], commit: int, file: int) -> None:
    cloud, a, b = world(folder / f"{commit} {file}")
    dying_in(cloud, a, b, commit, file)
    with suppress(Killed, StorageUnavailable):
        work(a)
    cloud.at = nothing
    with suppress(VoiceNotFound):  # A died before B came
        assert bobs_clip(cloud) == CLIP, f"in commit {commit}, after file {file}"


def test_what_is_removed_is_gone_an_hour_later(tmp_path: Path) -> None:
    cloud, a, b = world(tmp_path)
    purge(a)
    assert holding(cloud) == {f"removed/{SHA256}"}
    b.store.tidy()
    assert holding(cloud) == {f"removed/{SHA256}"}  # an hour is not over
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        Site.start(cloud).store.tidy()
    assert holding(cloud) == set()


def test_what_a_voice_has_is_put_back_before_its_copy_goes(tmp_path: Path) -> None:
    cloud, a, b = world(tmp_path)
    purge(a)
    b.enrol("bob", CLIP, "m")
    b.store.data.clip(SHA256).unlink()
    volume_store(b)._mount.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        Site.start(cloud).store.tidy()
    assert f"clips/{SHA256}" in holding(cloud) and f"removed/{SHA256}" not in holding(cloud)
    assert bobs_clip(cloud) == CLIP


def test_the_doctor_puts_back_what_a_late_removal_took(tmp_path: Path) -> None:
    cloud, a, b = world(tmp_path)
    purge(a)
    b.enrol("bob", CLIP, "m")
    b.store.data.clip(SHA256).unlink()
    volume_store(b)._mount.commit()
    assert volume_store(Site.start(cloud)).examine(read_data=True, repair=False) == []
    assert bobs_clip(cloud) == CLIP


def test_a_copy_that_goes_while_it_is_looked_at_spoils_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hourly work puts the clip back, and removes the copy, beside one who reads the clip."""
    cloud, a, b = world(tmp_path)
    purge(a)
    b.enrol("bob", CLIP, "m")
    b.store.data.clip(SHA256).unlink()
    volume_store(b)._mount.commit()
    reader, other = volume_store(Site.start(cloud)), Site.start(cloud).store
    monkeypatch.setattr(files, "GRACE_S", -1.0)
    has = reader._removed.has

    def has_then_tidy(sha256: str) -> bool:
        found = has(sha256)
        other.tidy()
        return found

    monkeypatch.setattr(reader._removed, "has", has_then_tidy)
    assert clip_of(reader, reader.get("bob")) == CLIP
    assert bobs_clip(cloud) == CLIP


def test_a_copy_of_a_damaged_clip_is_not_put_over_a_sound_one(tmp_path: Path) -> None:
    """Its owner deletes the voice, and adds it again, as the refusal says."""
    cloud, a, b = world(tmp_path)
    a.store.data.clip(SHA256).write_bytes(CLIP[:-100] + bytes(100))
    volume_store(a)._mount.commit()
    purge(a)
    assert holding(cloud) == set()
    (a.store.data.root / "removed").mkdir(mode=0o700)
    (a.store.data.root / "removed" / SHA256).write_bytes(b"spoilt by a failing disk")
    volume_store(a)._mount.commit()
    b.enrol("bob", CLIP, "m")
    volume_store(Site.start(cloud)).examine(read_data=True, repair=True)
    assert bobs_clip(cloud) == CLIP


def test_what_is_left_of_a_copy_goes_too(tmp_path: Path) -> None:
    """A container died while it wrote, and the platform committed what was there."""
    cloud, a, _ = world(tmp_path)
    (a.store.data.root / "removed").mkdir(mode=0o700)
    (a.store.data.root / "removed" / ".tmp-0123456789abcdef").write_bytes(CLIP)
    volume_store(a)._mount.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        Site.start(cloud).store.tidy()
    assert not [name for name in cloud.committed("state") if ".tmp-" in name]


def test_a_clip_that_no_copy_is_left_of_is_damaged(tmp_path: Path) -> None:
    cloud, _, b = world(tmp_path)
    b.enrol("bob", CLIP, "m")
    b.store.data.clip(SHA256).unlink()
    volume_store(b)._mount.commit()
    with pytest.raises(ClipDamaged):
        bobs_clip(cloud)


def test_a_restore_keeps_what_is_purged_while_it_is_under_way(tmp_path: Path) -> None:
    """The clip was there when the restore looked first."""
    cloud, api, _ = world(tmp_path / "cloud")
    api.enrol("bob", CLIP, "m")
    tar = io.BytesIO()
    write_backup(api.store, tar)
    tar.seek(0)
    api.store.delete("bob", None)
    unpacked = DataDir(tmp_path / "unpacked")
    unpack_backup(tar, unpacked.root)
    restorer = Site.start(cloud)

    def at(point: str, container: Container) -> None:
        if container is restorer.container and point == "commit.after":
            cloud.at = nothing
            purge(api)

    cloud.at = at
    volume_store(restorer).restore(unpacked)
    assert cloud.at is nothing
    assert f"clips/{SHA256}" in holding(cloud)
    assert bobs_clip(cloud) == CLIP


def test_what_a_dead_container_left_of_a_clone_is_removed(tmp_path: Path) -> None:
    cloud, a, b = world(tmp_path)
    name = "transient/transient_" + "a" * 32
    for site, part in ((a, "conditioned-2.wav"), (b, "x.safetensors")):
        (site.store.data.root / name).mkdir(parents=True, exist_ok=True)
        (site.store.data.root / name / part).write_bytes(b"somebody's voice")
        volume_store(site)._mount.commit()
        site.container.kill()
    Site.start(cloud).store.tidy()
    assert name in cloud.committed("state")  # it may be of a speech that is being made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        Site.start(cloud).store.tidy()
    assert not [path for path in cloud.committed("state") if "transient_" in path]


def holding(cloud: Cloud) -> set[str]:
    """The files on the Volume that hold the clip, or what was made of it."""
    return {name for name in cloud.committed("state") if SHA256 in name}
