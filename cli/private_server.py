"""The registry of this machine, served to one command on a socket that nobody else can reach."""

import logging
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.host import load_settings, make_app, open_store

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from cli.client import Registry
    from registry.settings import Settings


@contextmanager
def private_registry(settings: "Settings | None" = None) -> Iterator["Registry"]:
    """The whole app, for as long as one command runs."""
    from cli.client import Registry

    settings = settings or load_settings()
    with serving_privately(make_app(settings, open_store(settings))) as http:
        yield Registry(http)


@contextmanager
def serving_privately(app: "FastAPI") -> Iterator["httpx.Client"]:
    """The app on a Unix socket in a folder of our own, and a client that talks to it."""
    import httpx
    import uvicorn

    from cli.client import TIMEOUT

    with tempfile.TemporaryDirectory(prefix="voices-") as folder:
        path = f"{folder}/registry.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()  # connections wait here until the server runs: no polling
        config = uvicorn.Config(app, http="h11", ws="none", log_level="critical", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        log = logging.getLogger("registry")
        level = log.level
        log.setLevel(logging.ERROR)  # the command says itself what is less than a fault of ours
        thread.start()
        try:
            transport = httpx.HTTPTransport(uds=path, verify=False)  # no TLS: reads no certificates
            with httpx.Client(
                transport=transport, base_url="http://voices", timeout=TIMEOUT
            ) as http:
                yield http
        finally:
            server.should_exit = True
            thread.join()
            log.setLevel(level)
