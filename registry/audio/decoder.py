"""The program that opens untrusted clips:

    python -m registry.audio.decoder MIN_S MAX_S RATE PARENT < clip

stdout: a line once it is ready, with the layers of its fence that are refused here, so usually
empty; one JSON line (a report, or a refusal {"code", "message"}); then the conditioned clip as
little-endian float32, mono, RATE Hz. It gives up files, sockets, memory and time before it reads a
byte, and ends with its PARENT.
"""

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict

import av
import av.logging

from registry.audio.conditioning import Conditioned, condition, decibels
from registry.audio.decoding.confinement import die_with, limit_self
from registry.audio.decoding.container import sound_of
from registry.audio.decoding.track import record, told
from registry.audio.report import Bounds, Refusal, Refused, Report

SILENT_DBFS = -60.0
NOTED_EDGE_S, NOTED_RUMBLE_DB = 1.0, 6.0


def rehearse(bounds: Bounds) -> None:
    """Decode a sound of our own, so that nothing is left to import once files cannot be opened."""
    av.logging.set_level(av.logging.PANIC)
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, bounds.rate, bounds.rate, 1, 8)
    noise = b"\0\x80\xff" * (bounds.rate // 10)
    data = b"data" + struct.pack("<I", len(noise)) + noise
    wav = b"RIFF" + struct.pack("<I", 28 + len(data)) + b"WAVE" + layout + data
    examine(wav, Bounds(0.1, 1.0, bounds.rate))


def main(arguments: list[str]) -> None:
    """Confine this process, then read a clip from stdin and answer on stdout."""
    min_s, max_s, rate, parent = arguments
    bounds = Bounds(float(min_s), float(max_s), int(rate))
    die_with(int(parent))
    rehearse(bounds)
    say(" ".join(limit_self(int(parent))).encode() + b"\n")
    answer: Report | Refused
    try:
        answer, pcm = examine(sys.stdin.buffer.read(), bounds)
    except Refusal as refusal:
        answer, pcm = Refused(refusal.code, str(refusal)), b""
    say(json.dumps(asdict(answer)).encode() + b"\n" + pcm)


def say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def examine(data: bytes, bounds: Bounds) -> tuple[Report, bytes]:
    """Return the report on a clip, and it as mono float32 PCM at `bounds.rate`; raise Refusal."""
    sound = sound_of(data)
    recording = record(sound, bounds)
    folded = recording.folded()
    made = condition(folded.samples, bounds.rate, round(bounds.max_s * bounds.rate))
    check_level(made.rms_dbfs, recording.dc_offset)
    speech_s = len(made.samples) / bounds.rate
    check_speech(speech_s, len(folded.samples) / bounds.rate, bounds)
    report = Report(
        media_type=sound.media_type,
        sample_rate=recording.sample_rate,
        channels=recording.channels,
        duration_s=round(recording.duration_s, 6),
        peak_dbfs=round(decibels(recording.peak), 2),
        rms_dbfs=round(made.rms_dbfs, 2),
        clipped_fraction=round(recording.clipped / recording.values, 6),
        dc_offset=round(recording.dc_offset, 6) + 0.0,
        damaged_packets=recording.damaged,
        speech_s=round(speech_s, 6),
        gain_db=round(made.gain_db, 2),
        notes=[*recording.notes, *folded.notes, *notes_on(made, folded.samples.size, bounds)],
        samples=len(made.samples),
    )
    return report, made.samples.astype("<f4").tobytes()


def notes_on(made: Conditioned, samples: int, bounds: Bounds) -> Iterator[str]:
    """Yield a sentence for each thing that was done and that a person may not expect."""
    lead_s, tail_s = made.span.start / bounds.rate, (samples - made.span.stop) / bounds.rate
    if max(lead_s, tail_s) >= NOTED_EDGE_S:
        yield f"Silence was cut off: {lead_s:.1f} s before the speech, {tail_s:.1f} s after it."
    if made.rumble_dbfs >= made.rms_dbfs - NOTED_RUMBLE_DB:
        yield f"Rumble below the voice ({made.rumble_dbfs:.0f} dBFS) was filtered out."


def check_speech(speech_s: float, whole_s: float, bounds: Bounds) -> None:
    """Refuse a clip of which too little is left once its silent edges are cut off."""
    if speech_s < min(bounds.min_s, whole_s):
        found = f"{told(speech_s, bounds.min_s)} s of it are more than silence"
        needed = f"at least {bounds.min_s:g} s are needed"
        raise Refusal("audio-too-short", f"The clip is too short: {found}, {needed}.")


def check_level(rms_dbfs: float, dc_offset: float) -> None:
    """Refuse a clip with nothing to hear in it; the RMS is that of its speech, before the gain."""
    if rms_dbfs >= SILENT_DBFS:
        return
    if decibels(abs(dc_offset)) >= SILENT_DBFS:
        raise Refusal("audio-dc-only", f"The clip is the constant {dc_offset:.3f}, not sound.")
    level = f"{rms_dbfs:.1f} dBFS; at least {SILENT_DBFS:g} dBFS is needed"
    raise Refusal("audio-silent", f"The clip is silent: {level}.")


if __name__ == "__main__":
    main(sys.argv[1:])
