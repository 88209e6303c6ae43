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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from reported_files import ALICE, FILES, SECONDS, WORDS

VOICES = str(Path(sys.executable).with_name("voices"))
PATIENCE_S = 280  # on a machine with other work
EMOJI = "\N{GRINNING FACE}" * 64
PAGE = b"<!doctype html><title>Welcome</title><p>It works!"
VERBS = {
    "add": ["bob", "ref.wav", "Hello."],
    "list": [],
    "show": ["alice"],
    "speak": ["alice", "Hello."],
    "clip": ["alice"],
    "edit": ["alice", "--description", "calm"],
    "rename": ["alice", "carol"],
    "rm": ["alice", "--yes"],
    "rebuild": ["alice"],
    "login": [],
}


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


def embedding(url: str, name: str) -> Any:
    from safetensors.numpy import load

    vector = load(httpx.get(f"{url}/voices/{name}/prompt").content)["ref_spk_embedding"]
    return vector / np.linalg.norm(vector)


def voices(
    *arguments: str, url: str | None = None, stdin: bytes = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """The command as a user starts it; whatever comes of it, it is no traceback."""
    known = {**os.environ, **environ, **({"VOICES_URL": url} if url else {})}
    done = subprocess.run([VOICES, *arguments], input=stdin, env=known, capture_output=True)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def curl(*arguments: str | bytes) -> tuple[int, Any]:
    """The status and the JSON that curl is answered with."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = ["curl", "--silent", "--show-error", "--write-out", r"\n%{http_code}", *arguments]
    done = subprocess.run(line, capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body)


# O1: one channel against the other


@pytest.mark.slow
def test_o1_an_inverted_channel_does_not_take_the_voice_away(
    url: str, clip: Callable[[str], bytes]
) -> None:
    enrolled = add(url, "inverted", clip("o1-one-channel-inverted.opus"))
    if enrolled.status_code == 201:
        assert float((embedding(url, "inverted") * embedding(url, "alice")).sum()) >= 0.9
    else:
        assert 400 <= enrolled.status_code < 500
        assert "channel" in enrolled.json()["detail"]


# O2: judged by the first bytes, the first track, the exact length


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("o2a-id3-before.flac", SECONDS),
        ("o2b-second-track-is-the-default.m4a", SECONDS),
        ("o2c-sixty-seconds.m4a", 60.0),
    ],
)
def test_o2_a_clip_is_more_than_its_first_bytes(
    url: str, clip: Callable[[str], bytes], name: str, seconds: float
) -> None:
    enrolled = add(url, name.partition("-")[0], clip(name))
    assert enrolled.status_code == 201, enrolled.text
    assert enrolled.json()["clip"]["duration_s"] == pytest.approx(seconds, abs=0.1)


def test_o2_the_default_track_is_the_one_that_is_heard(
    url: str, clip: Callable[[str], bytes]
) -> None:
    enrolled = add(url, "default track", clip("o2b-second-track-is-the-default.m4a"))
    assert enrolled.status_code == 201, enrolled.text
    assert float((embedding(url, "default%20track") * embedding(url, "alice")).sum()) >= 0.9


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


@pytest.mark.slow
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


# O5: what the command line names


def test_o5_a_clip_comes_from_stdin(url: str, here: Path) -> None:
    assert voices("add", "piped", "-", url=url, stdin=ALICE).returncode == 0
    assert httpx.get(f"{url}/voices/piped/clip").content == ALICE


def test_o5_a_file_holds_what_its_ending_says(url: str, here: Path) -> None:
    assert voices("speak", "alice", "Hello.", "-o", "x.mp3", url=url).returncode == 0
    assert soundfile.info("x.mp3").format == "MP3"
    refused = voices("speak", "alice", "Hello.", "-o", "x.m4a", url=url)
    assert refused.returncode != 0
    assert b"m4a" in refused.stderr
    assert not Path("x.m4a").exists()


def test_o5_a_text_may_begin_with_a_dash(url: str, here: Path) -> None:
    spoken = voices("speak", "alice", "-5 degrees", url=url)
    if spoken.returncode == 0:
        assert Path("alice.wav").read_bytes().startswith(b"RIFF")
    else:
        assert re.search(r"(?<![-\w])--(?![-\w])", spoken.stderr.decode())


@pytest.mark.slow
def test_o5_a_name_of_many_bytes_is_no_file_name(url: str, here: Path) -> None:
    assert add(url, EMOJI, ALICE, transcript=WORDS).status_code == 201
    for verb, *more in (["speak", "Hello."], ["clip"]):
        there = set(here.iterdir())
        done = voices(verb, EMOJI, *more, url=url)
        assert (done.returncode == 0) == (len(set(here.iterdir()) - there) == 1), done.stderr


# O6: where it runs


@pytest.mark.slow
def test_o6_it_serves_without_a_home_and_without_a_passwd_entry(tmp_path: Path) -> None:
    bare = ["unshare", "-U", "--map-user=12345"]
    if shutil.which("unshare") is None or subprocess.run([*bare, "true"]).returncode:
        pytest.skip("no user namespace can be made here")
    environ = ["env", "-i", f"PATH={os.environ['PATH']}", f"VOICES_HOME={tmp_path}"]
    with serving(tmp_path, *bare, *environ) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_o6_a_socks_proxy_is_no_traceback(url: str, here: Path) -> None:
    port = url.rpartition(":")[2]
    proxy = {name: "socks5h://127.0.0.1:9" for name in ("ALL_PROXY", "all_proxy")}
    done = voices("--url", f"http://0.0.0.0:{port}", "list", **proxy)
    assert done.returncode == 0 or done.stderr.startswith((b"Error: ", b"Usage: "))


@pytest.mark.slow
def test_o6_a_long_folder_for_temporary_files_is_no_matter(here: Path) -> None:
    folder = here / ("t" * 100)
    folder.mkdir()
    environ = {"TMPDIR": str(folder), "VOICES_HOME": str(here / "home")}
    done = voices("--local", "list", **environ)
    assert done.returncode == 0, done.stderr.decode()


# O7: a server that is no registry


class Welcome(BaseHTTPRequestHandler):
    """Answers whatever is asked with a page."""

    def handle_any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Welcome) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("verb", VERBS)
def test_o7_a_page_of_html_is_no_registry(stranger: str, here: Path, verb: str) -> None:
    there = set(here.iterdir())
    arguments = [verb, *VERBS[verb], *([stranger] if verb == "login" else [])]
    url = None if verb == "login" else stranger
    done = voices(*arguments, url=url, VOICES_CONFIG_HOME=str(here / "config"))
    assert done.returncode != 0
    assert b"Error: " in done.stderr
    assert set(here.iterdir()) == there


# O8: a part of a file


def test_o8_a_range_of_a_clip_is_sent(url: str, here: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = ["curl", "-s", "-r", "0-1", "-D", "headers", f"{url}/voices/alice/clip"]
    done = subprocess.run(line, capture_output=True, check=True)
    assert done.stdout == ALICE[:2]
    headers = Path("headers").read_text().lower()
    assert headers.startswith("http/1.1 206 ")
    assert f"content-range: bytes 0-1/{len(ALICE)}" in headers


# P1, P2: recordings whose length was never written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p1-sizes-never-written.wav", "p2-recorder-live.webm"])
def test_p_a_recording_needs_no_length_in_its_header(
    url: str, clip: Callable[[str], bytes], name: str
) -> None:
    enrolled = add(url, name[:2], clip(name))
    assert enrolled.status_code == 201, enrolled.text
    assert enrolled.json()["clip"]["duration_s"] == pytest.approx(SECONDS, abs=0.01)
