"""Decodes the track of a file that holds the clip, and checks its length, damage and ending."""

from itertools import pairwise

from av import AudioFrame

from registry.audio.conditioning import decibels
from registry.audio.decoding.chain import Kind, kinds_in_row
from registry.audio.decoding.container import (
    Sound,
    frames_of,
    opened,
    promised_s,
    samples_of,
    track,
    tracks_of,
)
from registry.audio.decoding.recording import Recording
from registry.audio.decoding.riff import Wave, read_wave
from registry.audio.decoding.wrapping import breaks_off
from registry.audio.report import HIGHEST_HZ, LOWEST_HZ, MOST_CHANNELS, Bounds, Refusal

SILENT_DBFS = -60.0
DAMAGED_SHARE = 0.05
LOSSLESS = ("pcm_", "flac", "alac")
PADDING_S, DROPPED_S = 0.25, 0.1  # what a lossy codec adds at most, and what it may lose
MISSING_S, MISSING_SHARE, MOST_MISSING = 0.2, 0.02, 0.5
MOST_PROMISED_S = 36_000.0  # a header that says more is not believed


def record(sound: Sound, bounds: Bounds) -> Recording:
    """Decode the first track that is not silent, from the default one on; the first if all are."""
    wave = read_wave(sound.data) if sound.demuxer == "wav" else Wave(sound.data)
    with opened(wave.data, sound.demuxer) as container:
        tracks = tracks_of(container)
    for before, after in pairwise(kinds_in_row(sound.data, sound.demuxer)):
        check_kinds(before, after)
    tried: list[Recording] = []
    for at in tracks:
        tried.append(recorded(sound, wave, at, bounds))
        if decibels(tried[-1].peak) >= SILENT_DBFS:
            break
    best = tried[-1] if decibels(tried[-1].peak) >= SILENT_DBFS else tried[0]
    if len(tracks) > 1:
        at = tracks[tried.index(best)] + 1
        best.notes.append(f"The file holds {len(tracks)} audio tracks; track {at} was taken.")
    return best


def recorded(sound: Sound, wave: Wave, at: int, bounds: Bounds) -> Recording:
    """Decode one track until its end, or past the longest duration, whatever the header claims.

    Raises Refusal for a track that is too long, too short, damaged, or mostly missing.
    """
    recording, torn = Recording(bounds), False
    with opened(wave.data, sound.demuxer) as container:
        stream = track(container, at)
        lossy = not stream.codec_context.name.startswith(LOSSLESS)
        promised = wave.promised_s or promised_s(sound, container, stream)
        for frame in frames_of(container, stream):
            torn = frame is None
            if frame is None:
                recording.damaged += 1
                continue
            add_frame(recording, frame, wave.scale)
            check_not_longer(recording, bounds, PADDING_S if lossy else 0.0)
    recording.damaged -= torn
    check_damage(recording)
    check_ending(recording, promised, torn or breaks_off(sound.data, sound.demuxer))
    check_not_shorter(recording, bounds, DROPPED_S if lossy else 0.0)
    return recording


def add_frame(recording: Recording, frame: AudioFrame, scale: float) -> None:
    """Check a frame and add it; a recording keeps one sample rate, its channels may change."""
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    if not LOWEST_HZ <= rate <= HIGHEST_HZ:
        taken = f"{LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz are taken"
        raise Refusal("audio-unsupported", f"The sample rate is {rate:,} Hz; {taken}.")
    if not 1 <= channels <= MOST_CHANNELS:
        found = f"{channels} channels; 1 to {MOST_CHANNELS} are taken"
        raise Refusal("audio-unsupported", f"The clip has {found}.")
    check_rates(recording.sample_rate or rate, rate)
    recording.sample_rate = rate
    names = [channel.name for channel in frame.layout.channels]
    recording.add(samples_of(frame) * scale if scale != 1 else samples_of(frame), names)


def check_kinds(before: Kind, after: Kind) -> None:
    check_rates(before.rate, after.rate)
    if before != after:
        same = before.codec == after.codec
        found = f"{before.codec} of two kinds" if same else f"{before.codec}, then {after.codec}"
        message = f"The file is several recordings in a row, {found}. Send one of them."
        raise Refusal("audio-undecodable", message)


def check_rates(before: int, after: int) -> None:
    if before != after:
        found = f"from {before:,} to {after:,} Hz"
        raise Refusal("audio-undecodable", f"The sample rate changes {found} within the clip.")


def check_not_longer(recording: Recording, bounds: Bounds, tolerance_s: float) -> None:
    if recording.duration_s > bounds.max_s + tolerance_s:
        found = f"at least {told(recording.duration_s, bounds.max_s)} s"
        refused = f"The clip is too long: {found}, {bounds.max_s:g} s are the most."
        raise Refusal("audio-too-long", refused)


def check_damage(recording: Recording) -> None:
    if recording.damaged > DAMAGED_SHARE * recording.blocks:
        found = f"{recording.damaged} of its packets cannot be decoded"
        raise Refusal("audio-undecodable", f"The clip is damaged: {found}.")
    if not recording.frames:
        raise Refusal("audio-empty", "The file holds no audio (0 samples).")


def check_ending(recording: Recording, promised: float | None, torn: bool) -> None:
    """Note what a file that was cut off lacks; refuse one of which most is missing."""
    found = recording.duration_s
    if promised and promised <= MOST_PROMISED_S:
        if found < MOST_MISSING * promised:
            said = f"its header promises {promised:.1f} s, {found:.1f} s are there"
            raise Refusal("audio-cut-off", f"Most of the file is missing: {said}.")
        if found < promised - max(MISSING_S, MISSING_SHARE * promised):
            said = f"its header promises {promised:.1f} s, {found:.1f} s are there"
            recording.notes.append(f"The file ends early: {said}.")
            return
    if torn:
        said = f"its last piece is not whole; {found:.1f} s are there"
        recording.notes.append(f"The file ends early: {said}.")


def check_not_shorter(recording: Recording, bounds: Bounds, tolerance_s: float) -> None:
    if recording.duration_s < bounds.min_s - tolerance_s:
        found = f"{told(recording.duration_s, bounds.min_s)} s, at least {bounds.min_s:g} s"
        raise Refusal("audio-too-short", f"The clip is too short: {found} are needed.")


def told(seconds: float, limit: float) -> str:
    """Write seconds with so many digits that they differ from the limit."""
    texts = (f"{seconds:.{digits}f}" for digits in range(2, 10))
    return next((text for text in texts if float(text) != limit), repr(seconds))
