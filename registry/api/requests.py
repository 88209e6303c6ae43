"""Takes in requests: how much body, of which type, and for as long as someone waits."""

import asyncio
import json
import re
from collections.abc import Callable, Collection, Coroutine, Iterable
from difflib import get_close_matches
from email.message import Message as Headers
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, get_origin
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import Headers as RawHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.api.charset import NotText, decode
from registry.api.ignored import ignore, tell_ignored
from registry.api.problems import ClientGone
from registry.contract import Deadline
from registry.errors import ContentTypeUnsupported, FieldInvalid, PathInvalid, RequestMalformed

JSON_LIMIT = 64 * 1024
FORM_OVERHEAD = 128 * 1024
MIB = 1024 * 1024
HEADER_LIMIT = 2048  # bytes; parsing a longer one elsewhere takes time by the square of its length
# A quoted string, also one without an end.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)', re.DOTALL)

T = TypeVar("T")


async def deadline_of(
    prefer: Annotated[
        str | SkipJsonSchema[None],
        Header(
            description="`wait=N`: answer within N seconds if a GPU has to start (RFC 7240).",
            examples=["wait=30"],
        ),
    ] = None,
) -> Deadline:
    """Read how long to wait for a GPU from Prefer; whatever else it says is ignored."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,4})\s*(?:$|[,;])", prefer or "", re.IGNORECASE)
    return Deadline(float(found[1])) if found else Deadline()


DeadlineDep = Annotated[Deadline, Depends(deadline_of)]  # for a route that may need a GPU


class BodyLimit:
    """Refuses a body while it is read: at once by its Content-Length, else when it has grown."""

    def __init__(self, app: ASGIApp, upload_limit: int) -> None:
        self._app = app
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = RawHeaders(scope=scope)
        limit = body_limit(headers, self._upload_limit)
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


def body_limit(headers: RawHeaders, upload_limit: int) -> int:
    is_form = headers.get("content-type", "").lower().startswith("multipart/")
    return upload_limit + FORM_OVERHEAD if is_form else JSON_LIMIT


def _too_large(limit: int) -> str:
    size = f"{(limit - FORM_OVERHEAD) // MIB} MiB" if limit > JSON_LIMIT else f"{limit // 1024} KiB"
    return f"The body is larger than {size}, which is the limit here."


class HeadAsGet:
    """Answers HEAD as GET of the whole is answered; the server sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            headers = [header for header in scope["headers"] if header[0] != b"range"]
            scope = {**scope, "method": "GET", "headers": headers}
        await self._app(scope, receive, send)


