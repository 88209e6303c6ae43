"""What a store over a shared Volume costs by its number of voices: a restart, and a write.

The Volume is a folder here whose commit and reload do nothing, and the claims are a dict: what
is measured is our part, the copies, hashes, checks and SQLite. Modal's own time comes on top.
"""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import measure
import population

from registry.contract import ModelRef
from registry.storage.data_dir import DataDir
from registry.storage.rows.edits import VoiceEdit
from registry.storage.store import VoiceStore
from registry.storage.volume.snapshots import Mount, Snapshot, digest_of
from registry.storage.volume.store import SharedDict, SharedVolume, VolumeStore


class Here:
    """A Volume that one container has."""

    def commit(self) -> None: ...

    def reload(self) -> None: ...


class Entries(dict[str, str]):
    def put(self, key: str, value: str, *, skip_if_exists: bool) -> bool:
        return self.setdefault(key, value) is value


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--voices", nargs="+", type=int, default=[100, 10_000])
    parser.add_argument("--repeat", type=int, default=7)
    asked = parser.parse_args()
    rows = [measured(count, asked.repeat) for count in asked.voices]
    measure.table(list(rows[0]), [list(row.values()) for row in rows])
    measure.record(asked.results, "volume_restart", vars(asked), rows)


def measured(voices: int, repeat: int) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        size = populate(folder, voices)
        claims = Entries()
        restarts = [restarted(folder, claims, n) for n in range(repeat)]
        store = opened(folder, claims, folder / "writer")
        writes = [measure.seconds(lambda: edit(store)) for _ in range(repeat)]
        store.close()
    return {
        "voices": voices,
        "snapshot MB": round(size / 1e6, 1),
        "restart ms": measure.ms(median(restarts)),
        "slowest ms": measure.ms(max(restarts)),
        "a write ms": measure.ms(median(writes)),
    }


def populate(folder: Path, voices: int) -> int:
    """One snapshot of so many voices on the Volume; its bytes."""
    local = VoiceStore(DataDir(folder / "made"))
    population.populate(local, voices, ModelRef("made", "up"))
    local.close()
    snapshots = folder / "volume" / "snapshots"
    snapshots.mkdir(parents=True)
    database = local.data.database
    return int(database.rename(snapshots / Snapshot(1, digest_of(database)).name).stat().st_size)


def opened(folder: Path, claims: Entries, local: Path) -> VolumeStore:
    mount = Mount(folder / "volume", SharedVolume(Here(), ()))
    return VolumeStore(mount, SharedDict(claims, "here", ()), local)


def restarted(folder: Path, claims: Entries, number: int) -> float:
    """Seconds until a container with an empty disk can answer."""
    started_s = time.perf_counter()
    store = opened(folder, claims, folder / f"container {number}")
    store.page(1, None, "", ())
    took_s = time.perf_counter() - started_s
    store.close()
    return took_s


def edit(store: VolumeStore) -> None:
    [voice] = store.page(1, None, "", ()).voices
    store.edit(voice.row.id, VoiceEdit(description="again"), None)


if __name__ == "__main__":
    main()
