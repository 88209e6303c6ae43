"""Nothing asks the hub while it serves: a listener in its place counts who calls."""

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from clips import file, spoken
from conftest import PYTHON
from test_serve import served

ROOT = Path(__file__).parents[1]


class Counter:
    """Takes connections in the place of the hub, or of a proxy on the way to it, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if connection.recv(4) == b"stop":
                    return
                self.calls += 1
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as connection:
            connection.sendall(b"stop")
        self._thread.join()
        self._listener.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Counter]:
    """Every way out of a process that starts now leads there."""
    counter = Counter()
    for name in ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, counter.url)
        monkeypatch.setenv(name.lower(), counter.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield counter
    counter.close()


@contextmanager
def asking(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=300) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("named", ["demo", "folder"])
def test_a_server_loads_enrols_and_speaks_without_a_call(
    hub: Counter, checkpoint: Path, tmp_path: Path, named: str
) -> None:
    model = "demo" if named == "demo" else str(checkpoint)
    options = ("--model", model, "--device", "cpu")
    with served(tmp_path / "data", *options) as server, asking(server.url) as client:
        clip = file(spoken(), 24_000)
        form = {"name": "alice", "transcript": "The invention of movable metal letters."}
        made = client.post("/voices", data=form, files={"audio": clip})
        assert made.status_code == 201, made.text
        spoken_once = client.post("/speak", json={"voice": "alice", "text": "Hello there."})
        assert spoken_once.status_code in (200, 500), spoken_once.text  # the folder is untrained
        assert client.post("/voices/alice/rebuild").status_code == 200
    assert hub.calls == 0


ASKS = """
import sys
{before}
from inference.engine.checkpoint.qwen import import_qwen_tts
{act}
import huggingface_hub, transformers
try:
    transformers.AutoConfig.from_pretrained("someone/else")
except OSError:
    print("not there")
try:
    huggingface_hub.hf_hub_download("someone/else", "config.json")
except (OSError, ValueError) as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "import transformers", "import huggingface_hub"])
def test_once_the_model_is_here_no_library_can_call(hub: Counter, before: str) -> None:
    asked = run(ASKS.format(before=before, act="import_qwen_tts()"))
    assert re.fullmatch(r"not there\n(LocalEntryNotFoundError|OfflineModeIsEnabled)\n", asked)
    assert hub.calls == 0
    run(ASKS.format(before=before, act=""))
    assert hub.calls > 0, "or the listener counts nobody"


def run(code: str) -> str:
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, env=where, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
