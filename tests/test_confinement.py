"""What the child that opens clips can still do, tried by the child itself, behind its own fence."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from clips import made
from uploading import converse, read_clip

from cli.commands.serve import tell_if_unfenced
from registry.audio import clips
from registry.audio.clips import Answer, ClipLimits, layers_lacking, program
from registry.audio.decoding import confinement

LIMITS = ClipLimits()
X86 = platform.machine() == "x86_64"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

# main() of decoder.py, but what would read a clip tries all that an intruder would like.
INTRUDER = """import sys
from ast import literal_eval
sys.path[:] = literal_eval(sys.argv.pop(1))
import ctypes, errno, json, mmap, os, resource, signal, socket, threading
from registry.audio.decoding import confinement
from registry.audio import decoder
without = {without!r}
confinement.leave_network = lambda: True  # it may be refused, and none of this depends on it
if "calls" in without:
    confinement.filter_calls = lambda: False
if "files" in without:
    confinement.leave_files = lambda: False
if "limits" in without:
    confinement.LIMITS.clear()
libc = ctypes.CDLL(None, use_errno=True)
parent, page = int(sys.argv[4]), mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
inherited = socket.socket() if "limits" in without else None

def call(*values):
    ctypes.set_errno(0)
    if libc.syscall(*(ctypes.c_long(value) for value in values)) == -1:
        raise OSError(ctypes.get_errno(), "")

def of_libc(name, *values):
    if getattr(libc, name)(*values) == -1:
        raise OSError(ctypes.get_errno(), "")

def fork():
    if os.fork() == 0:
        os._exit(0)

def thread():
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        raise OSError(errno.EPERM, "") from None

ATTEMPTS = {attempts}

def attempt(data, bounds):
    ends = dict()
    for name, tried in ATTEMPTS.items():
        try:
            tried()
            ends[name] = "done"
        except OSError as error:
            ends[name] = errno.errorcode[error.errno]
        except MemoryError:
            ends[name] = "MemoryError"
    decoder.say(decoder.json.dumps(ends).encode())
    os._exit(0)

rehearse = decoder.rehearse

def rehearse_then_intrude(bounds):
    rehearse(bounds)
    decoder.examine = attempt

