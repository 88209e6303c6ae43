"""Our CUDA kernels against plain torch: are they right, how fast is each, and a whole frame.

Right is near TorchOps on the same numbers, widened to float64. Times are of CUDA graphs, over more
weights than the cache holds. Needs a GPU.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

import measure
import torch
from random_weights import described, random_weights
from setups import T4Ops
from torch import Tensor

from inference.engine.generator import Generator
from inference.engine.kernels.cuda_ops import CudaOps
from inference.engine.ops import (
    AttentionConfig,
    AttentionMetadata,
    LogitsRules,
    TorchOps,
    TrailingText,
    rope_table,
)
from inference.engine.sampler import SamplingTensors, key_of
from inference.engine.state import EngineLimits, State

BUILDS: dict[str, tuple[torch.dtype, type[CudaOps]]] = {
    "fp16": (torch.float16, CudaOps),
    "bf16": (torch.bfloat16, CudaOps),
    "t4": (torch.float16, T4Ops),
}
STACKS = ((2048, 6144), (1024, 3072))  # D and F of the talker, and of the predictor
ROWS = (1, 2, 4, 8, 16, 32, 64)
MATRICES = ("qkv", "o", "gate_up", "down")
HEADS = AttentionConfig(16, 8, 128, 1e-6)
POSITIONS = 1024
PAST = 256
SLOTS = 65
COLD_BYTES = 300e6  # of weights that a timed graph reads before it returns to the first
CALLS = 120  # in a timed graph
REPLAYS = 9
Case = tuple[str, tuple[Any, ...]]  # an operation and its arguments
GPU = torch.device("cuda")


def main() -> None:
    asked = parsed()
    found: dict[str, Any] = {}
    for stage in asked.stage:
        rows = list(STAGES[stage](asked))
        measure.table(list(rows[0]), [list(row.values()) for row in rows])
        found[stage] = rows
    kept = vars(asked) | {"gpu": torch.cuda.get_device_name()}
    measure.record(asked.results, "kernels", kept, found)


def parsed() -> argparse.Namespace:
    parser = measure.arguments(__doc__)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--build", choices=BUILDS, default="fp16", help="that is timed")
    parser.add_argument("--alone", action="store_true", help="don't time plain torch")
    parser.add_argument("--size", default="1.7b", help="of the model whose frame is timed")
    return parser.parse_args()


@dataclass(frozen=True)
class Maker:
    """Random arguments of a realistic scale."""

    dtype: torch.dtype

    def half(self, *size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(size, device=GPU).mul_(scale).to(self.dtype)

    def weight(self, outputs: int, terms: int) -> Tensor:
        return self.half(outputs, terms, scale=1 / math.sqrt(terms))

    def residual(self, rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, device=GPU) * 3

    def matrices(self, width: int, hidden: int, rows: int) -> Iterator[Case]:
        """The four products of a layer; y has the heads' width, z the hidden one."""
        x, norm = self.residual(rows, width), torch.rand(width, device=GPU) + 0.5
        queries = HEADS.num_heads * HEADS.head_dim
        y, z = self.half(rows, queries), self.half(rows, hidden)
        yield "norm_linear", (x, norm, self.weight(2 * queries, width), 1e-6)
        yield "linear_add", (x, y, self.weight(width, queries))
        yield "norm_gated", (x, norm, self.weight(2 * hidden, width), 1e-6)
        yield "linear_add", (x, z, self.weight(width, hidden))

    def attend(self, rows: int, queries: int, past: int, wide: bool = True) -> Case:
        """Rows of about so much past, in cache entries without order; `wide` spans look far."""
        width, span = HEADS.head_dim, POSITIONS if wide else past + queries
        length, number = past + queries, rows * (past + queries)
        cache = tuple(self.half(number + 1, HEADS.num_kv_heads, width) for _ in range(2))
        table = torch.zeros(rows + 1, POSITIONS, dtype=torch.int32, device=GPU)
        table[:rows, :length] = torch.randperm(number, device=GPU).view(rows, length).int() + 1
        position = torch.randint(max(0, past - 3), past + 1, (rows,), device=GPU).int()
        metadata = AttentionMetadata(torch.randperm(rows, device=GPU).int(), position, table, span)
        norms = torch.rand(width, device=GPU) + 0.5, torch.rand(width, device=GPU) + 0.5
        qkv = self.half(rows * queries, (HEADS.num_heads + 2 * HEADS.num_kv_heads) * width)
        return "attend", (
            qkv,
            norms,
            rope_table(1e6, width, POSITIONS, GPU),
            cache,
            metadata,
            HEADS,
        )

    def sample(self, rows: int, count: int, first: bool, by: SamplingTensors) -> Case:
        """The second row has a logit that is not finite."""
        logits = self.half(rows, count + 1024, scale=3.0)[:, :count]
        logits[1:2, 7] = math.nan
        allowed = torch.rand(count, device=GPU) < 0.7
        seen = torch.rand(SLOTS, count, device=GPU) < 0.1
        rules = LogitsRules(seen, allowed, count - 9) if first else LogitsRules()
        slots = torch.randperm(SLOTS, device=GPU)[:rows].int()
        bad = torch.zeros(SLOTS, dtype=torch.bool, device=GPU)
        return "sample", (logits, rules, by, slots, 0 if first else 3, bad)

    def frame_embed(self, rows: int, width: int) -> Case:
        codes = torch.randint(0, 2048, (rows, 16), device=GPU)
        length = torch.randint(0, 6, (SLOTS,), device=GPU).int()
        text = TrailingText(self.half(SLOTS, 8, width), length, self.half(width))
        tables = self.half(3072, width), self.half(15, 2048, width)
        slots = torch.randperm(SLOTS, device=GPU)[:rows].int()
        return "frame_embed", (codes, tables, text, any_sampling(), slots)

    def snake(self, rows: int) -> Case:
        """Angles up to a hundred."""
        alpha = torch.exp(torch.randn(96, device=GPU)).to(self.dtype)
        x = self.half(rows, 50, 96, scale=5.0)
        return "snake", (x, alpha, self.half(96).abs(), self.half(96))


