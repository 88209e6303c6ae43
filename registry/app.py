"""create_app: the only place that puts the registry together.

A local server, a private socket and Modal all serve this app.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Scope

from registry import VERSION
from registry.api import docs, problems
from registry.api.access import KeyCheck, describe
from registry.api.cross_origin import allow_origins
from registry.api.fair_requests import FairRequests
from registry.api.limits import Ask, Gate, RequestLimit, SpeechShares
from registry.api.native import aliases, clone, health, keys, speak, voices
from registry.api.openai import errors as openai_errors
from registry.api.openai import models as openai_models
from registry.api.openai import speech as openai_speech
from registry.api.openai import voices as openai_voices
from registry.api.pace import Pace
from registry.api.problems import Render
from registry.api.request_ids import IdentifyingApp
from registry.api.requests import MIB, BodyLimit, HeadAsGet
from registry.api.services import Services
from registry.api.uploads import Uploads, client_of
from registry.contract import Inference
from registry.keys.keyring import Keyring
from registry.settings import Settings
from registry.storage.store import VoiceStore
from registry.threads import to_its_end
from registry.voices.clone import Cloner
from registry.voices.enrolment import Enroller
from registry.voices.speech import Speaker
from registry.voices.trial import LIMIT_S

ROUTERS = [module.router for module in (voices, aliases, speak, clone, keys, health)]
ROUTERS += [module.router for module in (openai_speech, openai_voices, openai_models, docs)]
ROUTES = [cast(APIRoute, route) for router in ROUTERS for route in router.routes]
DESCRIPTION = """Enrol a voice once, speak with it by name.

Every error is a problem document (RFC 9457): a stable `code`, and `detail`, a sentence for people.
"""


def create_app(
    store: VoiceStore,
    inference: Inference,
    settings: Settings,
    *,
    is_server: bool = False,
    asks_keys: bool = False,
) -> FastAPI:
    """Build the app. A server also removes surplus deleted voices by itself, at times.

    What serves a single command does not, for its settings may not be the server's. Whoever asks
    needs a key if it `asks_keys`; else everybody may do everything.
    """
    keyring = Keyring(store)
    enroller = Enroller(
        store,
        inference,
        LIMIT_S if settings.trial == "on" else 0,
        settings.queue_limit,
        settings.queue_timeout_s,
    )
    speaker = Speaker(store, inference, enroller)
    cloner = Cloner(store, inference, enroller)
    uploads = Uploads(store.data.uploads)
    services = Services(settings, store, inference, enroller, speaker, cloner, uploads, keyring)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chores = [services.keep_purged()] if is_server else []
        chores += [keyring.keep_noting()] if asks_keys else []
        tasks = [asyncio.create_task(chore) for chore in chores]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await keyring.note_use()
        await to_its_end(inference.close)  # while the loop goes on: who was cut off tidies up
        await app.state.services.end_unfinished()
        store.close()

    app = IdentifyingApp(
        title="Voice registry",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # registry.api.docs serves both, without the network
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        responses=problems.RESPONSES,
    )
    app.state.services = services
    app.add_middleware(BodyLimit, upload_limit=settings.max_clip_mib * MIB)
    app.add_middleware(HeadAsGet)
    app.add_middleware(FairRequests)
    app.add_middleware(
        SpeechShares,
        paths=("/speak", "/clone", "/v1/audio/speech"),
        status=inference.status,
        coming=lambda: speaker.line.coming,
    )
    app.add_middleware(Gate, asks=asks(speaker, uploads))
    if asks_keys:
        app.add_middleware(KeyCheck, keyring=keyring, routes=ROUTES)
        describe(app, ROUTES)
    app.add_middleware(RequestLimit, most=settings.max_requests)
    app.add_middleware(Pace, grace_s=settings.body_timeout_s)
    if settings.allowed_origins:
        allow_origins(app, settings.allowed_origins.split(","))
    problems.add_handlers(app, render_of)
    for router in ROUTERS:
        app.include_router(router)
    return app


def render_of(scope: Scope) -> Render:
    """Choose the dialect of errors by the path alone: most are refused before a route is found."""
    is_openai = scope["path"].startswith("/v1/")
    return openai_errors.rendered if is_openai else problems.rendered


def asks(speaker: Speaker, uploads: Uploads) -> dict[tuple[str, str], tuple[Ask, ...]]:
    """Return by method and path what is checked of a request's head alone."""

    def line(_: Scope) -> None:
        speaker.line.refuse_full()

    def places(scope: Scope) -> None:
        uploads.make_room(client_of(scope))

    return {
        ("POST", "/speak"): (line,),
        ("POST", "/clone"): (line, places),
        ("POST", "/voices"): (places,),
        ("POST", "/v1/audio/speech"): (line,),
        ("POST", "/v1/audio/voices"): (places,),
    }
