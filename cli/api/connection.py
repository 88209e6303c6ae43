"""Makes the HTTP client: through the proxy, with the certificates that the environment names.

Nothing of the environment is used unchecked: what can't be used is a sentence that names its
variable. A password in a URL is never shown.
"""

import os
import re
import ssl
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from urllib.request import getproxies

import click
import httpx

from cli.destination import is_loopback, parsed, url_of

TIMEOUT = httpx.Timeout(30.0, read=600.0)
AS_IT_IS = {"Accept-Encoding": "identity"}  # an answer can't be larger than what was sent
PORTS = {"http": 80, "https": 443}
PROXIES = ("http", "https", "socks5", "socks5h")


def http_client(url: str, headers: dict[str, str], wait_s: float | None = None) -> httpx.Client:
    """Make a client for one registry, which follows no redirect."""
    target = parsed(url)
    return httpx.Client(
        base_url=url,
        headers=AS_IT_IS | headers,
        timeout=TIMEOUT if wait_s is None else wait_s,
        follow_redirects=False,
        trust_env=False,  # it is read here, where a fault of it gets a sentence
        proxy=proxy_for(target),
        verify=certificates() if target.scheme == "https" else False,  # http:// has none
        event_hooks={"response": [_refuse_half_a_url]},
    )


def _refuse_half_a_url(answer: httpx.Response) -> None:
    """Refuse a malformed redirect: httpx reads where it leads, and lets urllib's error out."""
    if answer.has_redirect_location:
        try:
            answer.request.url.join(answer.headers["location"]).host  # noqa: B018
        except httpx.InvalidURL:
            return  # which it refuses itself
        except ValueError as error:
            raise httpx.RemoteProtocolError(f"its redirect leads nowhere: {error}") from error


def certificates() -> ssl.SSLContext:
    """Load the certificates of SSL_CERT_FILE, else of SSL_CERT_DIR, else certifi's."""
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(variable):
            return _certificates(variable, path)
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _certificates(variable: str, path: str) -> ssl.SSLContext:
    try:
        if variable == "SSL_CERT_FILE":
            return ssl.create_default_context(cafile=path)
        os.listdir(path)  # ssl says nothing of a folder that is missing
        return ssl.create_default_context(capath=path)
    except OSError as error:
        raise click.ClickException(
            f"{variable} names {path!r}, which holds no certificates that can be read: "
            f"{getattr(error, 'reason', None) or error.strerror}."
        ) from error


def proxy_for(target: httpx.URL) -> httpx.Proxy | None:
    """Return the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, unless NO_PROXY excepts the target.

    There is none to this machine: a proxy would see what never leaves it.
    """
    named = getproxies()
    if is_loopback(target.host) or is_excepted(target, named.get("no", "")):
        return None
    for kind in (target.scheme, "all"):
        if address := named.get(kind):
            return _proxy(_variable(kind), address if "://" in address else f"http://{address}")
    return None


def _variable(kind: str) -> str:
    """Spell the variable as the environment does; on macOS the system may set the proxy instead."""
    name = f"{kind}_proxy"
    return next((v for v in (name, name.upper()) if os.environ.get(v)), name.upper())


def _proxy(variable: str, address: str) -> httpx.Proxy:
    try:
        url = url_of(address, PROXIES)
    except ValueError:
        raise click.ClickException(
            f"{variable} is not the address of a proxy, which is http://HOST:PORT or the like. "
            "Correct it, unset it, or except the registry's host with NO_PROXY."
        ) from None
    if url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise click.ClickException(
            f"{variable} names a proxy that speaks SOCKS, which needs `pip install 'httpx[socks]'`."
            " Or unset it, or except the registry's host with NO_PROXY."
        )
    return httpx.Proxy(url, ssl_context=certificates() if url.scheme == "https" else None)


def is_excepted(target: httpx.URL, no_proxy: str) -> bool:
    """Read NO_PROXY as curl and Go do: `*`, names and all below them, addresses, networks, ports.

    Entries are parted by commas or blanks; IPv6 may be in brackets.
    """
    port = target.port or PORTS[target.scheme]
    hosts = {target.host.lower().rstrip("."), target.raw_host.decode().lower().rstrip(".")}
    return any(
        entry == "*" or any(_covers(entry, host, port) for host in hosts)
        for entry in re.split(r"[\s,]+", no_proxy)
        if entry
    )


def _covers(entry: str, host: str, port: int) -> bool:
    name, wanted = _name_and_port(entry.partition("://")[2] or entry)
    if wanted not in ("", str(port)):
        return False
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:
        name = name.lower().lstrip("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))


def _name_and_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        address, _, rest = entry[1:].partition("]")
        mask, _, port = rest.partition(":")
        return address + mask, port
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""  # an IPv6 address or network, or a name without a port
