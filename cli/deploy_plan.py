"""What a deployment would be, in words: its parts, what they cost, and options that can't be.

Nothing here asks Modal; prices are those that others published.
"""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from inference.weights import ModelSpec
    from registry.deployment import Deployment

GPU_USD_PER_S = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "A100-40GB": 0.000583,
    "L40S": 0.000542,
    "H100": 0.001097,
}
CORE_USD_PER_S, GIB_USD_PER_S = 0.0000131, 0.00000222
CORES, MEMORY_GIB = 2, 8
API_CORES, API_MEMORY_GIB = 0.5, 2
FRAME_S, T4_STEP_S = 0.08, 0.0176  # docs/performance.md: what a T4 takes for a frame, estimated

OPTIONS = (
    click.option("--name", metavar="NAME", help="Prefix of all that is made.  [default: voices]"),
    click.option(
        "--model",
        metavar="MODEL",
        help="demo, or a hub id with @revision. Default: the 1.7B Base model.",
    ),
    click.option(
        "--gpu", metavar="GPU", help="T4, L4, A10, A100-40GB, L40S or H100.  [default: T4]"
    ),
    click.option(
        "--region", metavar="REGION", help="A region of Modal's, which costs more. Default: any."
    ),
    click.option(
        "--scaledown",
        "scaledown_s",
        metavar="SECONDS",
        help="Idle seconds that end a GPU.  [default: 60]",
    ),
    click.option(
        "--min-containers", metavar="N", help="1 keeps a GPU, and its bill, running.  [default: 0]"
    ),
    click.option(
        "--snapshot",
        metavar="KIND",
        help="Of memory, to start from: cpu, gpu or off.  [default: cpu]",
    ),
    click.option("--slots", metavar="N", help="Speeches that are made at once.  [default: 32]"),
    click.option(
        "--speak-limit",
        "speak_limit_s",
        metavar="SECONDS",
        help="The longest that one request may be spoken.  [default: 120]",
    ),
    click.option(
        "--hf-secret",
        metavar="NAME",
        help="A secret at Modal that holds HF_TOKEN, for the download.  [default: none]",
    ),
    click.option("--no-proxy-auth", is_flag=True, help="Let anyone in who finds the URL."),
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def make_plan(no_proxy_auth: bool, **options: str | None) -> "Deployment":
    """From the variables, over which options go; UsageError names what can't be."""
    from registry.deployment import deployment, variable

    given = {name: text for name, text in options.items() if text is not None}
    if no_proxy_auth:
        given["proxy_auth"] = "0"
    try:
        plan = deployment({**os.environ, **{variable(name): t for name, t in given.items()}})
    except ValueError as error:
        raise click.UsageError(_in_options(str(error), given)) from error
    model_spec(plan)
    return plan


def _in_options(message: str, given: dict[str, str]) -> str:
    """With the option's name for the variable's, where the option was given."""
    from registry.deployment import variable

    for name in given:
        option = "--" + name.removesuffix("_s").replace("_", "-")
        message = message.replace(f"{variable(name)}=", f"{option} ")
    return message


def model_spec(plan: "Deployment") -> "ModelSpec":
    """Which model that is, in full."""
    from inference.errors import ModelUnavailable
    from inference.weights import parse

    try:
        return parse(plan.model)
    except ModelUnavailable as error:
        raise click.UsageError(str(error)) from error


def model_name(plan: "Deployment") -> str:
    spec = model_spec(plan)
    return f"{spec.name}@{spec.revision}" if spec.revision else spec.name


def parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    """What is made, each with what is to be said of it; functions stand below their App."""
    yield from inference_parts(plan)
    yield from registry_parts(plan)
    yield f"Volume {plan.state_volume}", "clips, prompts, the database's snapshots (version 1)"
    yield f"Volume {plan.weights_volume}", f"{model_name(plan)} (version 1)"
    yield f"Volume {plan.backup_volume}", "the last seven backups (version 1)"
    yield f"Dict {plan.claims_dict}", "who writes next"
    if plan.hf_secret:
        yield f"Secret {plan.hf_secret}", "yours; HF_TOKEN of it, for the download of the model"
    else:
        yield "Secrets", "none"


def inference_parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    from registry.deployment import STATE, WEIGHTS

    snapshot = {"cpu": "CPU memory", "gpu": "CPU and GPU memory (alpha)", "off": "off"}
    state, weights = f"{plan.state_volume} at {STATE}", f"{plan.weights_volume} at {WEIGHTS}"
    image = "image: Debian slim, Python 3.12, torch, qwen-tts, inference, parts of registry"
    yield f"App {plan.inference_app}", image
    yield from function(
        "Voices",
        f"{plan.gpu}, {CORES} cores, {MEMORY_GIB} GiB, {region(plan)}",
        "1 container, always" if plan.min_containers else up_to_one(plan),
        f"{plan.slots} speeches at once, each {plan.speak_limit_s} s at most",
        f"memory snapshot: {snapshot[plan.snapshot]}",
        f"{weights} (read-only), {state}",
    )
    token = ", with HF_TOKEN" if plan.hf_secret else ""
    yield from function("download_model", "`voices deploy model`: 2 cores, 4 GiB", weights + token)


def registry_parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    from registry.deployment import BACKUP, STATE, WEIGHTS

    state, backup = f"{plan.state_volume} at {STATE}", f"{plan.backup_volume} at {BACKUP}"
    access = "a proxy token" if plan.proxy_auth else "nothing: anyone may enrol and delete voices"
    image = "image: Debian slim, Python 3.12, registry and migrations, no torch"
    yield f"App {plan.registry_app}", image
    yield from function(
        "api",
        f"{API_CORES} cores, {API_MEMORY_GIB} GiB, no GPU, {region(plan)}",
        up_to_one(plan),
        f"HTTPS, asks for {access}",
        f"{state}, {plan.weights_volume} at {WEIGHTS} (read-only)",
    )
    yield from function("back_up", "every day at 03:17 UTC, 0.5 cores, 2 GiB", f"{state}, {backup}")
    yield from function("restore", "`modal run`: 1 core, 2 GiB", f"{state}, {backup} (read-only)")
    yield from function("doctor", "`modal run`: 0.5 cores, 2 GiB", state)
    weights = f"{plan.weights_volume} at {WEIGHTS} (read-only)"
    yield from function("use_model", "`modal run`: 0.5 cores, 2 GiB", f"{state}, {weights}")


def function(name: str, *said: str) -> Iterator[tuple[str, str]]:
    for number, what in enumerate(said):
        yield "" if number else f"  {name}", what


def up_to_one(plan: "Deployment") -> str:
    return f"0 to 1 container, gone after {plan.scaledown_s} idle seconds"


def region(plan: "Deployment") -> str:
    return f"in {plan.region}" if plan.region else "in any region"


def usd_per_s(plan: "Deployment") -> float:
    return GPU_USD_PER_S[plan.gpu] + host_usd_per_s(CORES, MEMORY_GIB)


def host_usd_per_s(cores: float, memory_gib: float) -> float:
    return cores * CORE_USD_PER_S + memory_gib * GIB_USD_PER_S


def cost(plan: "Deployment") -> str:
    rate = usd_per_s(plan)
    idle = (
        f"${rate * 24 * 3600:.0f} a day all the time, for one GPU is kept"
        if plan.min_containers
        else "nothing while nobody speaks"
    )
    return (
        f"Cost: {idle}; about ${rate * 3600:.2f} an hour while the GPU runs, "
        f"${rate * plan.scaledown_s:.4f} for the {plan.scaledown_s} s it waits after the last "
        f"speech{minute(plan)}."
    )


def minute(plan: "Deployment") -> str:
    if plan.gpu != "T4":
        return ""
    price = usd_per_s(plan) * 60 * T4_STEP_S / FRAME_S
    return (
        f", and by estimate ${price:.4f} per minute of speech (one voice; several at once share it)"
    )


def cost_basis(plan: "Deployment") -> str:
    api = host_usd_per_s(API_CORES, API_MEMORY_GIB) * 3600
    basis = (
        f"From third-party prices of 2026-08: {plan.gpu} ${GPU_USD_PER_S[plan.gpu]:.6f}/s, "
        f"{CORES} cores, {MEMORY_GIB} GiB. The registry's own container comes on top, ${api:.2f} "
        "an hour while it is asked."
    )
    if plan.region:
        basis += " A region multiplies all that by 1.5 to 1.75."
    if plan.gpu == "T4":
        basis += (
            f" The minute assumes {T4_STEP_S * 1000:.1f} ms for {FRAME_S * 1000:.0f} ms of sound, "
            "which is how fast a T4 can read the weights: a bound, not a measurement."
        )
    return basis
