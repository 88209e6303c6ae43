"""Each rule of the stand-in for Modal's Volume and Dict, and the races that it lets a test see."""

import asyncio
import ctypes
import inspect
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, chdir, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from modal_volume import BUSY, EXPIRY_S, Cloud, Container, Dict, Killed, Mount

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the stand-in sees open files through /proc"
)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    """Reloads lose what is not committed, and do not pause."""
    cloud = Cloud(tmp_path)
    cloud.reload_commits = lambda container: False
    cloud.during_reload = lambda container: None
    return cloud


def mounted(cloud: Cloud, name: str) -> Mount:
    return cloud.container(name).mount("state")


def publish(mount: Mount, **files: str) -> None:
    for name, text in files.items():
        (mount.path / name).write_text(text)
    mount.commit()


def committed(cloud: Cloud) -> dict[str, str]:
    """The files that a container which starts now would see."""
    entries = cloud.committed("state").items()
    return {name: e.content.decode() for name, e in entries if e.content is not None}


def shown(mount: Mount) -> dict[str, str]:
    return {path.name: path.read_text() for path in mount.path.iterdir()}


def on_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(10)


# Commit and reload


def test_a_mount_shows_what_was_committed_when_it_was_made(cloud: Cloud) -> None:
    early, writer = mounted(cloud, "early"), mounted(cloud, "writer")
    publish(writer, a="1")
    assert early.container.mount("state") is early
    assert shown(early) == {}
    assert shown(mounted(cloud, "late")) == {"a": "1"}


def test_a_write_is_seen_by_others_only_after_commit_and_their_reload(cloud: Cloud) -> None:
    writer, reader = mounted(cloud, "writer"), mounted(cloud, "reader")
    (writer.path / "a").write_text("1")
    reader.reload()
    assert shown(reader) == {}
    writer.commit()
    assert shown(reader) == {}
    reader.reload()
    assert shown(reader) == {"a": "1"}


@pytest.mark.parametrize("last", ["one", "two"])
def test_of_two_writes_to_a_file_the_last_commit_wins(cloud: Cloud, last: str) -> None:
    mounts = [mounted(cloud, name) for name in ("one", "two")]
    for mount in mounts:
        (mount.path / "same").write_text(mount.container.name)
        (mount.path / mount.container.name).write_text("its own")
    for mount in sorted(mounts, key=lambda mount: mount.container.name == last):
        mount.commit()
    assert committed(cloud) == {"same": last, "one": "its own", "two": "its own"}


def test_only_what_changed_since_the_last_publication_is_published(cloud: Cloud) -> None:
    one, two = mounted(cloud, "one"), mounted(cloud, "two")
    publish(one, a="old", b="old")
    two.reload()
    publish(two, a="new")
    (two.path / "b").unlink()
    two.commit()
    (one.path / "a").touch()
    publish(one, c="1", b="old")
    assert committed(cloud) == {"a": "new", "c": "1"}


def test_what_a_background_commit_published_is_not_published_again(cloud: Cloud) -> None:
    one, two = mounted(cloud, "one"), mounted(cloud, "two")
    (one.path / "a").write_text("old")
    one.container.background_commit()
    publish(two, a="new")
    publish(one, b="1")
    assert committed(cloud) == {"a": "new", "b": "1"}


def test_folders_and_times_of_files_travel(cloud: Cloud) -> None:
    writer = mounted(cloud, "writer")
    (writer.path / "full/deep").mkdir(parents=True)
    (writer.path / "empty").mkdir()
    (writer.path / "full/deep/a").write_text("1")
    os.utime(writer.path / "full/deep/a", (1, 2))
    writer.commit()
    (writer.path / "full/deep/a").unlink()
    (writer.path / "empty").rmdir()
    reader = mounted(cloud, "reader")
    assert (reader.path / "full/deep/a").stat().st_mtime == 2
    assert (reader.path / "empty").is_dir()
    writer.commit()
    reader.reload()
    assert sorted(path.name for path in reader.path.rglob("*")) == ["deep", "full"]


