"""Kill containers that share a Volume at any of their steps: nothing acknowledged is lost or wrong.

Two may overlap, answers get lost, steps are slow, the platform commits at any moment. Stores that
are wrong show that the test would notice.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from faults import noise
from modal_volume import Cloud, Container
from volume_faults import Site, World
from volume_mutants import AT_RANDOM, OneName
from volume_weeks import RightForAWeek, Weeks

from registry.errors import RegistryError, StorageUnavailable
from registry.storage import data_dir
from registry.storage.rows.edits import VoiceEdit
from registry.storage.volume import database
from registry.storage.volume.store import VolumeStore

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the stand-in sees open files through /proc"
)
MEMORY = Path("/dev/shm")  # no disk: what is tested is who commits what, not fsync


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim dies sooner than a slow container is done with it."""
    for name, value in {"EXPIRY_S": 0.1, "PATIENCE_S": 0.6, "LOOK_S": 0.005}.items():
        monkeypatch.setattr(database, name, value)


def survive(world: World, kills: int) -> str:
    """Rounds until so many containers were killed; then the doctor finds nothing it can't mend."""
    while world.kills < kills:
        world.round()
    with world.quietly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_dir, "GRACE_S", -1.0)
        site = world.check()
        assert isinstance(site.store, VolumeStore)
        findings = site.store.examine(read_data=True, repair=True)
        assert {finding.severity for finding in findings} <= {"repaired"}, findings
        assert site.store.examine(read_data=True, repair=True) == []
        world.check()
    return f"{done_in([world])}, 0 lost"


def done_in(worlds: list[World]) -> str:
    owners = [owner for world in worlds for owner in world.owners]
    acknowledged = sum(owner.acknowledged for owner in owners)
    refused = sum(owner.refused for owner in owners)
    kills = sum(world.kills for world in worlds)
    return f"{kills} kills, {acknowledged} acknowledged, {refused} refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 12])
def test_fifty_kills_lose_nothing(folder: Path, seed: int) -> None:
    """In two worlds: a Volume that fills with what the killed leave makes each kill dearer."""
    print(survive(World(folder, seed), 25))


class Forgetful(VolumeStore):
    """Keeps no voice that is deleted."""

    def delete(self, reference: str, expected: int | None) -> None:
        super().delete(reference, expected)
        self.purge_surplus(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22])
def test_deleted_voices_that_are_forgotten_take_nothing_along(folder: Path, seed: int) -> None:
    print(survive(World(folder, seed, Forgetful), 12))


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_kills_lose_nothing(folder: Path, seed: int) -> None:
    """In ten worlds that grow old."""
    print(survive(World(folder, seed), 100))


@pytest.fixture
def curious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read looks around."""
    monkeypatch.setattr(database, "FRESH_S", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [31, 32])
def test_what_clients_were_told_stays_so_for_weeks(folder: Path, curious: None, seed: int) -> None:
    print(survive(Weeks(folder, seed, overlap=1.0, life=(50, 600)), 10))


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("seed", range(33, 43))
def test_what_clients_were_told_stays_so_for_years(folder: Path, curious: None, seed: int) -> None:
    world = Weeks(folder, seed, overlap=1.0, life=(50, 600))
    print(survive(world, 100), f"in {world.days} days")


@pytest.mark.slow
@pytest.mark.parametrize("mutant", AT_RANDOM)
def test_a_store_that_is_wrong_is_caught(folder: Path, mutant: type[VolumeStore]) -> None:
    caught(World, mutant, folder, worlds=6, stalls=0.03)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_store_that_is_right_for_a_week_is_caught(folder: Path, curious: None) -> None:
    caught(Weeks, RightForAWeek, folder, worlds=12, stalls=0.0)


def caught(
    kind: type[World], mutant: type[VolumeStore], folder: Path, worlds: int, stalls: float
) -> None:
    """In one of so many worlds, each of a few rounds."""
    made: list[World] = []
    for seed in range(worlds):
        made.append(
            kind(folder / str(seed), seed, mutant, overlap=1.0, stalls=stalls, life=(50, 600))
        )
        try:
            for _ in range(12):
                made[-1].round()
        except (AssertionError, RegistryError) as error:
            return print(f"{mutant.__name__}: {type(error).__name__} after {done_in(made)}")
    pytest.fail(f"{mutant.__name__} was not caught")


def late_commit(cloud: Cloud, kind: type[VolumeStore]) -> str:
    """What a fresh container says, after one whose claim had expired has committed all the same."""
    slow, quick = Site.start(cloud, kind), Site.start(cloud, kind)
    slow.enrol("alice", noise(Random(0)), "before")

    def at(point: str, container: Container) -> None:
        if point == "commit.before" and container is slow.container:
            cloud.at = lambda point, container: None
            quick.store.edit("alice", VoiceEdit(description="acknowledged"), None)

    cloud.at = at
    with suppress(StorageUnavailable):
        slow.store.edit("alice", VoiceEdit(description="too late"), None)
    for site in (slow, quick):
        site.container.kill()
    return Site.start(cloud, kind).store.get("alice").row.description


def test_a_late_commit_replaces_nothing(folder: Path) -> None:
    assert late_commit(Cloud(folder), VolumeStore) == "acknowledged"


def test_under_one_name_a_late_commit_would(folder: Path) -> None:
    assert late_commit(Cloud(folder), OneName) == "too late"
