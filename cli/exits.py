"""Ends a command with a code, and with a sentence on stderr unless the code is 0.

What the operating system refuses anywhere, a full disk or a folder without permission, is a
sentence too. Nothing here hides a fault of the program itself.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from cli.output import one_paragraph, say

FAILED, INTERRUPTED = 1, 130
ENDING = (signal.SIGTERM, signal.SIGHUP)
DROP_S = 1.0  # in which an interrupted command removes unfinished files; then the doctor has to
# Errors of these numbers are stdout's if they name no file.
OF_STDOUT = (errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EIO, errno.EFBIG)
STREAMS = ((os.O_WRONLY, "stdin", "r"), (os.O_RDONLY, "stdout", "w"), (os.O_RDWR, "stderr", "w"))


class Interrupted(click.ClickException):
    """Ends a command that Ctrl-C interrupted; its message says what was done."""

    exit_code = INTERRUPTED


@contextmanager
def if_interrupted(outcome: str) -> Iterator[None]:
    """Say what came of the work within the block, if Ctrl-C ends it."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort) as error:
        raise Interrupted(outcome) from error


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Let SIGTERM, and the SIGHUP of a closed terminal, unwind the block as Ctrl-C does.

    The command ends with 128 and the signal's number, as a shell has it. A signal that is ignored,
    as by nohup, or has a handler, keeps what it has.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [one for one in ENDING if signal.getsignal(one) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def within(most_s: float, work: Callable[[], object]) -> None:
    """Do some last work of a process that ends, which waits for it no longer than this."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(most_s)


def exit_code(command: Callable[[], object]) -> int:
    """Run a command of click's, say how it ended, and return its exit code."""
    open_streams()
    code = _ended(command)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _refused_by_system(error)
        _drop_output()
    return code


def _ended(command: Callable[[], object]) -> int:
    try:
        code = command()  # click returns a code for --help and the like; a verb returns nothing
    except Interrupted as interrupted:
        say(f"Interrupted. {interrupted.message}")
        return INTERRUPTED
    except click.ClickException as error:
        told = StringIO()
        error.show(told)
        say(told.getvalue().rstrip("\n"))
        return error.exit_code
    except click.Abort:
        say("Interrupted.")
        return INTERRUPTED
    except SystemExit as ended:
        code = ended.code
    except OSError as error:
        return _refused_by_system(error)
    return code if isinstance(code, int) else 0


def _refused_by_system(error: OSError) -> int:
    """Say what the system refused; nothing if whoever reads our output has left."""
    if error.errno == errno.EPIPE:
        _drop_output()
    else:
        say(one_paragraph(f"Error: {of_system(error)}"))
    return FAILED


def of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, str | bytes):
        return f"{os.fsdecode(error.filename)}: {reason}."
    if error.errno in OF_STDOUT:
        return f"Can't write to stdout: {reason}."
    return f"The system refuses: {reason}."


def _drop_output() -> None:
    """Discard what could not be written, which Python would try to write again when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_streams() -> None:
    """Open closed standard streams, lest a file that is opened gets the number of stdout.

    After `>&-` what is printed would go into that file. stdin and stdout then fail as they should
    when they are used; stderr is nothing but talk.
    """
    for number, (mode, name, direction) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, direction, closefd=False))
    if isinstance(sys.stdout, TextIOWrapper):  # an odd encoding must not refuse a name
        sys.stdout.reconfigure(errors="backslashreplace")
