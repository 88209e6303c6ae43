"""Servers to measure: on the listener of `voices serve`, which sends small answers at once."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import measure  # noqa: F401  makes `fakes` importable
import uvicorn
from fakes import FakeInference
from fastapi import FastAPI

from cli.commands.serve import listen, run_server
from registry.contract import Inference
from registry.settings import Settings
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

SPAWN = multiprocessing.get_context("spawn")


def serve(home: Path, port: Connection, make: Callable[[DataDir], Inference]) -> None:
    store = VoiceStore(DataDir(home))
    listener = listen("127.0.0.1", 0)
    port.send(listener.getsockname()[1])
    settings = Settings(home=home, log_level="warning")
    inference = make(store.data)
    run_server(settings, store, inference, listener, "127.0.0.1", None, asks_keys=False)


@contextmanager
def served(home: Path, make: Callable[[DataDir], Inference] = FakeInference) -> Iterator[str]:
    """The URL of `voices serve` over `home`, a process of its own, with the tests' stand-in."""
    ours, its = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(home, its, make))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


@contextmanager
def client(home: Path) -> Iterator[httpx.Client]:
    with served(home) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


@contextmanager
def in_thread(app: FastAPI) -> Iterator[httpx.Client]:
    """A server in this process, so that two of them share one machine, one Python and one torch."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=600) as http:
            yield http
    finally:
        server.should_exit = True
        thread.join()