decoder.rehearse = rehearse_then_intrude
decoder.main(sys.argv[1:])"""

FILES = {
    "read a file": 'open("/etc/hosts")',
    "write a file": 'open("left-behind", "w")',
    "list a folder": 'os.listdir("/")',
    "a socket": "socket.socket()",
    "a socket by a path": "socket.socket(socket.AF_UNIX)",
    "a pipe": "os.pipe()",
    "a duplicate": "os.dup(0)",
    "memory as a file": 'of_libc("memfd_create", b"x", 0)',
}
PATHS = {
    "remove a file": 'os.unlink("victim")',
    "rename a file": 'os.rename("victim", "renamed")',
    "make a folder": 'os.mkdir("made")',
    "make a link": 'os.symlink("/etc", "link")',
    "make a pipe": 'os.mkfifo("fifo")',
    "cut a file": 'os.truncate("victim", 0)',
    "run a program": 'os.execv("/bin/true", ["true"])',
}
CALLS = {
    "open the mode of a file": 'os.chmod("victim", 0o777)',
    "see whether a file is there": 'os.stat("/etc/hosts")',
    "connect": 'of_libc("connect", 0, bytes(16), 16)',
    "fork": "fork()",
    "start a thread": "thread()",
    "trace": 'of_libc("ptrace", 0, 0, 0, 0)',
    "send a signal to its parent": "os.kill(parent, signal.SIGCONT)",
    "send a signal to itself": "os.kill(os.getpid(), signal.SIGCONT)",
    "memory that is code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "make code of memory": 'of_libc("mprotect", ctypes.c_void_p(address), 4096, 5)',
    "outlive its parent": 'of_libc("prctl", 1, 0, 0, 0, 0)',
    "name itself": 'of_libc("prctl", 15, b"kworker", 0, 0, 0)',
    "another filter": 'of_libc("prctl", 22, 2, 0, 0, 0)',
    "more time": 'of_libc("setrlimit", 0, b"\\xff" * 16)',
    "another namespace": 'of_libc("unshare", 0x10000000)',
    "another user": "os.setuid(os.getuid())",
    "another folder": 'os.chdir("/")',
    "wait for its time": 'of_libc("nice", 5)',
}
NUMBERS = {  # on x86-64 alone
    "map the memory of another": "call(310, parent, 0, 0, 0, 0, 0)",
    "io_uring": "call(425, 1, 0)",
    "bpf": "call(321, 0, 0, 0)",
    "execveat": "call(322, 0, 0, 0, 0, 0x1000)",
    "clone3": "call(435, 0, 0)",
    "code with a key": "call(329, address, 4096, 5, -1)",
    "read as of old": "call(135, 0x0400000)",
    "open by the numbers of x32": "call(0x40000000 | 2, 0, 0, 0)",
    "read by the numbers of x32": "call(0x40000000 | 0, 0, address, 0)",
    "userfaultfd": "call(323, 0)",
    "a descriptor of a process": "call(434, parent, 0)",
    "a key": "call(250, 0, -1, 0, 0, 0)",
}


def intrude(attempts: dict[str, str], *without: str) -> dict[str, str]:
    """How each attempt ends: done, or the name of its error."""
    tried = ", ".join(f"{name!r}: lambda: {code}" for name, code in attempts.items())
    start = INTRUDER.replace("{without!r}", repr(set(without))).replace(
        "{attempts}", f"{{{tried}}}"
    )
    command = [start if part == clips.START else part for part in program(LIMITS)]
    answer = converse(command, b"clip", LIMITS, 100_000)
    ready, _, ends = answer.stdout.partition(b"\n")
    assert set(ready.decode().split()) <= set(without) and ends, answer
    return dict(json.loads(ends))


@pytest.fixture(autouse=True)
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the working directory of the child."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "victim"
    path.write_bytes(b"dear")
    return path


def supported(*layers: str) -> None:
    words = {confinement.LAYERS[layer] for layer in layers}
    if lacking := words & set(layers_lacking(LIMITS)):
        pytest.skip(f"this system refuses {', '.join(lacking)}")


@linux
@pytest.mark.parametrize("without", [(), ("files",), ("limits", "files")], ids=repr)
def test_the_child_can_do_nothing_but_decode(victim: Path, without: tuple[str, ...]) -> None:
    """The filter of system calls does alone, without the layers beside it."""
    supported("calls", "files")
    attempts = FILES | PATHS | CALLS | (NUMBERS if X86 else {})
    ends = intrude(attempts, *without)
    assert ends.keys() == attempts.keys()
    assert {name: end for name, end in ends.items() if end != "EPERM"} == {}
    assert victim.read_bytes() == b"dear" and list(victim.parent.iterdir()) == [victim]


@linux
def test_what_it_needs_is_still_allowed() -> None:
    supported("calls")
    allowed = {
        "memory": "bytearray(100 << 20)",
        "protect": 'of_libc("mprotect", ctypes.c_void_p(address), 4096, 1)',
        "random": "os.urandom(8)",
        "times": "resource.getrusage(resource.RUSAGE_SELF)",
        "close": "os.close(2)",
    }
    assert set(intrude(allowed).values()) == {"done"}
    assert intrude({"memory": "bytearray(2 << 30)"}) == {"memory": "MemoryError"}


@linux
def test_without_the_filter_landlock_keeps_paths_and_the_limits_keep_descriptors(
    victim: Path,
) -> None:
    supported("files", "privileges")
    ends = intrude(FILES | PATHS, "calls")
    assert {name: end for name, end in ends.items() if end == "done"} == {}
    assert victim.read_bytes() == b"dear" and list(victim.parent.iterdir()) == [victim]


def test_the_limits_alone_leave_no_descriptor() -> None:
    ends = intrude(FILES, "calls", "files", "network", "privileges", "parent", "memory")
    assert {name: end for name, end in ends.items() if end == "done"} == {}


def test_what_the_attempts_do_where_nothing_stops_them() -> None:
    """Or a refusal might have another reason."""
    attempts = {k: v for k, v in FILES.items() if sys.platform == "linux" or "memory" not in k}
    attempts |= {"fork": CALLS["fork"], "make a folder": PATHS["make a folder"]}
    ends = intrude(attempts, *confinement.LAYERS, "limits")
    if os.geteuid() != 0:  # RLIMIT_NPROC holds for all but root; here it is off
        assert ends["fork"] == "done"
    assert set(ends.values()) == {"done"}


FOREIGN = """import ctypes, mmap, os
from registry.audio.decoding import confinement
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20 (getpid); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
if {confined}:
    confinement.take_no_privileges() and confinement.filter_calls()
os.write(1, b"trying ")
call()
os.write(1, b"done")"""


@linux
@pytest.mark.skipif(not X86, reason="a call of i386 takes an x86-64 machine")
def test_a_call_by_the_numbers_of_another_machine_kills() -> None:
    supported("calls")
    found = run(FOREIGN.format(confined=False))
    if found.stdout != b"trying done":
        pytest.skip("this kernel takes no calls of i386")
    found = run(FOREIGN.format(confined=True))
    assert (found.stdout, found.returncode) == (b"trying ", -signal.SIGSYS)


THREADS = """import errno, os, threading
from registry.audio.decoding import confinement
ready, go, ends = threading.Event(), threading.Event(), []
def other():
    ready.set()
    go.wait()
    try:
        os.mkdir("made")
    except OSError as error:
        ends.append(errno.errorcode[error.errno])
