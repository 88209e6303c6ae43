"""Residual vector quantising as it is trained: codebooks follow their inputs by moving averages.

Every tensor has a fixed shape and nothing waits for the device, so a CUDA graph can hold it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECAY = 0.99
RARE = 0.05  # of the mean use: a code used less is moved onto an input


class Codebook(nn.Module):
    """(codes, D) vectors, each the mean of what was lately assigned to it."""

    use: Tensor
    total: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("use", torch.ones(codes))
        self.register_buffer("total", torch.randn(codes, width))

    @property
    def vectors(self) -> Tensor:
        return self.total / self.use.clamp(min=1e-5)[:, None]

    def nearest(self, x: Tensor) -> Tensor:
        """(n, D) to (n,): the codes."""
        vectors = self.vectors
        return (vectors.pow(2).sum(1) - 2 * x @ vectors.t()).argmin(1)

    @torch.no_grad()
    def follow(self, x: Tensor, codes: Tensor, revive: Tensor) -> None:
        """Move towards (n, D) inputs; where `revive` is 1, rare codes become random inputs."""
        chosen = (codes[:, None] == torch.arange(len(self.use), device=x.device)).to(x.dtype)
        self.use.lerp_(chosen.sum(0), 1 - DECAY)
        self.total.lerp_(chosen.t() @ x, 1 - DECAY)
        mean = self.use.mean()
        rare = self.use < RARE * mean * revive
        fresh = x[torch.randint(len(x), (len(self.use),), device=x.device)]
        self.total.copy_(torch.where(rare[:, None], fresh * mean, self.total))
        self.use.copy_(torch.where(rare, mean, self.use))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Begin as random inputs of (n, D)."""
        self.use.fill_(len(x) / len(self.use))
        pick = torch.randint(len(x), (len(self.use),), device=x.device)
        self.total.copy_(x[pick] * self.use[:, None])


class Quantizer(nn.Module):
    """One semantic codebook beside `groups - 1` residual acoustic ones, each side projected."""

    def __init__(self, groups: int, codes: int, width: int, inputs: int) -> None:
        super().__init__()
        self.semantic_in = nn.Conv1d(inputs, width, 1, bias=False)
        self.acoustic_in = nn.Conv1d(inputs, width, 1, bias=False)
        self.books = nn.ModuleList([Codebook(codes, width) for _ in range(groups)])

    def book(self, index: int) -> Codebook:
        book = self.books[index]
        assert isinstance(book, Codebook)
        return book

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) to two of (B, T, D)."""
        return (
            self.semantic_in(hidden).transpose(1, 2),
            self.acoustic_in(hidden).transpose(1, 2),
        )

    def encode(self, hidden: Tensor) -> Tensor:
        """(B, C, T) to codes (B, T, groups)."""
        semantic, rest = self.project(hidden)
        shape, width = rest.shape[:2], rest.shape[2]
        codes = [self.book(0).nearest(semantic.reshape(-1, width))]
        rest = rest.reshape(-1, width)
        for k in range(1, len(self.books)):
            book = self.book(k)
            codes.append(book.nearest(rest))
            rest = rest - F.embedding(codes[-1], book.vectors)
        return torch.stack(codes, 1).view(*shape, -1)

    def embed(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, T, groups) to the semantic vectors and the acoustic sums (B, T, D)."""
        parts = [F.embedding(codes[..., k], self.book(k).vectors) for k in range(len(self.books))]
        return parts[0], torch.stack(parts[1:]).sum(0)

    def train_step(
        self, hidden: Tensor, keep: Tensor, bypass: Tensor, revive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(semantic, acoustic sum, commitment loss), with gradients passed straight through.

        keep (B, groups - 1) in {0, 1} leaves acoustic codebooks out; bypass (B,) in {0, 1} lets
        the unquantised vectors through.
        """
        semantic, acoustic = self.project(hidden)
        heard, loss = self._quantise(self.book(0), semantic, revive)
        rest, total = acoustic, torch.zeros_like(acoustic)
        for k in range(len(self.books) - 1):
            vectors, near = self._quantise(self.book(k + 1), rest, revive)
            loss = loss + near
            rest = rest - vectors
            total = total + vectors * keep[:, k, None, None]
        through = bypass[:, None, None]
        return (
            semantic + ((1 - through) * (heard - semantic)).detach(),
            acoustic + ((1 - through) * (total - acoustic)).detach(),
            loss,
        )

    def _quantise(self, book: Codebook, x: Tensor, revive: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors without gradient, commitment loss); the codebook follows."""
        flat = x.detach().reshape(-1, x.shape[-1])
        codes = book.nearest(flat)
        vectors = F.embedding(codes, book.vectors).view_as(x)
        book.follow(flat, codes, revive)
        return vectors, F.mse_loss(x, vectors)

    def start(self, hidden: Tensor) -> None:
        """Begin every codebook from a first batch of (B, C, T)."""
        with torch.no_grad():
            semantic, rest = (part.reshape(-1, part.shape[-1]) for part in self.project(hidden))
            self.book(0).start(semantic)
            for k in range(1, len(self.books)):
                book = self.book(k)
                book.start(rest)
                rest = rest - F.embedding(book.nearest(rest), book.vectors)
