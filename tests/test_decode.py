import json
import math
import os
import select
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import clips
import numpy as np
import pytest
from clips import made, tone
from uploading import converse, read_clip

from registry.audio.clips import (
    Answer,
    ClipLimits,
    ClipRefused,
    DecoderUnavailable,
    understood,
)
from registry.audio.report import Report

ROOT = Path(__file__).parents[1]
LIMITS = ClipLimits()
HASTY = ClipLimits(wall_s=0.5, start_s=2.0)
ENDLESS = "while True: pass"
READY = "import sys; print(flush=True); sys.stdin.buffer.read(); "


def refusal(data: bytes) -> ClipRefused:
    with pytest.raises(ClipRefused) as caught:
        read_clip(data, LIMITS)
    return caught.value


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def in_child(code: str, data: bytes = b"") -> str:
    """What a program that may import the registry and these tests prints."""
    where = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/support")))}
    done = subprocess.run(python(code), input=data, capture_output=True, env=where, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("magic", [b"fLaC", b"ID3", b"OggS", b"\0\0\0\x18ftyp", b"\x1aE\xdf\xa3"])
def test_a_right_beginning_before_rubbish_is_undecodable(magic):
    rubbish = magic + np.random.default_rng(1).bytes(20_000)
    assert refusal(rubbish).code == "audio-undecodable"


def pcm16(seconds: float = 2.0) -> bytes:
    return (tone(seconds)[0] * 32768).astype("<i2").tobytes()


@pytest.mark.parametrize("claimed", [0, 2**31, 2**32 - 1])
def test_a_false_size_in_a_wav_never_allocates_or_hangs(claimed):
    data = clips.raw_wav(pcm16(), claimed=claimed)
    assert read_clip(data, LIMITS).duration_s == 2.0


@pytest.mark.parametrize(
    ("rate", "channels"), [(0, 1), (1, 1), (2**31, 1), (24_000, 0), (24_000, 1024)]
)
def test_absurd_rates_and_channels_are_refused(rate, channels):
    refused = refusal(clips.raw_wav(pcm16(), rate, channels))
    assert refused.code in ("audio-unsupported", "audio-undecodable")


def test_a_forged_sample_count_in_a_flac_is_not_believed():
    data = bytearray(made("FLAC", "PCM_16"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    assert read_clip(bytes(data), LIMITS).duration_s == 2.0


LONG = {
    "an hour of FLAC": lambda: clips.file(np.zeros((1, 3600 * 24_000), np.float32), 24_000, "FLAC"),
    "an hour of Vorbis": lambda: clips.file(
        np.zeros((1, 3600 * 8_000), np.float32), 8_000, "OGG", "VORBIS"
    ),
}
MEASURED = """
import resource, sys
from registry.audio.clips import ClipLimits, ClipRefused, read_clip
try:
    read_clip(sys.stdin.buffer, "", ClipLimits())
except ClipRefused as refused:
    print(refused.code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_a_bomb_is_refused_within_its_time_and_in_little_memory(kind):
    data = LONG[kind]()
    code, peak_kib = in_child(MEASURED, data).split()
    assert code == "audio-too-long"
    assert int(peak_kib) // (1024 if sys.platform == "darwin" else 1) < 250 * 1024


DAMAGE = """
import json, os, sys
from random import Random
from damaged_clips import damaged
from registry.audio import decoder
data, bounds = sys.stdin.buffer.read(), decoder.Bounds(0.5, 60.0, 24000)
decoder.rehearse(bounds)
decoder.limit_self(os.getppid())
ends = []
parts = [data[: len(data) * i // 40] for i in range(40)]
for clip in [*parts, *(damaged([data], Random(i)) for i in range(60))]:
    try:
        report, pcm = decoder.examine(clip, bounds)
        ends.append("ok" if len(pcm) == 4 * report.samples else "wrong length")
    except decoder.Refusal as refusal:
        ends.append(refusal.code)
print(json.dumps(ends))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "codec"),
    [
        ("WAV", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("ogg", "libopus"),
        ("ipod", "aac"),
        ("ipod", "alac"),
        ("webm", "libopus"),
    ],
)
def test_damaged_clips_are_decoded_or_refused_and_nothing_else(format, codec):
    ends = json.loads(in_child(DAMAGE, made(format, codec)))
    assert len(ends) == 100
    assert all(end == "ok" or end.startswith("audio-") for end in ends), ends
    assert ends[0] == "audio-empty"


def test_a_recording_that_was_cut_off_is_taken_as_far_as_it_goes():
    data = clips.file(tone(4.0, 44_100), 44_100, "MP3", "MPEG_LAYER_III")
    clip = read_clip(data[: len(data) * 3 // 4], LIMITS)
    assert clip.duration_s == pytest.approx(3.0, abs=0.1)


CONFINED = """
import math, os, resource, socket, sys, time
from registry.audio.decoding import confinement
from registry.audio import decoder
confinement.filter_calls = lambda: True  # which would refuse to read the limits
decoder.rehearse(decoder.Bounds(1.0, 60.0, 24000))
started_s = math.ceil(time.process_time())
decoder.limit_self(os.getppid())
attempts = {
    "read": lambda: open("/etc/hosts"),
    "write": lambda: open("left-behind", "w"),
    "tcp": lambda: socket.socket(),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "pipe": os.pipe,
    "memory": lambda: bytearray(2 << 30),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(name, type(error).__name__)
print("cpu", resource.getrlimit(resource.RLIMIT_CPU)[0] - started_s)
print("core", resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


def test_the_child_can_open_no_file_and_no_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = dict(line.split() for line in in_child(CONFINED).splitlines())
    for attempt in ("read", "write", "tcp", "unix", "pipe"):
        assert refused[attempt] == "OSError"
    assert refused["cpu"] in ("5", "6") and refused["core"] == "0"  # a second may end in between
    if sys.platform == "linux":
        assert refused["memory"] == "MemoryError"
    assert list(tmp_path.iterdir()) == []


LEAVING = """
import os
from registry.audio.decoding import confinement
before = os.readlink("/proc/self/ns/net")
print(confinement.leave_network(), os.readlink("/proc/self/ns/net") != before)
"""


def test_the_child_has_a_network_of_its_own_where_the_kernel_lets_it():
    unshare = shutil.which("unshare")
    if (
        not unshare
        or subprocess.run([unshare, "-U", "-n", "true"], stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("this machine does not let a process leave its network namespace")
    assert in_child(LEAVING) == "True True\n"


def test_the_program_limits_itself_before_it_says_a_word(tmp_path):
    command = [sys.executable, "-m", "registry.audio.decoder", "1", "60", "24000", str(os.getpid())]
    piped = subprocess.run(command, input=b"text", cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert piped.stdout.startswith(b'\n{"code": "audio-unsupported"')
    with open(tmp_path / "answer", "w+b") as file:
        to_file = subprocess.run(
            command, input=b"text", cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL
        )
    assert to_file.returncode != 0
    assert (tmp_path / "answer").read_bytes() == b""


def test_the_child_sees_nothing_of_the_servers_environment(monkeypatch):
    monkeypatch.setenv("REGISTRY_SECRET", "canary")
    answer = converse(python("import os; print(os.environ)"), b"", LIMITS, 100_000).stdout
    assert b"OMP_NUM_THREADS" in answer
    assert b"canary" not in answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "fate",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "raise MemoryError",
        "x = [0]\nwhile True: x += x",
        ENDLESS,
        "print('{\"media_type\": ')",
        "print('{\"samples\": 10}'); print('short')",
    ],
)
def test_a_child_that_ends_badly_is_a_clip_that_cannot_be_decoded(fate):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
    limits = replace(LIMITS, wall_s=2.0) if fate is ENDLESS else LIMITS
    answer = converse(python(f"{limited}{READY}\n{fate}"), b"clip", limits, 1000)
    with pytest.raises(ClipRefused) as caught:
        understood(answer, LIMITS)
    assert caught.value.code == "audio-undecodable"


REPORT = Report(
    media_type="audio/wav",
    sample_rate=24_000,
    channels=1,
    duration_s=2.0,
    peak_dbfs=-8.0,
    rms_dbfs=-11.0,
    clipped_fraction=0.0,
    dc_offset=0.0,
    damaged_packets=0,
    speech_s=1.0,
    gain_db=-9.0,
    notes=["Rumble below the voice (-20 dBFS) was filtered out."],
    samples=24_000,
)
PCM = np.zeros(24_000, "<f4")


def answered(line: str | bytes, pcm: bytes = PCM.tobytes()) -> Answer:
    line = line.encode() if isinstance(line, str) else line
    return Answer(b"\n" + line + b"\n" + pcm, b"")


def test_a_report_is_understood():
    assert understood(answered(json.dumps(asdict(REPORT))), LIMITS) == (REPORT, PCM.tobytes())


FORGED = [
    *({"media_type": value} for value in ("text/html", "audio/wav; x", "audio/midi", "", 1, None)),
    *({"sample_rate": value} for value in (0, -1, 3_999, 384_001, 24_000.5, "24000", True, None)),
    *({"channels": value} for value in (0, 33, 1 << 64, "1", [1])),
    *({"duration_s": value} for value in (-1, 0, 62, 1e308, math.nan, math.inf, "2", {})),
    *({"peak_dbfs": value} for value in (-math.inf, math.nan, -201, 1e9, "loud")),
    *({"rms_dbfs": value} for value in (-math.inf, 1e9, None)),
    *({"clipped_fraction": value} for value in (-0.1, 1.1, math.nan)),
    *({"dc_offset": value} for value in (-5, 5, math.nan)),
    *({"damaged_packets": value} for value in (-1, 1 << 70, 0.5, "none")),
    *({"speech_s": value} for value in (-1, 0.9, 1.1, 1e308, math.nan)),
    *({"gain_db": value} for value in (-1e9, math.inf)),
    *({"notes": value} for value in ("text", [1], [""], ["x" * 501], ["x"] * 11, [["x"]])),
    *({"notes": [f"a{hidden}b"]} for hidden in ("\n", "\x1b]52;", "\0", "\u202e", "\ud800")),
    *({"samples": value} for value in (0, -1, 23_999, 24_001, 1 << 64, 24_000.5, "24000")),
    {"sha256": "0" * 64},
    {"conditioned_wav": "x"},
    {"code": "audio-silent"},
]


@pytest.mark.parametrize("forged", FORGED, ids=repr)
def test_a_report_that_no_decoder_writes_is_not_believed(forged):
    line = json.dumps(asdict(REPORT) | forged)
    with pytest.raises(ClipRefused, match="could not be decoded"):
        understood(answered(line), LIMITS)


@pytest.mark.parametrize("name", asdict(REPORT))
def test_a_report_that_lacks_a_field_is_not_believed(name):
    report = asdict(REPORT)
    del report[name]
    with pytest.raises(ClipRefused, match="could not be decoded"):
        understood(answered(json.dumps(report)), LIMITS)


@pytest.mark.parametrize(
    "line",
    [
        *("[" * 60_000, '{"a":' * 10_000, '{"notes":' + "[" * 60_000),
        *("", "null", "1", "[]", '""', "{}", "NaN", "{", b"\xff\xfe", b"\0" * 100),
        json.dumps({"code": "internal-error", "message": "no"}),
        json.dumps({"code": "text/html", "message": "no"}),
        json.dumps({"code": ["audio-silent"], "message": "no"}),
        json.dumps({"code": "audio-silent"}),
        json.dumps({"code": "audio-silent", "message": ""}),
        json.dumps({"code": "audio-silent", "message": "x" * 501}),
        json.dumps({"code": "audio-silent", "message": "\x1b[31m"}),
        json.dumps({"code": "audio-silent", "message": "no", "status": 200}),
        '{"code": "audio-silent", "message": "\\ud800"}',
    ],
    ids=lambda line: repr(line[:60]),
)
def test_a_line_that_no_decoder_writes_is_a_clip_that_cannot_be_decoded(line):
    with pytest.raises(ClipRefused, match="could not be decoded") as caught:
        understood(answered(line), LIMITS)
    assert caught.value.code == "audio-undecodable"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.01, -3e38])
def test_sound_that_no_decoder_makes_never_reaches_the_model(value):
    pcm = PCM.copy()
    pcm[100] = value
    with pytest.raises(ClipRefused, match="could not be decoded"):
        understood(answered(json.dumps(asdict(REPORT)), pcm.tobytes()), LIMITS)


def test_a_sound_of_another_length_than_the_limit_is_not_believed():
    with pytest.raises(ClipRefused, match="could not be decoded"):
        understood(answered(json.dumps(asdict(REPORT))), replace(LIMITS, max_s=0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (python("import no_such_module"), "ModuleNotFoundError: No module named 'no_such_module'"),
        (python("import sys; sys.exit('\\x1b[31mno\\n\\n')"), "?[31mno"),
        (python("import os; os.abort()"), "it did not answer"),
        (python(f"import sys; sys.stderr.write('x' * 10**7)\n{ENDLESS}"), "x" * 300),
        (["/no/such/python"], "No such file or directory"),
        ([""], ""),
    ],
)
def test_a_child_that_cannot_start_is_not_the_clips_fault(command, why):
    with pytest.raises(DecoderUnavailable, match="The program that opens clips does not") as caught:
        understood(converse(command, b"clip", HASTY, 1000), LIMITS)
    assert why in str(caught.value) and len(str(caught.value)) < 400


READS = """
import json, os, sys
from registry.audio.clips import ClipLimits, read_clip
clip = open(sys.argv[1], "rb")
{before}
duration_s = read_clip(clip, "", ClipLimits()).duration_s
os.write(int(sys.argv[2]), str(duration_s).encode())
"""
SITE = [path for path in sys.path if path.endswith("-packages")]
ODD = {
    "packages on PYTHONPATH alone": ("", {}),
    "no standard streams": ("for fd in 0, 1, 2: os.close(fd)", {}),
    "no working directory": ("os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", {}),
    "a safe path": ("", {"PYTHONSAFEPATH": "1"}),
    "a relative path": ("sys.path.insert(0, ''); sys.path.insert(1, 'lib')", {}),
    "a long TMPDIR": ("", {"TMPDIR": "/" + "t" * 200}),
    "a TMPDIR that is not ASCII": ("", {"TMPDIR": "/tmp/Zoë"}),
    "a home that is not there": ("", {"HOME": "/nowhere"}),
    "bytes that are no text": ("sys.path.append('/\\udcff')", {}),
    "another locale": ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_the_child_starts_whatever_the_environment(kind, tmp_path):
    """In an interpreter that has no packages of its own, and no variables but these."""
    before, variables = ODD[kind]
    clip = tmp_path / "clip"
    clip.write_bytes(clips.file(tone(), 24_000))
    interpreter = os.path.realpath(sys.executable)
    code = READS.format(before=before)
    found = {"PYTHONPATH": os.pathsep.join([str(ROOT), *SITE])} | variables
    reader, writer = os.pipe()
    with open(reader, "rb") as answer:
        command = [interpreter, "-c", code, str(clip), str(writer)]
        done = subprocess.run(
            command, env=found, cwd=tmp_path, pass_fds=[writer], capture_output=True
        )
        os.close(writer)
        assert answer.read() == b"2.0", done.stderr.decode()


@pytest.mark.parametrize("reads", ["", "sys.stdin.buffer.read(10)"])
def test_a_child_that_stops_reading_is_killed_in_time(reads):
    code = f"import sys; print(flush=True)\n{reads}\n{ENDLESS}"
    assert converse(python(code), bytes(1 << 20), HASTY, 1000).stdout == b"\n"


@pytest.mark.slow
def test_the_time_that_a_child_takes_to_start_is_not_the_clips():
    slow = f"import time; time.sleep(1.5); {READY} print('{{}}')"
    limits = replace(LIMITS, wall_s=1.0)
    assert converse(python(slow), b"clip", limits, 1000).stdout == b"\n{}\n"


def test_an_endless_answer_is_cut_at_its_limit():
    flood = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    assert converse(python(flood), b"", LIMITS, 100_000).stdout == b"x" * 100_000


ORPHAN = "exec 3> {fifo}; (while true; do :; done) {stdout} & echo 1"


@pytest.mark.slow
@pytest.mark.parametrize("stdout", ["", "> /dev/null"])
def test_what_a_child_leaves_running_is_killed_with_it(stdout, tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", ORPHAN.format(fifo=fifo, stdout=stdout)]  # it starts in no time
    assert converse(command, b"", replace(LIMITS, wall_s=2.0), 1000).stdout == b"1\n"
    assert select.select([reader], [], [], 60)[0], "the orphan still holds the other end"
    assert os.read(reader, 1) == b""
    os.close(reader)


LEFT = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryFile
from registry.audio.clips import ClipLimits, read_clip
sound = sys.stdin.buffer.read()
before = len(os.listdir("/dev/fd"))
for data in (sound, b"text"):
    with TemporaryFile() as file, ThreadPoolExecutor(1) as pool:
        file.write(data)
        file.seek(0)
        error = pool.submit(read_clip, file, "", ClipLimits()).exception()
        assert (error is None) == (data is sound), error
assert len(os.listdir("/dev/fd")) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nothing")
"""


def test_no_descriptor_and_no_process_is_left_behind():
    """In a process of its own: this one may have children of other tests."""
    assert in_child(LEFT, clips.file(tone(), 24_000)) == "nothing\n"
