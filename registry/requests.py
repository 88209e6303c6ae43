"""How a request is taken in: how much body, of which type, and for as long as someone waits."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from email.message import Message as Headers
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.datastructures import Headers as RawHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import ContentTypeUnsupported
from registry.inference_client import Patience, patience
from registry.problems import ClientGone

JSON_LIMIT = 64 * 1024
FORM_OVERHEAD = 128 * 1024
MIB = 1024 * 1024

T = TypeVar("T")


async def _patience(
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=N`: answer within N seconds if a GPU has to start (RFC 7240).",
            examples=["wait=30"],
        ),
    ] = None,
) -> None:
    """Whatever else a Prefer header says is not understood, and so ignored."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,4})\s*(?:$|[,;])", prefer or "", re.IGNORECASE)
    patience.set(Patience(float(found[1])) if found else Patience())


PATIENCE = Depends(_patience)  # of a route that may need a GPU


class BodyLimit:
    """Refuses a body while it is read: at once by its Content-Length, else when it has grown."""

    def __init__(self, app: ASGIApp, upload_limit: int) -> None:
        self._app = app
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = RawHeaders(scope=scope)
        limit = self._limit(headers)
        announced = headers.get("content-length", "")
        read = int(announced) if announced.isdecimal() and int(announced) > limit else 0

        async def counted() -> Message:
            nonlocal read
            if read <= limit:
                message = await receive()
                read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit))
            return message

        await self._app(scope, counted, send)

    def _limit(self, headers: RawHeaders) -> int:
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        return self._upload_limit + FORM_OVERHEAD if is_form else JSON_LIMIT


def _too_large(limit: int) -> str:
    size = f"{(limit - FORM_OVERHEAD) // MIB} MiB" if limit > JSON_LIMIT else f"{limit // 1024} KiB"
    return f"The body is larger than {size}, which is the limit here."


class HeadAsGet:
    """Answers HEAD as GET is answered; the server sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class CheckedRoute(APIRoute):
    """A route that answers 415 to a body of another content type than its own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        is_form = isinstance(self.body_field.field_info, Form)
        wanted = "multipart/form-data" if is_form else "application/json"

        async def checked(request: Request) -> Response:
            _refuse_other_type(request, wanted)
            return await handle(request)

        return checked


def _refuse_other_type(request: Request, wanted: str) -> None:
    headers = Headers()
    headers["content-type"] = request.headers.get("content-type", "none/none")
    found = headers.get_content_type()
    if found != wanted:
        sent = "no content type" if found == "none/none" else found
        raise ContentTypeUnsupported(
            f"{request.method} {request.url.path} takes {wanted}; the request has {sent}."
        )


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the client leaves, so that nobody queues for nobody."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
