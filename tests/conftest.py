"""Fixtures shared by every test: the tiny checkpoint, a clip, and inference that runs on them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["VOICES_CONFIG_HOME"] = "/nonexistent"  # nobody's login is used by a test

import httpx
import numpy as np
import pytest
import soundfile
from deployments import client_of, deployed
from fakes import FakeInference
from numpy.typing import NDArray

from inference.models.catalog import LocatedModel, locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.contract import PromptSource
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
TRANSCRIPT = "The birch canoe slid on the smooth planks."

SERVED = {"checkpoint", "client", "http", "server", "service_factory", "store", "url"}

ServiceFactory = Callable[..., InferenceService]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", metavar="FOLDER", help="clips for test_public_reports.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has a server, a store or a model by its fixtures, `make quick` leaves out."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVED.intersection(item.fixturenames):
            item.add_marker("served")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint; its speech ends with the text."""
    from inference.testing.checkpoint import Recipe, make

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make(folder, Recipe())
    return folder


@pytest.fixture(scope="session")
def endless_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose speech never ends."""
    from inference.testing.checkpoint import Recipe, make

    folder = tmp_path_factory.mktemp("models") / "endless"
    make(folder, Recipe(eos="never"))
    return folder


@pytest.fixture(scope="session")
def located(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LocatedModel:
    return locate(str(checkpoint), DataDir(tmp_path_factory.mktemp("hashes")))


def make_clip(seed: int, duration_s: float) -> NDArray[np.float32]:
    """A buzz with a slowly moving pitch and some noise: (N,) float32 at 24 kHz, peak under 0.6."""
    time_s = np.arange(int(duration_s * 24_000)) / 24_000
    pitch_hz = 110 + 40 * (seed % 5) + 25 * np.sin(2 * np.pi * 1.7 * time_s + seed)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / 24_000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.2
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time_s))
    return np.clip(buzz + noise, -0.6, 0.6).astype(np.float32)


@pytest.fixture(scope="session")
def clip() -> NDArray[np.float32]:
    return make_clip(seed=0, duration_s=2.0)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    directory = DataDir(tmp_path / "data")
    directory.create()
    return directory


Enrol = Callable[..., PromptSource]


@pytest.fixture
def enrol(data: DataDir) -> Enrol:
    """Put a conditioned clip where inference looks for it, as the registry would."""

    def put(
        seed: int = 0, transcript: str | None = TRANSCRIPT, duration_s: float = 2.0
    ) -> PromptSource:
        source = PromptSource(f"voice_{seed}", f"{seed:064x}", transcript)
        path = data.conditioned(source)
        soundfile.write(path, make_clip(seed, duration_s), 24_000, "FLOAT", format="WAV")
        return source

    return put


@pytest.fixture
def service_factory(data: DataDir, located: LocatedModel) -> Iterator[ServiceFactory]:
    """Makes services on `data` with the tiny model (or another), and closes them."""
    made: list[InferenceService] = []

    def make(
        model: LocatedModel | Callable[[], LocatedModel] = located, **config: object
    ) -> InferenceService:
        options = ServiceConfig(**{"device": "cpu", "threads": 1} | config)  # type: ignore[arg-type]
        made.append(InferenceService(data, model, options))
        return made[-1]

    yield make
    for service in made:
        assert service.close(timeout_s=60)


@pytest.fixture
def deployment() -> str:
    """How the app of this test is served; a module may ask for each of deployments.DEPLOYMENTS."""
    return "server"


@pytest.fixture
def store_and_fake(deployment: str, tmp_path: Path) -> tuple[VoiceStore, FakeInference]:
    return deployed(deployment, tmp_path / "data")


@pytest.fixture
def store(store_and_fake: tuple[VoiceStore, FakeInference]) -> Iterator[VoiceStore]:
    store, _ = store_and_fake
    yield store
    store.close()


@pytest.fixture
def fake(store_and_fake: tuple[VoiceStore, FakeInference]) -> FakeInference:
    return store_and_fake[1]


@pytest.fixture
def client(deployment: str, store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    """A server over HTTP with the real app and database, and a stand-in for the model."""
    with client_of(deployment, store, fake) as client:
        yield client


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Any:
    """qwen_tts as it is, without anything of ours."""
    import torch

    from inference.engine.checkpoint.qwen import import_qwen_tts

    torch.set_num_threads(1)
    return import_qwen_tts().Qwen3TTSModel.from_pretrained(str(checkpoint))
