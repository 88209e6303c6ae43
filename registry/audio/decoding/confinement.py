"""Confines a process before it reads a stranger's bytes, in layers that stand by themselves.

A layer may be refused by an old kernel, by a container's profile, or by a system that has no such
thing: the others hold then, and the caller is told. Standard library only.
"""

import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator

MEMORY_BYTES, CPU_S = 1 << 30, 5
LIMITS = {
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 3,  # stdio: any open() or socket() would need a fourth
}
LAYERS = {  # those that a system may refuse
    "memory": "a limit on its memory",
    "network": "an empty network namespace",
    "parent": "a signal to end it with the server",
    "privileges": "no_new_privs",
    "files": "Landlock",
    "calls": "a filter of system calls (seccomp)",
}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # calls, on every machine
LANDLOCK_VERSION = 1
FILE_RIGHTS = (0, 13, 14, 15, 15, 16)  # how many rights each version of Landlock knows
SECCOMP_SET_MODE_FILTER, SECCOMP_ALL_THREADS = 1, 1
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # FAIL adds the error
LOAD, EQUALS, HAS_BITS, RETURN = 0x20, 0x15, 0x45, 0x06  # opcodes of classic BPF
NUMBER, MACHINE, PROTECTION = 0, 4, 32  # places in seccomp_data; the last is the third argument
EPERM, PROT_EXEC = 1, 4

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
CALLS = {  # all that decoding needs, by their numbers on these machines
    **{"read": (0, 63), "readv": (19, 65), "write": (1, 64), "writev": (20, 66)},
    **{"close": (3, 57), "fstat": (5, 80), "lseek": (8, 62)},
    **{"brk": (12, 214), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233)},
    **{"futex": (202, 98), "membarrier": (324, 283), "rseq": (334, 293), "sched_yield": (24, 124)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139)},
    **{"sigaltstack": (131, 132), "restart_syscall": (219, 128)},
    **{"clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "gettimeofday": (96, 169)},
    **{"getpid": (39, 172), "gettid": (186, 178), "getrusage": (98, 165), "getrandom": (318, 278)},
    **{"exit": (60, 93), "exit_group": (231, 94)},
}
MAPPING = {"mmap": (9, 222), "mprotect": (10, 226)}  # allowed unless they make code of memory
SECCOMP = (317, 277)


def die_with(parent: int) -> bool:
    """Ask to be killed when the thread that started this process ends; end at once if it has.

    Returns whether the system can do so. The kernel forgets it with some changes of credentials, so
    it is asked again after those.
    """
    if sys.platform != "linux":
        return False
    held = prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)
    return held


def limit_self(parent: int) -> list[str]:
    """Give up what decoding does not need; return those of LAYERS that are refused here.

    Those of LIMITS hold everywhere: no descriptor beyond stdio can be opened, so no file and no
    socket. `calls` would do alone, and each of the others is there for where it is refused.
    """
    layers: dict[str, Callable[[], bool]] = {
        "memory": limit_memory,
        "network": leave_network,
        "parent": lambda: die_with(parent),
        "privileges": take_no_privileges,
        "files": leave_files,  # needs a descriptor for a moment
    }
    refused = [name for name, give_up in layers.items() if not give_up()]
    lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_S)  # starting is not counted
    for what, most in LIMITS.items():
        lower(what, most)
    return refused if filter_calls() else [*refused, "calls"]


def limit_memory() -> bool:
    """Limit the address space; return False on macOS, which has no such limit."""
    if sys.platform == "linux":
        lower(resource.RLIMIT_AS, MEMORY_BYTES)
    return sys.platform == "linux"


def lower(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def leave_network() -> bool:
    """Move to an empty network namespace, which Docker's seccomp profile refuses."""
    return sys.platform == "linux" and not ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)


def take_no_privileges() -> bool:
    """Let nothing executed from now on gain privileges; the later layers require this."""
    return sys.platform == "linux" and prctl(PR_SET_NO_NEW_PRIVS, 1)


def prctl(option: int, value: int) -> bool:
    values = (ctypes.c_ulong(value), *(ctypes.c_ulong(0) for _ in range(3)))
    return bool(ctypes.CDLL(None).prctl(option, *values) == 0)


def leave_files() -> bool:
    """Refuse every path by Landlock (Linux 5.13) without a rule; later versions TCP and signals."""
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None).syscall
    version = call(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return False
    handled = [(1 << FILE_RIGHTS[min(version, 5)]) - 1, 3, 3]  # files, TCP, sockets and signals
    known = 3 if version >= 6 else 2 if version >= 4 else 1
    ruleset = struct.pack(f"{known}Q", *handled[:known])
    descriptor = call(LANDLOCK_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    if descriptor < 0:
        return False
    refused = call(LANDLOCK_RESTRICT_SELF, descriptor, 0)
    os.close(descriptor)
    return bool(refused == 0)


def filter_calls() -> bool:
    """Allow CALLS and nothing else, in all threads, for good; seccomp's filters only add up.

    What is not allowed fails with EPERM and does not kill: a C library newer than this list may ask
    for something harmless, and goes on without. Calls of another machine's kind kill.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES or struct.calcsize("P") != 8:
        return False
    program = b"".join(filter_for(machine))
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    call, number = ctypes.CDLL(None).syscall, SECCOMP[list(MACHINES).index(machine)]
    return bool(call(number, SECCOMP_SET_MODE_FILTER, SECCOMP_ALL_THREADS, described) == 0)


def filter_for(machine: str) -> Iterator[bytes]:
    """Yield the instructions of the filter. A test that fails skips what its success would do.

    A call of the x32 kind has a bit in its number that is in none of ours.
    """
    column = list(MACHINES).index(machine)
    yield instruction(LOAD, MACHINE)
    yield instruction(EQUALS, MACHINES[machine], skipped=(1, 0))
    yield instruction(RETURN, KILL)
    yield instruction(LOAD, NUMBER)
    for numbers in CALLS.values():
        yield instruction(EQUALS, numbers[column], skipped=(0, 1))
        yield instruction(RETURN, ALLOW)
    for numbers in MAPPING.values():
        yield instruction(EQUALS, numbers[column], skipped=(0, 4))
        yield instruction(LOAD, PROTECTION)
        yield instruction(HAS_BITS, PROT_EXEC, skipped=(0, 1))
        yield instruction(RETURN, FAIL | EPERM)
        yield instruction(RETURN, ALLOW)
    yield instruction(RETURN, FAIL | EPERM)


def instruction(code: int, value: int, skipped: tuple[int, int] = (0, 0)) -> bytes:
    """Pack one instruction of classic BPF; a jump skips `skipped[0]` if true, else `skipped[1]`."""
    return struct.pack("HBBI", code, *skipped, value)
