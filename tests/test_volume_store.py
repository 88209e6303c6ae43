"""Voices on a shared Volume: restarts, containers that overlap, storage that fails, backups."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from faults import noise
from modal_volume import Cloud, Container, Dict, Killed
from uploading import clip_of
from volume_faults import FAILURES, Site

from registry.errors import DatabaseLost, StorageUnavailable, VoiceNotFound
from registry.storage import data_dir
from registry.storage.data_dir import DataDir
from registry.storage.rows.edits import VoiceEdit
from registry.storage.volume import database
from registry.storage.volume.snapshots import ABANDONED, KEPT, NAME
from registry.storage.volume.store import SharedDict, VolumeStore
from registry.upkeep.backup import write_backup
from registry.upkeep.restore import unpack_backup

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the stand-in sees open files through /proc"
)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloud")


def add(site: Site, name: str) -> str:
    return site.enrol(name, noise(Random(name)), "mark")


def names(store: VolumeStore) -> list[str]:
    return [voice.row.name for voice in store.page(200, None, "", ()).voices]


def fresh(cloud: Cloud) -> VolumeStore:
    store = Site.start(cloud).store
    assert isinstance(store, VolumeStore)
    return store


def snapshots(cloud: Cloud) -> list[str]:
    found = (path.rpartition("/")[2] for path in cloud.committed("state"))
    return sorted(name for name in found if NAME.fullmatch(name))


def claims_of(container: Container) -> SharedDict:
    return SharedDict(Dict(container, "claims"), "vo-1", FAILURES)


def test_a_new_container_has_what_was_acknowledged(cloud: Cloud) -> None:
    site = Site.start(cloud)
    add(site, "alice")
    site.store.edit("alice", VoiceEdit(description="calm"), None)
    site.container.kill()
    store = fresh(cloud)
    assert names(store) == ["alice"] and store.get("alice").row.description == "calm"
    assert clip_of(store, store.get("alice")) and store.prompt_content(store.get("alice"))


def test_a_container_that_was_there_sees_what_another_wrote(cloud: Cloud) -> None:
    one, other = Site.start(cloud), Site.start(cloud)
    add(one, "alice")
    assert other.store.get("alice").row.name == "alice"
    other.store.delete("alice", None)
    with pytest.raises(VoiceNotFound):
        one.store.edit("alice", VoiceEdit(description="gone"), None)
    assert names(fresh(cloud)) == []


def test_reads_look_around_after_a_while(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Site.start(cloud), Site.start(cloud)
    add(one, "alice")
    assert names(other.store) == []  # type: ignore[arg-type]
    monkeypatch.setattr(database, "FRESH_S", 0.0)
    assert names(other.store) == ["alice"]  # type: ignore[arg-type]


def test_only_a_few_snapshots_are_kept(cloud: Cloud) -> None:
    site = Site.start(cloud)
    add(site, "alice")
    for number in range(2 * KEPT):
        site.store.edit("alice", VoiceEdit(description=str(number)), None)
    assert len(snapshots(cloud)) == KEPT
    assert fresh(cloud).get("alice").row.description == str(2 * KEPT - 1)


def fails_at(cloud: Cloud, point: str, error: Exception) -> Callable[[], None]:
    """The next time; the returned function ends it."""

    def at(found: str, container: Container) -> None:
        if found == point and container.name == "registry":
            raise error

    cloud.at = at
    return lambda: setattr(cloud, "at", lambda point, container: None)


@pytest.mark.parametrize("point", ["commit.before", "dict.put.before", "reload.before"])
def test_a_storage_that_fails_stores_nothing_and_says_so(cloud: Cloud, point: str) -> None:
    site = Site.start(cloud)
    add(site, "alice")
    mend = fails_at(cloud, point, ConnectionError("gone"))
    with pytest.raises(StorageUnavailable):
        site.store.edit("alice", VoiceEdit(description="lost"), None)
    mend()
    assert site.store.get("alice").row.description != "lost"
    assert fresh(cloud).get("alice").row.description != "lost"
    site.store.edit("alice", VoiceEdit(description="kept"), None)
    assert fresh(cloud).get("alice").row.description == "kept"


@pytest.mark.parametrize(("fails_again", "told"), [(False, "Nothing was"), (True, "not known")])
def test_what_can_not_be_taken_back_is_not_said_to_be_nothing(
    cloud: Cloud, fails_again: bool, told: str
) -> None:
    """It counts if nobody asks before the ledger is forgotten, a week later."""
    site = Site.start(cloud)
    add(site, "alice")
    failed = list[str]()

    def at(point: str, container: Container) -> None:
        lost = point == "commit.after" and not failed
        gone = point == "commit.before" and len(failed) == 1 and fails_again
        if container is site.container and (lost or gone):
            failed.append(point)
            raise ConnectionError("gone")

    cloud.at = at
    with pytest.raises(StorageUnavailable, match=told):
        site.store.delete("alice", None)
    cloud.at = lambda point, container: None
    assert len(failed) == 1 + fails_again
    assert names(fresh(cloud)) == ["alice"]


def test_an_error_that_came_too_late_to_matter_is_none(cloud: Cloud) -> None:
    """The commit publishes, its answer gets lost, and another container counts the snapshot."""
    site = Site.start(cloud)
    add(site, "alice")

    def at(point: str, container: Container) -> None:
        if point == "commit.after" and container is site.container:
            cloud.at = lambda point, container: None
            Site.start(cloud)
            raise ConnectionError("the answer got lost")

    cloud.at = at
    site.store.edit("alice", VoiceEdit(description="kept"), None)
    assert fresh(cloud).get("alice").row.description == "kept"


def test_a_claim_that_nothing_comes_of_is_abandoned(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "EXPIRY_S", 0.05)
    site = Site.start(cloud)
    number = site.store._db.number + 1  # type: ignore[attr-defined]
    claims = claims_of(cloud.container("dead"))
    claims.put(f"claim {number}", "someone", skip_if_exists=True)
    add(site, "alice")
    assert claims.get(f"outcome {number}") == ABANDONED
    assert names(fresh(cloud)) == ["alice"]


def test_an_abandoned_write_has_not_happened_a_week_later_either(cloud: Cloud) -> None:
    """Its snapshot is committed late, by a writer that dies before it takes it back."""
    site = Site.start(cloud)
    alice = add(site, "alice")
    number = site.store._db.number + 1  # type: ignore[attr-defined]
    claims = claims_of(cloud.container("another writer"))

    def at(point: str, container: Container) -> None:
        if container is site.container and point == "commit.before":
            claims.put(f"outcome {number}", ABANDONED, skip_if_exists=True)
        if container is site.container and point == "commit.after":
            raise Killed(point)

    cloud.at = at
    with pytest.raises(Killed):
        site.store.delete(alice, None)
    cloud.at = lambda point, container: None
    assert any(name.startswith(f"{number:012d}-") for name in snapshots(cloud))
    assert names(fresh(cloud)) == ["alice"]
    cloud.clock = lambda: time.time() + 8 * 86400  # the Dict has forgotten every outcome
    assert names(fresh(cloud)) == ["alice"]
    assert names(fresh(cloud)) == ["alice"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"EXPIRY_S": 0.05, "LOOK_S": 0.005, "FRESH_S": 0.0}.items():
        monkeypatch.setattr(database, name, seconds)


def late_delete(cloud: Cloud, site: Site, voice: str, meanwhile: Callable[[], object]) -> None:
    """Dies once its snapshot is committed; before that it stalls, and `meanwhile` happens."""

    def at(point: str, container: Container) -> None:
        if container is site.container and point == "commit.before":
            cloud.at = lambda point, container: None
            meanwhile()
            cloud.at = die
        elif container is site.container:
            assert not point.startswith("commit"), "it did not stall"

    def die(point: str, container: Container) -> None:
        if container is site.container and point == "commit.after":
            raise Killed(point)

    cloud.at, cloud.reload_commits = at, lambda container: False
    with pytest.raises(Killed):
        site.store.delete(voice, None)
    cloud.at = lambda point, container: None


def refused(other: Site) -> None:
    with pytest.raises(VoiceNotFound):
        other.store.delete("bob", None)
    assert names(other.store) == ["alice"]


def looks(other: Site) -> None:
    for _ in range(20):
        assert names(other.store) == ["alice"]
        time.sleep(0.01)


@pytest.mark.parametrize("other_does", [refused, looks])
@pytest.mark.parametrize("looked_again", [True, False])
def test_what_clients_were_told_is_so_a_week_later(
    cloud: Cloud, hasty: None, other_does: Callable[[Site], None], looked_again: bool
) -> None:
    """Another container has answered from the older state, and no write of its own came after."""
    site, other = Site.start(cloud), Site.start(cloud)
    alice = add(site, "alice")
    late_delete(cloud, site, alice, lambda: other_does(other))
    if looked_again:
        assert names(other.store) == ["alice"]
    cloud.clock = lambda: time.time() + 8 * 86400  # the Dict has forgotten every outcome
    assert names(fresh(cloud)) == ["alice"]


@pytest.mark.slow
def test_writes_that_are_refused_leave_few_numbers_to_ask_about(cloud: Cloud) -> None:
    site = Site.start(cloud)
    add(site, "alice")
    before = site.store._db.number  # type: ignore[attr-defined]
    for _ in range(40):
        with pytest.raises(VoiceNotFound):
            site.store.delete("bob", None)
    assert site.store._db.number > before  # type: ignore[attr-defined]


def test_a_snapshot_that_counts_and_is_damaged_stops_the_service(cloud: Cloud) -> None:
    add(Site.start(cloud), "alice")
    vandal = cloud.container("vandal").mount("state")
    newest = vandal.path / "snapshots" / snapshots(cloud)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    vandal.commit()
    with pytest.raises(DatabaseLost, match="damaged"):
        Site.start(cloud)


def test_a_snapshot_that_counts_and_is_gone_stops_the_service(cloud: Cloud) -> None:
    add(Site.start(cloud), "alice")
    vandal = cloud.container("vandal").mount("state")
    (vandal.path / "snapshots" / snapshots(cloud)[-1]).unlink()
    vandal.commit()
    with pytest.raises(DatabaseLost, match="gone"):
        Site.start(cloud)


def test_claims_on_another_volume_are_not_claims_on_this_one(tmp_path: Path) -> None:
    before, after = Cloud(tmp_path / "before"), Cloud(tmp_path / "after")
    add(Site.start(before), "alice")
    after.dicts = before.dicts  # the Dict outlived its Volume
    add(Site.start(after, lineage="vo-2"), "bob")
    assert names(Site.start(after, lineage="vo-2").store) == ["bob"]  # type: ignore[arg-type]


def test_a_backup_of_one_volume_is_restored_to_another(tmp_path: Path) -> None:
    one, other = Cloud(tmp_path / "one"), Cloud(tmp_path / "other")
    site = Site.start(one)
    add(site, "alice")
    tar = io.BytesIO()
    write_backup(site.store, tar)
    tar.seek(0)
    unpacked = DataDir(tmp_path / "unpacked")
    unpack_backup(tar, unpacked.root)
    elsewhere = Site.start(other)
    add(elsewhere, "bob")
    assert isinstance(elsewhere.store, VolumeStore)
    elsewhere.store.restore(unpacked)
    store = fresh(other)
    assert names(store) == ["alice"] and clip_of(store, store.get("alice"))


def test_the_doctor_removes_what_belongs_to_no_voice(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site.start(cloud)
    add(site, "alice")
    stray = cloud.container("stray").mount("state")
    (stray.path / "clips" / ("0" * 64)).write_bytes(b"nobody's")
    stray.commit()
    monkeypatch.setattr(data_dir, "GRACE_S", -1.0)
    store = fresh(cloud)
    assert [f.severity for f in store.examine(read_data=True, repair=True)] == ["repaired"]
    assert f"clips/{'0' * 64}" not in cloud.committed("state")
    assert fresh(cloud).examine(read_data=True, repair=False) == []
