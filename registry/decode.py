"""The child program that opens untrusted clips: python -m registry.decode MIN_S MAX_S RATE < clip

stdout: an empty line once it is ready, one JSON line (a report, or a refusal {"code", "message"}),
then the conditioned clip as little-endian float32, mono, RATE Hz. It gives up files, sockets,
memory and time before it reads a byte.
"""

import ctypes
import json
import math
import resource
import struct
import sys
from dataclasses import asdict, dataclass, field

import av
import av.error
import av.logging
import numpy as np
import soxr
from av import AudioFrame
from numpy.typing import NDArray

from registry.clip_report import Bounds, Refusal, Report
from registry.conditioning import speech_span
from registry.container import (
    Samples,
    audio_stream,
    container_of,
    frames_of,
    opened,
    samples_of,
)

MEMORY_BYTES = 1 << 30
LIMITS = {
    resource.RLIMIT_CPU: 5,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 3,  # stdio: any open() or socket() would need a fourth
}
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

LOWEST_HZ, HIGHEST_HZ, MOST_CHANNELS = 4_000, 384_000, 32
CLIPPED, TOO_LOUD, SILENT_DBFS = 0.9999, 4.0, -60.0
DAMAGED_SHARE = 0.05


@dataclass
class Recording:
    """What is decoded so far: mono blocks at the clip's own rate, counts over all channels."""

    sample_rate: int = 0
    channels: int = 0
    frames: int = 0
    peak: float = 0.0
    clipped: int = 0
    values: int = 0
    total: float = 0.0  # of the mono samples
    damaged: int = 0
    blocks: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate

    @property
    def dc_offset(self) -> float:
        return self.total / self.frames

    def add(self, samples: Samples) -> None:
        """Count a block of shape (channels, frames), and fold it to mono by the mean."""
        level = np.abs(samples)
        self.peak = max(self.peak, float(level.max(initial=0.0)))
        self.clipped += int(np.count_nonzero(level >= CLIPPED))
        self.values += samples.size
        self.frames += samples.shape[1]
        mono = samples.mean(axis=0)
        self.total += float(mono.sum())
        self.blocks.append(mono.astype(np.float32))


