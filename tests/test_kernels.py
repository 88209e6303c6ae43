"""What a machine without a GPU can tell of our CUDA kernels: they compile, and are called rightly.

That they are right and fast is measured on a GPU, by benchmarks/kernels.py.
"""

import ctypes
import inspect
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from inference.engine.config import _ops
from inference.engine.kernels import cuda_ops
from inference.engine.kernels.cuda_ops import CudaOps, KernelsUnavailable, compile_ahead, image
from inference.engine.kernels.cuda_program import Argument, Program, _passed, compiled, target
from inference.engine.ops import (
    AttentionConfig,
    AttentionMetadata,
    LogitsRules,
    TorchOps,
    TrailingText,
    rope_table,
)
from inference.engine.sampler import MIN_FRAMES, SamplingTensors
from inference.engine.weights import GATE_INTERLEAVE
from registry.modal.plan import GPUS, WITHOUT_BFLOAT16

SOURCE = ROOT / "inference" / "engine" / "kernels" / "kernels.cu"
TARGETS = [(75, 0), (80, 0), (80, 1), (90, 0), (90, 1)]  # sm, then whether weights are bfloat16
SPILL_BYTES = 64  # of one kernel, each way
NUMBERS = {"int": ctypes.c_int, "long long": ctypes.c_longlong, "float": ctypes.c_float}
POINTED = {
    **{"half_t": torch.float16, "float": torch.float32, "unsigned char": torch.bool},
    **{"int": torch.int32, "long long": torch.int64, "u64": torch.int64},
}
HEADS = AttentionConfig(16, 8, 128, 1e-6)
CPU = torch.device("cpu")
SLOTS, WIDTH = 3, 256
Launch = tuple[str, Sequence[Argument]]


