"""Puts registry and inference together, for the commands that work on this machine.

No module of the registry or of inference is imported before a verb runs: `voices --help` is fast.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.destination import stored
from cli.folders import data_folder, expanded, real
from cli.output import one_paragraph, say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from inference.serving.service import InferenceService
    from registry.contract import Inference
    from registry.settings import Settings
    from registry.storage.store import VoiceStore

HOME = "VOICES_HOME"
CLIENTS = ("VOICES_CONFIG_HOME", "VOICES_DEPLOY_", "VOICES_KEY", "VOICES_TOKEN_")  # no settings


def load_settings(**overrides: object) -> "Settings":
    """Read settings from VOICES_… variables; what is not None in `overrides` wins."""
    from registry.errors import SettingInvalid
    from registry.settings import load_settings, variable

    given = {variable(k): str(v) for k, v in overrides.items() if v is not None}
    environ = {k: v for k, v in os.environ.items() if not k.startswith(CLIENTS)} | given
    named = environ.get(HOME)
    try:
        return load_settings(environ, Path(named) if named else data_folder(HOME))
    except SettingInvalid as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what the registry or inference refuses into the command's error."""
    from registry.errors import RegistryError

    try:
        yield
    except RegistryError as error:
        raise click.ClickException(one_paragraph(error.detail)) from error


def home_of(settings: "Settings") -> Path:
    return real(expanded(settings.home, HOME))


def open_store(settings: "Settings") -> "VoiceStore":
    from registry.storage import sqlite
    from registry.storage.data_dir import DataDir
    from registry.storage.store import VoiceStore

    try:
        with sentences():
            return VoiceStore(DataDir(home_of(settings)))
    except sqlite.DatabaseError as error:
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
    from registry.speech.local import LocalInference, NoInference

    if settings.inference == "off":
        return NoInference()
    return LocalInference(lambda: make_service(settings, store))


def make_service(settings: "Settings", store: "VoiceStore") -> "InferenceService":
    """Find the model without loading it; raise an error if it is not on this machine."""
    from inference.models.catalog import DEMO, locate
    from inference.models.gpu import refuse_missing_gpu
    from inference.serving.config import ServiceConfig
    from inference.serving.service import InferenceService

    refuse_missing_gpu(settings.device)
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
    """Return the model that --model or VOICES_MODEL names, else the recorded or default one."""
    from inference.models.catalog import DEFAULT

    recorded = store.model_in_use()
    return settings.model or (recorded.source if recorded else DEFAULT)


def refuse_remote(context: click.Context) -> None:
    """Refuse a verb that works on files of this machine if the registry is a remote one.

    A login is no reason to refuse it, for it does not say what this command is about.
    """
    asked = context.find_root().obj
    if asked.url is not None:
        raise click.UsageError(
            f"`voices {context.info_name}` works on this machine, but the registry is {asked.url}. "
            "Unset VOICES_URL, give --local, or run it on the machine that serves."
        )
    if not asked.local and (login := stored()):
        say(f"Note: this is about this machine, not about {login.url}, where you are logged in.")
