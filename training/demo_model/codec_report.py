"""What the codec's copies of held-out speech keep: pitch, voicing, phonemes; pitch in the codes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.demo_model.codec import Codec
from training.demo_model.codec_losses import Heads
from training.demo_model.espeak import Espeak, Voice
from training.demo_model.pitch import Track, track
from training.demo_model.sentences import read_lines
from training.demo_model.utterances import POINTS_PER_FRAME, Utterance, utter

# Never drawn by chance alone; low and high ones. The first two are the demo's own.
VOICES = (
    Voice("en-us", "m3", 45, 35, 162),
    Voice("en-us", "f2", 38, 35, 162),
    Voice("en", "m7", 58, 40, 160),
    Voice("en-us", "f5", 22, 35, 164),
    Voice("en-us", "m1", 72, 40, 160),
    Voice("en-us", "steph", 40, 30, 162),
    Voice("en", "edward", 36, 40, 162),
    Voice("en-us", "linda", 24, 40, 160),
)


def heldout(voices: int = len(VOICES), sentences: int = 20) -> list[list[Utterance]]:
    """By voice: each of the held-out sentences."""
    espeak, texts = Espeak(), read_lines("heldout")[:sentences]
    return [[utter(espeak, text, voice, 0.06, 0.12) for text in texts] for voice in VOICES[:voices]]


def report(codec: Codec, heads: Heads, voices: int = 8, sentences: int = 20) -> dict[str, Any]:
    """Figures by voice and in all, of the codec's copies of the held-out sentences."""
    codec.eval()
    rows, vectors, pitches = [], [], []
    for voice, spoken in zip(VOICES, heldout(voices, sentences), strict=False):
        figures = [copy_figures(codec, heads, utterance) for utterance in spoken]
        means = {k: float(np.nanmean([f[k] for f, _ in figures])) for k in figures[0][0]}
        rows.append({"voice": voice.name, **means})
        for utterance, (_, codes) in zip(spoken, figures, strict=True):
            vector, pitch = _voiced_frames(codec, codes, utterance.track)
            vectors.append(vector)
            pitches.append(pitch)
    names = [name for name in rows[0] if name != "voice"]
    summary = {name: float(np.mean([row[name] for row in rows])) for name in names}
    summary["code_f0_r2"], summary["code_f0_error"] = f0_probe(vectors, pitches)
    return {"summary": summary, "voices": rows}


@torch.no_grad()
def copy_figures(
    codec: Codec, heads: Heads, utterance: Utterance
) -> tuple[dict[str, float], torch.Tensor]:
    """(figures, codes (1, T, groups)) of one utterance."""
    device = next(codec.parameters()).device
    sound = torch.from_numpy(utterance.sound).to(device).float()[None] / 32768
    codes = codec.encode(sound)
    copy = codec.decode(codes)[0].cpu().numpy()
    heard = track(copy)
    guess = heads.phone_logits(codec.quantizer.embed(codes)[0]).argmax(-1)[0].cpu().numpy()
    return {
        **compare(utterance.track, heard),
        "phones_from_code_0": float((guess == utterance.phones).mean()),
        "level_db": _level(copy) - _level(sound[0].cpu().numpy()),
    }, codes


def compare(said: Track, heard: Track) -> dict[str, float]:
    """Pitch where both are voiced, the shares of false decisions, and the medians."""
    both = said.voiced & heard.voiced
    octaves = np.abs(np.log2(heard.f0_hz[both] / said.f0_hz[both]))
    return {
        "f0_error": float(np.median(2**octaves - 1)) if both.any() else float("nan"),
        "f0_off_20_percent": float((octaves > 0.263).mean()) if both.any() else float("nan"),
        "voicing_error": float((said.voiced != heard.voiced).mean()),
        "lost_voicing": float((said.voiced & ~heard.voiced).mean()),
        "median_hz": said.median_hz,
        "copy_median_hz": heard.median_hz,
    }


def _level(sound: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(sound)) + 1e-9))


def _voiced_frames(
    codec: Codec, codes: torch.Tensor, said: Track
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(vectors (n, 2 D), octaves (n,)) of the frames that are mostly voiced."""
    mixed = torch.cat(codec.quantizer.embed(codes), -1)[0].double().cpu().numpy()
    voiced = said.voiced.reshape(-1, POINTS_PER_FRAME)
    f0 = np.where(voiced, np.log2(said.f0_hz.reshape(voiced.shape)), 0).sum(1)
    enough = voiced.sum(1) > POINTS_PER_FRAME // 2
    return mixed[enough], f0[enough] / voiced.sum(1)[enough]


def f0_probe(
    vectors: list[NDArray[np.float64]], pitches: list[NDArray[np.float64]]
) -> tuple[float, float]:
    """(R², median error as a share) of a ridge regression tested on every second utterance."""
    x, y = (np.concatenate(part[::2]) for part in (vectors, pitches))
    tested, truth = (np.concatenate(part[1::2]) for part in (vectors, pitches))
    x, tested = (np.hstack([part, np.ones((len(part), 1))]) for part in (x, tested))
    solution = np.linalg.solve(x.T @ x + 1e-2 * np.eye(x.shape[1]), x.T @ y)
    error = tested @ solution - truth
    fit = 1 - error.var() / truth.var()
    return float(fit), float(np.median(2 ** np.abs(error) - 1))
