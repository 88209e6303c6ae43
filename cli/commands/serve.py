"""voices serve: the registry over HTTP, until it is told to stop."""

import socket
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from cli.compose import load_settings, make_inference, open_store, sentences
from cli.destination import is_loopback
from cli.exits import DROP_S, within
from cli.input import WORDS
from cli.output import say

if TYPE_CHECKING:
    import ssl

    from registry.contract import Inference
    from registry.settings import Settings
    from registry.speech.local import LocalInference
    from registry.storage.store import VoiceStore

GRACEFUL_STOP_S = 20  # and some seconds for what is cut off then: containers have 30 in all


@click.command()
@click.option(
    "--host",
    type=WORDS,
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one.",
)
@click.option("--model", help="demo, a directory, or a hub id with @revision.")
@click.option("--device", help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
@click.option("--no-inference", is_flag=True, help="Keep voices, but neither enrol nor speak.")
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    help="Serve HTTPS, with the certificates (PEM) in this file, the server's own first.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="The file with its key (PEM).")
@click.option(
    "--insecure-no-auth", is_flag=True, help="Listen beyond this machine, and ask nobody for a key."
)
def serve(
    host: str,
    port: int,
    model: str | None,
    device: str | None,
    no_inference: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure_no_auth: bool,
) -> None:
    """Serve the registry over HTTP, or HTTPS.

    Beyond this machine it asks everybody for a key: `voices keys create` makes one.

    \b
    Examples:
      voices serve --model demo --port 8000
      voices serve --host 0.0.0.0 --tls-cert fullchain.pem --tls-key privkey.pem
    """
    from registry.speech.local import LocalInference

    off = "off" if no_inference else None
    settings = load_settings(model=model, device=device, inference=off)
    asks = asks_keys(host, settings.auth, insecure_no_auth)
    context = tls_context(tls_cert, tls_key)
    store = open_store(settings)
    if asks:
        refuse_keyless(store)
        tell_if_plain(host, settings, context)
    tell_if_open(store)
    tell_if_unfenced()
    inference = make_inference(settings, store)
    with listen(host, port) as listener:
        if isinstance(inference, LocalInference):
            start_model(store, inference)
            Thread(target=load_codecs, name="codecs").start()
        scheme = "https" if context else "http"
        url = url_of(host, listener.getsockname()[1], scheme)
        say(f"Voices of {store.data.root}, on {url}")
        run_server(settings, store, inference, listener, host, context, asks_keys=asks)


def asks_keys(host: str, auth: str, insecure_no_auth: bool) -> bool:
    """Tell whether nobody is answered without a key."""
    if insecure_no_auth and auth == "on":
        raise click.UsageError("--insecure-no-auth and VOICES_AUTH=on contradict each other.")
    return auth == "on" or not (is_loopback(host) or insecure_no_auth)


def refuse_keyless(store: "VoiceStore") -> None:
    from registry.keys.issuing import has_usable_key

    with sentences():
        if not has_usable_key(store):
            raise click.UsageError(
                "This server would ask everybody for a key, and there is none yet: "
                "`voices keys create NAME --scope admin` makes one. --insecure-no-auth asks "
                "nobody, so that whoever reaches the server can enrol and delete voices."
            )


def tls_context(certificate: Path | None, key: Path | None) -> "ssl.SSLContext | None":
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key belong together.")
    from cli.server.tls import server_context

    return server_context(certificate, key)


def tell_if_plain(host: str, settings: "Settings", context: "ssl.SSLContext | None") -> None:
    if not (context or is_loopback(host) or settings.proxies):
        say(
            "Note: keys and voices can be read on their way over http://. Give --tls-cert and "
            "--tls-key, or let a proxy speak HTTPS before this server."
        )


def tell_if_open(store: "VoiceStore") -> None:
    """Say if others can read the voices; nothing is closed unasked, as it may be meant so."""
    from registry.storage import private

    if all(map(private.is_open, (store.data.root, store.data.database))):
        say(
            f"Note: others on this machine can read the voices in {store.data.root}. "
            "`voices doctor --repair` closes them."
        )


def tell_if_unfenced() -> None:
    """Say what this system refuses the program that opens clips, as strangers may send some."""
    from registry.audio.clips import ClipLimits, DecoderUnavailable, layers_lacking

    try:
        lacking = layers_lacking(ClipLimits())
    except DecoderUnavailable as error:
        return say(f"Note: {error}")
    if lacking:
        say(
            f"Note: this system refuses the program that opens clips {', '.join(lacking)}; "
            "its other limits hold."
        )


def url_of(host: str, port: int, scheme: str = "http") -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(f"Can't listen on {host}:{port}: {reason}.") from error
    # Every connection inherits it; asyncio does not set it on a socket that was handed to it, and
    # each small answer would wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def start_model(store: "VoiceStore", inference: "LocalInference") -> None:
    """Start to load the model; refuse a missing one, or one the voices were not made for."""
    with sentences():
        description = inference.describe()
        if store.model_in_use() is not None:
            store.adopt_model(description.source, description.model)
        inference.warm()
    model = description.model
    say(f"Model {model.id} at {model.revision[:12]}, loading in the background")


def load_codecs() -> None:
    """Import what encodes mp3 and its like, lest the first speech waits for that."""
    from registry.audio.encoding import codecs  # noqa: F401


def run_server(
    settings: "Settings",
    store: "VoiceStore",
    inference: "Inference",
    listener: socket.socket,
    host: str,
    context: "ssl.SSLContext | None",
    *,
    asks_keys: bool,
) -> None:
    from cli.server.http_server import ClientConnection, Limits, Server, config, raise_descriptors
    from cli.server.server_log import log_config
    from cli.server.tls import secured
    from inference.engine.checkpoint.qwen import remove_cache_folder
    from registry.api.host_and_origin import add_fence
    from registry.app import create_app

    connections = min(settings.max_connections, raise_descriptors() // 2)
    limits = Limits(connections, settings.header_timeout_s, settings.body_timeout_s)
    requests = min(settings.max_requests, connections * 3 // 4)
    settings = settings.model_copy(update={"max_requests": requests})
    app = create_app(store, inference, settings, is_server=True, asks_keys=asks_keys)
    add_fence(app, settings, (host, listener.getsockname()[0]))
    served = config(
        app,
        limits,
        settings.proxies,
        partial(secured, context) if context else ClientConnection,
        log_config=log_config(),
        log_level=settings.log_level,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
    )
    if_forced = partial(within, DROP_S, app.state.services.drop_unfinished)
    Server(served, if_forced, remove_cache_folder).run(sockets=[listener])
