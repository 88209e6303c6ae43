"""Tells whether the process lives, and can answer, without loading or waking a model."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from registry.api import openapi as of
from registry.api.access import public
from registry.api.services import ServicesDep
from registry.contract import Description, ModelRef, Status
from registry.errors import ModelMismatch, ModelUnavailable
from registry.storage.tables import ModelInUse

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class InferenceHealth(BaseModel):
    """How busy the model is."""

    state: str
    queued: int = 0
    running: int = 0
    slots: int | None = None
    queue_limit: int | None = None
    error: str | None = None


class Readiness(BaseModel):
    """The model that can speak, and how busy it is."""

    status: Literal["ready"] = "ready"
    model: str | None
    inference: InferenceHealth


@router.get("/healthz", summary="Is the process alive?")
@public
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Can it answer?", responses=of.problems(of.MODEL))
@public
def readyz(services: ServicesDep) -> Readiness:
    """503 with the reason while no voice can speak. Asks the database, and nothing of the model."""
    used = services.store.model_in_use()
    status = services.inference.status()
    if services.settings.inference == "off" or status is not None:
        _refuse_another(services.inference.describe(), used)
    if status is not None and status.state == "failed":
        raise ModelUnavailable(
            f"The model can't be used: {(status.error or 'it failed').rstrip('.')}. "
            "The next request that needs it tries again."
        )
    return Readiness(
        model=None if used is None else used.source,
        inference=_inference(status, services.enroller.waiting),
    )


def _refuse_another(running: Description, used: ModelInUse | None) -> None:
    if used is not None and ModelRef(used.model_id, used.revision) != running.model:
        raise ModelMismatch(
            f"This server runs {running.model.id} at {running.model.revision}, but the data "
            f"directory now uses {used.source}. Restart the server."
        )


def _inference(status: Status | None, encoding: int) -> InferenceHealth:
    if status is None:
        return InferenceHealth(state="cold", queued=encoding)
    return InferenceHealth(
        state=status.state,
        queued=status.queued + encoding,
        running=status.running,
        slots=status.slots,
        queue_limit=status.queue_limit,
        error=status.error,
    )
