"""docs/integrate.md as an app's developer would use it: its snippets run against a real server."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import soundfile
from api import add

PAGE = (Path(__file__).parent.parent / "docs" / "integrate.md").read_text(encoding="utf-8")


def snippet(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def run(command: list[str], client: httpx.Client, folder: Path) -> None:
    environ = {**os.environ, "VOICES_URL": str(client.base_url)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(folder / "table.wav")
    assert rate == 24_000
    assert len(samples) == len("Your table is ready.") * 1200


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_command_speaks(client: httpx.Client, tmp_path: Path) -> None:
    add(client, "alice")
    run(["sh", "-c", snippet("bash")], client, tmp_path)


def test_the_python_snippet_speaks_by_id(client: httpx.Client, tmp_path: Path) -> None:
    add(client, "alice")
    assert len([line for line in snippet("python").splitlines() if line.strip()]) <= 16
    run([sys.executable, "-c", snippet("python")], client, tmp_path)
