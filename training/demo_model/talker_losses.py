"""What the talker is trained by: its codes, and helpers that make it follow text and voice.

The helpers exist only in training: the phonemes of the next frames, the text token being spoken and
the pitch, read off the talker's states; variant and pitch, read off the speaker embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.demo_model.codec_losses import CENTRE_HZ
from training.demo_model.phones import NAMES
from training.demo_model.pool import Store
from training.demo_model.rows import END
from training.demo_model.shape import TalkerShape
from training.demo_model.talker import Model
from training.demo_model.utterances import (
    BLOCK,
    FRAME,
    FRAMES,
    PHONES_PER_FRAME,
    POINTS_PER_FRAME,
    VARIANTS,
)

AHEAD = 4  # frames whose phonemes are foretold
WRONG_ROWS, WRONG_FRAMES, WRONG_CODES = 0.5, 0.1, 0.5  # of the codes that are heard


@dataclass(frozen=True)
class Batch:
    """Rows on the device: (B, S), frames numbered through the whole store."""

    text: Tensor
    tag: Tensor
    frame: Tensor
    target: Tensor
    speaker: Tensor  # (B,)
    block: Tensor  # (B,)


class Helpers(nn.Module):
    """Linear heads."""

    def __init__(self, shape: TalkerShape) -> None:
        super().__init__()
        self.phones = nn.Linear(shape.width, AHEAD * PHONES_PER_FRAME * len(NAMES))
        self.token = nn.Linear(shape.width, shape.text_tokens)
        self.pitch = nn.Linear(shape.width, 1)
        self.variant = nn.Linear(shape.width, len(VARIANTS))
        self.median = nn.Linear(shape.width, 1)


class Speech:
    """The store seen by frames; `codes` is filled as blocks arrive."""

    def __init__(self, store: Store, groups: int) -> None:
        self.store = store
        device, rows = store.filled.device, store.capacity
        self.codes = torch.zeros(rows * FRAMES, groups, dtype=torch.int16, device=device)
        tensors = store.tensors
        self.sound = tensors["sound"].view(-1, FRAME)
        self.phones = tensors["phones"].view(rows * FRAMES, PHONES_PER_FRAME)
        self.f0 = tensors["f0"].view(-1, POINTS_PER_FRAME)
        self.voiced = tensors["voiced"].view(-1, POINTS_PER_FRAME)
        self.token = tensors["token"].view(-1)

    def batch(self, kind: str, rows: Tensor) -> Batch:
        """The rows (B,) of "single" or "several" utterances."""
        tensors, block = self.store.tensors, rows // BLOCK
        text, tag, frame, target = (
            tensors[f"{kind}_{name}"][rows].long() for name in ("text", "tag", "frame", "target")
        )
        offset = block[:, None] * BLOCK * FRAMES
        frame = frame + offset * (frame >= 0)
        target = target + offset * (target >= 0)
        return Batch(text, tag, frame, target, tensors[f"{kind}_speaker"][rows].long(), block)

    def clips(self, block: Tensor, frames: int) -> Tensor:
        """(B, frames * 1920): speech of these blocks (B,), utterance after utterance."""
        lengths = self.store.tensors["frames"].view(-1, BLOCK)[block].long()
        ends = lengths.cumsum(1)
        room = (ends[:, -1] - frames).clamp(min=0) + 1
        start = (torch.rand(len(block), device=block.device) * room).long()
        at = start[:, None] + torch.arange(frames, device=block.device)
        at = torch.minimum(at, ends[:, -1:] - 1)
        utterance = (at[..., None] >= ends[:, None]).sum(-1)
        within = at - (ends - lengths).gather(1, utterance)
        index = (block[:, None] * BLOCK + utterance) * FRAMES + within
        return self.sound[index].flatten(1).float() / 32768

    def pitch(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """(octaves above CENTRE_HZ, 1 where mostly voiced) of frames."""
        voiced = self.voiced[frame].float()
        octaves = torch.log2(self.f0[frame].clamp(min=40.0) / CENTRE_HZ)
        share = voiced.sum(-1)
        mean = (octaves * voiced).sum(-1) / share.clamp(min=1.0)
        return mean, (share > POINTS_PER_FRAME / 2).float()

    def median(self, block: Tensor) -> Tensor:
        """(B,): the mean pitch of blocks, in octaves above CENTRE_HZ."""
        rows = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
        voiced = self.store.tensors["voiced"][rows].flatten(1).float()
        f0 = self.store.tensors["f0"][rows].flatten(1).clamp(min=40.0)
        return (torch.log2(f0 / CENTRE_HZ) * voiced).sum(1) / voiced.sum(1).clamp(min=1.0)


def losses_of(
    model: Model, helpers: Helpers, speech: Speech, mel: Tensor, batch: Batch, picked: int
) -> dict[str, Tensor]:
    """Losses and accuracies of rows whose voices sound as mel (B, 128, T).

    `picked` positions are drawn for everything but code 0; the model may hear wrong codes if it is
    in training.
    """
    shape = model.shape
    voice = model.speaker_encoder(mel)
    codes = speech.codes[batch.frame.clamp(min=0)].long()
    heard = _disturbed(codes, shape.codes) if model.training else codes
    x = model.inputs(batch.text, batch.tag, heard, batch.frame >= 0, voice, batch.speaker)
    states, middle = model.talker.model(x)
    guess = model.talker.codec_head(states).float()
    losses = _first_code(guess, speech, batch, shape)
    at, weight = _pick(batch.target, picked)
    frame = batch.target.flatten()[at].clamp(min=0)
    state = states.flatten(0, 1).index_select(0, at)
    losses |= _other_codes(model, state, speech.codes[frame].long(), weight)
    losses |= _helper_losses(
        helpers, state, middle.flatten(0, 1).index_select(0, at), speech, frame, weight
    )
    return losses | _voice_losses(helpers, voice, speech, batch.block)


def _pick(target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(positions (n,) in the flat rows that have a frame to say, weights (n,)), as many a row."""
    rows, length = target.shape
    said = (target >= 0).long()
    frames, first = said.sum(1), said.argmax(1)
    drawn = torch.rand(rows, max(1, count // rows), device=target.device) * frames[:, None]
    at = drawn.long() + first[:, None] + length * torch.arange(rows, device=target.device)[:, None]
    weight = (frames > 0).float()[:, None].expand_as(at)
    return at.flatten(), (weight / weight.sum().clamp(min=1.0)).flatten()


def _disturbed(codes: Tensor, count: int) -> Tensor:
    def chance(share: float, *sizes: int) -> Tensor:
        return torch.rand(*sizes, device=codes.device) < share

    rows, length, groups = codes.shape
    wrong = chance(WRONG_ROWS, rows, 1, 1) & chance(WRONG_FRAMES, rows, length, 1)
    wrong = wrong & chance(WRONG_CODES, rows, length, groups)
    return torch.where(wrong, torch.randint_like(codes, count), codes)


def _first_code(
    guess: Tensor, speech: Speech, batch: Batch, shape: TalkerShape
) -> dict[str, Tensor]:
    target = batch.target
    first = speech.codes[target.clamp(min=0)][..., 0].long()
    wanted = first * (target >= 0) + shape.special["codec_eos_token_id"] * (target == END)
    counted = ((target >= 0) | (target == END)).float().flatten()
    each = F.cross_entropy(guess.flatten(0, 1), wanted.flatten(), reduction="none")
    ended = (target == END).float().flatten()
    return {
        "first": (each * counted).sum() / counted.sum().clamp(min=1.0),
        "end": (each.detach() * ended).sum() / ended.sum().clamp(min=1.0),
    }


def _other_codes(model: Model, state: Tensor, codes: Tensor, weight: Tensor) -> dict[str, Tensor]:
    first = model.talker.model.codec_embedding(codes[:, 0])
    guess = model.talker.code_predictor(state, first, codes).float()
    each = F.cross_entropy(guess.flatten(0, 1), codes[:, 1:].flatten(), reduction="none")
    by_group = (each.view(len(codes), -1) * weight[:, None]).sum(0)
    return {"second": by_group[0].detach(), "others": by_group.mean()}


def _helper_losses(
    helpers: Helpers, state: Tensor, middle: Tensor, speech: Speech, frame: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    last = frame - frame % FRAMES + FRAMES - 1
    next_frames = [speech.phones[torch.minimum(frame + k, last)] for k in range(AHEAD)]
    phones = torch.cat(next_frames, -1).long()
    guess = helpers.phones(state).float().view(-1, len(NAMES))
    each = F.cross_entropy(guess, phones.flatten(), reduction="none").view(len(frame), -1)
    right = (guess.argmax(-1) == phones.flatten()).float().view(len(frame), -1)
    token, token_guess = speech.token[frame].long(), helpers.token(middle).float()
    pointer = F.cross_entropy(token_guess, token, reduction="none")
    octaves, voiced = speech.pitch(frame)
    off = (helpers.pitch(state).float()[:, 0] - octaves).abs() * voiced * weight
    return {
        "phones": (each.mean(1) * weight).sum(),
        "phones_right": (right[:, :PHONES_PER_FRAME].mean(1) * weight).sum(),
        "token": (pointer * weight).sum(),
        "token_right": ((token_guess.argmax(-1) == token).float() * weight).sum(),
        "pitch": off.sum() / (voiced * weight).sum().clamp(min=1e-6),
    }


def _voice_losses(
    helpers: Helpers, voice: Tensor, speech: Speech, block: Tensor
) -> dict[str, Tensor]:
    variant = speech.store.tensors["variant"][block * BLOCK].long()
    median = helpers.median(voice).float()[:, 0]
    return {
        "variant": F.cross_entropy(helpers.variant(voice).float(), variant),
        "median": (median - speech.median(block)).abs().mean(),
    }
