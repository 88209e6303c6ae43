"""docs/integrate.md as an app's developer would use it: its snippets run against a real server."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from api import add
from fakes import tone_hz

PAGE = (Path(__file__).parent.parent / "docs" / "integrate.md").read_text(encoding="utf-8")
TEXT = "Your table is ready."


def snippet(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


COMMANDS = {"curl": ["sh", "-c", snippet("bash")], "python": [sys.executable, snippet("python")]}
COMMANDS["python"].insert(1, "-c")


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "curl" and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    return COMMANDS[request.param]


def run(
    command: list[str], client: httpx.Client, folder: Path, voice_id: str
) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "VOICES_URL": str(client.base_url), "VOICE_ID": voice_id}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_the_snippets_speak_with_the_voice_of_the_id(
    command: list[str], client: httpx.Client, tmp_path: Path
) -> None:
    for name in ("alice", "bob"):
        voice_id = add(client, name).json()["id"]
        done = run(command, client, tmp_path, voice_id)
        assert done.returncode == 0, done.stderr
        samples, rate = soundfile.read(tmp_path / "table.wav")
        assert (rate, len(samples)) == (24_000, len(TEXT) * 1200)
        assert abs(pitch_hz(samples, rate) - tone_hz(voice_id)) < 2


def pitch_hz(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def test_the_snippets_fail_loudly(command: list[str], client: httpx.Client, tmp_path: Path) -> None:
    missing = run(command, client, tmp_path, f"voice_{'0' * 32}")
    assert missing.returncode != 0
    assert missing.stderr


def test_the_python_snippet_is_short() -> None:
    assert len([line for line in snippet("python").splitlines() if line.strip()]) <= 15
