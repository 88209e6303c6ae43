"""Train talker, code predictor and speaker encoder on fresh speech for a budget of seconds.

    python -m training.demo_model.train_talker --codec codec/codec.safetensors --out talker \
        --seconds 480 --workers 14

The codec's run.json stands beside it.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.demo_model.codec import Codec, parameters_of
from training.demo_model.pool import Pool, Store
from training.demo_model.rows import TALKER_FIELDS, start_worker
from training.demo_model.shape import CodecShape, TalkerShape
from training.demo_model.speaker import LogMel
from training.demo_model.steps import (
    Averages,
    Budget,
    Curves,
    Optimizer,
    Step,
    seed_everything,
    steps_of,
)
from training.demo_model.talker import Model
from training.demo_model.talker_losses import Helpers, Speech, losses_of
from training.demo_model.utterances import BLOCK, FRAMES, Arrays

WEIGHTS = {
    "first": 1.0,
    "others": 0.7,
    "phones": 1.0,
    "token": 0.7,
    "pitch": 0.5,
    "variant": 0.1,
    "median": 0.5,
}
WATCHED = (*WEIGHTS, "end", "second", "phones_right", "token_right")
CLIPS = {"single": 32, "several": 56}  # frames of the voice that is cloned
KEPT = 4  # blocks that are never trained on


@dataclass(frozen=True)
class Run:
    """What a run is told; written beside its weights."""

    seconds: float
    seed: int = 0
    single: int = 320  # rows of a batch
    several: int = 144
    single_share: float = 0.6  # of the steps
    picked: int = 8192  # positions for everything but code 0
    rate: float = 2e-3
    store: int = 2000  # blocks kept on the device
    fresh: int = 2  # blocks taken in a step, at most
    hidden: int = 384
    speaker_channels: int = 48

    @property
    def shape(self) -> TalkerShape:
        return replace(TalkerShape(), hidden=self.hidden, speaker_channels=self.speaker_channels)


def load_codec(path: Path, device: torch.device) -> Codec:
    """The codec of codec.safetensors, in fp32; its shape is in run.json beside it."""
    written = json.loads((path.parent / "run.json").read_text("utf-8"))["shape"]
    shape = CodecShape.read(written)
    codec = Codec(shape)
    codec.load_state({k: v.float() for k, v in load_file(path).items()})
    return codec.to(device).eval()


class Trainer:
    """The model, its helpers and one training step of either kind of rows."""

    def __init__(self, run: Run, codec: Codec, store: Store, device: torch.device) -> None:
        self.run, self.codec, self.device = run, codec, device
        self.speech = Speech(store, codec.shape.groups)
        self.model, self.helpers = Model(run.shape).to(device), Helpers(run.shape).to(device)
        self.mel = LogMel().to(device)
        self.optimizer = Optimizer([self.model, self.helpers], run.rate, (0.9, 0.97))
        self.averages = {kind: Averages.of((*WATCHED, "norm"), device) for kind in CLIPS}

    def add(self, block: Arrays) -> None:
        """A block arrives: store and encode it."""
        start = self.speech.store.add(block) * FRAMES
        rows = torch.from_numpy(block["sound"]).to(self.device).float() / 32768
        codes = self.codec.encode(rows).flatten(0, 1)
        self.speech.codes[start : start + len(codes)] = codes.to(torch.int16)

    def losses(self, kind: str, rows: Tensor) -> dict[str, Tensor]:
        batch = self.speech.batch(kind, rows)
        clips = self.speech.clips(batch.block, CLIPS[kind])
        picked = self.run.picked
        with torch.no_grad():
            mel = self.mel(clips)
        bf16 = torch.autocast(
            self.device.type, torch.bfloat16, self.device.type == "cuda", cache_enabled=False
        )
        with bf16:
            return losses_of(self.model, self.helpers, self.speech, mel, batch, picked)

    def body(self, kind: str) -> None:
        """One step, for `Step`."""
        count = self.run.single if kind == "single" else self.run.several
        self.optimizer.clear()
        losses = self.losses(kind, self.speech.store.random_rows(count))
        loss = torch.stack([losses[name] * weight for name, weight in WEIGHTS.items()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(1.0)
        self.averages[kind].add({**losses, "norm": norm})

    @torch.no_grad()
    def validate(self) -> dict[str, dict[str, float]]:
        """Of the averaged weights, on the blocks that are kept apart."""
        rows = torch.arange(self.speech.store.kept, device=self.device)
        self.optimizer.swap()
        self.model.eval()
        found = {kind: self.losses(kind, rows) for kind in CLIPS}
        self.model.train()
        self.optimizer.swap()
        return {kind: {k: float(v) for k, v in losses.items()} for kind, losses in found.items()}

    @property
    def sound(self) -> bool:
        return all(averages.sound for averages in self.averages.values())


class Snapshots:
    """The averaged weights on disk, and the way back from a step that went wrong."""

    def __init__(self, trainer: Trainer, out: Path) -> None:
        self._trainer, self._out = trainer, out
        self._good = [p.clone() for p in trainer.optimizer.parameters]

    @torch.no_grad()
    def save(self) -> bool:
        """False if the run had lost its numbers; it is then back at the last snapshot."""
        trainer = self._trainer
        if not trainer.sound:
            for parameter, good in zip(trainer.optimizer.parameters, self._good, strict=True):
                parameter.copy_(good)
            trainer.optimizer.forget()
            for averages in trainer.averages.values():
                averages.values.zero_()
            return False
        self._good = [p.clone() for p in trainer.optimizer.parameters]
        trainer.optimizer.swap()
        save_talker(trainer.model, trainer.run, self._out)
        trainer.optimizer.swap()
        return True


def save_talker(model: Model, run: Run, out: Path) -> None:
    """model.safetensors in fp16 under the package's names, and run.json."""
    halved = {k: v.half().cpu().contiguous() for k, v in model.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(halved, out / "model.part", metadata={"format": "pt"})
    (out / "model.part").replace(out / "model.safetensors")
    (out / "run.json").write_text(
        json.dumps({"run": asdict(run), "shape": asdict(run.shape)}, indent=1), "utf-8"
    )


def train(run: Run, codec: Path, pool: Pool, out: Path, graph: bool) -> Trainer:
    """The trained model, its averaged weights in place; `out` has the last snapshot throughout."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(run.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    budget, curves = Budget(run.seconds), Curves(out / "curves.jsonl")
    store = Store(TALKER_FIELDS, BLOCK, run.store, device, kept=min(KEPT, run.store - 1))
    trainer = Trainer(run, load_codec(codec, device), store, device)
    pool.wait(trainer.add, blocks=min(60, run.store))
    snapshots = Snapshots(trainer, out)
    trainer.optimizer.schedule(budget.rate(0), 0)
    steps = {kind: Step(partial(trainer.body, kind), device, graph) for kind in CLIPS}
    curves.write(at_s=budget.elapsed_s, device=str(device), parameters=parameters_of(trainer.model))
    chance = torch.Generator().manual_seed(run.seed)
    logged = saved = budget.elapsed_s
    for step in steps_of(budget, device):
        trainer.optimizer.schedule(budget.rate(step), step)
        kind = "single" if torch.rand((), generator=chance) < run.single_share else "several"
        steps[kind]()
        for _ in range(run.fresh):
            pool.take(trainer.add)
        now = budget.elapsed_s
        if now - logged > min(15.0, run.seconds / 8):
            seen = {"blocks": store.blocks_seen, "rate": budget.rate(step)}
            losses = {kind: averages.read() for kind, averages in trainer.averages.items()}
            curves.write(step=step, at_s=now, **seen, **losses)
            logged = now
        if now - saved > min(60.0, run.seconds / 4):
            curves.write(step=step, saved=snapshots.save(), kept_apart=trainer.validate())
            saved = now
    saved_last = snapshots.save()
    curves.write(step=step, at_s=budget.elapsed_s, saved=saved_last, kept_apart=trainer.validate())
    trainer.optimizer.swap()
    return trainer


@click.command()
@click.option("--codec", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seconds", type=float, required=True, help="of training, wall clock")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--workers", type=int, default=14, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--single", type=int, default=320, show_default=True, help="rows of a batch")
@click.option("--several", type=int, default=144, show_default=True, help="rows of a batch")
@click.option("--rate", type=float, default=2e-3, show_default=True)
@click.option("--store", type=int, default=2000, show_default=True, help="blocks on the device")
@click.option("--hidden", type=int, default=384, show_default=True)
@click.option("--speaker-channels", type=int, default=48, show_default=True)
@click.option("--graph/--eager", default=True, show_default=True)
def main(codec: Path, out: Path, workers: int, graph: bool, **options: float) -> None:
    """Train the talker and write OUT/model.safetensors, run.json, curves.jsonl."""
    run = Run(**options)  # type: ignore[arg-type]
    start = partial(start_worker, run.shape)
    pool = Pool(start, TALKER_FIELDS, BLOCK, workers, run.seed + 101)
    try:
        train(run, codec, pool, out, graph)
    finally:
        pool.close()


if __name__ == "__main__":
    main()