thread = threading.Thread(target=other)
thread.start()
ready.wait()
confinement.take_no_privileges() and confinement.filter_calls()
go.set()
thread.join()
print(ends)"""


@linux
def test_the_filter_is_for_all_threads() -> None:
    supported("calls")
    assert run(THREADS).stdout == b"['EPERM']\n"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    where = os.environ | {"PYTHONPATH": clips.PACKAGES}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, env=where, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "machine", "refused"),
    [
        ("darwin", "arm64", {"memory", "network", "parent", "privileges", "files", "calls"}),
        ("linux", "riscv64", {"calls"}),
    ],
)
def test_where_a_layer_is_missing_the_child_says_so_and_decodes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    system: str,
    machine: str,
    refused: set[str],
) -> None:
    """The child of another system, but for its limits, which are the same."""
    elsewhere = (
        f"sys.platform = {system!r}\nimport platform\nplatform.machine = lambda: {machine!r}"
    )
    begin = "from registry.audio"
    monkeypatch.setattr(clips, "START", clips.START.replace(begin, f"{elsewhere}\n{begin}"))
    words = {confinement.LAYERS[name] for name in refused}
    assert words <= set(layers_lacking(LIMITS))
    assert all(word in clips.fence_of_decoder(LIMITS) for word in words)
    tell_if_unfenced()
    [told] = capsys.readouterr().err.splitlines()
    assert all(word in told for word in words) and told.endswith("its other limits hold.")
    assert read_clip(made("FLAC", "PCM_16"), LIMITS).duration_s == 2.0


def test_a_first_line_of_other_words_is_no_start() -> None:
    for line in (b"network memory\n", b"\n", b"calls\n"):
        assert clips.started(Answer(line + b"rest", b""))[1] == b"rest"
    for line in (b"", b"network", b"Fatal Python error\n", b"network nothing\n", b"\xff\n"):
        with pytest.raises(clips.DecoderUnavailable):
            clips.started(Answer(line, b""))


STAYS = """import sys
from ast import literal_eval
sys.path[:] = literal_eval(sys.argv.pop(1))
import os, time
from registry.audio import decoder
with open({pid!r}, "w") as file:
    file.write(f"{{os.getpid()}} ")
decoder.rehearse = lambda _: None
decoder.examine = lambda *_: time.sleep(600)
decoder.main(sys.argv[1:])"""

PARENT = """import sys
from registry.audio import clips as audio
audio.START = sys.argv[1]
limits = audio.ClipLimits(wall_s=600.0)
audio.converse(audio.program(limits), audio.subprocess.DEVNULL, limits, 1000)"""


def is_alive(pid: int) -> bool:
    """A process that has ended, but that nobody has waited for, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux
def test_the_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    supported("parent")
    told = tmp_path / "pid"
    where = os.environ | {"PYTHONPATH": clips.PACKAGES}
    command = [sys.executable, "-c", PARENT, STAYS.format(pid=str(told))]
    with subprocess.Popen(command, env=where) as parent:
        child = wait_for_pid(told)
        wait_until_asleep(child)
        assert is_alive(child)
        parent.kill()
    deadline = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < deadline, "the child lives on without its parent"
        time.sleep(0.05)


def wait_for_pid(told: Path) -> int:
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text().endswith(" ")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(told.read_text())


def wait_until_asleep(pid: int) -> None:
    """Behind its fence, in the sleep for which it reads no clip."""
    deadline = time.monotonic() + 60
    while "Seccomp:\t2" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@linux
def test_a_child_whose_parent_ended_before_it_asked_ends_at_once() -> None:
    code = "import sys; from registry.audio.decoding.confinement import die_with"
    code += "; die_with(int(sys.argv[1]))"
    ended = run(f"{code}; print('alive')", str(os.getpid() + 1))
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert run(f"{code}; print('alive')", str(os.getpid())).stdout == b"alive\n"


def test_a_server_and_the_doctor_tell_of_a_child_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    tell_if_unfenced()
    assert "Note: The program that opens clips does not start: " in capsys.readouterr().err
    assert "does not start" in clips.fence_of_decoder(LIMITS)


def test_a_child_that_takes_long_to_start_is_unavailable() -> None:
    with pytest.raises(clips.DecoderUnavailable):
        layers_lacking(replace(LIMITS, start_s=0.0))
