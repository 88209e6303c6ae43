"""Reference clips: untrusted bytes in, a checked and conditioned clip with a report on it out.

Nothing here parses audio: a short-lived child (decode.py) does, under limits, and may crash or stop
half-way. It knows nothing of the database, of names or of HTTP.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from registry.encode import IEEE_FLOAT, wave_file
from registry.files import sha256_of

SAMPLE_RATE = 24_000
SAMPLE_BYTES = 4
REPORT_BYTES = 64 * 1024
COMPLAINT_BYTES, COMPLAINT_LENGTH = 64 * 1024, 300
CRASHED = "The clip could not be decoded: reading it crashed, or took too much time or memory."
PACKAGES = str(Path(__file__).parents[1])
START = """import sys
from ast import literal_eval
sys.path[:] = literal_eval(sys.argv.pop(1))
from registry.decode import main
main(sys.argv[1:])"""


class ClipRefused(ValueError):
    """The bytes cannot be a reference clip: `code` is stable, the message is for the person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class DecoderUnavailable(RuntimeError):
    """The child that opens clips does not start, which is no clip's fault; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What a child wrote before it ended, or was ended."""

    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class ClipLimits:
    """How long a clip may play, and how long reading one may take on the clock; all in seconds."""

    min_s: float = 1.0
    max_s: float = 60.0
    wall_s: float = 10.0


@dataclass(frozen=True)
class ReferenceClip:
    """A clip that passed every check.

    Peak and clipping are over all channels as uploaded, DC is of their mean. `conditioned_wav` is
    what the model hears: mono float32 at SAMPLE_RATE, of the channels that carry the voice, without
    silent edges and what is below 60 Hz. `rms_dbfs` is its level before `gain_db` brought it to
    that of any other; `speech_s` is how long it plays, pauses inside included.
    """

    sha256: str  # of the bytes as uploaded
    media_type: str
    sample_rate: int
    channels: int
    duration_s: float
    peak_dbfs: float
    rms_dbfs: float
    clipped_fraction: float
    dc_offset: float
    speech_s: float
    gain_db: float
    warnings: tuple[str, ...]
    conditioned_wav: bytes


def read_clip(data: bytes, limits: ClipLimits) -> ReferenceClip:
    """Decode, check and condition a clip in a child of its own; blocks for `limits.wall_s` at most.

    Raises ClipRefused for anything wrong with the clip, DecoderUnavailable if there is no child.
    """
    arguments = [str(limits.min_s), str(limits.max_s), str(SAMPLE_RATE)]
    command = [sys.executable, "-I", "-c", START, ascii(import_path()), *arguments]
    most = REPORT_BYTES + int(limits.max_s * SAMPLE_RATE + 1) * SAMPLE_BYTES
    report, pcm = understood(converse(command, data, limits.wall_s, most))
    advice = (*report.pop("notes"), *warnings(report, report.pop("damaged_packets")))
    wav = wave_file(pcm, SAMPLE_RATE, IEEE_FLOAT, bits=8 * SAMPLE_BYTES)
    return ReferenceClip(sha256=sha256_of(data), warnings=advice, conditioned_wav=wav, **report)


def import_path() -> list[str]:
    """Where this process finds its packages; -I hides what came by PYTHONPATH or a user's site."""
    return [PACKAGES, *(entry for entry in sys.path if os.path.isabs(entry))]


def understood(answer: Answer) -> tuple[dict[str, Any], bytes]:
    """The report and the PCM in a child's answer, whole or cut short; raises as read_clip does."""
    if not answer.stdout.startswith(b"\n"):
        raise DecoderUnavailable(
            f"The program that opens clips does not start: {last_word(answer)}."
        )
    line, _, pcm = answer.stdout[1:].partition(b"\n")
    try:
        message: dict[str, Any] = json.loads(line)
    except ValueError:
        raise ClipRefused("audio-undecodable", CRASHED) from None
    if "code" in message:
        raise ClipRefused(message["code"], message["message"])
    if len(pcm) != message.pop("samples") * SAMPLE_BYTES:
        raise ClipRefused("audio-undecodable", CRASHED)
    return message, pcm


def last_word(answer: Answer) -> str:
    """The last line of a complaint, where Python names the error; it may come from anywhere."""
    lines = answer.stderr.decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it did not answer")
    return "".join(c if c.isprintable() else "?" for c in said[:COMPLAINT_LENGTH]).rstrip(".")


def warnings(report: dict[str, Any], damaged_packets: int) -> Iterator[str]:
    """A sentence for each thing that makes a worse voice without being a reason to refuse."""
    duration_s, clipped = report["duration_s"], report["clipped_fraction"]
    if not 3.0 <= duration_s <= 30.0:
        yield f"The clip lasts {duration_s:.1f} s; 3 to 30 s make the best voice."
    if clipped > 0.05:
        yield f"{clipped:.0%} of the samples are clipped; record at a lower level."
    if abs(report["dc_offset"]) > 0.1:
        yield f"A constant offset of {report['dc_offset']:.2f} was removed; check the microphone."
    if report["rms_dbfs"] < -40.0:
        yield f"The clip is quiet ({report['rms_dbfs']:.0f} dBFS); speak closer to the microphone."
    if report["sample_rate"] < 16_000:
        yield f"The sample rate is {report['sample_rate']:,} Hz; 16,000 Hz or more sounds better."
    if damaged_packets:
        yield f"The clip is damaged: {damaged_packets} of its packets were left out."


def converse(command: list[str], data: bytes, wall_s: float, most: int) -> Answer:
    """Run a program that reads all of `data` before it answers; its answer, at most `most` bytes.

    Its whole session is killed once it has answered, or after `wall_s` with its answer cut short.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:  # no such interpreter, or no memory, process or descriptor left
        return Answer(b"", str(error).encode())
    with child:
        alarm = Timer(wall_s, end_session, [child.pid])
        alarm.start()
        try:
            return exchange(child, data, most)
        finally:
            alarm.cancel()
            alarm.join()
            end_session(child.pid)


def exchange(child: subprocess.Popen[bytes], data: bytes, most: int) -> Answer:
    assert child.stdin and child.stdout and child.stderr
    with suppress(BrokenPipeError), child.stdin:
        child.stdin.write(data)
    answer = child.stdout.read(most)
    os.set_blocking(child.stderr.fileno(), False)  # what it says is taken, not waited for
    return Answer(answer, child.stderr.read(COMPLAINT_BYTES) or b"")


def environment() -> dict[str, str]:
    """Nothing of the server's own, which may hold keys, but where shared libraries are found."""
    found = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    return found | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def end_session(pid: int) -> None:
    """Kill a child not yet waited for, and its session; macOS answers EPERM if it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
