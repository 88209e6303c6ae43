"""Refuses to `voices serve` pages of other sites, and hosts by a name that is not its own.

A browser sends what any page says to any address that it can reach, loopback too. By DNS rebinding
a page even becomes one of our own origin, but under its own name, which is then in Host. Programs
that are no browsers send neither Origin nor Sec-Fetch-Site, and pass. A page of another site gets
nothing, whatever the method: it may lead its visitor here, and no more.

This knows the head of a request alone, and never reads a body.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.api.problems import from_error
from registry.errors import HostUnknown, OriginRefused
from registry.settings import ANY, Settings

SAFE = ("GET", "HEAD", "OPTIONS")
OWN_SITES = {"same-origin", "none"}  # what Sec-Fetch-Site says of our own pages and of no page
PORTS = {"http": 80, "https": 443}
AUTHORITY = re.compile(r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::([0-9]{0,5}))?")
URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)")

Address = IPv4Address | IPv6Address
Origin = tuple[str, str, int]  # scheme, host, port


def add_fence(app: FastAPI, settings: Settings, bound: Collection[str]) -> None:
    """Add the Host and Origin check outside all other middleware, so before CORS.

    `bound` is what the server listens on, by name and by address.
    """
    app.add_middleware(
        Fence,
        hosts=Hosts.of(bound, _listed(settings.allowed_hosts)),
        origins=_listed(settings.allowed_origins),
    )


def _listed(setting: str) -> Sequence[str]:
    return setting.split(",") if setting else ()


@dataclass(frozen=True)
class Hosts:
    """The names of a server; one that listens on all addresses is known by any address."""

    names: frozenset[str]
    suffixes: tuple[str, ...] = ()
    any_address: bool = False
    any_name: bool = False

    @classmethod
    def of(cls, bound: Collection[str], listed: Sequence[str]) -> "Hosts":
        """Collect the names that the server listens on, and those that the settings list."""
        addresses = [address for name in bound if (address := _address(name))]
        return cls(
            names=frozenset(_canonical(name) for name in (*bound, *listed)),
            suffixes=tuple(name[1:].lower() for name in listed if name.startswith("*.")),
            any_address=any(address.is_unspecified for address in addresses),
            any_name=ANY in listed,
        )

    def know(self, authority: str) -> bool:
        """Tell whether an authority, a host with or without a port, is one of this server's."""
        if self.any_name:
            return True
        found = _parse_authority(authority)
        return found is not None and self._know_name(found[0])

    def _know_name(self, name: str) -> bool:
        address = _address(name)
        if address is not None:
            return address.is_loopback or self.any_address or name in self.names
        is_local = name == "localhost" or name.endswith(".localhost")
        return is_local or name in self.names or name.endswith(self.suffixes)


class Fence:
    """Refuses requests by their Host, Origin and Sec-Fetch-Site, and guards answers likewise."""

    def __init__(self, app: ASGIApp, hosts: Hosts, origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._any_origin = ANY in origins
        self._readers = "cross-origin" if self._any_origin else "same-origin"
        self._origins = {_parse_origin(origin) for origin in origins if origin != ANY}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def for_our_pages(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Cross-Origin-Resource-Policy"] = self._readers
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refused = self._refusal(scope)
        answer = from_error(refused, scope) if refused else self._app
        await answer(scope, receive, for_our_pages)

    def _refusal(self, scope: Scope) -> HostUnknown | OriginRefused | None:
        headers = Headers(scope=scope)
        named = [*_target_authority(scope), *headers.getlist("host")]
        for authority in named:
            if not self._hosts.know(authority):
                return HostUnknown(authority)
        if len(headers.getlist("host")) > 1:
            return HostUnknown(", ".join(named))
        is_visit = scope["method"] in SAFE and headers.get("sec-fetch-mode") == "navigate"
        if not is_visit and self._is_foreign(headers, scope["scheme"]):
            return OriginRefused(headers.get("origin"), scope["method"])
        return None

    def _is_foreign(self, headers: Headers, scheme: str) -> bool:
        """Tell whether another site's page asks.

        Every Origin must be ours or listed; what Sec-Fetch-Site says counts unless it is listed.
        """
        if self._any_origin:
            return False
        origins = {_parse_origin(origin) for origin in headers.getlist("origin")}
        if origins and origins <= self._origins:
            return False
        own = _parse_origin(f"{scheme}://{headers.get('host', '')}")
        sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
        return None in origins or not origins <= {own, *self._origins} or not sites <= OWN_SITES


def _target_authority(scope: Scope) -> Iterator[str]:
    """Yield the authority of a target in absolute form; it counts like Host (RFC 9112, 3.2.2)."""
    target = scope.get("raw_path", b"").decode("latin-1").lower()
    if found := URL.match(target):
        yield found[2]


def _parse_origin(text: str) -> Origin | None:
    """Parse an Origin; None for `null`, and for what no browser sends."""
    found = URL.fullmatch(text.lower())
    authority = found and _parse_authority(found[2])
    if not found or not authority:
        return None
    name, port = authority
    return found[1], name, PORTS.get(found[1], 0) if port is None else port


def _parse_authority(text: str) -> tuple[str, int | None] | None:
    """Return the host as it is compared, and its port.

    None for one with a user name, stray bytes or an impossible port.
    """
    found = AUTHORITY.fullmatch(text.lower())
    if not found or int(found[2] or 0) > 65535:
        return None
    host, port = found.groups()
    if host.startswith("[") and _address(host) is None:
        return None
    return _canonical(host), int(port) if port else None


def _canonical(host: str) -> str:
    """Write a host in lower case, without a last dot; an address in its usual form."""
    address = _address(host)
    return str(address) if address else host.lower().removesuffix(".")


def _address(host: str) -> Address | None:
    """Parse an address; an IPv4 address that is written as IPv6 becomes IPv4."""
    bare = host.partition("%")[0].removesuffix(".")
    try:
        found = IPv6Address(bare[1:-1]) if bare.startswith("[") else ip_address(bare)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
