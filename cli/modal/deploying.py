"""Carries out a deployment: its Volumes, its model, its Apps, and what is kept of it."""

import sys
from typing import TYPE_CHECKING

import click

from cli.modal import account, deployed
from cli.modal.cost import cost, cost_basis
from cli.modal.deployed import Kept, kept_settings, now
from cli.modal.plan import DeployOptions, changes, model_name, model_spec
from cli.output import print_line, say
from cli.session import progress

if TYPE_CHECKING:
    from registry.modal.plan import Deployment

COMMANDS = (
    ("deploy", "-m", "inference.modal.app"),
    ("deploy", "--strategy", "recreate", "-m", "registry.modal.app"),
)
STDERR = 2  # where the children talk: stdout is for data
TOKENS = "https://modal.com/settings/proxy-auth-tokens"


def put(asked: DeployOptions, yes: bool, only: str | None = None, again: bool = False) -> None:
    """Deploy what was asked for, or one of the two Apps alone, and print the URL."""
    with progress("Asking Modal …"):
        workspace = account.workspace()
        account.create(asked.plan())
        plan, kept = there_now(asked)
    say(f"Workspace {workspace}: Volumes and Dict of {plan.name} are there.")
    agree_to_changes(plan, kept, yes, only)
    offer_model(plan, yes)
    kept = Kept(kept_settings(plan), kept.apps if kept else {})
    deployed.write(plan, kept)
    there = "The Volumes are there"
    for app in (plan.inference_app, plan.registry_app):
        if only is None or app.endswith(only):
            kept = send(plan, app, kept, again, there)
            there = f"{there}, and so is {app}"
    welcome(plan, account.web_url(plan))


def there_now(asked: DeployOptions) -> tuple["Deployment", Kept | None]:
    """Return the deployment to make, and what was kept of the one that is there."""
    kept = deployed.read(asked.plan())
    plan = deployed.settled(asked, kept)
    if kept is None and plan.inference_app in account.versions():
        for field in ("gpu", "model"):
            if not asked.gives(field):
                raise click.UsageError(
                    f"{plan.inference_app} is deployed, but its settings were not kept. Give "
                    "--gpu and --model once more, and what else is not the default; from then on "
                    "they are kept."
                )
    return plan, kept


def agree_to_changes(plan: "Deployment", kept: Kept | None, yes: bool, only: str | None) -> None:
    """Say which settings change, and ask; only those that were given do."""
    if kept is None:
        if only:
            raise click.UsageError("--only is for a deployment that is there.")
        return
    changed = list(changes(now(kept), plan))
    for name, old, new in changed:
        say(f"  {name}: {old} → {new}")
    if not changed:
        return say("Its settings stay as they are.")
    if only:
        raise click.UsageError(f"--only deploys an App as it is; {changed[0][0]} is for both.")
    if any(name == "model" for name, _, _ in changed):
        say(
            "The voices there are for the other model: after this, `modal run -m "
            "registry.modal.app::use_model` makes them this one's, each rebuilt from its clip "
            "when it next speaks."
        )
    if not yes and not agreed(f"Change {plan.name} like that?"):
        raise click.ClickException("Nothing was changed.")


def send(plan: "Deployment", app: str, kept: Kept, again: bool, there: str) -> Kept:
    """Deploy one App, unless it is there as it would be; return what is kept of it then."""
    with progress(f"Looking at {app} …"):
        digest = deployed.digest(plan, app, account.model_there(plan))
        unchanged = kept.holds(app, digest, account.versions().get(app))
    if unchanged and not again:
        say(f"{app} is there as it would be deployed, and goes on.")
        return kept
    command = COMMANDS[app == plan.registry_app]
    if code := account.run_modal(plan, *command, stdout=STDERR):
        raise click.ClickException(
            f"{app} was not deployed: `modal {' '.join(command)}` exited with {code} and "
            f"says why above. {there}; run `voices deploy` again when that is mended."
        )
    kept = kept.with_app(app, digest, account.versions().get(app))
    deployed.write(plan, kept)
    return kept


def offer_model(plan: "Deployment", yes: bool) -> None:
    """Offer to download the model, without which nobody can speak, unless it is there."""
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
    """Ask on the terminal, or read the answer from a pipe."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("There is no terminal to ask: give --yes.") from None


def size(plan: "Deployment") -> str:
    from inference.models.catalog import MODELS

    known = MODELS.get(model_spec(plan).name)
    return f", {known.approximate_bytes / 1e9:.1f} GB" if known else ""


def is_wanted(plan: "Deployment", there: dict[str, str] | None) -> bool:
    spec = model_spec(plan)
    if there is None or there.get("model_id") != spec.name:
        return False
    return spec.revision in (None, there.get("revision"))


def fetch(plan: "Deployment") -> None:
    command = ("run", "-m", "inference.modal.app::download_model")
    code = account.run_modal(plan, *command, stdout=STDERR)
    there = account.model_there(plan)
    if code:
        raise click.ClickException(
            f"The model did not come: `modal {' '.join(command)}` exited with {code} and says why "
            "above. What came is kept; `voices deploy model` goes on from there."
        )
    if not is_wanted(plan, there):
        held = there.get("source") if there else "no model"
        raise click.ClickException(
            f"The model did not come: the download ended well, but {plan.weights_volume} holds "
            f"{held}, not {model_name(plan)}."
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
    elif plan.keys:
        say(f"It asks for a key, which `voices keys create` made.\n  voices login {url}\n")
    else:
        say(f"Whoever finds it can enrol and delete voices.\n  voices login --no-token {url}\n")
    say(f"{cost(plan)}\n{cost_basis(plan)}")
    print_line(url)


def refuse_another(plan: "Deployment", now: "Deployment") -> None:
    if model_name(plan) != model_name(now):
        raise click.UsageError(
            f"{plan.name} is deployed for {model_name(now)}: `voices deploy --model "
            f"{plan.model}` changes both."
        )