def any_sampling() -> SamplingTensors:
    """Greedy or warm, top-k from one to all, top-p on or off, steps before and after the first."""
    made = SamplingTensors.empty(SLOTS, GPU)
    made.temperature.uniform_(0.3, 1.3)[::7] = 0
    made.top_k.random_(1, 80)[::5] = 3072
    made.top_p.uniform_(0.05, 1.0)[::2] = 1
    made.repetition_penalty.fill_(1.3)
    made.step.random_(0, 5)
    made.key.copy_(torch.tensor([key_of(seed) for seed in range(SLOTS)]))
    return made


def usual(made: SamplingTensors) -> SamplingTensors:
    """The released defaults."""
    made.top_k.fill_(50)
    made.temperature.fill_(0.9)
    return made


def cases(make: Maker, rows: int) -> Iterator[Case]:
    for width, hidden in STACKS:
        yield from make.matrices(width, hidden, rows)
        yield make.frame_embed(rows, width)
    for queries, past in ((1, 0), (1, 16), (1, 300), (1, 900), (2, 0), (2, 16), (20, 5)):
        yield make.attend(rows, queries, past, wide=past > 16)
    for first in (True, False) * 4:
        yield make.sample(rows, 3072 if first else 2048, first, any_sampling())
    table = make.half(3072, 1024)
    yield "embed", (table, torch.randint(0, 3072, (rows,), device=GPU))
    if make.dtype == torch.float16:
        yield make.snake(rows)


def checked(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The largest relative error of each operation; of choices, the share that differ."""
    torch.manual_seed(0)
    worst: dict[str, dict[str, float]] = {}
    for build, (dtype, kernels) in BUILDS.items():
        ops = kernels(GPU, dtype)
        for rows in (*asked.rows, 3, 13, 21, 50):
            for case in cases(Maker(dtype), rows):
                found = worst.setdefault(case[0], {})
                found[build] = max(found.get(build, 0.0), error(ops, case))
    for name, found in worst.items():
        yield {"operation": name} | {k: f"{found.get(k, math.nan):.1e}" for k in BUILDS}


def error(ops: CudaOps, case: Case) -> float:
    """Of what an operation returns, and of every tensor it was given: some are written to."""
    name, arguments = case
    exact = widened(arguments)
    wanted = getattr(TorchOps(), name)(*exact)
    poison(wanted)
    found = getattr(ops, name)(*arguments)
    if name == "sample":
        _, rules, _, slots, _, bad = arguments
        assert torch.equal(bad, exact[-1])
        assert rules.seen is None or rules.seen[slots.long(), found].all()
        return float((found != wanted).float().mean())
    pairs = zip(tensors((found, arguments)), tensors((wanted, exact)), strict=True)
    return max(apart(*pair) for pair in pairs)


def widened(value: Any) -> Any:
    """A copy in which halves are float64."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in (torch.float16, torch.bfloat16) else value.clone()
    if isinstance(value, tuple):
        return tuple(map(widened, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: widened(getattr(value, f.name)) for f in fields(value)})
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    if is_dataclass(value):
        value = tuple(vars(value).values())
    for part in value if isinstance(value, tuple) else ():
        yield from tensors(part)


def apart(found: Tensor, wanted: Tensor) -> float:
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-9)
    return float(difference.nan_to_num(nan=math.inf))


