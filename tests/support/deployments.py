"""The same app, deployed three ways: a local server, the private socket of a command, a Volume."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
from fakes import FakeInference
from fastapi import FastAPI
from modal_volume import Cloud, Dict
from serving import serving

from cli.server.private_server import serving_privately
from registry.app import create_app
from registry.contract import Deadline, PromptRef, PromptSource
from registry.settings import Settings
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.volume.snapshots import Mount
from registry.storage.volume.store import SharedDict, SharedVolume, VolumeStore

DEPLOYMENTS = ("server", "socket", "volume")
FAILURES = (RuntimeError, OSError)


class VolumeInference(FakeInference):
    """On the same mount as the store, and as careful with it."""

    def __init__(self, store: VolumeStore) -> None:
        super().__init__(store.data)
        self.mount = store._mount

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        with self.mount.gate:
            extracted = await super().extract_prompt(source)
            self.mount.commit()
            return extracted

    def _look_up(self, ref: PromptRef) -> str:
        with self.mount.gate:
            return super()._look_up(ref)


def deployed(deployment: str, folder: Path) -> tuple[VoiceStore, FakeInference]:
    if deployment != "volume":
        store = VoiceStore(DataDir(folder))
        return store, FakeInference(store.data)
    cloud = Cloud(folder)
    cloud.reload_commits = lambda container: True  # what a test damages by hand stays damaged
    container = cloud.container("registry")
    mount = container.mount("state")
    shared = Mount(mount.path, SharedVolume(mount, FAILURES))
    claims = SharedDict(Dict(container, "claims"), "vo-1", FAILURES)
    on_volume = VolumeStore(shared, claims, container.disk)
    return on_volume, VolumeInference(on_volume)


@contextmanager
def client_of(deployment: str, store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    app = create_app(store, fake, Settings(home=store.data.root))
    with serving_as(deployment, app) as client:
        yield client


@contextmanager
def serving_as(deployment: str, app: FastAPI) -> Iterator[httpx.Client]:
    with serving_privately(app) if deployment == "socket" else serving(app) as client:
        yield client
