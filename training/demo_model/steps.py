"""How any of the models is trained: a budget of time, one step as a CUDA graph, curves, snapshots.

Knows nothing of speech. The body of a step works on tensors in place and never waits for the
device, so that it can be captured.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 150  # steps until the full learning rate
LOWEST = 0.01  # of the highest learning rate, at the end
EMA_DECAY = 0.999
WARM_UP_RUNS = 4  # before the capture


@dataclass
class Budget:
    """Seconds of wall clock; every schedule follows the share of them that is gone."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed_s / self.seconds)

    def rate(self, step: int) -> float:
        """Share of the highest learning rate: linear warm-up, then a cosine over the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return min(1.0, (step + 1) / WARM_UP) * (LOWEST + (1 - LOWEST) * cosine)


class Curves:
    """One JSON object per line in a file, and the same on stderr."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, **values: object) -> None:
        line = json.dumps({k: _short(v) for k, v in values.items()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _short(value: object) -> object:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Optimizer:
    """AdamW with clipping, moving averages of the weights, and a rate that lives on the device."""

    def __init__(
        self, modules: Sequence[nn.Module], rate: float, betas: tuple[float, float]
    ) -> None:
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters()]
        device = self.parameters[0].device
        self._highest = rate
        self._rate = torch.tensor(rate, device=device)
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            groups, lr=self._rate, betas=betas, fused=True, capturable=device.type == "cuda"
        )
        self.averages = [p.detach().clone() for p in self.parameters]
        self._decay = torch.tensor(0.0, device=device)

    def schedule(self, share: float, step: int) -> None:
        """Before a step: its learning rate as a share of the highest."""
        self._rate.fill_(self._highest * share)
        self._decay.fill_(min(EMA_DECAY, step / (step + 20)))

    def clear(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def step(self, highest_norm: float) -> Tensor:
        """Clip, update, average; the gradient's norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, highest_norm)
        self._adam.step()
        with torch.no_grad():
            torch._foreach_mul_(self.averages, self._decay)
            moved = torch._foreach_mul(self.parameters, 1 - self._decay)
            torch._foreach_add_(self.averages, list(moved))
        return norm

    def forget(self) -> None:
        """Momenta to zero, as after a bad step."""
        for state in self._adam.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].zero_()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; twice is nothing."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


class Step:
    """`body` as one CUDA graph if asked, on a GPU; a failed capture ends the process."""

    def __init__(self, body: Callable[[], None], device: torch.device, graph: bool) -> None:
        self._body, self._graph = body, None
        if graph and device.type == "cuda":
            self._graph = self._capture()

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def _capture(self) -> "torch.cuda.CUDAGraph":
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._body()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._body()
        return graph

    def __call__(self) -> None:
        if self._graph is None:
            self._body()
        else:
            self._graph.replay()


def steps_of(budget: Budget, device: torch.device, ahead: int = 8) -> Iterator[int]:
    """0, 1, 2 … until the budget is over, never more than `ahead` steps before the device."""
    marks: list[torch.cuda.Event] = []
    step = 0
    while budget.progress < 1:
        yield step
        step += 1
        if device.type == "cuda":
            mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
            mark.record()
            marks.append(mark)
            if len(marks) > ahead:
                marks.pop(0).synchronize()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class Averages:
    """Running means of named values, kept on the device until they are read."""

    names: Sequence[str]
    values: Tensor  # (names,)
    decay: float = 0.98

    @classmethod
    def of(cls, names: Sequence[str], device: torch.device) -> "Averages":
        return cls(tuple(names), torch.zeros(len(names), device=device))

    def add(self, values: Mapping[str, Tensor]) -> None:
        row = torch.stack([values[name].detach().float() for name in self.names])
        self.values.lerp_(row, 1 - self.decay)

    def read(self) -> dict[str, float]:
        return dict(zip(self.names, self.values.tolist(), strict=True))

    @property
    def sound(self) -> bool:
        """False once any value was not a number."""
        return bool(torch.isfinite(self.values).all())
