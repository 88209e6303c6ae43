"""`voices deploy`: the registry and its model on Modal, and what people ask about them later."""

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli import modal_account as account
from cli.deploy_plan import (
    cost,
    cost_basis,
    make_plan,
    model_name,
    model_spec,
    parts,
    plan_options,
    usd_per_s,
)
from cli.input import json_option
from cli.modal_account import AppState
from cli.output import print_json, say
from cli.session import progress

if TYPE_CHECKING:
    from registry.deployment import Deployment

STDERR = 2  # where the children talk: stdout is for data
TOKENS = "https://modal.com/settings/proxy-auth-tokens"


@click.group(invoke_without_command=True)
@plan_options
@click.option("--yes", is_flag=True, help="Download the model, if it is missing, without asking.")
@click.option("--dry-run", is_flag=True, help="Print what would be made; send nothing.")
@click.pass_context
def deploy(
    context: click.Context, /, yes: bool, dry_run: bool, no_proxy_auth: bool, **options: str | None
) -> None:
    """Put a registry on Modal, with a GPU that costs nothing while nobody speaks.

    Makes the Volumes, offers to download the model onto one, deploys both Apps and prints the URL.
    What is there already is kept, so it may be run again, for another GPU or a newer version. All
    options can be VOICES_DEPLOY_… variables; before a subcommand they say which deployment it is.

    \b
    Examples:
      voices deploy --dry-run
      voices deploy --gpu L4 --scaledown 120
      voices deploy --name team status
    """
    plan = make_plan(no_proxy_auth, **options)
    context.obj = plan
    if context.invoked_subcommand is None:
        return show(plan) if dry_run else put(plan, yes)
    if yes or dry_run:
        raise click.UsageError(
            f"--yes and --dry-run are for `voices deploy` alone, not for its "
            f"`{context.invoked_subcommand}`."
        )


def show(plan: "Deployment") -> None:
    for name, what in parts(plan):
        click.echo(f"{name:<24} {what}".rstrip())
    say(f"{cost(plan)}\n{cost_basis(plan)}\nNothing was sent.")


def put(plan: "Deployment", yes: bool) -> None:
    with progress("Asking Modal …"):
        workspace = account.workspace()
        account.create(plan)
    say(f"Workspace {workspace}: Volumes and Dict of {plan.name} are there.")
    offer_model(plan, yes)
    there = "The Volumes are there"
    for app, command in (
        (plan.inference_app, ("deploy", "-m", "inference.deploy")),
        (plan.registry_app, ("deploy", "--strategy", "recreate", "-m", "registry.deploy")),
    ):
        if code := account.run_modal(plan, *command, stdout=STDERR):
            raise click.ClickException(
                f"{app} was not deployed: `modal {' '.join(command)}` exited with {code} and "
                f"says why above. {there}; run `voices deploy` again when that is mended."
            )
        there = f"{there}, and so is {app}"
    welcome(plan, account.web_url(plan))


def offer_model(plan: "Deployment", yes: bool) -> None:
    """The weights Volume must hold the wanted model before anybody can speak."""
    wanted, there = model_name(plan), account.model_there(plan)
    if is_wanted(plan, there):
        return say(f"{plan.weights_volume} holds {wanted}.")
    held = f"holds {there.get('source')}" if there else "holds no model yet"
    say(f"{plan.weights_volume} {held}; {wanted} is wanted{size(plan)}.")
    if yes or agreed("Bring it there now?"):
        fetch(plan)
    else:
        say("Nobody can enrol or speak before `voices deploy model` has done that.")


