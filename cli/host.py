"""The verbs on this machine, and the one place where registry and inference are put together.

Nothing of ours is imported before a verb runs, so `voices --help` costs none of it.
"""

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.destination import is_loopback, stored
from cli.output import say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from inference.service import InferenceService
    from registry.inference_client import Inference, LocalInference
    from registry.settings import Settings
    from registry.store import VoiceStore

GRACEFUL_STOP_S = 25
OURS = ("VOICES_CONFIG_HOME", "VOICES_DEPLOY_", "VOICES_TOKEN_")  # the service has no such setting


def load_settings(**overrides: object) -> "Settings":
    """Settings from VOICES_… variables; what is not None in `overrides` wins."""
    from platformdirs import user_data_path

    from registry.errors import SettingInvalid
    from registry.settings import load_settings, variable

    given = {variable(k): str(v) for k, v in overrides.items() if v is not None}
    environ = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    try:
        return load_settings({**environ, **given}, user_data_path("voices", appauthor=False))
    except SettingInvalid as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def sentences() -> Iterator[None]:
    """What the registry or inference refuses, as the command's error."""
    from registry.errors import RegistryError
    from registry.inference_client import registry_errors

    try:
        with registry_errors():
            yield
    except RegistryError as error:
        raise click.ClickException(error.detail) from error


def home_of(settings: "Settings") -> Path:
    return settings.home.expanduser().resolve()


def open_store(settings: "Settings") -> "VoiceStore":
    from registry.files import DataDir
    from registry.store import VoiceStore

    try:
        with sentences():
            return VoiceStore(DataDir(home_of(settings)))
    except sqlite3.DatabaseError as error:
        raise click.ClickException(
            f"The database in {settings.home} can't be read ({error}). `voices doctor` says more."
        ) from error
    except OSError as error:
        reason = f"{error.strerror or error}"
        raise click.ClickException(
            f"Can't use {settings.home} for the voices: {reason}."
        ) from error


def make_app(settings: "Settings", store: "VoiceStore") -> "FastAPI":
    from registry.app import create_app

    return create_app(store, make_inference(settings, store), settings)


def make_inference(settings: "Settings", store: "VoiceStore") -> "Inference":
    from registry.inference_client import LocalInference, NoInference

    if settings.inference == "off":
        return NoInference()
    return LocalInference(lambda: make_service(settings, store))


def make_service(settings: "Settings", store: "VoiceStore") -> "InferenceService":
    """Find the model (raises if it is not on this machine) without loading it."""
    from inference.results import ServiceConfig
    from inference.service import InferenceService
    from inference.weights import DEMO, locate

    model = locate(model_spec(settings, store), store.data)
    config = ServiceConfig(
        device=None if settings.device == "auto" else settings.device,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        threads=settings.threads or (1 if model.ref.id == DEMO else None),
        slots=settings.slots,
        queue_limit=settings.queue_limit,
        queue_timeout_s=settings.queue_timeout_s,
        prompt_cache_bytes=settings.prompt_cache_mib * 2**20,
    )
    return InferenceService(store.data, model, config)


def model_spec(settings: "Settings", store: "VoiceStore") -> str:
    """What --model or VOICES_MODEL says, else what the data directory uses, else the default."""
    from inference.weights import DEFAULT

    recorded = store.model_in_use()
    return settings.model or (recorded.source if recorded else DEFAULT)


def refuse_remote(context: click.Context) -> None:
    """These verbs work on files of this machine, which a remote registry does not use.

    A login is no reason to refuse them, for it does not say what this command is about.
    """
    asked = context.find_root().obj
    if asked.url is not None:
        raise click.UsageError(
            f"`voices {context.info_name}` works on this machine, but the registry is {asked.url}. "
            "Unset VOICES_URL, give --local, or run it on the machine that serves."
        )
    if not asked.local and (login := stored()):
        say(f"Note: this is about this machine, not about {login.url}, where you are logged in.")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
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
@click.option("--insecure-no-auth", is_flag=True, help="Listen beyond this machine, to anyone.")
def serve(
    host: str,
    port: int,
    model: str | None,
    device: str | None,
    no_inference: bool,
    insecure_no_auth: bool,
) -> None:
    """Serve the registry over HTTP.

    \b
    Example:
      voices serve --model demo --port 8000
    """
    from registry.inference_client import LocalInference

    refuse_strangers(host, insecure_no_auth)
    off = "off" if no_inference else None
    settings = load_settings(model=model, device=device, inference=off)
    store = open_store(settings)
    inference = make_inference(settings, store)
    with listen(host, port) as listener:
        if isinstance(inference, LocalInference):
            start_model(store, inference)
        say(f"Voices of {store.data.root}, on http://{host}:{listener.getsockname()[1]}")
        run_server(settings, store, inference, listener)


def refuse_strangers(host: str, insecure_no_auth: bool) -> None:
    if not is_loopback(host) and not insecure_no_auth:
        raise click.UsageError(
            f"{host} is reachable from other machines, and this server asks nobody for a key: "
            "whoever reaches it can enrol and delete voices. If that is what you want, "
            "give --insecure-no-auth."
        )


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"Can't listen on {host}:{port}: {reason}.") from error
    # Every connection inherits it; asyncio does not set it on a socket that was handed to it, and
    # each small answer would wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def start_model(store: "VoiceStore", inference: "LocalInference") -> None:
    """Refuse to start without the model or with another one than the voices were made for."""
    with sentences():
        description = inference.describe()
        if store.model_in_use() is not None:
            store.adopt_model(description.source, description.model)
        inference.warm()
    model = description.model
    say(f"Model {model.id} at {model.revision[:12]}, loading in the background")


def run_server(
    settings: "Settings", store: "VoiceStore", inference: "Inference", listener: socket.socket
) -> None:
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    from registry.app import create_app

    handlers = {**LOGGING_CONFIG["handlers"]}
    handlers["access"] = {**handlers["access"], "stream": "ext://sys.stderr"}
    loggers = {**LOGGING_CONFIG["loggers"], "registry": LOGGING_CONFIG["loggers"]["uvicorn"]}
    config = uvicorn.Config(
        create_app(store, inference, settings),
        log_config={**LOGGING_CONFIG, "handlers": handlers, "loggers": loggers},
        log_level=settings.log_level,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
    )
    uvicorn.Server(config).run(sockets=[listener])
