"""Tells in a header, for clients of other APIs, which fields of a request were passed over."""

from collections.abc import Iterable
from urllib.parse import quote

from fastapi import Request, Response

HEADER = "X-Ignored-Fields"
MOST, LONGEST = 16, 64  # names that are told, and characters of each
IGNORED = "voices.ignored"  # in a scope


def ignore(request: Request, names: Iterable[str]) -> None:
    """Remember names that this request's answer is to tell as passed over."""
    found = request.scope.setdefault(IGNORED, {})
    found.update(dict.fromkeys(names))


def tell_ignored(request: Request, response: Response) -> Response:
    """Return `response`, with a header that names what was passed over, if anything was."""
    if names := list(request.scope.get(IGNORED, ())):
        told = [quote(name[:LONGEST], safe="")[:LONGEST] for name in names[:MOST]]
        rest = [f"and {len(names) - MOST} more"] if len(names) > MOST else []
        response.headers[HEADER] = ", ".join([*told, *rest])
    return response
