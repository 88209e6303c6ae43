"""Kill containers that share a Volume at any of their steps: nothing acknowledged is lost or wrong.

Two may overlap, answers get lost, steps are slow, the platform commits at any moment. Four stores
that are wrong show that the test would notice.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from volume_faults import World
from volume_mutants import MUTANTS

from registry import files, snapshot_database
from registry.errors import RegistryError
from registry.volume_store import VolumeStore

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
        monkeypatch.setattr(snapshot_database, name, value)


def survive(world: World, kills: int) -> str:
    """Rounds until so many containers were killed; then the doctor finds nothing it can't mend."""
    while world.kills < kills:
        world.round()
    with world.quietly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "GRACE_S", -1.0)
        site = world.check()
        assert isinstance(site.store, VolumeStore)
        findings = site.store.examine(read_data=True, repair=True)
        assert {finding.severity for finding in findings} <= {"repaired"}, findings
        assert site.store.examine(read_data=True, repair=True) == []
        world.check()
    acknowledged = sum(owner.acknowledged for owner in world.owners)
    refused = sum(owner.refused for owner in world.owners)
    return f"{world.kills} kills, {acknowledged} acknowledged, {refused} refused, 0 lost"


def test_a_hundred_kills_lose_nothing(folder: Path) -> None:
    print(survive(World(folder, seed=1), 100))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_kills_lose_nothing(folder: Path, seed: int) -> None:
    print(survive(World(folder, seed), 100))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_store_that_is_wrong_is_caught(folder: Path, mutant: type[VolumeStore]) -> None:
    """In one of a few worlds, each of a few rounds."""
    for seed in range(6):
        world = World(folder / str(seed), seed, mutant, overlap=1.0, stalls=0.03, life=(50, 600))
        try:
            for _ in range(12):
                world.round()
        except (AssertionError, RegistryError) as caught:
            return print(f"{mutant.__name__}: world {seed}, {type(caught).__name__}")
    pytest.fail(f"{mutant.__name__} was not caught")
