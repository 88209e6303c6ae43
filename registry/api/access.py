"""Checks who asks: a key in one of two headers, before anything else of a request is read.

Each route says what it takes, by `needs` or `public`; OpenAPI is told of the same. A path without a
route takes a key too, whatever it may do, so that strangers learn nothing of what there is.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.api.problems import answer_to, log, of_error, request_line
from registry.errors import RegistryError
from registry.key_errors import KeyInvalid, KeyMissing
from registry.keys.grant import GRANT, Grant, Need
from registry.keys.keyring import Keyring
from registry.storage import keys
from registry.storage.queries import Visible

F = TypeVar("F", bound=Callable[..., Any])

NEED = "voices_need"  # the attribute of a route's function
BEARER, HEADER = "authorization", "xi-api-key"
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "vr_…"},
    HEADER: {"type": "apiKey", "in": "header", "name": HEADER},
}
OF_MODAL = "wk-"  # begins a proxy token, which its edge takes from the same header


def needs(scope: keys.Scope, *, all_voices: bool = False) -> Callable[[F], F]:
    """Mark a route that takes a key with this scope; for `all_voices`, none limited to some."""
    return _marked(Need(scope, all_voices))


def any_key(route: F) -> F:
    """Mark a route that takes a key, whatever that may do."""
    return _marked(Need(None))(route)


def public(route: F) -> F:
    """Mark a route that answers whoever asks."""
    return _marked(None)(route)


def _marked(need: Need | None) -> Callable[[F], F]:
    def mark(route: F) -> F:
        setattr(route, NEED, need)
        return route

    return mark


def need_of(route: APIRoute) -> Need | None:
    """Return what a route needs, None if nothing; raise AttributeError if it is not marked."""
    return cast(Need | None, getattr(route.endpoint, NEED))


@dataclass(frozen=True)
class Door:
    """One route, with what it needs of whoever asks it."""

    route: APIRoute
    need: Need | None

    def leads(self, method: str, path: str) -> bool:
        methods = self.route.methods or ()
        return method in methods and bool(self.route.path_regex.match(path))


class KeyCheck:
    """Refuses requests without the key that they need; tells the app what the key allows."""

    def __init__(self, app: ASGIApp, keyring: Keyring, routes: Iterable[APIRoute]) -> None:
        self._app, self._keyring = app, keyring
        self._doors = [Door(route, need_of(route)) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        door = self._door(scope)
        if door is None or door.need is not None:
            try:
                scope[GRANT] = await self._granted(scope, door)
            except RegistryError as refused:
                return await _answer(Request(scope), refused)(scope, receive, send)
        await self._app(scope, receive, send)

    def _door(self, scope: Scope) -> Door | None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return next((door for door in self._doors if door.leads(method, scope["path"])), None)

    async def _granted(self, scope: Scope, door: Door | None) -> Grant:
        grant = await self._keyring.grant(presented_in(Headers(scope=scope)))
        if door is not None and door.need is not None:
            grant.refuse_without(door.need)
        return grant


def _answer(request: Request, refused: RegistryError) -> Response:
    if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", request_line(request), refused.detail)
    return answer_to(request.scope, of_error(refused))


def presented_in(headers: Headers) -> str:
    """Return the one key that a request has. Raises KeyMissing, KeyInvalid."""
    bearer, named = headers.getlist(BEARER), headers.getlist(HEADER)
    if len(bearer) > 1 or len(named) > 1:
        raise KeyInvalid("The header that has the key is there twice.")
    found = {key for key in (*map(_of_bearer, bearer), *map(str.strip, named)) if key}
    if not found:
        raise KeyMissing
    if len(found) > 1:
        raise KeyInvalid(f"The request has two keys, one as Bearer and another as {HEADER}.")
    return found.pop()


def _of_bearer(value: str) -> str:
    """Return the bearer's key; nothing of another scheme, or of Modal's token, not meant for us."""
    scheme, _, rest = value.strip().partition(" ")
    key = rest.strip()
    return key if scheme.lower() == "bearer" and not key.startswith(OF_MODAL) else ""


def visible_to(request: Request) -> Visible:
    """Return the voices that whoever asks may know of; all, where nobody is asked for a key."""
    grant: Grant | None = request.scope.get(GRANT)
    return None if grant is None else grant.voices


VisibleDep = Annotated[Visible, Depends(visible_to)]


def describe(app: FastAPI, routes: Iterable[APIRoute]) -> None:
    """Tell in OpenAPI which scope an operation takes, and how a key is sent."""
    made, taken = app.openapi, dict(_taken(routes))

    def described() -> dict[str, Any]:
        schema = made()
        schema.setdefault("components", {})["securitySchemes"] = SCHEMES
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                operation["security"] = taken[method.upper(), path]
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _taken(routes: Iterable[APIRoute]) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    for route in routes:
        need = need_of(route)
        scopes = [need.scope] if need and need.scope else []
        security = [] if need is None else [{name: scopes} for name in SCHEMES]
        for method in route.methods or ():
            yield (method, route.path_format), security
