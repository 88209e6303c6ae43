"""What the codec is trained by: spectra of the copy, and heads that ask its codes for speech.

The heads exist only in training. They make the codes hold phonemes, pitch, voicing, energy and the
phase of the fundamental, and the decoder's slow stages speak of them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.demo_model.phones import NAMES
from training.demo_model.shape import CodecShape

SAMPLE_RATE = 24_000
POINTS = 8  # of pitch in a frame: 100 Hz
FAST = 4  # phases in a point: 400 Hz
CENTRE_HZ = 130.0
MELS = ((2048, 100), (1024, 80), (512, 60), (256, 30), (128, 16))
FINE = (4096, 2048, 1024)
FINE_BELOW_HZ = 5_000
COMPLEX = (2048, 1024, 512)
COMPLEX_BELOW_HZ = 1_500
FLOOR = 3e-4  # added to magnitudes under a logarithm
PER_POINT = 5  # log F0, voicing, energy, cosine, sine


def mel_bank(size: int, bands: int) -> Tensor:
    """(bands, size / 2 + 1), each row sums to one."""
    hz = torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, bands + 2) / 2595) - 1)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp(min=0)
    return bank / bank.sum(1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class Targets:
    """What a batch of crops really is. P is 8 T, points of 10 ms."""

    sound: Tensor  # (B, n)
    phones: Tensor  # (B, 4 T) int64
    log_f0: Tensor  # (B, P) octaves above CENTRE_HZ
    voiced: Tensor  # (B, P) in {0, 1}
    phase: Tensor  # (B, P) radians

    @property
    def energy(self) -> Tensor:
        """(B, P) log10 of the RMS of each 10 ms."""
        parts = self.sound.view(*self.log_f0.shape, -1)
        return torch.log10(parts.square().mean(-1).sqrt() + 1e-3)

    def fundamental(self) -> Tensor:
        """(B, 2, 4 P): cosine and sine of the fundamental's phase at 400 Hz, 0 where unvoiced."""
        f0 = CENTRE_HZ * torch.exp2(self.log_f0)
        predicted = math.pi * (f0[:, 1:] + f0[:, :-1]) * 0.01
        error = self.phase[:, 1:] - self.phase[:, :-1] - predicted
        advance = predicted + torch.atan2(error.sin(), error.cos())
        position = (torch.arange(FAST, device=f0.device) + 0.5) / FAST - 0.5
        ahead = F.pad(advance, (0, 1))[..., None]
        behind = F.pad(advance, (1, 0))[..., None]
        turn = torch.where(position > 0, ahead, behind) * position
        angle = (self.phase[..., None] + turn).flatten(1)
        voiced = self.voiced.repeat_interleave(FAST, 1)
        return torch.stack([angle.cos() * voiced, angle.sin() * voiced], 1)