@pytest.mark.parametrize("skips", [False, True])
def test_a_commit_also_reloads_unless_the_server_says_otherwise(cloud: Cloud, skips: bool) -> None:
    one, two = mounted(cloud, "one"), mounted(cloud, "two")
    publish(one, a="1")
    cloud.skip_reload = skips
    publish(two, b="1")
    assert shown(two) == ({"b": "1"} if skips else {"a": "1", "b": "1"})


def test_what_a_reload_finds_uncommitted_is_published_or_lost_by_a_coin(cloud: Cloud) -> None:
    cloud.reload_commits = Cloud(cloud.folder / "other").reload_commits
    outcomes = set()
    for n in range(20):
        mount = mounted(cloud, f"{n}")
        (mount.path / f"{n}").write_text("1")
        mount.reload()
        assert (f"{n}" in shown(mount)) == (f"{n}" in committed(cloud))
        outcomes.add(f"{n}" in committed(cloud))
    assert outcomes == {True, False}


def test_a_failure_of_the_server_publishes_nothing(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    fail_at(cloud, "commit.before")
    with pytest.raises(RuntimeError, match="the server failed"):
        publish(mount, a="1")
    assert committed(cloud) == {}
    assert shown(mount) == {"a": "1"}


def fail_at(cloud: Cloud, chosen: str, error: BaseException | None = None) -> None:
    def at(point: str, container: Container) -> None:
        if point == chosen:
            raise error or RuntimeError("the server failed")

    cloud.at = at


# Open files


@contextmanager
def held(path: Path, how: str) -> Iterator[None]:
    """Keep `path` or its folder busy in one of the ways that there are."""
    with ExitStack() as stack:
        if how == "cwd":
            stack.enter_context(chdir(path.parent))
        elif how == "map":
            stack.callback(LIBC.munmap, mapped(path), mmap.PAGESIZE)
        else:
            descriptor = os.open(path.parent if how == "folder" else path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
        if how == "removed":
            path.unlink()
        yield


LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p


def mapped(path: Path) -> ctypes.c_void_p:
    """Its address, with no descriptor left open, which Python's own mmap would keep."""
    with open(path, "rb") as file:
        number, offset = ctypes.c_int(file.fileno()), ctypes.c_long(0)
        length = ctypes.c_size_t(mmap.PAGESIZE)
        kind = (ctypes.c_int(mmap.PROT_READ), ctypes.c_int(mmap.MAP_SHARED))
        return ctypes.c_void_p(LIBC.mmap(None, length, *kind, number, offset))


WAYS = {
    "file": "path a is open",
    "folder": "path . is open",
    "removed": r"path a \(deleted\) is open",
    "map": "path a is open",
    "cwd": "cwd is inside volume",
}


@pytest.mark.parametrize("how", WAYS)
def test_a_reload_fails_and_changes_nothing_while_a_file_is_open(cloud: Cloud, how: str) -> None:
    mount, other = mounted(cloud, "one"), mounted(cloud, "two")
    publish(mount, a="1")
    publish(other, b="1")
    with held(mount.path / "a", how):
        before = shown(mount)
        with pytest.raises(RuntimeError, match=f"^{BUSY}: {WAYS[how]}$"):
            mount.reload()
        assert shown(mount) == before
        other.reload()
    mount.reload()
    assert shown(mount) == {"a": "1", "b": "1"}


def test_a_commit_with_an_open_file_fails_after_it_has_published(cloud: Cloud) -> None:
    mount, other = mounted(cloud, "one"), mounted(cloud, "two")
    publish(other, b="1")
    with open(mount.path / "a", "w") as file:
        file.write("1")
        file.flush()
        with pytest.raises(RuntimeError, match=f"^{BUSY}$"):
            mount.commit()
    assert committed(cloud) == {"a": "1", "b": "1"}
    assert shown(mount) == {"a": "1"}


# The mount is empty while it reloads


def test_another_thread_sees_the_mount_empty_while_it_reloads(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    publish(mount, a="1", b="1")
    seen = []
    cloud.during_reload = lambda container: seen.append(on_thread(lambda: shown(mount)))
    mount.reload()
    mount.commit()
    assert seen == [{}, {}]
    assert shown(mount) == {"a": "1", "b": "1"}


def test_what_is_written_while_the_mount_is_empty_is_lost(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    publish(mount, a="1")
    cloud.during_reload = lambda container: (mount.path / "b").write_text("1")
    mount.reload()
    mount.commit()
    assert committed(cloud) == {"a": "1"}


def test_a_background_commit_takes_no_empty_mount_for_removals(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    publish(mount, a="1")
    cloud.during_reload = Container.background_commit
    mount.reload()
    assert committed(cloud) == {"a": "1"}


# Background commits


def test_a_background_commit_may_publish_a_half_written_file(cloud: Cloud) -> None:
    mount, other = mounted(cloud, "one"), mounted(cloud, "two")
    publish(other, b="1")
    with open(mount.path / "a", "w") as file:
        file.write("half")
        file.flush()
        on_thread(mount.container.background_commit)
        assert committed(cloud) == {"a": "half", "b": "1"}
        file.write(" and half")
    assert shown(mount) == {"a": "half and half"}  # it did not reload
    mount.commit()
    assert committed(cloud) == {"a": "half and half", "b": "1"}


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_background_commits_come_by_chance(tmp_path: Path, chance: float) -> None:
    cloud = Cloud(tmp_path, background_chance=chance)
    mount = mounted(cloud, "one")
    (mount.path / "a").write_text("1")
    Dict(mount.container, "claims").get("a")
    assert committed(cloud) == ({"a": "1"} if chance else {})


@pytest.mark.parametrize("point", ["background.before", "stop.before"])
def test_the_failure_of_a_commit_nobody_asked_for_is_only_logged(
    cloud: Cloud, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    mount = mounted(cloud, "one")
    (mount.path / "a").write_text("1")
    fail_at(cloud, point)
    mount.container.background_commit() if "back" in point else mount.container.stop()
    assert "commit failed: the server failed" in caplog.text
    assert committed(cloud) == {}


# The end of a container


def test_a_kill_loses_what_is_not_committed_and_ends_every_call(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    publish(mount, a="1")
    (mount.path / "b").write_text("1")
    mount.container.kill()
    assert committed(cloud) == {"a": "1"}
    assert not mount.path.exists()
    calls: list[Callable[[], object]] = [mount.commit, mount.reload, mount.container.stop]
    calls += [mount.container.background_commit, Dict(mount.container, "claims").len]
    calls.append(lambda: mount.container.mount("another"))
    for call in calls:
        with pytest.raises(Killed):
            call()


def test_a_clean_shutdown_commits_once_more(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    with open(mount.path / "a", "w") as file:
        file.write("1")
        file.flush()
        mount.container.stop()
    assert committed(cloud) == {"a": "1"}
    with pytest.raises(Killed):
        mount.commit()


def whole_life(container: Container) -> None:
    """Passes every point."""
    mount, shared = container.mount("state"), Dict(container, "claims")
    steps: list[Callable[[], None]] = [mount.reload, container.background_commit, mount.commit]
    for n, step in enumerate(steps):
        (mount.path / "a").write_text(f"{n}")
        step()
    (mount.path / "b").write_text("at the end")
    shared.put("a", 1)
    shared.update(b=1)
    for call in (shared.get, shared.contains, shared.pop):
        call("a")
    for ask in (shared.len, shared.keys, shared.items, shared.clear):
        ask()
    container.stop()


@pytest.mark.parametrize("point", Cloud.points)
def test_a_container_can_be_killed_at_every_point(cloud: Cloud, point: str) -> None:
    cloud.reload_commits = lambda container: True
    container, other = cloud.container("one"), mounted(cloud, "other")
    fail_at(cloud, point, Killed(point))
    with pytest.raises(Killed, match=point):
        whole_life(container)
    with pytest.raises(Killed, match="one"):
        container.mount("state").commit()
    cloud.at = lambda point, container: None
    publish(other, b="1")


def test_a_kill_amid_a_publication_leaves_a_part_of_it(cloud: Cloud) -> None:
    fail_at(cloud, "commit.file", Killed())
    firsts = set()
    for n in range(10):
        with pytest.raises(Killed):
            publish(cloud.container(f"{n}").mount(f"{n}"), a="1", b="1")
        (first,) = cloud.committed(f"{n}")
        firsts.add(first)
    assert firsts == {"a", "b"}


def test_a_kill_from_elsewhere_ends_the_call_under_way_at_its_next_point(cloud: Cloud) -> None:
    mount = mounted(cloud, "one")
    with ThreadPoolExecutor(1) as pool:

        def at(point: str, container: Container) -> None:
            if point == "commit.file":
                killing = pool.submit(container.kill)
                while container.alive:
                    time.sleep(0.001)
                assert not wait([killing], 0.02).done

        cloud.at = at
        with pytest.raises(Killed):
            publish(mount, a="1", b="1")
    assert len(committed(cloud)) == 1
    assert not mount.path.exists()


def test_others_can_work_at_a_point(cloud: Cloud) -> None:
    one, two = mounted(cloud, "one"), mounted(cloud, "two")

    def at(point: str, container: Container) -> None:
        if (point, container) == ("commit.after", one.container):
            publish(two, same="two")

    cloud.at = at
    publish(one, same="one")
    assert shown(one) == {"same": "two"}


def test_the_same_seed_makes_the_same_life(tmp_path: Path) -> None:
    lives = []
    for home, seed in (("a", 7), ("b", 7), ("c", 8)):
        passed: list[tuple[str, frozenset[str]]] = []
        cloud = Cloud(tmp_path / home, seed, background_chance=0.3)

        def at(point: str, it: Container, cloud: Cloud = cloud, passed: Any = passed) -> None:
            passed.append((point, frozenset(cloud.committed("state"))))

        cloud.at = at
        whole_life(cloud.container("one"))
        lives.append(passed)
    assert lives[0] == lives[1] != lives[2]


def test_a_read_only_mount_refuses_a_commit_and_finds_a_write(cloud: Cloud) -> None:
    mount = cloud.container("reader").mount("state", read_only=True)
    publish(mounted(cloud, "writer"), a="1")
    mount.reload()
    assert shown(mount) == {"a": "1"}
    with pytest.raises(RuntimeError, match="read-only"):
        mount.commit()
    (mount.path / "a").write_text("2")
    for call in (mount.commit, mount.reload, mount.container.stop):
        with pytest.raises(OSError, match="Read-only file system: 'a'"):
            call()
    assert committed(cloud) == {"a": "1"}


# The Dict


def shared_by(cloud: Cloud, *names: str) -> list[Dict]:
    return [Dict(cloud.container(name), "claims") for name in names]


def slow_clock() -> float:
    time.sleep(1e-6)  # amid each operation others get their turn
    return 0.0


def test_put_if_absent_has_one_winner_of_eight_threads(cloud: Cloud) -> None:
    cloud.clock = slow_clock
    dicts = shared_by(cloud, *"abcdefgh")
    start = threading.Barrier(len(dicts))

    def claim(shared: Dict) -> list[int]:
        start.wait(10)
        return [n for n in range(200) if shared.put(n, shared.container.name, skip_if_exists=True)]

    with ThreadPoolExecutor(len(dicts)) as pool:
        won = list(pool.map(claim, dicts))
    assert sorted(chain(*won)) == list(range(200))
    holders = dict(dicts[0].items())
    assert all(
        holders[n] == it.container.name for it, ns in zip(dicts, won, strict=True) for n in ns
    )


def test_a_dict_is_shared_at_once_and_hands_out_copies(cloud: Cloud) -> None:
    one, two = shared_by(cloud, "one", "two")
    value = ["a"]
    assert one.put("k", value)
    value.append("b")
    two.get("k").append("c")
    assert two.get("k") == ["a"]
    assert two.put("k", "new")
    assert one.get("k") == "new"


def test_a_dict_does_what_a_modal_dict_does(cloud: Cloud) -> None:
    (shared,) = shared_by(cloud, "one")
    shared.update({"1": "str", 1: "int"}, named="kw")
    shared.put(True, "bool")
    shared.put(1.0, "float")
    assert dict(shared.items())["1"] == "str"
    assert shared.len() == 5 == len(list(shared.keys()))  # a key is its pickle: 1 is not True
    assert (shared.get(1), shared.get(True), shared.get(1.0)) == ("int", "bool", "float")
    assert shared.pop("1") == "str"
    assert not shared.contains("1")
    assert (shared.get("1"), shared.get("1", 0), shared.pop("1", None)) == (None, 0, None)
    with pytest.raises(KeyError, match="1 not in dict claims"):
        shared.pop("1")
    shared.clear()
    assert shared.len() == 0


@pytest.mark.parametrize("use", ["get", "contains", "put", "nothing", "refused put", "items"])
def test_an_entry_goes_seven_days_after_its_last_use(cloud: Cloud, use: str) -> None:
    now = [0.0]
    cloud.clock = lambda: now[0]
    (shared,) = shared_by(cloud, "one")
    shared.put("k", "v")
    now[0] = EXPIRY_S - 1
    uses: dict[str, Callable[[], object]] = {
        "get": lambda: shared.get("k"),
        "contains": lambda: shared.contains("k"),
        "put": lambda: shared.put("k", "v"),
        "nothing": lambda: None,
        "refused put": lambda: shared.put("k", "other", skip_if_exists=True),
        "items": lambda: list(shared.items()),
    }
    uses[use]()
    now[0] = EXPIRY_S + 1
    kept = use in ("get", "contains", "put")
    assert shared.put("k", "other", skip_if_exists=True) == (not kept)


def test_the_answer_of_a_put_that_was_done_can_get_lost(cloud: Cloud) -> None:
    (shared,) = shared_by(cloud, "one")
    fail_at(cloud, "dict.put.after", ConnectionError())
    with pytest.raises(ConnectionError):
        shared.put("k", "mine", skip_if_exists=True)
    fail_at(cloud, "none")
    assert not shared.put("k", "mine", skip_if_exists=True)
    assert shared.get("k") == "mine"


# The shape of modal's own


def test_every_call_has_an_aio_twin(cloud: Cloud) -> None:
    async def life() -> list[Any]:
        mount, (shared,) = mounted(cloud, "one"), shared_by(cloud, "two")
        (mount.path / "a").write_text("1")
        await mount.commit.aio()
        await mount.reload.aio()
        await shared.update.aio(a=1)
        said = [await shared.put.aio("a", 2, skip_if_exists=True), await shared.get.aio("a")]
        said += [await shared.contains.aio("a"), await shared.len.aio()]
        said += [key async for key in shared.keys.aio()]
        said += [item async for item in shared.items.aio()]
        await shared.clear.aio()
        return [*said, await shared.pop.aio("a", None)]

    assert asyncio.run(life()) == [False, 1, True, 1, "a", ("a", 1), None]
    assert committed(cloud) == {"a": "1"}


def test_calls_take_what_modals_take(cloud: Cloud) -> None:
    modal = pytest.importorskip("modal")
    mount, (shared,) = mounted(cloud, "one"), shared_by(cloud, "two")
    names = ("put", "get", "pop", "contains", "len", "update", "clear")
    pairs = [(getattr(shared, name), getattr(modal.Dict, name)) for name in names]
    pairs += [(mount.commit, modal.Volume.commit), (mount.reload, modal.Volume.reload)]
    for ours, real in pairs:
        _, *wanted = inspect.signature(real).parameters.values()
        found = inspect.signature(ours.call).parameters.values()
        assert [(p.name, p.kind) for p in found] == [(p.name, p.kind) for p in wanted]
        assert [p.default is p.empty for p in found] == [p.default is p.empty for p in wanted]
