"""create_app: the only composition. Local server, private socket and Modal all serve this app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import RedirectResponse

from registry import VERSION, problems
from registry.clone import Cloner
from registry.enrol import Enroller
from registry.inference_client import Inference
from registry.requests import MIB, BodyLimit, HeadAsGet
from registry.routes import clone, health, speak, voices
from registry.services import Services
from registry.settings import Settings
from registry.speech import Speaker
from registry.store import VoiceStore

DESCRIPTION = """Enrol a voice once, speak with it by name.

Every error is a problem document (RFC 9457): a stable `code`, and `detail`, a sentence for people.
"""


def create_app(store: VoiceStore, inference: Inference, settings: Settings) -> FastAPI:
    enroller = Enroller(store, inference)
    speaker = Speaker(store, inference, enroller)
    cloner = Cloner(store, inference, enroller)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        inference.close()
        store.close()

    app = FastAPI(
        title="Voice registry",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=problems.RESPONSES,
    )
    app.state.services = Services(settings, store, inference, enroller, speaker, cloner)
    app.add_middleware(BodyLimit, upload_limit=settings.max_clip_mib * MIB)
    app.add_middleware(HeadAsGet)
    problems.add_handlers(app)
    for router in (voices.router, speak.router, clone.router, health.router):
        app.include_router(router)
    app.add_api_route("/", _to_the_docs, include_in_schema=False)
    return app


def _to_the_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
