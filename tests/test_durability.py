"""What a kill can't show: that each file of a voice is on the disk before its row is.

One enrolment is watched by strace. Every file must be written, synced and renamed, and its folder
synced, before the commit; the page cache hides a missing sync from every other test here.
"""

import asyncio
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeInference
from faults import FORKS, QuickEnroller, finish, noise, process
from uploading import enrol_bytes

from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat"
SYNCS = ("fsync", "fdatasync")
Call = tuple[str, str, str]  # its name; the path it worked on; of a rename the old path, too


def enrol_one(home: Path, ready: Any, go: Any) -> None:
    store = VoiceStore(DataDir(home))
    enroller = QuickEnroller(store, FakeInference(store.data))
    clip = noise(random.Random(1))
    ready.set()
    go.wait()
    asyncio.run(enrol_bytes(enroller, "alice", clip))
    store.close()


def traced(home: Path, log: Path) -> list[Call]:
    """The calls of one enrolment that change or sync a file below `home`."""
    ready, go = FORKS.Event(), FORKS.Event()
    with process(enrol_one, home, ready, go) as enrolling:
        assert ready.wait(30)
        command = ["strace", "-f", "-y", "-e", f"trace={CALLS}", "-o", str(log)]
        strace = subprocess.Popen(
            [*command, "-p", str(enrolling.pid)], stderr=subprocess.PIPE, text=True
        )
        with strace:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"strace can't attach here: {said.strip()}")
            go.set()
            assert finish([enrolling]) == [0]
    return list(calls(log.read_text(), home))


def calls(log: str, home: Path) -> list[Call]:
    found = []
    for line in whole_lines(log):
        name, _, rest = line.partition("(")
        paths = re.findall(rf'[<"]({re.escape(str(home))}[^">]*)[">]', rest.rpartition(")")[0])
        if paths and not rest.endswith("unfinished ...>"):
            worked_on, old = (str(Path(paths[i]).relative_to(home)) for i in (-1, 0))
            found.append((name, worked_on, old))
    return found


def whole_lines(log: str) -> list[str]:
    """Calls as they ended; strace writes one that another thread interrupts in two lines."""
    begun, ended = {}, []
    for line in log.splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        elif call.startswith("<..."):
            ended.append(begun.pop(thread) + call.partition("resumed>")[2])
        else:
            ended.append(call)
    return ended


def violations(trace: list[Call]) -> list[str]:
    """Files that the commit finds written but perhaps not on the disk."""
    commit = max(i for i, call in enumerate(trace) if is_sync(call, "registry.db"))
    before = trace[:commit]
    wrong = [] if stored(before) == {"clips", "conditioned", "prompts"} else ["not every file"]
    for i, (name, path, _) in enumerate(before):
        folder = str(Path(path).parent)
        if name.startswith(("rename", "mkdir")) and not synced(before[i:], folder):
            wrong.append(f"{folder} is not synced after {name}")
        if is_write(name, path) and not synced(until_rename(before[i:], path), path):
            wrong.append(f"{path} is renamed before it is synced")
    return wrong


def stored(trace: list[Call]) -> set[str]:
    return {path.split("/")[0] for name, path, _ in trace if name.startswith("rename")}


def until_rename(trace: list[Call], written: str) -> list[Call]:
    ends = (
        i for i, (name, _, old) in enumerate(trace) if name.startswith("rename") and old == written
    )
    return trace[: next(ends)]


def is_write(name: str, path: str) -> bool:
    return "write" in name and "/" in path


def is_sync(call: Call, wanted: str) -> bool:
    name, path, _ = call
    return name in SYNCS and path == wanted


def synced(trace: list[Call], wanted: str) -> bool:
    return any(is_sync(call, wanted) for call in trace)


@pytest.fixture
def trace(tmp_path: Path) -> list[Call]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return traced(tmp_path / "home", tmp_path / "strace.log")


def test_every_file_is_on_the_disk_before_its_row(trace: list[Call]) -> None:
    assert violations(trace) == []


def test_no_sync_of_an_enrolment_can_be_left_out_unnoticed(trace: list[Call]) -> None:
    of_files = [i for i, (name, path, _) in enumerate(trace) if name in SYNCS and path != "."]
    of_files = [i for i in of_files if not trace[i][1].startswith("registry.db")]
    assert len(of_files) >= 7, "three files and the folders that they are in"
    for i in of_files:
        assert violations(trace[:i] + trace[i + 1 :]) != [], trace[i]
