"""Says what a deployment costs. Prices are those that others published; nothing asks Modal."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.modal.plan import Deployment

GPU_USD_PER_S = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "A100": 0.000583,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "L40S": 0.000542,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
    "RTX-PRO-6000": 0.000842,
}
CORE_USD_PER_S, GIB_USD_PER_S = 0.0000131, 0.00000222
CORES, MEMORY_GIB = 2, 8
API_CORES, API_MEMORY_GIB = 0.5, 2
REGION_TIMES = (1.5, 1.75)  # the factors for a region of one's choice
FREE_USD = 30  # a month, for a workspace without a paid plan
START_S = 30  # of a GPU that was off; an assumption
FRAME_S = 0.08
T4_BYTES_PER_S = 300e9
FRAME_BYTES = {  # bytes read for one frame: docs/performance.md
    "Qwen/Qwen3-TTS-12Hz-1.7B-Base": 5.28e9,
    "Qwen/Qwen3-TTS-12Hz-0.6B-Base": 3.31e9,
}


def cost(plan: "Deployment") -> str:
    idle = (
        f"{usd(plan, 24 * 3600, '.0f')} a day all the time, for one GPU is kept"
        if plan.min_containers
        else "nothing while nobody speaks"
    )
    once = START_S + plan.scaledown_s
    return (
        f"Cost: {idle}; about {hourly(plan)} an hour while the GPU runs, "
        f"{usd(plan, plan.scaledown_s, '.4f')} for the {plan.scaledown_s} s it waits after the "
        f"last speech, {usd(plan, once, '.2f')} for one request to a GPU that was "
        f"off{minute(plan)}."
    )


def hourly(plan: "Deployment") -> str:
    return usd(plan, 3600, ".2f")


def minute(plan: "Deployment") -> str:
    step_s = t4_step_s(plan)
    if step_s is None:
        return ""
    price = usd(plan, 60 * step_s / FRAME_S, ".4f")
    return f", and by estimate {price} per minute of speech (one voice; several at once share it)"


def t4_step_s(plan: "Deployment") -> float | None:
    """Return the seconds that a T4 takes for a frame, as fast as it can read the weights."""
    frame_bytes = FRAME_BYTES.get(plan.model.partition("@")[0])
    return frame_bytes / T4_BYTES_PER_S if frame_bytes and plan.gpus == ("T4",) else None


def usd(plan: "Deployment", seconds: float, digits: str) -> str:
    """Return the price of so many seconds of the container with the GPU, lowest and highest."""
    least, most = (choose(plan) * seconds for choose in (least_usd_per_s, most_usd_per_s))
    low, high = (format(price, digits) for price in (least, most))
    return f"${low}" if low == high else f"${low} to ${high}"


def least_usd_per_s(plan: "Deployment") -> float:
    return _usd_per_s(plan, min, REGION_TIMES[0])


def most_usd_per_s(plan: "Deployment") -> float:
    return _usd_per_s(plan, max, REGION_TIMES[1])


def _usd_per_s(plan: "Deployment", choose: Callable[..., float], times: float) -> float:
    gpu = choose(GPU_USD_PER_S[gpu] for gpu in plan.gpus)
    return (gpu + host_usd_per_s(CORES, MEMORY_GIB)) * (times if plan.region else 1)


def host_usd_per_s(cores: float, memory_gib: float) -> float:
    return cores * CORE_USD_PER_S + memory_gib * GIB_USD_PER_S


def cost_basis(plan: "Deployment") -> str:
    gpus = ", ".join(f"{gpu} ${GPU_USD_PER_S[gpu]:.6f}/s" for gpu in plan.gpus)
    api = host_usd_per_s(API_CORES, API_MEMORY_GIB) * 3600
    basis = (
        f"From third-party prices of 2026-08: {gpus}, {CORES} cores, {MEMORY_GIB} GiB. The "
        f"registry's own container comes on top, ${api:.2f} an hour while it is asked. A start is "
        f"taken for {START_S} s. Modal gives ${FREE_USD} a month for nothing."
    )
    if plan.region:
        basis += (
            f" A region multiplies by {REGION_TIMES[0]} to {REGION_TIMES[1]}: that is in there."
        )
    if (step_s := t4_step_s(plan)) is not None:
        basis += (
            f" The minute assumes {step_s * 1000:.1f} ms for {FRAME_S * 1000:.0f} ms of sound, "
            "which is how fast a T4 can read the weights: a bound, not a measurement."
        )
    return basis
