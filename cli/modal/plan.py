"""Describes what a deployment would be: its parts, its settings, and options that can't be.

Nothing here asks Modal.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cli.modal.cost import API_CORES, API_MEMORY_GIB, CORES, MEMORY_GIB

if TYPE_CHECKING:
    from inference.models.catalog import ModelSpec
    from registry.modal.plan import Deployment

OPTIONS = (
    click.option("--name", metavar="NAME", help="Prefix of all that is made.  [default: voices]"),
    click.option(
        "--model",
        metavar="MODEL",
        help="demo, or a hub id with @revision. Default: the 1.7B Base model.",
    ),
    click.option(
        "--gpu",
        metavar="GPU",
        help="T4, L4, A10, A100, A100-80GB, L40S, H100, H200, B200 or RTX-PRO-6000; or several with"
        " commas, of which the first that is free is taken.  [default: T4]",
    ),
    click.option(
        "--region", metavar="REGION", help="A region of Modal's, which costs more.  [default: any]"
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
    click.option(
        "--proxy-auth/--no-proxy-auth",
        default=None,
        help="Modal's edge asks for a proxy token, or lets everyone through.  [default: it asks]",
    ),
    click.option(
        "--keys/--no-keys",
        default=None,
        help="The registry asks for a key of `voices keys create`, or does not.  [default: not]",
    ),
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class DeployOptions:
    """Settings that were given now: by variables, and by options, which win.

    What was not given is left as it is deployed, or is the default where nothing is.
    """

    given: dict[str, str]  # by variable
    options: dict[str, str]  # those of them that were options, by field

    @classmethod
    def of(cls, **options: str | bool | None) -> "DeployOptions":
        from registry.modal.plan import PREFIX, variable

        given = {field: value for field, value in options.items() if value is not None}
        known = {f: str(int(v)) if isinstance(v, bool) else v for f, v in given.items()}
        variables = {name: text for name, text in os.environ.items() if name.startswith(PREFIX)}
        return cls(variables | {variable(field): text for field, text in known.items()}, known)

    def plan(self, kept: Mapping[str, str] | None = None) -> "Deployment":
        """Merge them with what is kept of a deployment; UsageError names what can't be."""
        from registry.modal.plan import deployment

        given = {name: text for name, text in self.given.items() if text}
        try:
            plan = deployment({**(kept or {}), **given})
        except ValueError as error:
            raise click.UsageError(_in_options(str(error), self.options)) from error
        model_spec(plan)
        return plan

    def gives(self, field: str) -> bool:
        from registry.modal.plan import variable

        return bool(self.given.get(variable(field)))


def changes(old: "Deployment", new: "Deployment") -> Iterator[tuple[str, str, str]]:
    """Yield every setting that would change: its name, and what it was and will be."""
    before, after = settings(old), settings(new)
    return ((name, before[name], after[name]) for name in before if before[name] != after[name])


def settings(plan: "Deployment") -> dict[str, str]:
    """Return all settings but the name, in words, by the option that sets each."""
    found = {field: value for field, value in vars(plan).items() if field != "name"}
    found["model"] = model_name(plan)
    return {_option(field): _said(value) for field, value in found.items()}


def _said(value: object) -> str:
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _in_options(message: str, given: dict[str, str]) -> str:
    """Replace variables by the names of options, where those were given."""
    from registry.modal.plan import variable

    for name in given:
        message = message.replace(f"{variable(name)}=", f"--{_option(name)} ")
    return message


def _option(field: str) -> str:
    return field.removesuffix("_s").replace("_", "-")


def model_spec(plan: "Deployment") -> "ModelSpec":
    """Return the model in full. Raises UsageError."""
    from inference.models.catalog import parse
    from registry.errors import ModelUnavailable

    try:
        return parse(plan.model)
    except ModelUnavailable as error:
        raise click.UsageError(str(error)) from error


def model_name(plan: "Deployment") -> str:
    spec = model_spec(plan)
    return f"{spec.name}@{spec.revision}" if spec.revision else spec.name


def parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    """Yield what is made, with a description; functions stand below their App."""
    yield from inference_parts(plan)
    yield from registry_parts(plan)
    yield f"Volume {plan.state_volume}", "clips, prompts, the database's snapshots (version 1)"
    yield f"Volume {plan.weights_volume}", f"{model_name(plan)}, these settings (version 1)"
    yield f"Volume {plan.backup_volume}", "the last seven backups (version 1)"
    yield f"Dict {plan.claims_dict}", "who writes next"
    if plan.hf_secret:
        yield f"Secret {plan.hf_secret}", "yours; HF_TOKEN of it, for the download of the model"
    else:
        yield "Secrets", "none"


def inference_parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    from registry.modal.plan import STATE, WEIGHTS

    snapshot = {"cpu": "CPU memory", "gpu": "CPU and GPU memory (alpha)", "off": "off"}
    state, weights = f"{plan.state_volume} at {STATE}", f"{plan.weights_volume} at {WEIGHTS}"
    image = "image: Debian slim, Python 3.12, torch, qwen-tts, inference, parts of registry"
    yield f"App {plan.inference_app}", image
    yield from function(
        "Voices",
        f"{' or '.join(plan.gpus)}, {CORES} cores, {MEMORY_GIB} GiB, {region(plan)}",
        "1 container, always" if plan.min_containers else up_to_one(plan),
        f"{plan.slots} speeches at once, each {plan.speak_limit_s} s at most",
        f"memory snapshot: {snapshot[plan.snapshot]}",
        f"{weights} (read-only), {state}",
    )
    token = ", with HF_TOKEN" if plan.hf_secret else ""
    yield from function("download_model", "`voices deploy model`: 2 cores, 4 GiB", weights + token)


def registry_parts(plan: "Deployment") -> Iterator[tuple[str, str]]:
    from registry.modal.plan import BACKUP, STATE, WEIGHTS

    state, backup = f"{plan.state_volume} at {STATE}", f"{plan.backup_volume} at {BACKUP}"
    asked = ["a proxy token"] * plan.proxy_auth + ["a key"] * plan.keys
    access = " and ".join(asked) or "nothing: anyone may enrol and delete voices"
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
