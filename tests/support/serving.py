"""A real server for tests: the app under uvicorn on a loopback port, in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from cli.server.brief_server import BriefServer


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = BriefServer(uvicorn.Config(app, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60, verify=False) as client:
            yield client
    finally:
        server.stop()
        thread.join()
