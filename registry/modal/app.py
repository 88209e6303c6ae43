"""The App with the API: `modal deploy --strategy recreate -m registry.modal.app`.

A small container without a GPU, asked for only while somebody asks. Voices are on a Volume, the
database on the container's disk and in snapshots on the Volume; speech comes from the other App.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import modal

from registry.modal.plan import BACKUP, STATE, WEIGHTS, deployment

if TYPE_CHECKING:
    from fastapi import FastAPI

    from registry.speech.modal import ModalInference
    from registry.storage.volume.store import VolumeStore

plan = deployment(os.environ)

PACKAGES = (
    "alembic==1.20.1",
    "av==18.1.0",
    "fastapi==0.165.0",
    "fastapi-offline==1.7.7",
    "numpy==2.4.6",
    "python-multipart==0.0.34",
    "soundfile==0.14.0",
    "soxr==1.1.0",
    "sqlmodel==0.0.50",
    "starlette==1.10.0",
)
REQUESTS = 100  # at once; what waits for the GPU is in there
ANSWER_S = 135.0  # Modal's edge waits 150 s, of which a start of this container takes some
LOCAL = Path("/tmp/voices")  # nosec B108 # one container's own, gone with it
NIGHTLY = "17 3 * * *"  # UTC
BACKUPS = 7  # nights of which backups are kept
FAILURES = (modal.exception.Error, RuntimeError, OSError)  # what calls to Modal may raise

image = (
    modal.Image.debian_slim("3.12")
    .uv_pip_install(*PACKAGES)
    .env(plan.environ())
    .add_local_python_source("registry", "migrations")
)
state = modal.Volume.from_name(plan.state_volume, create_if_missing=True, version=1)
weights = modal.Volume.from_name(plan.weights_volume, create_if_missing=True, version=1)
backups = modal.Volume.from_name(plan.backup_volume, create_if_missing=True, version=1)
claims = modal.Dict.from_name(plan.claims_dict, create_if_missing=True)
app = modal.App(plan.registry_app, image=image, include_source=False)


@app.function(
    cpu=0.5,
    memory=2048,
    region=plan.region,
    min_containers=0,
    max_containers=1,
    scaledown_window=plan.scaledown_s,
    timeout=300,
    volumes={STATE: state, WEIGHTS: weights.with_mount_options(read_only=True)},
)
@modal.concurrent(max_inputs=REQUESTS)
@modal.asgi_app(requires_proxy_auth=plan.proxy_auth)
def api() -> "FastAPI":
    """Serve the registry's API."""
    from registry.app import create_app
    from registry.settings import Settings

    settings = Settings(home=Path(STATE), answer_s=ANSWER_S)
    return create_app(open_store(), open_inference(), settings, is_server=True, asks_keys=plan.keys)


def open_inference() -> "ModalInference":
    """Return the inference of the other App."""
    from registry.speech.modal import ModalClass, ModalInference

    voices = modal.Cls.from_name(plan.inference_app, "Voices")()
    return ModalInference(
        ModalClass(voices, modal.FunctionCall.from_id),
        Path(WEIGHTS),
        failures=FAILURES,
        limit_s=plan.speak_limit_s,
        slots=plan.slots,
        refresh=weights.reload,
    )


@app.function(cpu=0.5, memory=2048, timeout=3600, max_containers=1, volumes={STATE: state})
def doctor(read_data: bool = False, repair: bool = False) -> list[str]:
    """Print what `voices doctor` finds here: `modal run -m registry.modal.app::doctor`."""
    from registry.audio.clips import ClipLimits, fence_of_decoder

    findings = open_store().examine(read_data=read_data, repair=repair)
    said = [f"{finding.severity:<10} {finding.what}" for finding in findings]
    sys.stdout.write(
        "\n".join([*(said or ["All is sound."]), fence_of_decoder(ClipLimits())]) + ".\n"
    )
    return said


@app.function(
    cpu=0.5,
    memory=2048,
    timeout=3600,
    max_containers=1,
    schedule=modal.Cron(NIGHTLY),
    volumes={STATE: state, BACKUP: backups},
)
def back_up() -> str:
    """Make a backup, every night or now: `modal run -m registry.modal.app::back_up`."""
    from registry.upkeep.backup import save_backup

    target = Path(BACKUP) / f"voices-{datetime.now(UTC):%Y-%m-%d}.tar"
    manifest = save_backup(open_store(), target)
    for path in sorted(target.parent.glob("voices-*.tar"))[:-BACKUPS]:
        path.unlink()
    backups.commit()
    missing = f", missing: {' '.join(manifest.missing)}" if manifest.missing else ""
    voices = f"{manifest.voices} voice{'s' if manifest.voices != 1 else ''}"
    said = f"{target.name}: {voices}, {manifest.size / 1e6:.1f} MB{missing}"
    sys.stdout.write(f"{said}\n")
    return said


@app.function(
    cpu=1.0,
    memory=2048,
    timeout=3600,
    max_containers=1,
    volumes={STATE: state, BACKUP: backups.with_mount_options(read_only=True)},
)
def restore(name: str) -> str:
    """Make the voices those of a backup: `modal run -m registry.modal.app::restore --name FILE`."""
    from registry.storage.data_dir import DataDir
    from registry.upkeep.restore import unpack_backup

    unpacked = DataDir(LOCAL / "unpacked")
    with open(Path(BACKUP) / Path(name).name, "rb") as file:
        manifest = unpack_backup(file, unpacked.root)
    open_store().restore(unpacked)
    said = f"The voices are those of {name}: {manifest.voices}."
    sys.stdout.write(f"{said}\n")
    return said


@app.function(
    cpu=0.5,
    memory=2048,
    timeout=600,
    max_containers=1,
    volumes={STATE: state, WEIGHTS: weights.with_mount_options(read_only=True)},
)
def use_model() -> str:
    """Use the model on the weights Volume, as `voices model use` does.

    `modal run -m registry.modal.app::use_model` runs it. Voices of another model are rebuilt when
    they next speak.
    """
    found = open_inference().describe()
    open_store().choose_model(found.source, found.model)
    said = f"The voices here now use {found.source}."
    sys.stdout.write(f"{said}\n")
    return said


def open_store() -> "VolumeStore":
    """Open the store on the Volume."""
    from registry.storage.volume.snapshots import Mount
    from registry.storage.volume.store import SharedDict, SharedVolume, VolumeStore

    mount = Mount(Path(STATE), SharedVolume(state, FAILURES))
    return VolumeStore(mount, SharedDict(claims, state.object_id, FAILURES), LOCAL)
