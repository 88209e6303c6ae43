"""Train the codec on fresh speech for a budget of seconds; write its weights and curves.

python -m training.demo_model.train_codec --seconds 480 --out codec --workers 14
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.demo_model.codec import Codec, parameters_of
from training.demo_model.codec_losses import CENTRE_HZ, Heads, Spectra, Targets
from training.demo_model.codec_report import report
from training.demo_model.pool import Fill, Pool, Store
from training.demo_model.shape import CodecShape
from training.demo_model.steps import (
    Averages,
    Budget,
    Curves,
    Optimizer,
    Step,
    seed_everything,
    steps_of,
)
from training.demo_model.utterances import BLOCK, FIELDS, FRAME, Arrays, Utterances, write_sound

WEIGHTS = {
    "mel": 1.0,
    "fine": 0.5,
    "linear": 2.0,
    "complex": 3.0,
    "level": 1.0,
    "commit": 0.5,
    "phones": 0.6,
    "code_f0": 4.0,
    "code_voiced": 0.5,
    "code_energy": 1.0,
    "code_phase": 0.5,
    "slow_f0": 2.0,
    "slow_voiced": 0.5,
    "slow_energy": 0.5,
    "slow_phase": 0.5,
    "slow_mel": 0.5,
    "fast_phase": 2.0,
}
UNQUANTISED_UNTIL = 0.1  # of the budget: the share of rows that skip the codebooks falls to 0
REVIVED_UNTIL = 0.8
REFRESH = 4  # steps, for a block of fresh speech
DROPPED = 0.25  # of the rows hear only their first acoustic codebooks


@dataclass(frozen=True)
class Run:
    """What a run is told; written beside its weights."""

    seconds: float
    seed: int = 0
    batch: int = 24
    crop: int = 16  # frames
    rate: float = 1e-3
    store: int = 250  # blocks kept on the device
    wave_width: int = 192
    phase_weight: float = 1.0  # of every loss that knows phase

    @property
    def shape(self) -> CodecShape:
        return replace(CodecShape(), wave_width=self.wave_width)

    @property
    def weights(self) -> dict[str, float]:
        phased = {k for k in WEIGHTS if k.endswith("phase") or k == "complex"}
        return {k: v * (self.phase_weight if k in phased else 1.0) for k, v in WEIGHTS.items()}


def start_worker(seed: int) -> Fill:
    """In a synthesising process: a function that writes one more block."""
    utterances = Utterances(seed)

    def fill(rows: Arrays) -> None:
        write_sound(utterances.block()[1], rows)

    return fill


class Trainer:
    """The codec, its helpers and one training step."""

    def __init__(self, run: Run, store: Store, device: torch.device) -> None:
        self.run, self.store, self.device = run, store, device
        self.codec = Codec(run.shape).to(device)
        self.heads, self.spectra = Heads(run.shape).to(device), Spectra().to(device)
        self.optimizer = Optimizer([self.codec, self.heads], run.rate, (0.8, 0.99))
        names = [*run.weights, "loss", "norm"]
        self.averages = Averages.of(names, device)
        self.bypass, self.revive = (torch.zeros((), device=device) for _ in range(2))
        self.codec.quantizer.start(self.codec.encoder(self.crops().sound[:, None]))

    def crops(self) -> Targets:
        """A batch of random crops from the store, at random levels."""
        run, tensors = self.run, self.store.tensors
        rows = self.store.random_rows(run.batch)
        room = (tensors["frames"][rows] - run.crop).clamp(min=0) * 4 + 1
        start = (torch.rand(run.batch, device=self.device) * room).long()[:, None]
        at = rows[:, None]

        def cut(name: str, per_20_ms: int) -> Tensor:
            count = run.crop * 4 * per_20_ms
            return tensors[name][at, start * per_20_ms + torch.arange(count, device=self.device)]

        level = torch.exp(-1.2 * torch.rand(run.batch, 1, device=self.device)) / 32768
        log_f0 = torch.log2(cut("f0", 2).clamp(min=40.0) / CENTRE_HZ)
        return Targets(
            cut("sound", FRAME // 4).float() * level,
            cut("phones", 1).long(),
            log_f0,
            cut("voiced", 2).float(),
            cut("phase", 2),
        )

    def losses(self) -> dict[str, Tensor]:
        target = self.crops()
        semantic, acoustic, commit = self.codec.quantizer.train_step(
            self.codec.encoder(target.sound[:, None]), self._keep(), self._bypassed(), self.revive
        )
        mixed = self.codec.mix(semantic, acoustic)
        copy, slow, fast = self.codec.decoder(mixed)
        with torch.no_grad():
            mel = self.spectra.log_mel(target.sound, 1024, 240)[..., : slow.shape[-1]]
        losses = {"commit": commit, **self.spectra(copy[:, 0], target.sound)}
        helpers: dict[str, Tensor] = self.heads(semantic, mixed, slow, fast, target, mel)
        return losses | helpers

    def _keep(self) -> Tensor:
        """(B, groups - 1): most rows hear every acoustic codebook, some only the first ones."""
        books, batch = self.codec.shape.groups - 1, self.run.batch
        first = 1 + torch.rand(batch, device=self.device) * (books - 1)
        all_of_them = torch.rand(batch, device=self.device) > DROPPED
        heard = first + books * all_of_them
        return (torch.arange(books, device=self.device) < heard[:, None]).float()

    def _bypassed(self) -> Tensor:
        return (torch.rand(self.run.batch, device=self.device) < self.bypass).float()

    def body(self) -> None:
        """One step, for `Step`."""
        self.optimizer.clear()
        losses = self.losses()
        weights = self.run.weights
        loss = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(5.0)
        self.averages.add({**losses, "loss": loss, "norm": norm})

    def schedule(self, budget: Budget, step: int) -> None:
        progress = budget.progress
        self.optimizer.schedule(budget.rate(step), step)
        self.bypass.fill_(max(0.0, 0.5 * (1 - progress / UNQUANTISED_UNTIL)))
        self.revive.fill_(float(progress < REVIVED_UNTIL))


class Snapshots:
    """The averaged weights on disk, and the way back from a step that went wrong."""

    def __init__(self, trainer: Trainer, out: Path) -> None:
        self._trainer, self._out = trainer, out
        self._good = self._state()

    def save(self) -> bool:
        """False if the run had lost its numbers; it is then back at the last snapshot."""
        trainer = self._trainer
        if not trainer.averages.sound:
            trainer.codec.load_state_dict(self._good[0])
            trainer.heads.load_state_dict(self._good[1])
            trainer.optimizer.forget()
            trainer.averages.values.zero_()
            return False
        self._good = self._state()
        trainer.optimizer.swap()
        save_codec(trainer.codec, trainer.heads, trainer.run, self._out)
        trainer.optimizer.swap()
        return True

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        codec, heads = self._trainer.codec.state_dict(), self._trainer.heads.state_dict()
        return {k: v.clone() for k, v in codec.items()}, {k: v.clone() for k, v in heads.items()}


def save_codec(codec: Codec, heads: Heads, run: Run, out: Path) -> None:
    """codec.safetensors in fp16 under the package's names, the phoneme head, and run.json."""
    state = codec.state() | {f"heads.{k}": v for k, v in heads.state_dict().items()}
    halved = {k: v.half().cpu().contiguous() for k, v in state.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(halved, out / "codec.part")
    (out / "codec.part").replace(out / "codec.safetensors")
    written = {"run": asdict(run), "shape": asdict(codec.shape)}
    (out / "run.json").write_text(json.dumps(written, indent=1), "utf-8")


def train(run: Run, pool: Pool, out: Path, graph: bool, log_s: float = 10.0) -> Trainer:
    """The trained model, its averaged weights in place; `out` has the last snapshot throughout."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(run.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # every shape is fixed until the report
    budget, curves = Budget(run.seconds), Curves(out / "curves.jsonl")
    store = Store(FIELDS, BLOCK, run.store, device)
    pool.wait(store.add, blocks=min(8, run.store))
    trainer = Trainer(run, store, device)
    snapshots = Snapshots(trainer, out)
    trainer.schedule(budget, 0)
    step_once = Step(trainer.body, device, graph)
    sizes = {"encoder": parameters_of(trainer.codec.encoder)}
    sizes |= {"codec": parameters_of(trainer.codec)}
    curves.write(at_s=budget.elapsed_s, captured=step_once.captured, device=str(device), **sizes)
    logged = saved = budget.elapsed_s
    for step in steps_of(budget, device):
        trainer.schedule(budget, step)
        step_once()
        if step % REFRESH == 0:
            pool.take(store.add)
        now = budget.elapsed_s
        if now - logged > log_s:
            seen = {"blocks": store.blocks_seen, "rate": budget.rate(step)}
            curves.write(step=step, at_s=now, **seen, **trainer.averages.read())
            logged = now
        if now - saved > min(60.0, run.seconds / 4):
            curves.write(step=step, saved=snapshots.save())
            saved = now
    curves.write(step=step, at_s=budget.elapsed_s, saved=snapshots.save())
    trainer.optimizer.swap()
    torch.backends.cudnn.benchmark = False
    return trainer


@click.command()
@click.option("--seconds", type=float, required=True, help="of training, wall clock")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--workers", type=int, default=14, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch", type=int, default=24, show_default=True)
@click.option("--rate", type=float, default=1e-3, show_default=True)
@click.option("--store", type=int, default=250, show_default=True, help="blocks on the device")
@click.option("--wave-width", type=int, default=192, show_default=True)
@click.option("--phase-weight", type=float, default=1.0, show_default=True)
@click.option("--graph/--eager", default=True, show_default=True)
def main(out: Path, workers: int, graph: bool, **options: float) -> None:
    """Train the codec and write OUT/codec.safetensors, run.json, curves.jsonl, report.json."""
    run = Run(**options)  # type: ignore[arg-type]
    pool = Pool(start_worker, FIELDS, BLOCK, workers, run.seed + 1)
    try:
        trainer = train(run, pool, out, graph)
    finally:
        pool.close()
    result = report(trainer.codec, trainer.heads)
    (out / "report.json").write_text(json.dumps(result, indent=1), "utf-8")
    click.echo(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
