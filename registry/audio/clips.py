"""Reference clips: an untrusted file in, a checked and conditioned clip with a report on it out.

Nothing here parses audio: a short-lived child (decoder.py) does, under limits, and may crash or
stop half-way. It knows nothing of the database, of names or of HTTP.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import BinaryIO

import numpy as np
from pydantic import TypeAdapter

from registry.audio.decoding.confinement import LAYERS
from registry.audio.report import Refused, Report
from registry.audio.wave import IEEE_FLOAT, wave_file

SAMPLE_RATE = 24_000
SAMPLE_BYTES = 4
REPORT_BYTES = 64 * 1024
PADDING_S = 1.0  # more than a lossy codec adds to a clip of the greatest length
COMPLAINT_BYTES, COMPLAINT_LENGTH = 64 * 1024, 300
CRASHED = "The clip could not be decoded: reading it crashed, or took too much time or memory."
PACKAGES = str(Path(__file__).parents[2])
START = """import sys
from ast import literal_eval
sys.path[:] = literal_eval(sys.argv.pop(1))
from registry.audio.decoder import main
main(sys.argv[1:])"""
ANSWER: TypeAdapter[Report | Refused] = TypeAdapter(Report | Refused)


class ClipRefused(ValueError):
    """Raised for bytes that can't be a reference clip; `code` is stable, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class DecoderUnavailable(RuntimeError):
    """Raised if the child that opens clips does not start; the message says why."""


@dataclass(frozen=True)
class Answer:
    """The output of a child up to its end, or to its kill."""

    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class ClipLimits:
    """How long a clip may play, and how long the child may take on the clock; all in seconds."""

    min_s: float = 1.0
    max_s: float = 60.0
    wall_s: float = 10.0  # from when it is ready to read, for a slow start is no clip's fault
    start_s: float = 30.0


@dataclass(frozen=True)
class ReferenceClip:
    """A clip that passed every check.

    Peak and clipping are over all channels as uploaded, DC is of their mean. `conditioned_wav` is
    what the model hears: mono float32 at SAMPLE_RATE, of the channels that carry the voice, without
    silent edges and what is below 60 Hz. `rms_dbfs` is its level before `gain_db` brought it to
    that of any other; `speech_s` is how long it plays, pauses inside included.
    """

    sha256: str  # of the bytes as uploaded
    size: int  # the same bytes, counted
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


def read_clip(clip: BinaryIO, sha256: str, limits: ClipLimits) -> ReferenceClip:
    """Decode, check and condition a clip in a child of its own, within the limits.

    The child reads the file itself, from where it stands; its `sha256` is for the report. Raises
    ClipRefused for anything wrong with the clip, DecoderUnavailable if there is no child.
    """
    most = REPORT_BYTES + int(limits.max_s * SAMPLE_RATE + 1) * SAMPLE_BYTES
    report, pcm = understood(converse(program(limits), clip, limits, most), limits)
    wav = wave_file(pcm, SAMPLE_RATE, IEEE_FLOAT, bits=8 * SAMPLE_BYTES)
    advice = (*report.notes, *warnings(report))
    shown = asdict(report)
    for name in ("notes", "damaged_packets", "samples"):
        del shown[name]
    size = os.fstat(clip.fileno()).st_size
    return ReferenceClip(sha256=sha256, size=size, warnings=advice, conditioned_wav=wav, **shown)


def fence_of_decoder(limits: ClipLimits) -> str:
    """Say how the child is confined on this system, as a sentence without its full stop."""
    try:
        lacking = layers_lacking(limits)
    except DecoderUnavailable as error:
        return str(error).rstrip(".")
    without = f", without {', '.join(lacking)}" if lacking else " in every layer"
    return f"The program that opens clips is confined{without}"


def layers_lacking(limits: ClipLimits) -> list[str]:
    """Name the LAYERS that this system refuses; raise DecoderUnavailable if no child starts."""
    missing, _ = started(converse(program(limits), subprocess.DEVNULL, limits, REPORT_BYTES))
    return [LAYERS[name] for name in missing]


def program(limits: ClipLimits) -> list[str]:
    arguments = map(str, (limits.min_s, limits.max_s, SAMPLE_RATE, os.getpid()))
    return [sys.executable, "-I", "-c", START, ascii(import_path()), *arguments]


def import_path() -> list[str]:
    """Return where this process finds packages; -I hides those of PYTHONPATH or a user's site."""
    return [PACKAGES, *(entry for entry in sys.path if os.path.isabs(entry))]


