"""Makes a Problem of everything that goes wrong, and a problem document of it (RFC 9457).

The clients of another API read another shape: `add_handlers` is told which, by the request.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path
from starlette.types import Scope

from registry.api.request_ids import request_id
from registry.errors import FieldInvalid, RegistryError
from registry.keys.secret import without_keys
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
    """Raised when the client left before its answer was ready; nobody reads what is sent now."""


@dataclass(frozen=True)
class Problem:
    """One error as status, code and sentence, before a dialect renders it."""

    status: int
    code: str
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


Render = Callable[[Problem], Response]

UNEXPECTED = Problem(
    500,
    "internal-error",
    "Something went wrong",
    "The server met an error it did not expect; its log says more.",
)


class ProblemDocument(BaseModel):
    """An error, for people (`detail`) and for programs (`code`); some carry more fields."""

    model_config = ConfigDict(title="Problem")

    type: str
    title: str
    status: int
    detail: str
    code: str


class ProblemResponse(JSONResponse):
    """A problem document; half of a character that a refusal quotes is sent as `?`."""

    media_type = MEDIA_TYPE

    def render(self, content: object) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


RESPONSES: dict[int | str, dict[str, object]] = {
    "default": {
        "description": "What went wrong.",
        "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
}


def request_line(request: Request) -> str:
    """Describe a request in a log, without a key, or what its path could say to a terminal."""
    path = without_keys(quote(request.url.path))
    return f"{request_id(request.scope)} {request.method} {path[:200]}"


def add_handlers(app: FastAPI, render_of: Callable[[Scope], Render]) -> None:
    """Answer errors; `render_of` returns the shape that a request's client reads."""
    app.state.render_of = render_of
    for kind in (RegistryError, RequestValidationError, HTTPException, OSError, Exception):
        app.add_exception_handler(kind, _answered)
    app.add_exception_handler(ClientGone, _client_gone)


def _answered(request: Request, error: Exception) -> Response:
    problem = problem_of(request, error)
    if problem is UNEXPECTED:
        log.error("%s failed", request_line(request), exc_info=error)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", request_line(request), problem.detail)
    return answer_to(request.scope, problem)


def answer_to(scope: Scope, problem: Problem) -> Response:
    """Render a problem in the shape that the client of this request reads."""
    render: Render = scope["app"].state.render_of(scope)
    return render(problem)


def problem_of(request: Request, error: Exception) -> Problem:
    """Return what to tell of an error; UNEXPECTED for one that is none of ours."""
    if isinstance(error, RegistryError):
        return of_error(error)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _http_error(request, error)
    if isinstance(error, OSError) and (said := _storage_error(request, error)):
        return of_error(said)
    return UNEXPECTED


def of_error(error: RegistryError) -> Problem:
    return Problem(
        error.status, error.code, error.title, error.detail, error.headers(), error.extra
    )


def rendered(problem: Problem) -> Response:
    """Render a problem in our own shape, a problem document."""
    content = {
        "type": f"urn:voice-registry:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        **problem.extra,
    }
    return ProblemResponse(content, problem.status, dict(problem.headers))


def from_error(error: RegistryError, scope: Scope) -> Response:
    """Render an error raised by middleware."""
    return answer_to(scope, of_error(error))


def _invalid(error: RequestValidationError) -> Problem:
    """Tell where and why, but never quote the input: NaN and lone surrogates would break that."""
    errors = [
        {
            "field": ".".join(map(str, e["loc"][1:])) or str(e["loc"][0]),
            "message": e["msg"].removeprefix("Value error, "),
        }
        for e in error.errors()[:20]
    ]
    said = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:3])
    return of_error(FieldInvalid(f"The request is not valid. {said}.", errors=errors))


def _http_error(request: Request, error: HTTPException) -> Problem:
    status = HTTPStatus(error.status_code)
    code = HTTP_CODES.get(status, status.phrase.lower().replace(" ", "-"))
    detail, headers = str(error.detail), dict(error.headers or {})
    if status is HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path!r}; /docs lists what there is."
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed = ", ".join(_allowed_methods(request))
        detail = f"{request.method} is not possible here; use {allowed}."
    detail = detail if detail.endswith(".") else f"{detail}."
    return Problem(int(status), code, status.phrase, detail, headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return all methods of a path: Starlette names those of its first route only."""
    methods: set[str] = set()
    for template, operations in request.app.openapi()["paths"].items():
        if compile_path(template)[0].match(request.url.path):
            methods |= {method.upper() for method in operations}
    if "GET" in methods or not methods:
        methods |= {"GET", "HEAD"}
    return sorted(methods)


def _storage_error(request: Request, error: OSError) -> RegistryError | None:
    """Explain an error of a file in the data directory that the store itself did not open."""
    home = request.app.state.services.store.data.root
    return storage_error(error, home, writing=request.method not in ("GET", "HEAD"))


def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
