"""TLS for `voices serve`: a certificate and its key, and connections still in the handshake.

Such a connection is one that sends no request: it has the time of a request's head, counts among
all, and makes room for others. uvicorn's own TLS would know of it only once the handshake is done.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Any, cast

import click

from cli.server.http_server import ClientConnection, Limits

GOODBYE_S = 2.0  # for a client to say that it has seen the end
BEGINNINGS = {"certificate": b"-----BEGIN CERTIFICATE-----", "key": b"PRIVATE KEY-----"}
MOST_BYTES = 1 << 20


class Handshake(SSLProtocol):
    """Speaks TLS to a client, and plain text to a ClientConnection."""

    def __init__(self, inner: "SecureConnection", context: ssl.SSLContext, limits: Limits) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            inner,
            context,
            cast(Any, None),  # nobody waits for it
            server_side=True,
            ssl_handshake_timeout=cast(Any, limits.header_s),  # it takes parts of a second, too
            ssl_shutdown_timeout=GOODBYE_S,
        )
        self._inner, self._limits = inner, limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        self._limits.handshaking[self] = None
        self._inner.make_room(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._limits.handshaking.pop(self, None)
        super().connection_lost(exc)


class SecureConnection(ClientConnection):
    """A client's connection over TLS, which begins when the handshake is done."""

    def __init__(self, *args: Any, context: ssl.SSLContext, limits: Limits, **named: Any) -> None:
        super().__init__(*args, limits=limits, **named)
        self.handshake = Handshake(self, context, limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._limits.handshaking.pop(self.handshake, None)
        super().connection_made(transport)


def secured(context: ssl.SSLContext, **named: Any) -> Handshake:
    """Make the protocol of one client, as a server does for each."""
    return SecureConnection(context=context, **named).handshake


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make a context of TLS 1.2 at least; raise UsageError, which names the wrong file."""
    for name, path in (("certificate", certificate), ("key", key)):
        _refuse_other_files(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            said = f"{str(key)!r} is not the key of the certificate in {str(certificate)!r}."
        else:
            said = f"{str(certificate)!r} and {str(key)!r} are no certificate and its key: {error}."
        raise click.UsageError(said) from error
    return context


def _refuse_other_files(name: str, path: Path) -> None:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES)
    except OSError as error:
        raise click.UsageError(f"Can't read {str(path)!r}: {error.strerror}.") from error
    if BEGINNINGS[name] not in content:
        raise click.UsageError(f"{str(path)!r} holds no {name} in PEM.")


def _refuse_password(key: Path) -> bytes:
    raise click.UsageError(
        f"The key in {str(key)!r} is encrypted, and a server has nobody to ask for its password: "
        "`openssl pkey` writes it without."
    )
