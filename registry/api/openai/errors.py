"""Renders errors as OpenAI's clients read them, and decide by them whether to ask again.

The SDKs repeat 408, 409, 429 and every 5xx unless `x-should-retry` says no: so what a repeat can't
mend says no, and a name that is taken is a 400.
"""

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict

from registry.api import openapi as of
from registry.api.problems import Problem, ProblemResponse
from registry.api.requests import CheckedRoute
from registry.errors import RegistryError

MEDIA_TYPE = "application/json"
BAD_REQUESTS = (HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)  # 400 here
TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
PARAMS = {  # what each code is about, where the error names no field
    "voice-not-found": "voice",
    "model-not-found": "model",
    "mode-unavailable": "mode",
    "language-unsupported": "language",
    "text-invalid": "input",
    "text-too-long": "input",
    "name-invalid": "name",
    "name-taken": "name",
    "transcript-mismatch": "ref_text",
    "cursor-invalid": "after",
}
PASSING = {  # what another try may find mended, though nobody can say when
    "inference-failed",
    "inference-unreachable",
    "speech-failed",
    "stream-broken",
}


class ModelNotFound(RegistryError):
    """Refuses a model's name that nothing here speaks under."""

    status, code, title = 404, "model-not-found", "No such model"


class ValueUnsupported(RegistryError):
    """Refuses a value that OpenAI takes, and that asks for something nobody can do here."""

    status, code, title = 400, "unsupported-value", "This value is not supported"


class OpenAIRoute(CheckedRoute):
    """A route that passes over unknown fields, for its clients send the same to every server."""

    refuses_unknown = False


class ErrorFields(BaseModel):
    """The fields of an error, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorDocument(BaseModel):
    """An error, in OpenAI's shape."""

    model_config = ConfigDict(title="OpenAIError")

    error: ErrorFields


class ErrorResponse(ProblemResponse):
    """An error document, sent as plain JSON."""

    media_type = MEDIA_TYPE


def rendered(problem: Problem) -> ErrorResponse:
    """Render {"error": {"message", "type", "param", "code"}}, our codes in OpenAI's spelling."""
    headers = {**problem.headers, **_advice(problem)}
    return ErrorResponse({"error": fields_of(problem)}, _status(problem.status), headers)


def fields_of(problem: Problem) -> dict[str, object]:
    status = _status(problem.status)
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return {
        "message": problem.detail,
        "type": "server_error" if is_ours else TYPES.get(status, "invalid_request_error"),
        "param": _param(problem),
        "code": _spelled(problem.code),
    }


def problems(*groups: of.Codes) -> of.Responses:
    """Describe a route's errors to OpenAPI, in this shape."""
    codes: dict[int, list[str]] = {}
    for status, some in of.by_status(*groups).items():
        codes.setdefault(_status(status), []).extend(map(_spelled, some))
    return {status: of.refusal(status, some, _content(some)) for status, some in codes.items()}


def _content(codes: list[str]) -> dict[str, object]:
    fields = ErrorFields.model_json_schema()
    fields["properties"]["code"] |= {"enum": codes}
    schema = {"type": "object", "properties": {"error": fields}, "required": ["error"]}
    return {MEDIA_TYPE: {"schema": schema}}


def _status(status: int) -> int:
    return int(HTTPStatus.BAD_REQUEST) if status in BAD_REQUESTS else status


def _spelled(code: str) -> str:
    return code.replace("-", "_")


def _advice(problem: Problem) -> dict[str, str]:
    """Say whether to repeat, which both SDKs obey; else they go by the status."""
    if "Retry-After" in problem.headers:
        return {"x-should-retry": "true"}
    return {} if problem.code in PASSING else {"x-should-retry": "false"}


def _param(problem: Problem) -> str | None:
    errors = problem.extra.get("errors")
    if isinstance(errors, list) and errors:
        return str(errors[0]["field"])
    field = problem.extra.get("field")
    return str(field) if field else PARAMS.get(problem.code)
