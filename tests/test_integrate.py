"""docs/integrate.md as an app's developer would use it: its snippets run against a real server."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from api import add
from fakes import FakeInference, Pace, tone_hz

from registry.errors import SpeechFailed

PAGE = (Path(__file__).parent.parent / "docs" / "integrate.md").read_text(encoding="utf-8")
TEXT = "Your table is ready."


def snippets(language: str) -> list[str]:
    """Whole, then streamed."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands(which: int) -> dict[str, list[str]]:
    return {
        "curl": ["sh", "-c", snippets("bash")[which]],
        "python": [sys.executable, "-c", snippets("python")[which]],
    }


WHOLE, STREAMED = commands(0), commands(1)
SKIPPED = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
CALLERS = [pytest.param("curl", marks=SKIPPED), "python"]


def run(
    command: list[str], client: httpx.Client, folder: Path, voice_id: str
) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "VOICES_URL": str(client.base_url), "VOICE_ID": voice_id}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("caller", CALLERS)
def test_the_snippets_speak_with_the_voice_of_the_id(
    caller: str, client: httpx.Client, tmp_path: Path
) -> None:
    for name in ("alice", "bob"):
        voice_id = add(client, name).json()["id"]
        done = run(WHOLE[caller], client, tmp_path, voice_id)
        assert done.returncode == 0, done.stderr
        samples, rate = soundfile.read(tmp_path / "table.wav")
        assert (rate, len(samples)) == (24_000, len(TEXT) * 1200)
        assert abs(pitch_hz(samples, rate) - tone_hz(voice_id)) < 2


@pytest.mark.slow
@pytest.mark.parametrize("caller", CALLERS)
def test_the_streaming_snippets_play_the_voice_of_the_id(
    caller: str, client: httpx.Client, tmp_path: Path
) -> None:
    for name in ("alice", "bob"):
        voice_id = add(client, name).json()["id"]
        done = run(STREAMED[caller], client, tmp_path, voice_id)
        assert done.returncode == 0, done.stderr
        samples = samples_of(done.stdout)
        assert len(samples) == len(TEXT) * 1200
        assert abs(pitch_hz(samples, 24_000) - tone_hz(voice_id)) < 2


@pytest.mark.parametrize("caller", CALLERS)
def test_a_streaming_snippet_plays_while_the_model_speaks_and_tells_of_a_break(
    caller: str, client: httpx.Client, fake: FakeInference, tmp_path: Path
) -> None:
    voice_id = add(client, "alice").json()["id"]
    fake.pace = Pace(free=2)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, STREAMED[caller], client, tmp_path, voice_id)
        fake.pace.give(error=SpeechFailed("What the model made is not finite."))
        done = running.result()
    assert len(samples_of(done.stdout)) == len(TEXT) * 1200 // 2
    assert done.returncode == 18 if caller == "curl" else b"RemoteProtocolError" in done.stderr


def samples_of(sound: bytes) -> np.ndarray:
    return np.frombuffer(sound[44:] if sound.startswith(b"RIFF") else sound, "<i2")


def pitch_hz(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("kind", [WHOLE, STREAMED], ids=["whole", "streamed"])
def test_the_snippets_fail_loudly(
    kind: dict[str, list[str]], caller: str, client: httpx.Client, tmp_path: Path
) -> None:
    missing = run(kind[caller], client, tmp_path, f"voice_{'0' * 32}")
    assert missing.returncode != 0
    assert missing.stderr


@pytest.mark.parametrize("which", [0, 1], ids=["whole", "streamed"])
def test_the_python_snippets_are_short(which: int) -> None:
    assert len([line for line in snippets("python")[which].splitlines() if line.strip()]) <= 15
