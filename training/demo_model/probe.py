"""A phoneme probe that has heard espeak-ng alone, never the codec: what a listener would hear.

    python -m training.demo_model.probe --seconds 150

writes probe.safetensors beside this file, from the training voices on a CPU.
"""

import sys
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.demo_model.codec_losses import mel_bank
from training.demo_model.phones import NAMES
from training.demo_model.steps import Budget, Optimizer, seed_everything, steps_of
from training.demo_model.utterances import Utterance, Utterances

FILE = Path(__file__).parent / "probe.safetensors"
SIZE, HOP, BANDS, WIDTH = 1024, 480, 64, 128
CROP = 96  # phoneme frames of 20 ms
BATCH = 24
SHORTEST = 2  # frames of a phoneme that counts


class Probe(nn.Module):
    """Log-mels to phoneme classes at 50 Hz, from about 0.3 s around each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", mel_bank(SIZE, BANDS), persistent=False)
        self.register_buffer("window", torch.hann_window(SIZE), persistent=False)
        self.layers = nn.Sequential(
            nn.Conv1d(BANDS, WIDTH, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(WIDTH, len(NAMES), 1),
        )

    @torch.no_grad()
    def features(self, sound: Tensor) -> Tensor:
        """(n,) at 24 kHz to (64, n / 480), its mean over time taken off."""
        edge = (SIZE - HOP) // 2
        frames = F.pad(sound, (edge, SIZE)).unfold(-1, SIZE, HOP)[: len(sound) // HOP]
        spectrum = torch.fft.rfft(frames * self.get_buffer("window")).abs().t()
        mel = torch.log(self.get_buffer("bank") @ spectrum + 1e-2)
        return mel - mel.mean(1, keepdim=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 64, T) to logits (B, classes, T)."""
        logits: Tensor = self.layers(features)
        return logits

    def heard(self, sound: NDArray[np.float32]) -> list[int]:
        """The phonemes of a sound, without silence."""
        with torch.no_grad():
            logits = self(self.features(torch.from_numpy(sound))[None])[0]
        return spelled(logits.argmax(0).numpy())

    @classmethod
    def read(cls, path: Path = FILE) -> "Probe":
        probe = cls()
        probe.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return probe.eval()


def spelled(classes: NDArray[np.integer]) -> list[int]:
    """Runs of one class that last, without silence."""
    edges = np.flatnonzero(np.diff(classes, prepend=-1, append=-1))
    runs = [int(classes[a]) for a, b in pairwise(edges) if b - a >= SHORTEST and classes[a] > 0]
    return [phone for k, phone in enumerate(runs) if k == 0 or runs[k - 1] != phone]


def edit_distance(said: list[int], heard: list[int]) -> float:
    """Insertions, deletions and substitutions, over what was said."""
    row = list(range(len(heard) + 1))
    for i, one in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1] / max(len(said), 1)


def train(seconds: float, seed: int = 7) -> Probe:
    seed_everything(seed)
    utterances, probe = Utterances(seed), Probe()
    optimizer, budget = Optimizer([probe], 2e-3, (0.9, 0.99)), Budget(seconds)
    spoken = [utterance for _ in range(4) for utterance in utterances.block()[1]]
    for step in steps_of(budget, torch.device("cpu")):
        if step % 2 == 0:
            spoken = [*utterances.block()[1], *spoken][:400]
        optimizer.schedule(budget.rate(step), step)
        optimizer.clear()
        chosen = np.random.choice(len(spoken), BATCH)
        crops = [_crop(probe, spoken[k]) for k in chosen]
        features, classes = (torch.stack(part) for part in zip(*crops, strict=True))
        loss = F.cross_entropy(probe(features), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
        if step % 100 == 0:
            sys.stderr.write(f"{step} {float(loss.detach()):.3f}\n")
    optimizer.swap()
    return probe.eval()


def _crop(probe: Probe, utterance: Utterance) -> tuple[Tensor, Tensor]:
    sound = torch.from_numpy(utterance.sound.astype(np.float32) / 32768)
    level = 10 ** np.random.uniform(-0.5, 0.2)
    noise = torch.randn(len(sound)) * 10 ** np.random.uniform(-4, -2.3)
    features = probe.features(level * sound + noise)
    classes = torch.from_numpy(utterance.phones.astype(np.int64))
    short = max(0, CROP - len(classes))
    features, classes = F.pad(features, (0, short)), F.pad(classes, (0, short))
    start = np.random.randint(len(classes) - CROP + 1)
    return features[:, start : start + CROP], classes[start : start + CROP]


@click.command()
@click.option("--seconds", type=float, default=150.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=FILE)
def main(seconds: float, out: Path) -> None:
    """Train the probe."""
    state = {k: v.half().contiguous() for k, v in train(seconds).state_dict().items()}
    save_file(state, out)


if __name__ == "__main__":
    main()
