"""`voices speak --reference`: a clip speaks over the command line, and nothing of it is kept."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
from api import CLIP, add
from click.testing import CliRunner, Result
from conftest import ROOT
from fakes import FakeInference
from reported_files import ALICE, WORDS

from cli.main import cli
from cli.pitch import median_pitch_hz
from registry.storage.store import VoiceStore

Speak = Callable[..., Result]


@pytest.fixture
def speak(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Speak]:
    """`voices speak`, in a folder with a clip and its words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOICES_URL", str(client.base_url))
    Path("ref.wav").write_bytes(CLIP)
    Path("words.txt").write_text("hello there\n")

    def run(*arguments: str, code: int = 0, stdin: bytes = b"") -> Result:
        done = CliRunner().invoke(cli, ["speak", *arguments], input=stdin)
        assert done.exit_code == code, done.output
        return done

    yield run


@pytest.fixture
def nothing_kept(store: VoiceStore) -> Iterator[None]:
    yield
    assert list(store.data.content_files()) == []
    assert list(store.data.transients()) == []


@pytest.mark.usefixtures("nothing_kept")
def test_a_clip_speaks_into_a_file(speak: Speak, fake: FakeInference) -> None:
    said = speak("--reference", "ref.wav", "--transcript", "@words.txt", "Hello", "--seed", "7")
    assert "Wrote speech.wav: " in said.stderr
    assert Path("speech.wav").read_bytes().startswith(b"RIFF")
    assert (fake.started, fake.params[0].seed) == (["Hello"], 7)


@pytest.mark.usefixtures("nothing_kept")
def test_what_an_enrolment_would_warn_of_is_said(speak: Speak) -> None:
    said = speak("--reference", "ref.wav", "Hello", "-o", "a.wav")
    assert "Note: No transcript was given" in said.stderr
    as_json = speak("--reference", "ref.wav", "Hello", "-o", "a.flac", "--json")
    told = json.loads(as_json.stdout)
    assert told["reference"] == "ref.wav"
    assert (told["voice"], told["voice_id"]) == (None, None)
    assert any("No transcript" in warning for warning in told["warnings"])


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("format", ["wav", "flac", "pcm", "mp3"])
def test_clip_and_sound_go_through_pipes(speak: Speak, format: str) -> None:
    piped = ["--reference", "-", "--transcript", "hello there", "--format", format]
    said = speak(*piped, "Hello", "-o", "-", stdin=CLIP)
    speak(*piped, "Hello", "-o", f"a.{format}", stdin=CLIP)
    assert len(said.stdout_bytes) > 2000
    if format in ("pcm", "mp3"):
        assert len(said.stdout_bytes) == len(Path(f"a.{format}").read_bytes())


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["Hello"], 2, "Missing argument 'TEXT'"),
        (["alice", "Hello", "--transcript", "x"], 2, "give that with --reference"),
        (["alice", "Hello", "--reference", "ref.wav"], 2, "give TEXT alone"),
        (["-", "--reference", "-"], 2, "Only one of clip"),
        (["Hello", "--reference", "-", "--transcript", "-"], 2, "Only one of clip"),
        (["Hello", "--reference", "gone.wav"], 2, "Can't read 'gone.wav'"),
        (["Hello", "--reference", "words.txt"], 1, "not audio of a known format"),
        (["Hello", "--reference", "ref.wav", "--transcript", "word " * 300], 1, "The transcript"),
        (["Hello", "--reference", "ref.wav", "-o", "x.m4a"], 2, "no m4a"),
        (["***", "--reference", "ref.wav"], 1, "text"),
    ],
)
def test_what_can_not_be_is_a_sentence(
    speak: Speak, fake: FakeInference, arguments: list[str], code: int, said: str
) -> None:
    refused = speak(*arguments, code=code)
    assert said in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: ")
    assert fake.started == []
    assert not list(Path().glob("speech*"))


def test_a_voice_still_speaks_by_its_name(speak: Speak, client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    told = json.loads(speak("alice", "Hello", "--json").stdout)
    assert (told["voice"], told["voice_id"]) == ("alice", voice["id"])
    assert (told["reference"], told["warnings"]) == (None, [])


@pytest.mark.slow
def test_the_demo_model_speaks_like_a_clip_without_a_server(tmp_path: Path) -> None:
    """The real command, by itself over a new data directory."""
    (tmp_path / "ref.wav").write_bytes(ALICE)
    home = tmp_path / "home"
    environ = {"VOICES_HOME": str(home), "VOICES_MODEL": "demo", "VOICES_QUEUE_TIMEOUT_S": "280"}
    text = "A voice is enrolled once, and from then on it speaks by name."
    command = [sys.executable, "-m", "cli.main", "--local", "speak", text, "--seed", "7"]
    done = subprocess.run(
        [*command, "--reference", "ref.wav", "--transcript", WORDS],
        env={**os.environ, **environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = (tmp_path / name for name in ("ref.wav", "speech.wav"))
    heights = [median_pitch_hz(*soundfile.read(path)) for path in files]
    assert heights[1] == pytest.approx(heights[0], rel=0.2)
    for folder in ("clips", "conditioned", "prompts", "transient"):
        assert list((home / folder).iterdir()) == []
