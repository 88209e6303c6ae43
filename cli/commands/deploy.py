"""`voices deploy`: the registry and its model on Modal, and what people ask about them later."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli.input import json_option
from cli.modal import account, deployed
from cli.modal.account import AppState
from cli.modal.cost import cost, cost_basis, hourly
from cli.modal.deployed import now
from cli.modal.deploying import STDERR, agreed, fetch, put, refuse_another, send, there_now
from cli.modal.plan import DeployOptions, parts, plan_options, settings
from cli.output import print_json, print_line, say
from cli.session import progress

if TYPE_CHECKING:
    from registry.modal.plan import Deployment


@click.group(invoke_without_command=True)
@plan_options
@click.option("--yes", is_flag=True, help="Ask nothing: change what is given, bring the model.")
@click.option(
    "--only",
    type=click.Choice(["registry", "inference"]),
    help="Deploy one of the two Apps, with the settings that it has.",
)
@click.option("--again", is_flag=True, help="Deploy also what has not changed.")
@click.option("--dry-run", is_flag=True, help="Print what would be made; send nothing.")
@click.pass_context
def deploy(
    context: click.Context,
    /,
    yes: bool,
    only: str | None,
    again: bool,
    dry_run: bool,
    **options: str | bool | None,
) -> None:
    """Put a registry on Modal, with a GPU that costs nothing while nobody speaks.

    Makes the Volumes, offers to download the model onto one, deploys both Apps and prints the URL.
    It may be run again, for another GPU or a newer version: settings that are not given stay as
    they are, what changes is printed and asked about, and an App of which nothing has changed is
    left alone. All options can be VOICES_DEPLOY_… variables; before a subcommand they say which
    deployment it is.

    \b
    Examples:
      voices deploy --dry-run
      voices deploy --gpu L4 --scaledown 120
      voices deploy --name team status
    """
    asked = DeployOptions.of(**options)
    plan = asked.plan()
    context.obj = asked
    if context.invoked_subcommand is None:
        return show(plan) if dry_run else put(asked, yes, only, again)
    if yes or dry_run or only or again:
        raise click.UsageError(
            f"--yes, --only, --again and --dry-run are for `voices deploy` alone, not for its "
            f"`{context.invoked_subcommand}`."
        )


def show(plan: "Deployment") -> None:
    for name, what in parts(plan):
        print_line(f"{name:<24} {what}".rstrip())
    say(f"{cost(plan)}\n{cost_basis(plan)}")
    say("Nothing was sent, nor asked what is deployed: settings not given here stay as they are.")


@deploy.command()
@click.pass_obj
def model(asked: DeployOptions) -> None:
    """Download the model onto the weights Volume; an interrupted download goes on where it was.

    It is the one that is deployed; for another one, deploy with --model.

    \b
    Example:
      voices deploy model
    """
    with progress("Asking Modal …"):
        account.workspace()
        account.create(asked.plan())
        plan, kept = there_now(asked)
    if kept and plan.inference_app in kept.apps:
        refuse_another(plan, now(kept))
    fetch(plan)
    if kept and plan.inference_app in kept.apps:  # its snapshot may be without the model
        send(plan, plan.inference_app, kept, False, "The model is there")


@deploy.command()
@json_option
@click.pass_obj
def status(asked: DeployOptions, as_json: bool) -> None:
    """Tell what is deployed and what runs, without starting anything.

    \b
    Example:
      voices deploy status
    """
    plan = asked.plan()
    with progress("Asking Modal …"):
        apps = account.states(plan)
        there = account.model_there(plan)
        url = account.web_url(plan) if apps[0].deployed else None
        kept = deployed.read(plan)
    told = settings(now(kept)) if kept else None
    if as_json:
        found = {"apps": [asdict(app) for app in apps], "model": there, "settings": told}
        return print_json({"url": url} | found)
    for app in apps:
        print_line(f"{app.name:<20} {in_words(app)}")
    print_line(f"{plan.weights_volume:<20} {there.get('source') if there else 'no model'}")
    if url:
        print_line(f"{'url':<20} {url}")
    for name, value in (told or {}).items():
        print_line(f"{name:<20} {value}")


@deploy.command("settings")
@click.pass_obj
def print_settings(asked: DeployOptions) -> None:
    """Print the settings that are kept, as variables: for commands of Modal's own.

    \b
    Example:
      env $(voices deploy settings) modal run -m registry.modal.app::doctor
    """
    plan = asked.plan()
    with progress("Asking Modal …"):
        kept = deployed.read(plan)
    if kept is None:
        raise click.ClickException(f"No settings of {plan.name} are kept: it is not deployed.")
    for name, value in sorted(kept.settings.items()):
        print_line(f"{name}={value}")


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
def logs(asked: DeployOptions, app: str, follow: bool, since: str | None, tail: int | None) -> None:
    """Print what the registry, or the inference, has said.

    \b
    Example:
      voices deploy logs inference --since 1h
    """
    if follow and (since or tail):
        raise click.UsageError("--follow begins now: it goes with neither --since nor --tail.")
    plan = asked.plan()
    name = plan.registry_app if app == "registry" else plan.inference_app
    with progress("Asking Modal …"):
        account.refuse_missing(name)
    options = ["--follow"] if follow else []
    options += ["--since", since] if since else []
    options += ["--tail", str(tail)] if tail else []
    if code := account.run_modal(plan, "app", "logs", name, *options):
        raise SystemExit(code)


@deploy.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def stop(asked: DeployOptions, yes: bool) -> None:
    """Stop both Apps. The Volumes stay, and so do the voices.

    \b
    Example:
      voices deploy stop --yes
    """
    plan = asked.plan()
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
def warm(asked: DeployOptions) -> None:
    """Start the GPU now, and wait until the model is ready.

    \b
    Example:
      voices deploy warm
    """
    plan = deployed.settled(asked, deployed.read(asked.plan()))
    started = time.monotonic()
    with progress(f"Starting a {' or '.join(plan.gpus)} …"):
        told = account.warm(plan)
    if reason := told.get("error"):
        raise click.ClickException(f"{reason} `voices deploy logs inference` says more.")
    say(
        f"Ready after {time.monotonic() - started:.0f} s. It costs about "
        f"{hourly(plan)} an hour until it has been idle for {plan.scaledown_s} s."
    )
