"""What went wrong in other programs, by their public bug reports, goes right here.

One real server with the demo model, the real command and the real curl. The inputs are made here;
`--cases FOLDER` takes others of the same names instead.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from reported_files import ALICE, FILES, SECONDS, WORDS

VOICES = str(Path(sys.executable).with_name("voices"))
PATIENCE_S = 280  # on a machine with other work


@contextmanager
def serving(home: Path, *wrapper: str) -> Iterator[str]:
    """The URL of `voices serve`, in a session of its own that ends with the block."""
    command = [*wrapper, VOICES, "serve", "--model", "demo", "--port", "0"]
    waits = {"VOICES_HOME": str(home), "VOICES_QUEUE_TIMEOUT_S": str(PATIENCE_S)}
    environ = os.environ | waits
    with subprocess.Popen(
        command, env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stderr is not None
        reading = Thread(target=server.stderr.read)  # so that it never waits for a reader
        try:
            url = announced(server.stderr)
            reading.start()
            yield url
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            if reading.ident is not None:
                reading.join()


def announced(lines: Iterable[str]) -> str:
    said = []
    for line in lines:
        said.append(line)
        if found := re.search(r"on (http://127\.0\.0\.1:\d+)", line):
            return found[1]
    raise AssertionError("".join(said))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("reports")) as url:
        enrolled = add(url, "alice", ALICE, transcript=WORDS)
        assert enrolled.status_code == 201, enrolled.text
        yield url


@pytest.fixture
def clip(request: pytest.FixtureRequest) -> Callable[[str], bytes]:
    if folder := request.config.getoption("--cases"):
        return lambda name: Path(folder, name).read_bytes()
    return lambda name: FILES[name]()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ref.wav").write_bytes(ALICE)
    Path("words.txt").write_text(f"{WORDS}\n")
    return tmp_path


def add(url: str, name: str, clip: bytes, **form: str) -> httpx.Response:
    form["name"] = name
    return httpx.post(f"{url}/voices", data=form, files={"audio": clip}, timeout=PATIENCE_S)


def speak(url: str, text: str, voice: str = "alice") -> httpx.Response:
    request = {"voice": voice, "text": text, "seed": 7}
    return httpx.post(f"{url}/speak", json=request, timeout=PATIENCE_S)


def curl(*arguments: str | bytes) -> tuple[int, Any]:
    """The status and the JSON that curl is answered with."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = ["curl", "--silent", "--show-error", "--write-out", r"\n%{http_code}", *arguments]
    done = subprocess.run(line, capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body)


# O3: what can't be seen or heard in a text


def test_o3_invisible_characters_change_nothing_that_is_heard(url: str) -> None:
    plain, odd = speak(url, "something is broken"), speak(url, "some\u200bthing is bro\u00adken")
    assert (plain.status_code, odd.status_code) == (200, 200)
    assert plain.content == odd.content


@pytest.mark.parametrize("text", ["***", "\N{FACE WITH TEARS OF JOY}", "\ufeff", "- - -"])
def test_o3_what_holds_no_words_is_refused(url: str, text: str) -> None:
    refused = speak(url, text)
    assert (refused.status_code, refused.json()["code"]) == (422, "text-invalid")


# O4: forms as people send them


def test_o4_another_charset_is_refused_never_guessed(url: str, here: Path) -> None:
    transcript = b"transcript=" + "你好".encode("gbk")
    status, body = curl("-F", "name=gbk", "-F", "audio=@ref.wav", "-F", transcript, f"{url}/voices")
    assert 400 <= status < 500
    assert "UTF-8" in body["detail"]
    assert httpx.get(f"{url}/voices/gbk").status_code == 404


def test_o4_lines_end_as_a_form_ends_them(url: str, here: Path) -> None:
    description = ["-F", "description=one\r\ntwo"]
    status, body = curl("-F", "name=lines", "-F", "audio=@ref.wav", *description, f"{url}/voices")
    assert status == 201, body
    assert body["description"].split("\n") == ["one", "two"]


def test_o4_words_come_from_a_file(url: str, here: Path) -> None:
    transcript = ["-F", "transcript=@words.txt"]
    status, body = curl("-F", "name=words", "-F", "audio=@ref.wav", *transcript, f"{url}/voices")
    if status == 201:
        assert body["transcript"] == WORDS
    else:
        assert status < 500 and "transcript" in body["detail"]


def test_o4_a_clip_needs_no_file_name(url: str, here: Path) -> None:
    status, body = curl("-F", "name=nameless", "-F", "audio=<ref.wav", f"{url}/voices")
    assert status == 201 or (status < 500 and "file name" in body["detail"]), body


# P1, P2: recordings whose length was never written


@pytest.mark.parametrize("name", ["p1-sizes-never-written.wav", "p2-recorder-live.webm"])
def test_p_a_recording_needs_no_length_in_its_header(
    url: str, clip: Callable[[str], bytes], name: str
) -> None:
    enrolled = add(url, name[:2], clip(name))
    assert enrolled.status_code == 201, enrolled.text
    assert enrolled.json()["clip"]["duration_s"] == pytest.approx(SECONDS, abs=0.01)