class Recorder(Program):
    """Takes launches down instead of making them."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]
    ) -> None:
        assert all(1 <= size < 2**31 for size in grid) and 1 <= threads <= 1024, name
        self.launches.append((name, arguments))


class Recorded(CudaOps):
    """CudaOps whose kernels never run."""

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        self._program = self.recorder = Recorder()
        self._dtype = dtype


def half(*size: int) -> Tensor:
    return torch.rand(size).half()


def stacked(ops: TorchOps, rows: int) -> None:
    """What a layer asks for."""
    x, norm = torch.rand(rows, WIDTH), torch.ones(WIDTH)
    ops.norm_linear(x, norm, half(32, WIDTH), 1e-6)
    ops.norm_gated(x, norm, half(32, WIDTH), 1e-6)
    ops.linear_add(x, half(rows, 512), half(WIDTH, 512))


def attended(ops: TorchOps, rows: int, queries: int) -> None:
    width, number = HEADS.head_dim, torch.arange(rows, dtype=torch.int32)
    cache = (
        half(rows * queries + 1, HEADS.num_kv_heads, width),
        half(rows * queries + 1, HEADS.num_kv_heads, width),
    )
    table = torch.arange(rows * queries, dtype=torch.int32).view(rows, queries)
    metadata = AttentionMetadata(number, torch.zeros_like(number), table, queries)
    norms, rope = (torch.ones(width), torch.ones(width)), rope_table(1e6, width, queries, CPU)
    ops.attend(half(rows * queries, 32 * width), norms, rope, cache, metadata, HEADS)


def chosen(ops: TorchOps, rules: LogitsRules) -> None:
    bad, slots = torch.zeros(SLOTS, dtype=torch.bool), torch.arange(2, dtype=torch.int32)
    ops.sample(half(2, 96)[:, :64], rules, SamplingTensors.empty(SLOTS, CPU), slots, 0, bad)


def embedded(ops: TorchOps) -> None:
    codes, slots = torch.zeros(2, 16, dtype=torch.int64), torch.arange(2, dtype=torch.int32)
    length = torch.ones(SLOTS, dtype=torch.int32)
    text = TrailingText(half(SLOTS, 4, WIDTH), length, half(WIDTH))
    tables = half(64, WIDTH), half(15, 32, WIDTH)
    ops.embed(tables[0], codes[:, 0].contiguous())
    ops.frame_embed(codes, tables, text, SamplingTensors.empty(SLOTS, CPU), slots)


def sounded(ops: TorchOps) -> None:
    x, line, per_channel = half(2, 5, 16), half(2, 9, 16), half(16)
    ops.snake(x, per_channel, per_channel, per_channel)
    ops.snake(x, per_channel, per_channel, per_channel, out=line[:, 4:])


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    """Of every operation, with few rows and with many."""
    ops = Recorded()
    for rows in (1, 9, 17, 33, 64, 200):
        stacked(ops, rows)
        attended(ops, rows, queries=1)
    for queries in (2, 20):
        attended(ops, 3, queries)
    seen = torch.zeros(SLOTS, 64, dtype=torch.bool)
    chosen(ops, LogitsRules())
    chosen(ops, LogitsRules(seen, seen[0], 7))
    embedded(ops)
    sounded(ops)
    return ops.recorder.launches


def declared() -> dict[str, list[str]]:
    """The type of each parameter of each kernel in the source, such as `half_t*`."""
    kernels = r'extern "C" __global__ (?:__launch_bounds__\(.*?\) )?void (\w+)\((.*?)\)'
    return {
        name: [re.sub(r"^const |\s*\w+$", "", part.strip()) for part in parameters.split(",")]
        for name, parameters in re.findall(kernels, expanded(), re.DOTALL)
    }


def expanded() -> str:
    """The source with its macros that make a kernel of a NAME written out."""
    source = SOURCE.read_text().replace("\\\n", " ")
    macro = re.compile(r"#define (\w+)\(NAME, .*?\)(.*)")
    made = [
        body.replace("NAME", name)
        for use, body in macro.findall(source)
        for name in re.findall(rf"^{use}\((\w+)", source, re.MULTILINE)
    ]
    return "\n".join([macro.sub("", source), *made])


def takes(parameter: str, argument: Argument) -> bool:
    """Whether a kernel's parameter is what Program makes of the argument."""
    if not parameter.endswith("*"):
        return _passed(argument)[1] is NUMBERS[parameter]
    if isinstance(argument, Tensor):
        return argument.dtype is POINTED.get(parameter[:-1], argument.dtype)  # void is anything
    return argument is None


def test_every_launch_passes_what_its_kernel_declares(launches: list[Launch]) -> None:
    kernels = declared()
    for name, arguments in launches:
        assert len(kernels[name]) == len(arguments), name
        pairs = zip(kernels[name], arguments, strict=True)
        wrong = [index for index, pair in enumerate(pairs) if not takes(*pair)]
        assert not wrong, f"{name} takes its parameters {wrong} in another type"


def test_every_kernel_is_launched(launches: list[Launch]) -> None:
    assert set(declared()) == {name for name, _ in launches}


def test_the_table_of_the_source_has_a_line_for_every_kernel_and_no_other() -> None:
    head = SOURCE.read_text().partition("typedef")[0]
    [*lines] = re.findall(r"^// ([a-z]\w+)(?:, (_\d))?  ", head, re.MULTILINE)
    listed = [name for name, _ in lines if name != "kernel"]
    listed += [re.sub(r"_\d$", more, name) for name, more in lines if more]
    assert sorted(listed) == sorted(declared())


