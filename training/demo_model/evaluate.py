"""The figures of a checkpoint, with one thread of a CPU or on a GPU: JSON and a table.

    python -m training.demo_model.evaluate CHECKPOINT --engine qwen --out figures.json

Held-out sentences in eight voices, x-vector and ICL, default sampling: is it the right sentence, in
the right voice, at its pitch, as long as espeak-ng says it, and does it stop by itself?
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile

from training.demo_model.codec import Codec
from training.demo_model.codec_report import VOICES, compare, heldout
from training.demo_model.espeak import Espeak
from training.demo_model.matching import Floats, distance, mfcc
from training.demo_model.pitch import track
from training.demo_model.probe import Probe, edit_distance, spelled
from training.demo_model.sentences import read_lines
from training.demo_model.speaking import ENGINES, MODES, Speaker, Spoken, read_codec
from training.demo_model.utterances import Utterance, utter

RATE, HOP = 24_000, 240
AUDIBLE = 0.01
Sound = NDArray[np.float32]
MUST = {
    "sentence": ("at least", {"xvec": 0.95, "icl": 0.85}),
    "pitch_error": ("at most", {"xvec": 0.12, "icl": 0.12}),
    "voice": ("at least", {"xvec": 0.9, "icl": 0.9}),
    "length_error": ("at most", {"xvec": 0.05, "icl": 0.05}),
    "stopped": ("at least", {"xvec": 1.0, "icl": 1.0}),
    "times_real_time": ("at least", {"xvec": 3.0, "icl": 3.0}),
}


@dataclass(frozen=True)
class Material:
    """What espeak-ng says, by voice and sentence, and the clips that are cloned."""

    spoken: list[list[Utterance]]
    clips: list[Sound]
    transcript: str

    @classmethod
    def make(cls, voices: int, sentences: int) -> "Material":
        espeak, transcript = Espeak(), read_lines("reference")[0]
        clips = [as_floats(utter(espeak, transcript, v, 0.06, 0.12)) for v in VOICES[:voices]]
        return cls(heldout(voices, sentences), clips, transcript)


def audible_s(sound: Sound) -> float:
    """From the first to the last 10 ms that are heard: the silence around them is of any length."""
    level = np.sqrt((sound[: len(sound) // HOP * HOP].reshape(-1, HOP) ** 2).mean(1))
    loud = np.flatnonzero(level > AUDIBLE)
    return float(loud[-1] + 1 - loud[0]) * HOP / RATE if len(loud) else 0.0


def as_floats(utterance: Utterance) -> Sound:
    return utterance.sound.astype(np.float32) / np.float32(32768)


@dataclass(frozen=True)
class Case:
    """One sentence that the model spoke."""

    voice: int
    sentence: int
    spoken: Spoken
    seconds: float  # of a core's time


def speak_all(
    speaker: Speaker, voices: list[Any], material: Material, mode: str, seeds: int
) -> list[Case]:
    """Every sentence once for each seed, the voices in turn."""
    cases = []
    texts = [utterance.text for utterance in material.spoken[0]]
    for seed in range(seeds):
        for k, text in enumerate(texts):
            voice = (k + seed) % len(voices)
            start = time.process_time()
            language = "English" if (k + seed) % 2 else "Auto"
            spoken = speaker.speak(voices[voice], mode, text, language, seed)
            cases.append(Case(voice, k, spoken, time.process_time() - start))
    return cases


class Judge:
    """What is measured of a case against the material."""

    def __init__(self, speaker: Speaker, codec: Codec, material: Material, probe: Probe) -> None:
        self._speaker, self._material, self._probe = speaker, material, probe
        self._features: dict[int, list[Floats]] = {}
        medians = [[u.track.median_hz for u in spoken] for spoken in material.spoken]
        self.median_hz = [float(np.median(values)) for values in medians]
        copies = [copy_of(codec, clip) for clip in material.clips]
        self.voices = {
            "voice": np.stack([speaker.embedding(clip) for clip in material.clips]),
            "voice_of_copy": np.stack([speaker.embedding(copy) for copy in copies]),
        }

    def figures(self, case: Case) -> dict[str, float]:
        sound, said = case.spoken.sound, self._material.spoken[case.voice][case.sentence]
        median = track(sound).median_hz
        return {
            "sentence": float(self._nearest(case) == case.sentence),
            "median_hz": median,
            "pitch_error": abs(median / self.median_hz[case.voice] - 1) if median > 0 else 1.0,
            "phoneme_error": edit_distance(spelled(said.phones), self._probe.heard(sound)),
            "length_ratio": audible_s(sound) / audible_s(as_floats(said)),
            "stopped": float(case.spoken.stopped),
        }

    def _nearest(self, case: Case) -> int:
        """The sentence that espeak-ng, in the same voice, says most like this."""
        if case.voice not in self._features:
            spoken = self._material.spoken[case.voice]
            self._features[case.voice] = [mfcc(as_floats(utterance)) for utterance in spoken]
        heard = mfcc(case.spoken.sound)
        return int(np.argmin([distance(heard, said) for said in self._features[case.voice]]))

    def voices_right(self, cases: list[Case]) -> dict[str, float]:
        """Share whose x-vector is nearest to that of their clip, or of the codec's copy of it.

        Each set is centred: all that has passed the codec has a sound in common.
        """
        heard = _directions(np.stack([self._speaker.embedding(c.spoken.sound) for c in cases]))
        right = [case.voice for case in cases]
        likeness = {name: heard @ _directions(known).T for name, known in self.voices.items()}
        return {name: float(np.mean(like.argmax(1) == right)) for name, like in likeness.items()}


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = rows - rows.mean(0)
    normed: NDArray[np.float32] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return normed


def judged(judge: Judge, cases: list[Case]) -> dict[str, Any]:
    """The figures of one mode."""
    rows = [judge.figures(case) for case in cases]
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    seconds = sum(len(case.spoken.sound) for case in cases) / RATE
    pitches = [
        [float(f["median_hz"]) for f, c in zip(rows, cases, strict=True) if c.voice == voice]
        for voice in range(len(judge.median_hz))
    ]
    return {
        "cases": len(cases),
        "sentence": float(column["sentence"].mean()),
        "pitch_error": float(np.median(column["pitch_error"])),
        **judge.voices_right(cases),
        "phoneme_error": float(column["phoneme_error"].mean()),
        "length_error": abs(float(np.median(column["length_ratio"])) - 1),
        "stopped": float(column["stopped"].mean()),
        "times_real_time": seconds / sum(case.seconds for case in cases),
        "median_hz": [float(np.nanmedian(found)) if found else 0.0 for found in pitches],
        "espeak_median_hz": judge.median_hz,
    }


def copy_of(codec: Codec, sound: Sound) -> Sound:
    """What is left of it after the codec."""
    copy: Sound = codec.decode(codec.encode(torch.from_numpy(sound)[None]))[0].numpy()
    return copy


def codec_figures(codec: Codec, material: Material, probe: Probe) -> dict[str, float]:
    """Of the codec's copies of what espeak-ng says, and the probe on the originals."""
    rows = []
    for spoken in material.spoken:
        for utterance in spoken:
            sound = as_floats(utterance)
            copy = copy_of(codec, sound)
            said = spelled(utterance.phones)
            rows.append(
                compare(utterance.track, track(copy))
                | {"phoneme_error": edit_distance(said, probe.heard(copy))}
                | {"original_phoneme_error": edit_distance(said, probe.heard(sound))}
            )
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def evaluate(
    checkpoint: Path,
    engine: str,
    dtype: str = "float32",
    device: str = "cpu",
    voices: int = 8,
    sentences: int = 20,
    seeds: int = 3,
    sounds: Path | None = None,
) -> dict[str, Any]:
    """All figures; if `sounds` is a folder, what was spoken is written there."""
    torch.set_num_threads(1)
    material, probe = Material.make(voices, sentences), Probe.read()
    speaker: Speaker = ENGINES[engine](checkpoint, dtype, device)
    cloned = [speaker.clone(clip, material.transcript) for clip in material.clips]
    speaker.speak(cloned[0], "xvec", "Hello.", "English", 0)  # not timed: caches fill
    codec = read_codec(checkpoint)
    judge = Judge(speaker, codec, material, probe)
    result: dict[str, Any] = {"engine": engine, "dtype": dtype, "device": device, "seeds": seeds}
    result["codec"] = codec_figures(codec, material, probe)
    for mode in MODES:
        cases = speak_all(speaker, cloned, material, mode, seeds)
        result[mode] = judged(judge, cases)
        if sounds is not None:
            _write(sounds, mode, cases[:sentences], material)
    return result


