"""Keeps the settings and versions of a deployment beside the model on the weights Volume.

So a later command starts from them, and deploys an App again only if something of it changed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.modal import account
from cli.modal.plan import DeployOptions, model_name

if TYPE_CHECKING:
    from registry.modal.plan import Deployment

FILE = "deployment.json"
OF_INFERENCE = (("inference", ("**/*.py", "**/*.cu")),)
OF_REGISTRY = (("registry", ("**/*.py",)), ("migrations", ("**/*.py",)))


@dataclass(frozen=True)
class Kept:
    """The settings of a deployment, and the digest and version of each of its Apps."""

    settings: dict[str, str]  # variables
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)  # digest and version of each

    def holds(self, app: str, digest: str, version: int | None) -> bool:
        """Tell whether the App is, in this version, what would be deployed now."""
        return version is not None and self.apps.get(app) == {"digest": digest, "version": version}

    def with_app(self, app: str, digest: str, version: int | None) -> "Kept":
        return Kept(self.settings, self.apps | {app: {"digest": digest, "version": version}})


def read(plan: "Deployment") -> Kept | None:
    """Return what was kept; None if nothing is deployed, or by a program that kept nothing."""
    content = account.read_file(plan, FILE)
    if content is None:
        return None
    try:
        found = json.loads(content)
        return Kept(**{name: dict(found[name]) for name in ("settings", "apps")})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise click.ClickException(
            f"{FILE} on {plan.weights_volume}, which keeps the settings of this deployment, is "
            f"damaged. `modal volume rm {plan.weights_volume} {FILE}` removes it; then give the "
            "settings once more."
        ) from error


def write(plan: "Deployment", kept: Kept) -> None:
    account.write_file(plan, FILE, json.dumps(asdict(kept), indent=1).encode())


def settled(asked: DeployOptions, kept: Kept | None) -> "Deployment":
    """Merge settings: given over kept over default.

    `asked` alone was checked before, so a kept setting is at fault if the result is not valid.
    """
    try:
        return asked.plan(kept.settings if kept else None)
    except click.UsageError as error:
        raise click.ClickException(
            f"What is kept of this deployment means nothing here: {error.message} Was it made by a "
            "newer version of this program?"
        ) from error


def now(kept: Kept) -> "Deployment":
    """Return the deployment as it is."""
    return settled(DeployOptions({}, {}), kept)


def kept_settings(plan: "Deployment") -> dict[str, str]:
    """Return the settings with the model's revision, for newer versions may mean another."""
    from registry.modal.plan import variable

    return plan.environ() | {variable("model"): model_name(plan)}


def digest(plan: "Deployment", app: str, model: Mapping[str, Any] | None) -> str:
    """Hash all that is sent for an App, and the model in its memory snapshot."""
    hashed = hashlib.sha256()
    inference = app == plan.inference_app
    snapshot = inference and plan.snapshot != "off"
    found = (model or {}).get("source") if snapshot else None
    hashed.update(json.dumps([account.version(), kept_settings(plan), found]).encode())
    for name, content in sources(inference=inference):
        hashed.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def sources(*, inference: bool) -> Iterator[tuple[str, bytes]]:
    """Yield every file of ours in the App's image, by its path there."""
    from inference.models.catalog import DEMO_FILES, DEMO_FOLDER
    from registry.modal.plan import SHARED_FILES

    demo = account.SOURCES / "inference" / DEMO_FOLDER.name
    found = {
        path
        for package, patterns in (OF_INFERENCE if inference else OF_REGISTRY)
        for pattern in patterns
        for path in (account.SOURCES / package).glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts and demo not in path.parents
    }
    if inference:
        found |= {demo / name for name in DEMO_FILES}
        found |= {account.SOURCES / "registry" / name for name in SHARED_FILES}
    for path in sorted(found):
        yield _name(path), path.read_bytes()


def _name(path: Path) -> str:
    return path.relative_to(account.SOURCES).as_posix()