def poison(like: Tensor) -> None:
    """What is allocated next is full of NaN, whatever its dtype."""
    kept = [torch.full_like(like, math.nan, dtype=kind) for kind in (torch.half, torch.float)]
    del kept


def timed(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Microseconds of a call, ours and plain torch's; GB/s of the weights for the fewest rows."""
    dtype, _ = BUILDS[asked.build]
    both, make = contenders(asked), Maker(dtype)
    for width, hidden in STACKS:
        for index, name in enumerate(MATRICES):
            yield row_of(asked, f"{name} {width}", both, _matrix(make, index, width, hidden))
    for past in (16, 300, 1000):
        yield row_of(asked, f"attend {past}", both, partial(_attend, make, past))
    yield row_of(asked, "attend two", both, lambda rows: make.attend(rows, 2, 0, False))
    by = usual(SamplingTensors.empty(SLOTS, GPU))
    yield row_of(asked, "sample", both, lambda rows: make.sample(rows, 2048, False, by))
    yield row_of(asked, "frame_embed", both, lambda rows: make.frame_embed(rows, 2048))


def contenders(asked: argparse.Namespace) -> list[TorchOps]:
    dtype, kernels = BUILDS[asked.build]
    ours = kernels(GPU, dtype)
    return [ours] if asked.alone else [ours, TorchOps()]


def _matrix(make: Maker, index: int, width: int, hidden: int) -> Callable[[int], Case]:
    return lambda rows: next(islice(make.matrices(width, hidden, rows), index, None))


def _attend(make: Maker, past: int, rows: int) -> Case:
    return make.attend(rows, 1, past, wide=past > 16)


def row_of(
    asked: argparse.Namespace,
    label: str,
    both: Sequence[TorchOps],
    make: Callable[[int], Case],
) -> dict[str, Any]:
    row: dict[str, Any] = {"us, ours / torch": label}
    speeds = []
    for rows in asked.rows:
        times = [case_us(ops, make(rows)) for ops in both]
        row[str(rows)] = " / ".join(f"{us:.1f}" for us in times)
        speeds.append(max(t.nbytes for t in tensors(make(rows)[1])) / times[0] / 1e3)
    return row | {"GB/s": f"{speeds[0]:.0f}" if label.split()[0] in MATRICES else ""}


def case_us(ops: TorchOps, case: Case) -> float:
    """Of one call, over copies of its arguments that the cache can't hold all."""
    name, arguments = case
    nbytes = sum(tensor.nbytes for tensor in tensors(arguments))
    count = min(20, math.ceil(COLD_BYTES / nbytes))
    sets = [copied(arguments) for _ in range(count)]
    calls = list(islice(cycle(sets), CALLS))
    return graph_ms(lambda: [getattr(ops, name)(*one) for one in calls]) * 1000 / CALLS


def copied(value: Any) -> Any:
    """What large parts it has as a copy elsewhere; the rest is small enough to be shared."""
    if isinstance(value, Tensor):
        return value.clone() if value.nbytes > 2**20 else value
    return tuple(map(copied, value)) if isinstance(value, tuple) else value


def graph_ms(work: Callable[[], object]) -> float:
    """The median time of a replay."""
    stream, times = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return float(median(times[2:]))


def framed(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Milliseconds of a whole frame but its sound: choose 16 codes, then the talker's layers."""
    dtype, _ = BUILDS[asked.build]
    model_config, _ = described(asked.size)
    weights, most = random_weights(model_config, dtype, GPU), max(asked.rows)
    limits = EngineLimits(most, most * POSITIONS, POSITIONS, POSITIONS, 8)
    for rows in asked.rows:
        row: dict[str, Any] = {"rows": rows}
        for ops in contenders(asked):
            pad = torch.zeros(model_config.talker.hidden_size, device=GPU)
            state = seated(State(model_config, limits, pad, dtype))
            row |= frame_ms(Generator(model_config, weights, limits, state, ops), rows)
        yield row


def frame_ms(made: Generator, rows: int) -> dict[str, float]:
    slots = torch.arange(rows, dtype=torch.int32, device=GPU)
    sample = graph_ms(lambda: made.sample_frame(slots))
    advance = graph_ms(lambda: made.advance(slots, POSITIONS))
    label = "" if isinstance(made._ops, CudaOps) else "torch "
    found = {"sample ms": sample, "advance ms": advance, "ms": sample + advance}
    return {label + name: value for name, value in found.items()}


def seated(state: State) -> State:
    """Every slot in the middle of its speech."""
    table = torch.arange(state.table[:-1].numel(), dtype=torch.int32, device=GPU)
    state.table[:-1] = table.view_as(state.table[:-1])
    state.position.fill_(PAST)
    state.x.normal_()
    usual(state.sampling)
    return state


STAGES = {"check": checked, "time": timed, "frame": framed}

if __name__ == "__main__":
    main()
