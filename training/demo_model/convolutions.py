"""The codec's convolutions, all causal, with the package's parameter names. Sound is (B, C, T)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 3, 9)


class EncoderConv(nn.Module):
    """Mimi's: padded in front by width - stride, behind to a whole stride."""

    def __init__(
        self, inputs: int, outputs: int, width: int, stride: int = 1, mode: str = "constant"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, width, stride, bias=mode == "constant")
        self.front, self.stride, self.mode = width - stride, stride, mode

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(
            F.pad(x, (self.front, -x.shape[-1] % self.stride), mode=self.mode)
        )
        return result


class EncoderUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // 2
        self.block = nn.ModuleList(
            [nn.ELU(), EncoderConv(width, narrow, 3), nn.ELU(), EncoderConv(narrow, width, 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y)
        return x + y


class DecoderConv(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, width: int, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, width, dilation=dilation, groups=groups)
        self.front = (width - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, (self.front, 0)))
        return result


class Upsampling(nn.Module):
    """`rate` samples for one; what would look ahead is cut off."""

    def __init__(self, inputs: int, outputs: int, width: int, rate: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, width, rate)
        self.over = width - rate

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = y[..., : y.shape[-1] - self.over]
        return result


class Snake(nn.Module):
    """x + sin(a x)**2 / b, with a and b stored as logarithms, (C,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.exp(self.alpha)[:, None]
        b = torch.exp(self.beta)[:, None]
        return torch.addcmul(x, torch.sin(x * a).square(), 1.0 / (b + 1e-9))


class DecoderUnit(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.act1, self.conv1 = Snake(width), DecoderConv(width, width, 7, dilation)
        self.act2, self.conv2 = Snake(width), DecoderConv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv2(self.act2(self.conv1(self.act1(x))))
        return result


class DecoderBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        units = [DecoderUnit(outputs, dilation) for dilation in DILATIONS]
        self.block = nn.ModuleList(
            [Snake(inputs), Upsampling(inputs, outputs, 2 * rate, rate), *units]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.block:
            x = layer(x)
        return x


class ConvNeXt(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = DecoderConv(width, width, 7, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).transpose(1, 2)))))
        result: Tensor = x + (self.gamma * y).transpose(1, 2)
        return result
