"""Our engine by stages, and its peers on the same shapes: what issue after issue compares.

Each --stage appends one run to the JSON in --out; `table` prints what the JSON holds, and with
--plot draws it. Random weights of a true size are made on the device, or --model loads a folder.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import engine_stages
import engine_table
import measure
import peers
import plots
import torch
from engine_stages import DTYPES, Found, Skipped, Subject

from inference.engine.config import default_dtype
from inference.testing.config import SIZES

OUT = measure.RESULTS / "engine-h200.json"
STAGES: dict[str, Callable[[Subject], Found]] = {
    "single": engine_stages.single,
    "batch": engine_stages.batch,
    "poisson": engine_stages.poisson,
    "memory": engine_stages.memory,
    "peer-stock": lambda subject: peers.stock(subject.asked),
    "peer-faster": lambda subject: peers.faster(subject.asked),
    "cold": lambda subject: cold(subject.asked),
}
NOT_KEPT = ("out", "plot", "stage")


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    if asked.stage != ["table"]:
        complete(asked)
    subject = Subject(asked)
    for stage in asked.stage:
        if stage == "table":
            show(asked)
        else:
            run(stage, subject)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", required=True, choices=[*STAGES, "table"])
    parser.add_argument("--dtype", choices=DTYPES, help="default: what suits the device")
    parser.add_argument("--as-on-t4", action="store_true", help="do only what a T4 can")
    parser.add_argument("--no-kernels", action="store_true", help="plain torch")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--size", choices=SIZES, default="1.7b", help="of random weights")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON that keeps the runs")
    parser.add_argument("--plot", type=Path, help="the folder that `table` draws into")
    parser.add_argument("--commit", help="default: asked of git")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--frames", type=int, default=125, help="of each stream")
    parser.add_argument("--peer-frames", type=int, default=40, help="of stock qwen-tts")
    parser.add_argument("--reference", type=int, default=126, help="frames of a voice's clip")
    parser.add_argument("--repeat", type=int, default=25, help="times first audio is waited for")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 20, 40], help="requests/s")
    parser.add_argument("--seconds", type=float, default=15, help="of arrivals at each rate")
    parser.add_argument("--starts", type=int, default=3, help="of a process, in each way")
    parser.add_argument("--utterance", type=int, default=62, help="frames of each arrival")
    return parser.parse_args(arguments)


def complete(asked: argparse.Namespace) -> None:
    """What was left to the device, and what a record should say of it."""
    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_t4 = asked.as_on_t4 and device.type == "cuda"
    default = "float16" if on_t4 else default_dtype(device)
    asked.dtype = asked.dtype or next(short for short, name in DTYPES.items() if name == default)
    asked.device = str(device)
    asked.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    asked.commit = asked.commit or commit()


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def run(stage: str, subject: Subject) -> None:
    asked = subject.asked
    try:
        found = STAGES[stage](subject)
    except Skipped as reason:
        print(f"{stage}: skipped. {reason}")
        return
    switch = " as on a T4" if asked.as_on_t4 else ""
    print(f"{stage}: {asked.model or asked.size}, {asked.dtype}{switch}, {asked.gpu or 'cpu'}")
    report(found)
    kept = {name: value for name, value in vars(asked).items() if name not in NOT_KEPT}
    measure.record(asked.out.parent, asked.out.stem, kept | {"stage": stage}, found)


def cold(asked: argparse.Namespace) -> Found:
    """Process start to first audio by phase, as cold_start.py measures it."""
    script, dtype = Path(__file__).with_name("cold_start.py"), DTYPES[asked.dtype]
    options = ["--size", asked.size, "--device", asked.device, "--dtype", dtype]
    options += [] if asked.model is None else ["--model", str(asked.model)]
    with TemporaryDirectory() as folder:
        repeat = ["--repeat", str(asked.starts), "--results", folder]
        subprocess.run([sys.executable, str(script), *options, *repeat], check=True)
        [run] = engine_table.load(Path(folder) / "cold_start.json")
    warm, dropped = (run["found"][cache]["phases_ms"] for cache in ("warm", "cold"))
    rows = [{"phase": name, "warm_ms": warm[name], "cold_ms": dropped[name]} for name in warm]
    complete = "first audio" in warm
    ended = {"first_audio_s": round(dropped["total"] / 1000, 3)} if complete else {}
    return {"rows": rows, **ended}


def report(found: Found) -> None:
    rows = found["rows"]
    measure.table(list(rows[0]), [list(row.values()) for row in rows])
    for name, value in found.items():
        if name != "rows":
            print(f"{name}: {value}")


def show(asked: argparse.Namespace) -> None:
    if not asked.out.exists():
        sys.exit(f"There is no {asked.out}: run a stage first.")
    model = measure.nameless(asked.model)
    found = engine_table.columns(engine_table.load(asked.out), asked.size, model)
    print(engine_table.markdown(found))
    if asked.plot is not None:
        for path in plots.draw(found, asked.plot):
            print(f"Drawn: {path.name}")


if __name__ == "__main__":
    main()
