"""The App with the API: `modal deploy --strategy recreate -m registry.deploy`.

A small container without a GPU, asked for only while somebody asks. Voices are on a Volume, the
database on the container's disk and in snapshots on the Volume; speech comes from the other App.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import modal

from registry.deployment import STATE, WEIGHTS, deployment

if TYPE_CHECKING:
    from fastapi import FastAPI

    from registry.volume_store import VolumeStore

plan = deployment(os.environ)

PACKAGES = (
    "alembic==1.20.1",
    "av==18.1.0",
    "fastapi==0.165.0",
    "numpy==2.4.6",
    "python-multipart==0.0.34",
    "soundfile==0.14.0",
    "soxr==1.1.0",
    "sqlmodel==0.0.50",
    "starlette==1.10.0",
)
REQUESTS = 100  # at once; what waits for the GPU is in there
LOCAL = Path("/tmp/voices")  # of one container, gone with it
FAILURES = (modal.exception.Error, RuntimeError, OSError)  # of calls to Modal

image = (
    modal.Image.debian_slim("3.12")
    .uv_pip_install(*PACKAGES)
    .env(plan.environ())
    .add_local_python_source("registry", "migrations")
)
state = modal.Volume.from_name(plan.state_volume, create_if_missing=True, version=1)
weights = modal.Volume.from_name(plan.weights_volume, create_if_missing=True, version=1)
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
    from registry.app import create_app
    from registry.modal_inference import ModalClass, ModalInference
    from registry.settings import Settings

    voices = modal.Cls.from_name(plan.inference_app, "Voices")()
    inference = ModalInference(
        ModalClass(voices),
        Path(WEIGHTS),
        failures=FAILURES,
        limit_s=plan.speak_limit_s,
        slots=plan.slots,
        refresh=weights.reload,
    )
    return create_app(open_store(), inference, Settings(home=Path(STATE)))


@app.function(cpu=0.5, memory=2048, timeout=3600, max_containers=1, volumes={STATE: state})
def doctor(read_data: bool = False, repair: bool = False) -> list[str]:
    """What `voices doctor` says, of the voices here: `modal run -m registry.deploy::doctor`."""
    findings = open_store().examine(read_data=read_data, repair=repair)
    said = [f"{finding.severity:<10} {finding.what}" for finding in findings]
    sys.stdout.write("\n".join(said or ["All is sound."]) + "\n")
    return said


def open_store() -> "VolumeStore":
    from registry.snapshots import Mount
    from registry.volume_store import SharedDict, SharedVolume, VolumeStore

    mount = Mount(Path(STATE), SharedVolume(state, FAILURES))
    return VolumeStore(mount, SharedDict(claims, state.object_id, FAILURES), LOCAL)
