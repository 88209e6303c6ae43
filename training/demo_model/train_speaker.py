"""Teach the speaker encoder to hear in the codec's copy of a clip what it hears in the clip itself.

    python -m training.demo_model.train_speaker --codec codec/codec.safetensors \
        --talker talker/model.safetensors --seconds 1080 --out voices

The encoder as it was says what is right, so the talker, which stays as it is, reads the same
voices. Minutes on a CPU.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.demo_model.codec import Codec
from training.demo_model.export import read_shape
from training.demo_model.shape import TalkerShape
from training.demo_model.speaker import LogMel, SpeakerEncoder
from training.demo_model.steps import Budget, Curves, Optimizer, seed_everything, steps_of
from training.demo_model.train_talker import load_codec
from training.demo_model.utterances import BLOCK, FRAME, Utterance, Utterances

PREFIX = "speaker_encoder."
CLIP = 32 * FRAME  # samples
VOICES = 24  # of a batch
EVERY = 4  # steps, until a new voice arrives
KEPT = 240  # voices
TAKEN = 4  # clips of a voice
RATE = 1e-3


@dataclass(frozen=True)
class Clips:
    """Of one voice: log-mels (clips, 128, T) of clips and of their copies."""

    true: Tensor
    copied: Tensor


class Listener:
    """Makes `Clips` of random voices."""

    def __init__(self, codec: Codec, seed: int) -> None:
        self._codec, self._mel, self._utterances = codec, LogMel(), Utterances(seed)

    @torch.no_grad()
    def clips(self) -> Clips:
        sound = torch.stack([clip_of(u) for u in self._utterances.block()[1]])
        sound = sound[torch.randperm(BLOCK)[:TAKEN]]
        copied = self._codec.decode(self._codec.encode(sound))
        return Clips(self._mel(sound), self._mel(copied))


def clip_of(utterance: Utterance) -> Tensor:
    """(CLIP,): what is too short is said again."""
    sound = torch.from_numpy(utterance.sound).float() / 32768
    start = int(torch.randint(max(1, len(sound) - CLIP + 1), ()))
    return sound.repeat(-(-CLIP // len(sound)) + 1)[start : start + CLIP]


def train(
    teacher: SpeakerEncoder, student: SpeakerEncoder, listener: Listener, seconds: float, out: Path
) -> None:
    """`student`, which starts as `teacher`, ends with its averaged weights."""
    curves, kept = Curves(out / "curves.jsonl"), [listener.clips() for _ in range(VOICES)]
    optimizer, budget = Optimizer([student], RATE, (0.9, 0.99)), Budget(seconds)
    spread = spread_of(teacher, kept)
    for step in steps_of(budget, torch.device("cpu")):
        if step % EVERY == 0:
            kept = [listener.clips(), *kept][:KEPT]
        optimizer.schedule(budget.rate(step), step)
        optimizer.clear()
        drawn = [(kept[k], k % TAKEN) for k in torch.randint(len(kept), (VOICES,)).tolist()]
        true = torch.stack([clips.true[row] for clips, row in drawn])
        copied = torch.stack([clips.copied[row] for clips, row in drawn])
        loss = apart(teacher, student, true, true, spread)
        loss_of_copies = apart(teacher, student, true, copied, spread)
        (loss + loss_of_copies).backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
        if step % 50 == 0:
            losses = {"true": float(loss.detach()), "copied": float(loss_of_copies.detach())}
            curves.write(step=step, at_s=budget.elapsed_s, **losses)
    optimizer.swap()


def spread_of(teacher: SpeakerEncoder, kept: list[Clips]) -> Tensor:
    """The mean variance over voices of an embedding's components."""
    with torch.no_grad():
        found: Tensor = teacher(torch.stack([clips.true[0] for clips in kept]))
    return found.var(0).mean()


def apart(
    teacher: SpeakerEncoder, student: SpeakerEncoder, true: Tensor, heard: Tensor, spread: Tensor
) -> Tensor:
    """Squared distance from what the teacher says, over the spread of voices."""
    with torch.no_grad():
        right = teacher(true)
    return F.mse_loss(student(heard), right) / spread


def read_encoder(talker: Path) -> SpeakerEncoder:
    encoder = SpeakerEncoder(TalkerShape(**read_shape(talker)))
    tensors = {k.removeprefix(PREFIX): v for k, v in load_file(talker).items() if PREFIX in k}
    encoder.load_state_dict({k: v.float() for k, v in tensors.items()})
    return encoder


def save(talker: Path, encoder: SpeakerEncoder, out: Path) -> None:
    """The talker's file with this speaker encoder, and its run.json."""
    tensors = load_file(talker)
    tensors |= {PREFIX + k: v.half().contiguous() for k, v in encoder.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(talker.parent / "run.json", out)


@click.command()
@click.option("--codec", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--talker", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seconds", type=float, default=1080.0, show_default=True)
@click.option("--seed", type=int, default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(codec: Path, talker: Path, seconds: float, seed: int, out: Path) -> None:
    """Write OUT/model.safetensors, run.json and curves.jsonl."""
    seed_everything(seed)
    teacher, student = read_encoder(talker).eval(), read_encoder(talker)
    listener = Listener(load_codec(codec, torch.device("cpu")), seed)
    train(teacher, student, listener, seconds, out)
    save(talker, student, out)


if __name__ == "__main__":
    main()
