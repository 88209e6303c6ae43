"""docs/clients.md as someone would use it who has an OpenAI client, a base URL and a key."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import soundfile
from api import CLIP
from fakes import tone_hz
from heard import heard
from test_openai_speech import hz

from registry.api.openai.speech import SpeechBody
from registry.api.openai.voices import AudioSampleForm
from registry.audio.formats import AudioFormat

PAGE = (Path(__file__).parent.parent / "docs" / "clients.md").read_text(encoding="utf-8")
TEXT = "Your table is ready."
LACKING = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def snippet(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def run(command: list[str], client: httpx.Client, folder: Path) -> bytes:
    (folder / "ref.wav").write_bytes(CLIP)
    environ = {
        "OPENAI_BASE_URL": f"{str(client.base_url).rstrip('/')}/v1",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(command, cwd=folder, env=os.environ | environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_enrols_speaks_and_streams(client: httpx.Client, tmp_path: Path) -> None:
    streamed = run([sys.executable, "-c", snippet("python")], client, tmp_path)
    alice = client.get("/voices/alice").json()
    assert alice["transcript"] and alice["labels"] == {"consent": "agreed by mail"}
    samples = heard(streamed, AudioFormat("pcm"), 24_000)
    assert len(samples) == len(TEXT) * 1200
    assert hz(samples, 24_000) == pytest.approx(tone_hz(alice["id"]), abs=2)
    whole, rate = soundfile.read(tmp_path / "table.mp3")
    assert hz(whole, rate) == pytest.approx(tone_hz(alice["id"]), abs=2)


@pytest.mark.slow
@LACKING
def test_curl_enrols_and_speaks(client: httpx.Client, tmp_path: Path) -> None:
    run(["sh", "-ec", snippet("bash")], client, tmp_path)
    bob = client.get("/voices/bob").json()
    whole, rate = soundfile.read(tmp_path / "table.mp3")
    assert bob["transcript"] and hz(whole, rate) == pytest.approx(tone_hz(bob["id"]), abs=2)


def test_every_field_is_on_the_page() -> None:
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(listed)))
    assert named == {*SpeechBody.model_fields, *AudioSampleForm.model_fields, "instructions"}