def _write(folder: Path, mode: str, cases: list[Case], material: Material) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        name = f"{case.sentence:02d}-voice{case.voice}"
        _save(folder / f"{name}-{mode}.wav", case.spoken.sound)
        _save(folder / f"{name}-espeak.wav", as_floats(material.spoken[case.voice][case.sentence]))


def _save(path: Path, sound: Sound) -> None:
    wavfile.write(path, RATE, (np.clip(sound, -1, 1) * 32767).astype(np.int16))


def table(result: dict[str, Any]) -> str:
    """Markdown: figure, what it must be, x-vector, ICL."""
    lines = ["| figure | must | x-vector | ICL |", "| --- | --- | --- | --- |"]
    for name, (way, limits) in MUST.items():
        must = " / ".join(f"{limits[mode]:g}" for mode in MODES)
        found = " | ".join(f"{result[mode][name]:.3f}" for mode in MODES)
        lines.append(f"| {name} | {way} {must} | {found} |")
    for name in ("voice_of_copy", "phoneme_error"):
        found = " | ".join(f"{result[mode][name]:.3f}" for mode in MODES)
        lines.append(f"| {name} | reported | {found} |")
    lines += ["", "| the codec's copy | |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in result["codec"].items()]
    return "\n".join(lines)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--engine", type=click.Choice(sorted(ENGINES)), default="qwen", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--voices", default=8, show_default=True)
@click.option("--sentences", default=20, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--sounds", type=click.Path(path_type=Path), help="a folder for what was spoken")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="the JSON")
def main(checkpoint: Path, engine: str, out: Path, **options: Any) -> None:
    """Measure CHECKPOINT."""
    result = evaluate(checkpoint, engine, **options)
    out.write_text(json.dumps(result, indent=1), "utf-8")
    click.echo(table(result))


if __name__ == "__main__":
    main()