def understood(answer: Answer, limits: ClipLimits) -> tuple[Report, bytes]:
    """Return the report and the PCM of a child's answer, which may be cut short.

    Raises what read_clip raises. A clip that took the child over can make it answer anything, so
    all of it is checked.
    """
    line, _, pcm = started(answer)[1].partition(b"\n")
    try:
        found = ANSWER.validate_json(line)
    except ValueError:
        raise ClipRefused("audio-undecodable", CRASHED) from None
    if isinstance(found, Refused):
        raise ClipRefused(found.code, found.message)
    if not is_sound(found, pcm, limits):
        raise ClipRefused("audio-undecodable", CRASHED)
    return found, pcm


def started(answer: Answer) -> tuple[list[str], bytes]:
    """Return which of LAYERS the child lacks, by its first line, and the rest of its answer.

    Raises DecoderUnavailable if there is no such line.
    """
    line, end, rest = answer.stdout.partition(b"\n")
    missing = line.decode(errors="replace").split()
    if not end or not LAYERS.keys() >= set(missing):
        raise DecoderUnavailable(
            f"The program that opens clips does not start: {last_word(answer)}."
        )
    return missing, rest


def is_sound(report: Report, pcm: bytes, limits: ClipLimits) -> bool:
    """Tell whether the sound is the one that is reported, and one that the model may hear."""
    seconds, longest = report.samples / SAMPLE_RATE, limits.max_s + PADDING_S
    return (
        len(pcm) == report.samples * SAMPLE_BYTES
        and 0 < seconds <= limits.max_s
        and abs(report.speech_s - seconds) < 1e-5
        and 0 < report.duration_s <= longest
        and bool((np.abs(np.frombuffer(pcm, "<f4")) <= 1).all())  # which is false for NaN, too
    )


def last_word(answer: Answer) -> str:
    """Return the last line on stderr, where Python names the error; it may come from anywhere."""
    lines = answer.stderr.decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it did not answer")
    return "".join(c if c.isprintable() else "?" for c in said[:COMPLAINT_LENGTH]).rstrip(".")


def warnings(report: Report) -> Iterator[str]:
    """Yield a sentence for each thing that makes a worse voice but is no reason to refuse."""
    if not 3.0 <= report.duration_s <= 30.0:
        yield f"The clip lasts {report.duration_s:.1f} s; 3 to 30 s make the best voice."
    if report.clipped_fraction > 0.05:
        yield f"{report.clipped_fraction:.0%} of the samples are clipped; record at a lower level."
    if abs(report.dc_offset) > 0.1:
        yield f"A constant offset of {report.dc_offset:.2f} was removed; check the microphone."
    if report.rms_dbfs < -40.0:
        yield f"The clip is quiet ({report.rms_dbfs:.0f} dBFS); speak closer to the microphone."
    if report.sample_rate < 16_000:
        yield f"The sample rate is {report.sample_rate:,} Hz; 16,000 Hz or more sounds better."
    if report.damaged_packets:
        yield f"The clip is damaged: {report.damaged_packets} of its packets were left out."


def converse(command: list[str], stdin: BinaryIO | int, limits: ClipLimits, most: int) -> Answer:
    """Run a program that says a word when it is ready to read `stdin` by itself, and answers.

    Its whole session is killed once it has answered, with at most `most` bytes; or before, its
    answer cut short, if it is not ready in `start_s`, or has not answered `wall_s` after that.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:  # no such interpreter, or no memory, process or descriptor left
        return Answer(b"", str(error).encode())
    with child:
        try:
            if not says_a_word(child, limits.start_s):
                return Answer(b"", complaint(child))
            with killed_after(limits.wall_s, child):
                return hear(child, most)
        finally:
            end_session(child.pid)


def says_a_word(child: subprocess.Popen[bytes], start_s: float) -> bool:
    """Tell whether anything can be read from the child in `start_s`, its end included."""
    assert child.stdout
    waiting = select.poll()
    waiting.register(child.stdout, select.POLLIN)
    return bool(waiting.poll(1000 * start_s))


def hear(child: subprocess.Popen[bytes], most: int) -> Answer:
    assert child.stdout
    return Answer(child.stdout.read(most), complaint(child))


def complaint(child: subprocess.Popen[bytes]) -> bytes:
    """Return what the child has said on stderr by now."""
    assert child.stderr
    os.set_blocking(child.stderr.fileno(), False)
    return child.stderr.read(COMPLAINT_BYTES) or b""


@contextmanager
def killed_after(seconds: float, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the child's session if the block takes longer."""
    alarm = Timer(seconds, end_session, [child.pid])
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
        alarm.join()


def environment() -> dict[str, str]:
    """Return the child's variables: where shared libraries are, and nothing that may hold keys.

    PyAV's wheels come with a GnuTLS that reads its settings as it is loaded, from a file that
    anybody may make: /tmp/vendor/etc/gnutls/config. It would wait for one that is a pipe.
    """
    found = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    found["GNUTLS_SYSTEM_PRIORITY_FILE"] = os.devnull
    return found | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def end_session(pid: int) -> None:
    """Kill a child not yet waited for, and its session; macOS answers EPERM if it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