class Spectra(nn.Module):
    """Distances between sounds (B, n), as a dictionary of scalars."""

    def __init__(self) -> None:
        super().__init__()
        for size in sorted({size for size, _ in MELS} | set(FINE) | set(COMPLEX)):
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)
        for size, bands in MELS:
            self.register_buffer(f"bank{size}", mel_bank(size, bands), persistent=False)

    def spectrum(self, sound: Tensor, size: int, hop: int) -> Tensor:
        """(B, size / 2 + 1, frames) complex; noise of RMS 1 has a magnitude of about 0.6."""
        frames = F.pad(sound, (size // 2, size // 2)).unfold(-1, size, hop)
        window = self.get_buffer(f"window{size}") * size**-0.5
        result: Tensor = torch.fft.rfft(frames * window).transpose(-1, -2)
        return result

    def log_mel(self, sound: Tensor, size: int, hop: int) -> Tensor:
        return (
            self.get_buffer(f"bank{size}") @ self.spectrum(sound, size, hop).abs() + FLOOR
        ).log()

    def forward(self, copy: Tensor, sound: Tensor) -> dict[str, Tensor]:
        losses = {
            "mel": copy.new_zeros(()),
            "fine": copy.new_zeros(()),
            "linear": copy.new_zeros(()),
        }
        losses |= {"complex": copy.new_zeros(()), "level": _level(copy, sound)}
        banks = dict(MELS)
        for size in sorted(set(banks) | set(FINE)):
            y, x = (self.spectrum(part, size, size // 4) for part in (copy, sound))
            if size in COMPLEX:
                losses["complex"] = losses["complex"] + _complex_distance(y, x, size)
            y, x = _magnitude(y), _magnitude(x)
            if size in banks:
                bank = self.get_buffer(f"bank{size}")
                losses["mel"] = losses["mel"] + _log_distance(bank @ y, bank @ x)
            if size in FINE:
                low = size * FINE_BELOW_HZ // SAMPLE_RATE
                losses["fine"] = losses["fine"] + _log_distance(y[:, :low], x[:, :low])
                losses["linear"] = losses["linear"] + (y - x).abs().mean()
        return losses


def _magnitude(z: Tensor) -> Tensor:
    """Smooth at zero, so that its gradient is never infinite."""
    return (z.real.square() + z.imag.square() + 1e-10).sqrt()


def _log_distance(y: Tensor, x: Tensor) -> Tensor:
    return ((y + FLOOR).log() - (x + FLOOR).log()).abs().mean()


def _complex_distance(y: Tensor, x: Tensor, size: int) -> Tensor:
    """Of the square-rooted magnitudes with their phases, in the lowest harmonics."""
    low = size * COMPLEX_BELOW_HZ // SAMPLE_RATE
    y, x = (torch.view_as_real(z[:, :low]) for z in (y, x))
    y, x = (z / (z.square().sum(-1, keepdim=True) + 1e-4) ** 0.25 for z in (y, x))
    return (y - x).abs().mean()


def _level(copy: Tensor, sound: Tensor) -> Tensor:
    """Of the loudness in 10 ms steps, in units of 20 dB."""
    y, x = (part.view(len(part), -1, 240).square().mean(-1) for part in (copy, sound))
    return 0.5 * (torch.log10(y + 1e-6) - torch.log10(x + 1e-6)).abs().mean()


class Heads(nn.Module):
    """Helper heads; `forward` gives the losses by name."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        code, latent = shape.code_width, shape.latent_width
        self.phones = nn.Sequential(nn.Linear(code, 256), nn.GELU(), nn.Linear(256, 4 * len(NAMES)))
        self.frame = nn.Sequential(
            nn.Linear(2 * code, 384), nn.GELU(), nn.Linear(384, POINTS * PER_POINT)
        )
        self.slow = nn.Conv1d(latent, PER_POINT + 80, 1)
        self.fast = nn.Conv1d(shape.wave_width // 2, 2, 1)

    def forward(
        self,
        semantic: Tensor,
        mixed: Tensor,
        slow: Tensor,
        fast: Tensor,
        target: Targets,
        mel: Tensor,
    ) -> dict[str, Tensor]:
        """semantic (B, T, D), mixed (B, 2 D, T), slow and mel (B, C, P), fast (B, C, 4 P)."""
        guess = self.phone_logits(semantic)
        batch, frames = semantic.shape[:2]
        by_frame = self.frame(mixed.transpose(1, 2)).view(batch, frames * POINTS, PER_POINT)
        by_point = self.slow(slow)
        losses = {"phones": F.cross_entropy(guess.flatten(0, 1), target.phones.flatten())}
        losses |= {f"code_{k}": v for k, v in _speech(by_frame, target).items()}
        by_point, guessed_mel = by_point[:, :PER_POINT].transpose(1, 2), by_point[:, PER_POINT:]
        losses |= {f"slow_{k}": v for k, v in _speech(by_point, target).items()}
        losses["slow_mel"] = (guessed_mel - mel).abs().mean()
        losses["fast_phase"] = (self.fast(fast) - target.fundamental()).square().mean()
        return losses

    def phone_logits(self, semantic: Tensor) -> Tensor:
        """(B, T, D) to (B, 4 T, classes)"""
        logits: Tensor = self.phones(semantic)
        return logits.view(semantic.shape[0], -1, len(NAMES))


def _speech(guess: Tensor, target: Targets) -> dict[str, Tensor]:
    """Losses of (B, P, 5): pitch and phase count where the speech is voiced."""
    f0, voiced, energy, cosine, sine = guess.unbind(-1)
    weight = target.voiced / target.voiced.sum().clamp(min=1.0)
    off = (cosine - target.phase.cos()).square() + (sine - target.phase.sin()).square()
    return {
        "f0": ((f0 - target.log_f0).abs() * weight).sum(),
        "voiced": F.binary_cross_entropy_with_logits(voiced, target.voiced),
        "energy": (energy - target.energy).abs().mean(),
        "phase": (off * weight).sum(),
    }
