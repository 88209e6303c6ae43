"""Asks Modal, through its own client's API and through its own command line.

It knows names of a deployment, and nothing of what runs there.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import modal

    from registry.modal.plan import Deployment

MISSING = "This needs Modal's client: pip install 'voice-registry[modal]'"
WEB, SPEAKER = "api", "Voices"  # what the two Apps call them
SOURCES = Path(__file__).parents[2]  # where the children find the modules that they deploy


@dataclass(frozen=True)
class AppState:
    """How many containers and calls a deployed App has now."""

    name: str
    deployed: bool
    containers: int = 0
    waiting: int = 0  # calls that no container has taken yet


def client() -> ModuleType:
    """Import Modal's client; raise ClickException if it is not installed."""
    try:
        import modal
    except ImportError as error:
        raise click.ClickException(MISSING) from error
    return modal


@contextmanager
def modal_errors() -> Iterator[None]:
    """Turn what Modal's client raises into sentences."""
    exception = client().exception
    try:
        yield
    except exception.AuthError as error:
        raise click.ClickException(
            f"Modal lets nobody in from here ({_first_sentence(error)}). `modal token new` logs "
            "you in."
        ) from error
    except exception.Error as error:
        raise click.ClickException(f"Modal says: {_text(error)}.") from error


def _text(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _first_sentence(error: Exception) -> str:
    """Return an error's first sentence; ours replaces Modal's advice after it."""
    return _text(error).partition(". ")[0].partition("\n")[0]


def version() -> str:
    """Return the version of Modal's client."""
    found: str = client().__version__
    return found


def workspace() -> str:
    """Return the account's workspace, by one small request, which fails without an account."""
    with modal_errors():
        return client().Workspace.from_context().hydrate().name or "without a name"


def create(plan: "Deployment") -> None:
    """Create the Volumes and the Dict, unless they are there."""
    modal = client()
    with modal_errors():
        for name in (plan.state_volume, plan.weights_volume, plan.backup_volume):
            modal.Volume.objects.create(name, version=1, allow_existing=True)
        modal.Dict.objects.create(plan.claims_dict, allow_existing=True)


def model_there(plan: "Deployment") -> dict[str, Any] | None:
    """Return model.json of the weights Volume, which is written when all else is there."""
    try:
        found = json.loads(read_file(plan, "model.json") or b"null")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_file(plan: "Deployment", name: str) -> bytes | None:
    """Read a small file of the weights Volume; None if it is not there."""
    modal = client()
    volume = modal.Volume.from_name(plan.weights_volume)
    with modal_errors():
        try:
            return b"".join(volume.read_file(name))
        except (FileNotFoundError, modal.exception.NotFoundError):
            return None


def write_file(plan: "Deployment", name: str, content: bytes) -> None:
    volume = client().Volume.from_name(plan.weights_volume)
    with modal_errors(), volume.batch_upload(force=True) as batch:
        batch.put_file(BytesIO(content), f"/{name}")


def versions() -> dict[str, int | None]:
    """Return how often each deployed App was deployed, which a rollback also counts."""
    with modal_errors():
        apps = client().Environment.from_context().apps.list()
        found = [(app.name, app.info().lifecycle) for app in apps]
    return {name: at.version for name, at in found if at.state.name == "DEPLOYED"}


def web_function(plan: "Deployment") -> "modal.Function[..., Any, Any]":
    found: modal.Function[..., Any, Any] = client().Function.from_name(plan.registry_app, WEB)
    return found


def speaker(plan: "Deployment") -> Any:
    """Return the class with the GPU; calling one of its methods starts it."""
    return client().Cls.from_name(plan.inference_app, SPEAKER)()


def web_url(plan: "Deployment") -> str:
    with modal_errors():
        return web_function(plan).get_web_url() or ""


def warm(plan: "Deployment") -> dict[str, Any]:
    """Start the GPU, and return what it says of itself, with the model loaded or not."""
    modal = client()
    with modal_errors():
        try:
            told: dict[str, Any] = speaker(plan).status.remote()
            return told
        except modal.exception.NotFoundError as error:
            raise click.ClickException(
                f"{plan.inference_app} is not deployed. `voices deploy` does that."
            ) from error


def states(plan: "Deployment") -> list[AppState]:
    """Return the states of the registry and of the inference, without starting either."""
    return [
        _state(plan.registry_app, web_function(plan)),
        _state(plan.inference_app, speaker(plan).status),
    ]


def _state(app: str, function: "modal.Function[..., Any, Any]") -> AppState:
    modal = client()
    with modal_errors():
        try:
            stats = function.get_current_stats()
        except modal.exception.NotFoundError:
            return AppState(app, deployed=False)
    return AppState(app, True, stats.num_total_runners, stats.backlog)


def refuse_missing(app: str) -> None:
    if app not in versions():
        raise click.ClickException(f"{app} is not deployed. `voices deploy` does that.")


def run_modal(plan: "Deployment", *arguments: str, stdout: int | None = None) -> int:
    """Run a command of Modal's as a child, which sees the plan and no other setting of ours.

    Returns its exit code.
    """
    import subprocess

    if find_spec("modal") is None:
        raise click.ClickException(MISSING)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICES_")}
    line = [sys.executable, "-m", "modal", *arguments]
    done = subprocess.run(line, env=environ | plan.environ(), cwd=SOURCES, stdout=stdout)
    return done.returncode