def test_python_and_the_source_agree_on_the_sizes() -> None:
    pairs = re.findall(r"^constexpr int (\w+) = (\d+);", SOURCE.read_text(), re.MULTILINE)
    sizes = {name: int(value) for name, value in pairs}
    assert sizes["WARPS"] * sizes["STEP_TERMS"] == cuda_ops.TERMS
    assert sizes["SAMPLE_THREADS"] * sizes["THREAD_SCORES"] == cuda_ops.SCORES
    assert sizes["INTERLEAVE"] == GATE_INTERLEAVE and sizes["MIN_FRAMES"] == MIN_FRAMES


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("there is no nvcc to compile the kernels with")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("target", "brain"), TARGETS)
def test_the_kernels_compile_for_every_gpu_that_is_supported(
    tmp_path: Path, nvcc: str, target: int, brain: int
) -> None:
    """They export what the source declares, and their registers hold what they work on."""
    ptx, code = tmp_path / "kernels.ptx", tmp_path / "kernels.cubin"
    common = [nvcc, f"-arch=sm_{target}", f"-DBF16={brain}", "-Werror", "all-warnings"]
    for step in (["-ptx", SOURCE, "-o", ptx], ["-cubin", "-Xptxas", "-v", ptx, "-o", code]):
        done = subprocess.run([*common, *step], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = re.findall(r"\.entry (\w+)\((.*?)\)", ptx.read_text(), re.DOTALL)
    counts = {name: parameters.count(".param") for name, parameters in found}
    assert counts == {name: len(types) for name, types in declared().items()}
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) >= len(counts)
    assert max(int(size) for sizes in spills for size in sizes) <= SPILL_BYTES


ELF, STARTS = b"\x7fELF", b".text."


@pytest.fixture(scope="module")
def nvrtc() -> None:
    try:
        compiled("", (), "sm_75")
    except KernelsUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("gpu", sorted(set(GPUS.values())))
def test_the_kernels_are_made_without_a_gpu_for_every_gpu_that_can_be_deployed(
    nvrtc: None, gpu: tuple[int, int]
) -> None:
    """As machine code, which holds every kernel, and is made once."""
    for dtype in (torch.float16, torch.bfloat16)[: 1 if gpu < WITHOUT_BFLOAT16 else 2]:
        compile_ahead(dtype, [gpu])
        code = image(dtype, target(gpu))
        assert code.startswith(ELF) and code is image(dtype, target(gpu))
        assert {name for name in declared() if STARTS + name.encode() + b"\0" in code} == set(
            declared()
        )


def test_an_older_gpus_kernels_can_be_left_to_the_driver(nvrtc: None) -> None:
    assert image(torch.float16, "compute_75").lstrip().startswith(b"//")


def test_what_does_not_compile_is_said(nvrtc: None) -> None:
    with pytest.raises(KernelsUnavailable, match="do not compile for sm_75: kernels"):
        compiled("nonsense", (), "sm_75")


def test_every_operation_has_a_kernel(launches: list[Launch]) -> None:
    kinds = {re.sub(r"_\d+$", "", name) for name, _ in launches}
    wanted = {"norm_linear", "norm_gated", "linear_add", "attend", "sample", "embed"}
    assert wanted | {"frame_embed", "snake"} <= kinds


@pytest.mark.parametrize("name", [n for n in dir(TorchOps) if not n.startswith("_")])
def test_the_kernels_are_called_as_plain_torch_is(name: str) -> None:
    ours, reference = getattr(CudaOps, name), getattr(TorchOps, name)
    assert inspect.signature(ours, eval_str=True) == inspect.signature(reference, eval_str=True)
    assert ours is not reference, "has no kernel"


@pytest.mark.parametrize(
    ("dtype", "capability"), [(torch.bfloat16, (7, 5)), (torch.float16, (7, 0))]
)
def test_a_gpu_that_cannot_run_the_kernels_is_refused(
    dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(KernelsUnavailable, match="Our kernels do not run in"):
        CudaOps(CPU, dtype)


def test_without_nvidias_bindings_the_kernels_are_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(KernelsUnavailable, match="cuda-bindings"):
        compiled("", (), "sm_75")
    with pytest.raises(KernelsUnavailable, match="cuda-bindings"):
        Program(b"")


def test_without_the_kernels_plain_torch_makes_the_frames(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    found = _ops(torch.device("cuda"), torch.bfloat16)
    assert type(found) is TorchOps
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith("Frames are made without our CUDA kernels: ")
