"""One error shape for everything that goes wrong: RFC 9457 problem details with a stable `code`."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from registry.errors import FieldInvalid, RegistryError
from registry.storage.errors import storage_error

MEDIA_TYPE = "application/problem+json"
CLIENT_GONE = 499
HTTP_CODES = {
    HTTPStatus.BAD_REQUEST: "request-malformed",
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body-too-large",
}
log = logging.getLogger("registry")


class ClientGone(Exception):
    """The client left before its answer was ready; nobody reads what is sent now."""


class Problem(BaseModel):
    """An error, for people (`detail`) and for programs (`code`); some carry more fields."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class ProblemResponse(JSONResponse):
    """Half of a character, as JSON can bring one, is sent as `?` where a refusal quotes it."""

    media_type = MEDIA_TYPE

    def render(self, content: object) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


RESPONSES: dict[int | str, dict[str, object]] = {
    "default": {
        "description": "What went wrong.",
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
}


def asked(request: Request) -> str:
    """For a log, whoever shows it: without what a path could say to a terminal."""
    return f"{request.method} {quote(request.url.path)[:200]}"


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **extra: object,
) -> Response:
    content = {
        "type": f"urn:voice-registry:problem:{code}",
        "title": title,
        "status": int(status),
        "detail": detail,
        "code": code,
        **extra,
    }
    return ProblemResponse(content, status, dict(headers or {}))


def from_error(error: RegistryError) -> Response:
    return problem(
        error.status, error.code, error.title, error.detail, error.headers(), **error.extra
    )


def _registry_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", asked(request), error.detail)
    return from_error(error)


def _invalid(request: Request, error: Exception) -> Response:
    """Where and why, but never the input itself: echoing it breaks on NaN and lone surrogates."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {
            "field": ".".join(map(str, e["loc"][1:])) or str(e["loc"][0]),
            "message": e["msg"].removeprefix("Value error, "),
        }
        for e in error.errors()[:20]
    ]
    said = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:3])
    return from_error(FieldInvalid(f"The request is not valid. {said}.", errors=errors))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = HTTP_CODES.get(status, status.phrase.lower().replace(" ", "-"))
    detail, headers = str(error.detail), dict(error.headers or {})
    if status is HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path!r}; /docs lists what there is."
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed = ", ".join(_allowed_methods(request))
        detail = f"{request.method} is not possible here; use {allowed}."
    detail = detail if detail.endswith(".") else f"{detail}."
    return problem(status, code, status.phrase, detail, headers)


def _allowed_methods(request: Request) -> list[str]:
    """All of them: Starlette names those of the first route that matches the path only."""
    methods: set[str] = set()
    for template, operations in request.app.openapi()["paths"].items():
        if compile_path(template)[0].match(request.url.path):
            methods |= {method.upper() for method in operations}
    if "GET" in methods or not methods:
        methods |= {"GET", "HEAD"}
    return sorted(methods)


def _os_error(request: Request, error: Exception) -> Response:
    """Of a file of the data directory that is not opened by the store itself."""
    home = request.app.state.services.store.data.root
    said = storage_error(error, home, writing=request.method not in ("GET", "HEAD"))
    return _unexpected(request, error) if said is None else _registry_error(request, said)


def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s failed", asked(request), exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal-error",
        "Something went wrong",
        "The server met an error it did not expect; its log says more.",
    )
