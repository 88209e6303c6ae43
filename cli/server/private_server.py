"""Serves this machine's registry to one command, on a socket that nobody else can reach."""

import logging
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from cli.compose import load_settings, make_app, open_store
from cli.exits import DROP_S, ENDING, Interrupted, ending_by_signals, within

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from cli.api.client import Registry
    from registry.settings import Settings


@contextmanager
def private_registry(settings: "Settings | None" = None) -> Iterator["Registry"]:
    """Serve the whole app for as long as the block runs."""
    from cli.api.client import Registry

    settings = settings or load_settings()
    with serving_privately(make_app(settings, open_store(settings))) as http:
        yield Registry(http, "The registry of this machine")


@contextmanager
def serving_privately(app: "FastAPI") -> Iterator["httpx.Client"]:
    """Serve the app on a Unix socket in a folder of our own, and yield a client of it.

    Ctrl-C, or a signal that ends the command, does not wait for it: what is not stored yet is not
    there.
    """
    import httpx
    import uvicorn

    from cli.api.connection import TIMEOUT
    from cli.server.brief_server import BriefServer

    with ending_by_signals(), listening() as (listener, path):
        config = uvicorn.Config(app, http="h11", ws="none", log_level="critical", access_log=False)
        server = BriefServer(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        log = logging.getLogger("registry")
        level = log.level
        log.setLevel(logging.ERROR)  # the command says itself what is less than a fault of ours
        thread.start()
        patience_s: float | None = None
        try:
            transport = httpx.HTTPTransport(uds=path, verify=False)  # no TLS: reads no certificates
            with httpx.Client(
                transport=transport, base_url="http://voices", timeout=TIMEOUT
            ) as http:
                yield http
        except (KeyboardInterrupt, Interrupted, click.Abort, SystemExit, OSError):
            patience_s = 0.3  # a closed terminal may give an OSError in place of its signal
            raise
        finally:
            with undisturbed(patience_s is not None):
                server.stop()
                thread.join(patience_s)
                if thread.is_alive():  # it dies with this process, in the middle of what it does
                    within(DROP_S, app.state.services.drop_unfinished)
            log.setLevel(level)


@contextmanager
def undisturbed(is_ending: bool) -> Iterator[None]:
    """Ignore further signals, if `is_ending`, for the second in which files are removed."""
    if not is_ending or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """Open a socket in a folder for its owner alone; connections wait until the server runs."""
    folder, listener = _socket()
    try:
        yield listener, listener.getsockname()
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def _socket() -> tuple[str, socket.socket]:
    """Make the folder and the socket; not in TMPDIR if its path is too long or can't be written."""
    for place in _temporary_folders():
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix="voices-", dir=place)  # its mode is 0700
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(f"{folder}/registry.sock")
                listener.listen()
            except OSError:
                listener.close()
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return folder, listener
    raise click.ClickException(
        "No folder can hold a socket for this command: set TMPDIR to one that can be written."
    )


def _temporary_folders() -> Iterator[str]:
    with suppress(FileNotFoundError):  # none at all can be used
        yield tempfile.gettempdir()
    yield from ("/tmp", "/var/tmp")  # nosec B108 # mkdtemp makes a folder of our own there
