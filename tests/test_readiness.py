"""/readyz says 503, and why, whenever no voice could speak."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from api import add, problem
from conftest import PYTHON
from fakes import FakeInference
from serving import serving

from inference.models.catalog import WEIGHTS, locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from inference.serving.worker import DeviceThread
from registry.app import create_app
from registry.contract import Inference, ModelRef
from registry.errors import ModelUnavailable
from registry.settings import Settings
from registry.speech.local import LocalInference, NoInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore


def readiness(store: VoiceStore, model: Inference, **settings: str) -> httpx.Response:
    app = create_app(store, model, Settings(home=store.data.root, **settings))
    with serving(app) as client:
        return client.get("/readyz")


def test_a_server_without_a_model_is_not_ready(store: VoiceStore) -> None:
    refused = readiness(store, NoInference(), inference="off")
    assert problem(refused) == (503, "inference-off")


def test_a_server_of_another_model_is_not_ready(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    add(client, "alice")
    assert client.get("/readyz").status_code == 200
    store.choose_model("other", ModelRef("other", "r2"))
    refused = client.get("/readyz")
    assert problem(refused) == (503, "model-mismatch")
    assert "now uses other" in refused.json()["detail"]
    assert fake.started == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, without_header], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_damaged_weights_are_said_in_the_answer_and_in_the_log(
    damage: Callable[[Path], None],
    weights: str,
    checkpoint: Path,
    store: VoiceStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    model = locate(str(folder), DataDir(tmp_path / "hashes"))
    damage(folder / weights)  # what is damaged before is not even located
    service = InferenceService(store.data, model, ServiceConfig(device="cpu", threads=1))
    inference = LocalInference(lambda: service)
    inference.warm()
    loading = service._thread.submit(service._ready_engine)  # after the one that warms
    assert loading.exception(timeout=300) is not None
    with caplog.at_level(logging.ERROR):
        refused = readiness(store, inference)
    assert problem(refused) == (503, "model-unavailable")
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert any("The model can't be loaded" in line for line in said)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_died_is_noticed() -> None:
    def work() -> bool:
        raise SystemExit

    thread = DeviceThread("doomed", 4, work)
    assert not thread.has_died
    thread.submit_short(lambda: None)
    assert thread._thread is not None
    thread._thread.join(60)
    assert thread.has_died
    thread.close(0)
    assert not thread.has_died


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    environ = os.environ | {"VOICES_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    line = [PYTHON, "-m", "cli.main", "serve", "--model", "demo", "--port", "0", "--device"]
    for device in ("cuda", "cuda:1"):
        done = subprocess.run(
            [*line, device], env=environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: The device {device} can't be used: ")
        assert done.stderr.count("\n") == 1


def test_a_voice_of_a_server_without_its_gpu_gets_a_sentence() -> None:
    from inference.models.gpu import refuse_missing_gpu

    refuse_missing_gpu("cpu")
    refuse_missing_gpu("auto")
    with pytest.raises(Exception, match="cuda:99") as caught:
        refuse_missing_gpu("cuda:99")
    assert getattr(caught.value, "code", "") == ModelUnavailable.code
