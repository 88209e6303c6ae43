"""Is the process alive, and can it answer? Neither question loads, wakes or waits for a model."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from registry.services import ServicesDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class InferenceHealth(BaseModel):
    state: str
    queued: int = 0
    running: int = 0
    slots: int | None = None
    error: str | None = None


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
    model: str | None
    inference: InferenceHealth


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Can it answer?")
def readyz(services: ServicesDep) -> Readiness:
    """Reads the database; says what the model is doing without asking anything of it."""
    used = services.store.model_in_use()
    return Readiness(model=None if used is None else used.source, inference=_inference(services))


def _inference(services: ServicesDep) -> InferenceHealth:
    if services.settings.inference == "off":
        return InferenceHealth(state="off")
    status = services.inference.status()
    if status is None:
        return InferenceHealth(state="cold")
    return InferenceHealth(
        state=status.state,
        queued=status.queued,
        running=status.running,
        slots=status.slots,
        error=status.error,
    )