def agreed(question: str) -> bool:
    """What the terminal, or a pipe, answers."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("There is no terminal to ask: give --yes.") from None


def size(plan: "Deployment") -> str:
    from inference.weights import MODELS

    known = MODELS.get(model_spec(plan).name)
    return f", {known.approximate_bytes / 1e9:.1f} GB" if known else ""


def is_wanted(plan: "Deployment", there: dict[str, str] | None) -> bool:
    spec = model_spec(plan)
    if there is None or there.get("model_id") != spec.name:
        return False
    return spec.revision in (None, there.get("revision"))


def fetch(plan: "Deployment") -> None:
    command = ("run", "-m", "inference.deploy::download_model")
    code = account.run_modal(plan, *command, stdout=STDERR)
    if code or not is_wanted(plan, account.model_there(plan)):
        raise click.ClickException(
            f"The model did not come: `modal {' '.join(command)}` exited with {code} and says why "
            "above. What came is kept; `voices deploy model` goes on from there."
        )
    say(f"{plan.weights_volume} holds {model_name(plan)}.")


def welcome(plan: "Deployment", url: str) -> None:
    say(f"The registry is at {url}\n")
    if plan.proxy_auth:
        say(
            "It asks for a proxy token of this workspace. Its secret is shown once, by\n"
            "  modal workspace proxy-tokens create --name voices\n"
            f"or on {TOKENS}. Then point the commands at it:\n"
            f"  voices login {url}\n"
        )
    else:
        say(f"Whoever finds it can enrol and delete voices.\n  voices login --no-token {url}\n")
    say(f"{cost(plan)}\n{cost_basis(plan)}")
    click.echo(url)


@deploy.command()
@click.pass_obj
def model(plan: "Deployment") -> None:
    """Download the model onto the weights Volume; an interrupted download goes on where it was.

    \b
    Example:
      voices deploy model
    """
    with progress("Asking Modal …"):
        account.workspace()
        account.create(plan)
    fetch(plan)


@deploy.command()
@json_option
@click.pass_obj
def status(plan: "Deployment", as_json: bool) -> None:
    """Tell what is deployed and what runs, without starting anything.

    \b
    Example:
      voices deploy status
    """
    with progress("Asking Modal …"):
        apps = account.states(plan)
        there = account.model_there(plan)
        url = account.web_url(plan) if apps[0].deployed else None
    if as_json:
        return print_json({"url": url, "apps": [asdict(app) for app in apps], "model": there})
    for app in apps:
        click.echo(f"{app.name:<20} {in_words(app)}")
    click.echo(f"{plan.weights_volume:<20} {there.get('source') if there else 'no model'}")
    if url:
        click.echo(f"{'url':<20} {url}")


def in_words(app: AppState) -> str:
    if not app.deployed:
        return "not deployed"
    containers = {0: "no container", 1: "1 container"}.get(
        app.containers, f"{app.containers} containers"
    )
    return f"deployed, {containers}, {app.waiting} waiting"


@deploy.command()
@click.argument("app", type=click.Choice(["registry", "inference"]), default="registry")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("--since", metavar="TIME", help="For example 30m, 2h, 1d.")
@click.option("-n", "--tail", type=click.IntRange(1), help="Only the last lines.")
@click.pass_obj
def logs(plan: "Deployment", app: str, follow: bool, since: str | None, tail: int | None) -> None:
    """Print what the registry, or the inference, has said.

    \b
    Example:
      voices deploy logs inference --since 1h
    """
    if follow and (since or tail):
        raise click.UsageError("--follow begins now: it goes with neither --since nor --tail.")
    name = plan.registry_app if app == "registry" else plan.inference_app
    options = ["--follow"] if follow else []
    options += ["--since", since] if since else []
    options += ["--tail", str(tail)] if tail else []
    if code := account.run_modal(plan, "app", "logs", name, *options):
        raise SystemExit(code)


@deploy.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def stop(plan: "Deployment", yes: bool) -> None:
    """Stop both Apps. The Volumes stay, and so do the voices.

    \b
    Example:
      voices deploy stop --yes
    """
    with progress("Asking Modal …"):
        apps = [app.name for app in account.states(plan) if app.deployed]
    if not apps:
        return say(f"Nothing of {plan.name} is deployed.")
    if not yes and not agreed(f"Stop {' and '.join(apps)}?"):
        return say("Nothing was stopped.")
    for app in apps:
        if account.run_modal(plan, "app", "stop", app, "--yes", stdout=STDERR):
            raise click.ClickException(f"{app} was not stopped; Modal says why above.")
    say("Stopped. The Volumes stay, and so do the voices: `voices deploy` serves them again.")


@deploy.command()
@click.pass_obj
def warm(plan: "Deployment") -> None:
    """Start the GPU now, and wait until the model is ready.

    \b
    Example:
      voices deploy warm
    """
    started = time.monotonic()
    with progress(f"Starting a {plan.gpu} …"):
        told = account.warm(plan)
    if reason := told.get("error"):
        raise click.ClickException(f"{reason} `voices deploy logs inference` says more.")
    say(
        f"Ready after {time.monotonic() - started:.0f} s. It costs about "
        f"${usd_per_s(plan) * 3600:.2f} an hour until it has been idle for {plan.scaledown_s} s."
    )