def rehearse(bounds: Bounds) -> None:
    """Decode a sound of our own, so that nothing is left to import once files cannot be opened."""
    av.logging.set_level(av.logging.PANIC)
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, bounds.rate, bounds.rate, 1, 8)
    noise = b"\0\x80\xff" * (bounds.rate // 10)
    data = b"data" + struct.pack("<I", len(noise)) + noise
    wav = b"RIFF" + struct.pack("<I", 28 + len(data)) + b"WAVE" + layout + data
    condition(wav, Bounds(0.1, 1.0, bounds.rate))


def limit_self() -> None:
    """Give up what decoding does not need: files, sockets, children, more memory or time.

    No descriptor beyond stdio can be opened: no file, no socket, on macOS too. Linux alone takes
    the limit on address space, and there the process also moves to an empty network namespace.
    Where that is refused (by Docker's seccomp profile, say) the other limits stand without it.
    """
    if sys.platform == "linux":
        lower(resource.RLIMIT_AS, MEMORY_BYTES)
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    for what, most in LIMITS.items():
        lower(what, most)


def lower(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def main(arguments: list[str]) -> None:
    bounds = Bounds(float(arguments[0]), float(arguments[1]), int(arguments[2]))
    rehearse(bounds)
    limit_self()
    say(b"\n")
    answer: dict[str, object]
    try:
        report, pcm = condition(sys.stdin.buffer.read(), bounds)
        answer = asdict(report)
    except Refusal as refusal:
        answer, pcm = {"code": refusal.code, "message": str(refusal)}, b""
    say(json.dumps(answer).encode() + b"\n" + pcm)


def say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def condition(data: bytes, bounds: Bounds) -> tuple[Report, bytes]:
    """The report on a clip, and the clip as mono float32 PCM at `bounds.rate`; raises Refusal."""
    demuxer, media_type = container_of(data)
    recording = record(data, demuxer, bounds)
    check_length(recording, bounds)
    whole = resample(recording, bounds.rate)
    span = speech_span(whole, bounds.rate)
    conditioned = whole[span.start : span.stop]
    rms_dbfs = dbfs(math.sqrt(float(np.square(conditioned).mean(dtype=np.float64))))
    check_level(rms_dbfs, recording.dc_offset, recording.channels)
    speech_s = len(conditioned) / bounds.rate
    check_speech(speech_s, len(whole) / bounds.rate, bounds)
    report = Report(
        media_type=media_type,
        sample_rate=recording.sample_rate,
        channels=recording.channels,
        duration_s=round(recording.duration_s, 6),
        peak_dbfs=round(dbfs(recording.peak), 2),
        rms_dbfs=round(rms_dbfs, 2),
        clipped_fraction=round(recording.clipped / recording.values, 6),
        dc_offset=round(recording.dc_offset, 6) + 0.0,
        damaged_packets=recording.damaged,
        speech_s=round(speech_s, 6),
        samples=len(conditioned),
    )
    return report, conditioned.astype("<f4").tobytes()


def record(data: bytes, demuxer: str, bounds: Bounds) -> Recording:
    """Decode until the end or until the longest duration is passed, whatever the header claims."""
    recording = Recording()
    with opened(data, demuxer) as container:
        for frame in frames_of(container, audio_stream(container)):
            if frame is None:
                recording.damaged += 1
                continue
            add_frame(recording, frame)
            if recording.duration_s > bounds.max_s:
                found = f"at least {recording.duration_s:.1f} s, {bounds.max_s:g} s are the most"
                raise Refusal("audio-too-long", f"The clip is too long: {found}.")
    if recording.damaged > DAMAGED_SHARE * len(recording.blocks):
        found = f"{recording.damaged} of its packets cannot be decoded"
        raise Refusal("audio-undecodable", f"The clip is damaged: {found}.")
    return recording


def add_frame(recording: Recording, frame: AudioFrame) -> None:
    """Check a frame and add it; a recording keeps one sample rate, its channels may change."""
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    if not LOWEST_HZ <= rate <= HIGHEST_HZ:
        taken = f"{LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz are taken"
        raise Refusal("audio-unsupported", f"The sample rate is {rate:,} Hz; {taken}.")
    if not 1 <= channels <= MOST_CHANNELS:
        found = f"{channels} channels; 1 to {MOST_CHANNELS} are taken"
        raise Refusal("audio-unsupported", f"The clip has {found}.")
    if rate != (recording.sample_rate or rate):
        found = f"from {recording.sample_rate:,} to {rate:,} Hz"
        raise Refusal("audio-undecodable", f"The sample rate changes {found} within the clip.")
    recording.sample_rate, recording.channels = rate, max(channels, recording.channels)
    samples = samples_of(frame)
    check_samples(samples, recording.duration_s, rate)
    recording.add(samples)


def check_samples(samples: Samples, start_s: float, rate: int) -> None:
    """Refuse a block that starts at `start_s` if a value is not finite, or far outside [-1, 1]."""
    bad = ~(np.abs(samples) <= TOO_LOUD)
    if not bad.any():
        return
    at = int(np.flatnonzero(bad.any(axis=0))[0])
    value = float(samples[bad[:, at], at][0])
    where = f"{start_s + at / rate:.3f} s"
    if not math.isfinite(value):
        raise Refusal("audio-not-finite", f"The sample at {where} is not a number ({value}).")
    found = f"{value:.4g}; audio lies between -1 and 1"
    raise Refusal("audio-too-loud", f"The sample at {where} is {found}.")


def check_length(recording: Recording, bounds: Bounds) -> None:
    if not recording.frames:
        raise Refusal("audio-empty", "The file holds no audio (0 samples).")
    if recording.duration_s < bounds.min_s:
        found = f"{recording.duration_s:.2f} s, at least {bounds.min_s:g} s are needed"
        raise Refusal("audio-too-short", f"The clip is too short: {found}.")


def check_speech(speech_s: float, whole_s: float, bounds: Bounds) -> None:
    """Refuse a clip of which too little is left once its silent edges are cut off."""
    if speech_s < min(bounds.min_s, whole_s):
        found = f"{speech_s:.2f} s of it are more than silence, at least {bounds.min_s:g} s"
        raise Refusal("audio-too-short", f"The clip is too short: {found} are needed.")


def check_level(rms_dbfs: float, dc_offset: float, channels: int) -> None:
    """Refuse a clip with nothing to hear in it; the RMS is that of the conditioned clip."""
    if rms_dbfs >= SILENT_DBFS:
        return
    if dbfs(abs(dc_offset)) >= SILENT_DBFS:
        raise Refusal("audio-dc-only", f"The clip is the constant {dc_offset:.3f}, not sound.")
    mixed = f" once its {channels} channels are mixed into one" if channels > 1 else ""
    level = f"{rms_dbfs:.1f} dBFS; at least {SILENT_DBFS:g} dBFS is needed"
    raise Refusal("audio-silent", f"The clip is silent{mixed}: {level}.")


def resample(recording: Recording, rate: int) -> NDArray[np.float32]:
    """The recording without its DC, at `rate` Hz; block by block, to be in memory but once."""
    stream = soxr.ResampleStream(recording.sample_rate, rate, 1, dtype="float32", quality="HQ")
    offset = np.float32(recording.dc_offset)
    parts = [stream.resample_chunk(block - offset) for block in recording.blocks]
    return np.concatenate([*parts, stream.resample_chunk(np.zeros(0, np.float32), last=True)])


def dbfs(level: float) -> float:
    """Decibels below full scale, where 1.0 is 0 dB and nothing is below -200 dB."""
    return 20.0 * math.log10(max(level, 1e-10))


if __name__ == "__main__":
    main(sys.argv[1:])
