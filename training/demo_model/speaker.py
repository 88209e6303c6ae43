"""The speaker encoder (ECAPA-TDNN) and its log-mel input, with the package's parameter names."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.demo_model.shape import TalkerShape

SIZE, HOP, BANDS, RATE = 1024, 256, 128, 24_000
KERNELS, DILATIONS = (5, 3, 3, 3, 1), (1, 2, 3, 4, 1)
PARTS = 8


def slaney_bank() -> Tensor:
    """(128, 513): the mel filters of librosa's default, up to 12 kHz."""
    knee, step = 15.0, math.log(6.4) / 27
    highest = knee + math.log(12.0) / step
    mels = torch.linspace(0, highest, BANDS + 2, dtype=torch.float64)
    hz = torch.where(mels < knee, mels * 200 / 3, 1000 * torch.exp((mels - knee) * step))
    at = torch.linspace(0, RATE / 2, SIZE // 2 + 1, dtype=torch.float64)
    rising = (at - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    falling = (hz[2:, None] - at) / (hz[2:] - hz[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp(min=0) * (2 / (hz[2:] - hz[:-2]))[:, None]
    return bank.float()


class LogMel(nn.Module):
    """Sound (B, n) in [-1, 1] to (B, 128, n // 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", slaney_bank(), persistent=False)
        self.register_buffer("window", torch.hann_window(SIZE), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        edge = (SIZE - HOP) // 2
        padded = F.pad(sound[:, None], (edge, edge), mode="reflect")[:, 0]
        spectrum = torch.fft.rfft(
            padded.unfold(-1, SIZE, HOP) * self.get_buffer("window")
        ).transpose(1, 2)
        power = spectrum.real.square() + spectrum.imag.square()
        mel: Tensor = self.get_buffer("bank") @ torch.sqrt(power + 1e-9)
        return mel.clamp(min=1e-5).log()


class TimeDelay(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.edge = (kernel - 1) * dilation // 2

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.edge, self.edge), mode="reflect") if self.edge else x
        return F.relu(self.conv(padded))


class Res2Net(nn.Module):
    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        part = width // PARTS
        blocks = [TimeDelay(part, part, kernel, dilation) for _ in range(PARTS - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(PARTS, 1)
        heard = [first]
        for k, (block, part) in enumerate(zip(self.blocks, rest, strict=True)):
            heard.append(block(part + heard[-1] if k else part))
        return torch.cat(heard, 1)


class Squeeze(nn.Module):
    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(width, narrow, 1), nn.Conv1d(narrow, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(2, keepdim=True)))))
        return x * weight


class SpeakerBlock(nn.Module):
    def __init__(self, width: int, kernel: int, dilation: int, narrow: int) -> None:
        super().__init__()
        self.tdnn1, self.tdnn2 = TimeDelay(width, width, 1, 1), TimeDelay(width, width, 1, 1)
        self.res2net_block = Res2Net(width, kernel, dilation)
        self.se_block = Squeeze(width, narrow)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))
        return x + y


class Pooling(nn.Module):
    """(B, C, T) to (B, 2 C, 1): attended mean and deviation."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.tdnn, self.conv = TimeDelay(3 * width, narrow, 1, 1), nn.Conv1d(narrow, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(2, keepdim=True)
        deviation = (x - mean).square().mean(2, keepdim=True).clamp(min=1e-12).sqrt()
        context = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1)
        weight = torch.softmax(self.conv(torch.tanh(self.tdnn(context))), 2)
        mean = (weight * x).sum(2, keepdim=True)
        spread = (weight * (x - mean).square()).sum(2, keepdim=True).clamp(min=1e-12).sqrt()
        return torch.cat([mean, spread], 1)


class SpeakerEncoder(nn.Module):
    """Log-mels (B, 128, T) to embeddings (B, width)."""

    def __init__(self, shape: TalkerShape) -> None:
        super().__init__()
        widths, narrow = shape.speaker_widths, shape.speaker_narrow
        blocks: list[nn.Module] = [TimeDelay(BANDS, widths[0], KERNELS[0], DILATIONS[0])]
        for width, kernel, dilation in zip(widths[1:4], KERNELS[1:4], DILATIONS[1:4], strict=True):
            blocks.append(SpeakerBlock(width, kernel, dilation, narrow))
        self.blocks = nn.ModuleList(blocks)
        self.mfa = TimeDelay(widths[-1], widths[-1], 1, 1)
        self.asp = Pooling(widths[-1], narrow)
        self.fc = nn.Conv1d(2 * widths[-1], shape.width, 1)

    def forward(self, mel: Tensor) -> Tensor:
        heard = []
        for block in self.blocks:
            mel = block(mel)
            heard.append(mel)
        pooled: Tensor = self.fc(self.asp(self.mfa(torch.cat(heard[1:], 1))))
        return pooled[..., 0]