class CheckedRoute(APIRoute):
    """A route that takes text only as what it is: of its own type, in UTF-8, under known names.

    One for the clients of other APIs passes over names that it does not know, and tells which.
    """

    refuses_unknown = True

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = {param.alias: param for param in self.dependant.query_params}
        repeated = {n for n, p in known.items() if get_origin(p.field_info.annotation) is list}

        async def checked(request: Request) -> Response:
            _refuse_odd_path(request)
            names = _query_names(request, repeated)
            if self.refuses_unknown:
                for name in names:
                    refuse_unknown(name, known, "a query parameter here")
            ignore(request, (name for name in names if name not in known))
            return tell_ignored(request, await answered(request))

        async def answered(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            refuse_other_type(request, "application/json")
            try:
                return await handle(await JsonRequest.of(request))
            except RequestValidationError as error:
                _refuse_unknown_fields(error, self.body_field.field_info.annotation)
                raise

        return checked


class JsonRequest(Request):
    """A request whose JSON is read strictly, before FastAPI asks for it."""

    parsed: Any

    @classmethod
    async def of(cls, request: Request) -> "JsonRequest":
        """Read the body of a request. Raises RequestMalformed, FieldInvalid, ClientGone."""
        strict = cls(request.scope, request.receive)
        try:
            body = await strict.body()
        except ClientDisconnect as error:
            raise ClientGone from error
        charset = _content_type(request).get_param("charset")
        strict.parsed = parse_json(body, None if charset is None else str(charset))
        return strict

    async def json(self) -> Any:
        return self.parsed


def parse_json(body: bytes, charset: str | None = None) -> Any:
    """Parse JSON; raise RequestMalformed if it is none, FieldInvalid for a key given twice."""
    try:
        text = decode(body, charset)
        if "\0" in text:
            raise NotText("has zero bytes, as UTF-16 has")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except NotText as error:
        raise RequestMalformed(f"The body {error}. Send it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise RequestMalformed(f"The body is not JSON that can be read: {error}.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = _first_twice(key for key, _ in pairs) or ""
        raise FieldInvalid(f"The JSON has the key {twice[:80]!r} twice.", field=twice[:80])
    return found


def _first_twice(names: Iterable[str]) -> str | None:
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def refuse_other_type(request: Request, wanted: str) -> None:
    """Raise ContentTypeUnsupported for any type or encoding but the wanted one.

    Raises RequestMalformed for headers that another reader may understand differently.
    """
    for header in ("Content-Type", "Content-Encoding"):
        if len(request.headers.getlist(header)) > 1:
            raise RequestMalformed(f"The request has the header {header} twice.")
    refuse_repeated_parameters("Content-Type", request.headers.get("content-type", ""))
    found = _content_type(request).get_content_type()
    if found != wanted:
        sent = "no content type" if found == "none/none" else found
        raise ContentTypeUnsupported(
            f"{request.method} {request.url.path} takes {wanted}; the request has {sent}."
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ContentTypeUnsupported(
            f"The body is sent as {encoding[:40]!r} (Content-Encoding); send it as it is."
        )


def refuse_repeated_parameters(header: str, value: str) -> None:
    """Refuse a header that gives a parameter twice: readers differ in which one counts."""
    if len(value) > HEADER_LIMIT:
        raise RequestMalformed(f"A {header} is longer than {HEADER_LIMIT // 1024} KiB.")
    _, *parameters = _QUOTED.sub("", value).split(";")
    names = (parameter.partition("=")[0].strip().lower() for parameter in parameters)
    if twice := _first_twice(filter(None, names)):
        raise RequestMalformed(f"A {header} has the parameter {twice[:80]!r} twice.")


def _content_type(request: Request) -> Headers:
    headers = Headers()
    headers["content-type"] = request.headers.get("content-type", "none/none")
    return headers


def refuse_unknown(name: str, known: Collection[str], what: str) -> None:
    """Raise FieldInvalid for an unknown name; it tells one that looks alike, else all."""
    if name in known:
        return
    near = get_close_matches(name.lower(), known, n=1)
    listed = f" There are {', '.join(known)}." if known else ""
    hint = f" Did you mean {near[0]!r}?" if near else listed
    raise FieldInvalid(f"{name[:80]!r} is not {what}.{hint}", field=name[:80])


def _refuse_unknown_fields(error: RequestValidationError, model: Any) -> None:
    schema = model.model_json_schema()
    models = (schema, *schema.get("$defs", {}).values())
    known = [name for found in models for name in found.get("properties", {})]
    for one in error.errors():
        if one["type"] == "extra_forbidden":
            refuse_unknown(str(one["loc"][-1]), known, "a field of this request")


def _refuse_odd_path(request: Request) -> None:
    """Refuse a path that is no UTF-8: the server's U+FFFD in it could be a voice's name."""
    raw = request.scope.get("raw_path") or b""
    try:
        decode(unquote_to_bytes(raw))
    except NotText as error:
        raise PathInvalid(f"The path {error}.") from error


def _query_names(request: Request, repeated: Collection[str]) -> list[str]:
    """Return the query's names; raise FieldInvalid for what is no text, or a name given twice."""
    try:
        decode(unquote_to_bytes(request.scope["query_string"]))
    except NotText as error:
        raise FieldInvalid(f"The query {error}.") from error
    names = [name for name, _ in request.query_params.multi_items()]
    if twice := _first_twice(name for name in names if name not in repeated):
        raise FieldInvalid(f"The query parameter {twice[:80]!r} is given twice.", field=twice[:80])
    return names


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the client leaves, so that nobody queues for nobody."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            gone.result()
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
