"""Which wrong transcripts are told at enrolment, and how often right ones are.

    python benchmarks/transcripts.py [CLIP.wav WORDS.txt]… --seeds 4

Enrols each clip (by default the two that come with the program) with its words and with wrong
ones, and lets the demo model try each with so many seeds. Prints how many of the trials told
something, and whether the pace of the words did.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from uploading import read_clip

from inference.models.catalog import locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.audio.clips import ClipLimits, ReferenceClip
from registry.contract import PromptRef, PromptSource
from registry.errors import TranscriptMismatch
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.voices import trial
from registry.voices.transcript import refuse_absurd, transcript_warnings

CLIPS = Path(__file__).parent.parent / "cli" / "data"
TEN = "and then we went home to have some tea and cake"
OTHER = "a stranger came along the road and asked the way to the station in the town before noon"
GERMAN = "guten morgen ich wohne in einem kleinen haus an der see und gehe gern am wasser spazieren"


def wrong(words: str) -> Iterator[tuple[str, str]]:
    """Transcripts that are not those of a clip that says `words`, and what they are called."""
    each = words.split()
    half = len(each) // 2
    yield "right", words
    yield "first half", " ".join(each[:half])
    yield "second half", " ".join(each[half:])
    yield "last three missing", " ".join(each[:-3] or each[:1])
    yield "first three missing", " ".join(each[3:] or each[-1:])
    yield "last one missing", " ".join(each[:-1])
    yield "ten too many", f"{words} {TEN}"
    yield "ten too many before", f"{TEN} {words}"
    yield "twice", f"{words} {words}"
    yield "one word", each[0]
    yield "as long, others", as_long(OTHER, words)
    yield "as long, German", as_long(GERMAN, words)


def as_long(text: str, words: str) -> str:
    return (f"{text} " * (1 + len(words) // len(text)))[: len(words)].strip()


def pace(transcript: str, clip: ReferenceClip) -> str:
    try:
        refuse_absurd(transcript, clip.speech_s)
    except TranscriptMismatch:
        return "refused"
    return "warned" if transcript_warnings(transcript, clip.speech_s) else "-"


async def tried(
    inference: LocalInference, data: DataDir, clip: ReferenceClip, transcript: str, seeds: int
) -> str:
    source = PromptSource("voice_tried", clip.sha256, transcript)
    data.conditioned(source).write_bytes(clip.conditioned_wav)
    prompt = await inference.extract_prompt(source)
    ref = PromptRef(source.voice_id, prompt.fingerprint, prompt.sha256)
    told = 0
    for seed in range(1, 1 + seeds):
        trial.SEED = seed
        found = await trial.Trial(inference, 600).warnings(ref, transcript, None)
        if found is None:
            return "nothing was made"
        told += bool(found)
    return f"{told} of {seeds}"


async def measure(
    inference: LocalInference, data: DataDir, pairs: list[tuple[Path, str]], seeds: int
) -> None:
    print(f"{'clip':<16} {'transcript':<20} {'pace':<8} trial")
    for path, words in pairs:
        clip = read_clip(path.read_bytes(), ClipLimits())
        for kind, transcript in wrong(words):
            by_pace = pace(transcript, clip)
            by_trial = await tried(inference, data, clip, transcript, seeds)
            print(f"{path.stem:<16} {kind:<20} {by_pace:<8} {by_trial}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="CLIP.wav WORDS.txt")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    files = options.files or [CLIPS / name for name in ("alice.wav", "alice.txt")]
    if not options.files:
        files += [CLIPS / name for name in ("bob.wav", "bob.txt")]
    words = [path.read_text(encoding="utf-8").strip() for path in files[1::2]]
    with tempfile.TemporaryDirectory() as folder:
        data = DataDir(Path(folder))
        data.create()
        config = ServiceConfig(device="cpu", threads=1)
        inference = LocalInference(lambda: InferenceService(data, locate("demo", data), config))
        asyncio.run(
            measure(inference, data, list(zip(files[::2], words, strict=True)), options.seeds)
        )
        inference.close()


if __name__ == "__main__":
    main()
