"""The command line as a person uses it: over the local data directory, and against a server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import soundfile
from click.testing import CliRunner, Result
from clips import file, tone
from fakes import PATIENCE_S, FakeInference, Pace

from cli.main import cli
from registry.audio.encoding.loudness import loudness
from registry.errors import SpeechFailed

CLIP = file(tone(), 24_000)
Voices = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a clip, and a data directory of its own with the tiny model."""
    monkeypatch.chdir(tmp_path)
    settings = {"HOME": str(tmp_path / "home"), "MODEL": str(checkpoint)}
    for name, value in (settings | {"THREADS": "1", "DEVICE": "cpu"}).items():
        monkeypatch.setenv(f"VOICES_{name}", value)
    (tmp_path / "ref.wav").write_bytes(CLIP)
    return tmp_path


@pytest.fixture
def voices(home: Path) -> Voices:
    def run(*arguments: str, code: int = 0, input: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, input=input)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def remote(client: httpx.Client, home: Path, monkeypatch: pytest.MonkeyPatch) -> httpx.Client:
    monkeypatch.setenv("VOICES_URL", str(client.base_url))
    return client


@pytest.mark.slow
def test_the_whole_path_on_this_machine(voices: Voices, home: Path) -> None:
    added = voices("add", "alice", "ref.wav", "hello there", "--label", "use=test")
    assert added.stderr.endswith("Enrolled alice.\n")
    assert added.stdout == json.loads(voices("show", "alice", "--json").stdout)["id"] + "\n"
    listed = json.loads(voices("list", "--json", "--label", "use=test").stdout)
    assert [voice["name"] for voice in listed] == ["alice"]
    said = voices("speak", "alice", "Hello", "-o", "out.wav", "--seed", "3").stderr
    assert "prompt from file, seed 3" in said
    samples, rate = soundfile.read("out.wav")
    assert rate == 24_000
    assert len(samples) >= 1920
    assert abs(samples).max() > 0.01
    again = voices("speak", "ALICE", "Hello", "-o", "-", "--seed", "3")
    assert again.stdout_bytes[44:] == Path("out.wav").read_bytes()[44:]


def test_list_shows_the_voices_that_bear_every_label(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there", "--label", "use=test", "--label", "team=a")
    voices("add", "bob", "ref.wav", "hello there", "--label", "use=test", "--label", "team=b")
    both = json.loads(voices("list", "--json", "--label", "use=test").stdout)
    assert [voice["name"] for voice in both] == ["alice", "bob"]
    one = json.loads(voices("list", "--json", "--label", "use=test", "--label", "team=b").stdout)
    assert [voice["name"] for voice in one] == ["bob"]
    none = voices("list", "--label", "team=a", "--label", "team=b")
    assert none.stderr == "No voice matches.\n"


def test_speak_never_overwrites_without_force(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    voices("speak", "alice", "Hello")
    first = Path("alice.wav").read_bytes()
    refused = voices("speak", "alice", "Hello again", code=1)
    assert "--force" in refused.stderr
    assert Path("alice.wav").read_bytes() == first
    voices("speak", "alice", "Hello again", "--force")
    assert Path("alice.wav").read_bytes() != first


def test_the_format_follows_the_file_name(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    voices("speak", "alice", "Hello", "-o", "a.flac")
    assert Path("a.flac").read_bytes().startswith(b"fLaC")
    voices("speak", "alice", "Hello", "--format", "pcm")
    assert len(Path("alice.pcm").read_bytes()) == 5 * 1200 * 2
    voices("speak", "alice", "Hello", "-o", "a.ogg")
    assert Path("a.ogg").read_bytes().startswith(b"OggS")
    voices("speak", "alice", "Hello", "--format", "mp3_44100_128")
    assert Path("alice.mp3").read_bytes()[:2] == b"\xff\xfb"
    refused = voices("speak", "alice", "Hello", "--format", "mp3_1", code=2).stderr
    assert "'mp3_1': There is no such format: mp3 is made as mp3, mp3_22050_32," in refused


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_speed_rate_and_loudness_are_those_that_were_asked(
    voices: Voices, remote: httpx.Client, ending: str
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    asked = ("--speed", "0.5", "--format", f"{ending}_16000", "-o", f"a.{ending}")
    told = json.loads(voices("speak", "alice", "Hello", *asked, "--json").stdout)
    assert (told["format"], told["seconds"], told["loudness"]) == (f"{ending}_16000", 0.5, None)
    assert soundfile.info(f"a.{ending}").samplerate == 16_000
    assert soundfile.info(f"a.{ending}").frames == 8_000
    said = voices("speak", "alice", "Hello", "--loudness", "-30", "-o", f"b.{ending}").stderr
    assert said.startswith(f"Wrote b.{ending}: 0.250 s, -30.0 LUFS, prompt from")
    samples, rate = soundfile.read(f"b.{ending}", dtype="float32")
    assert loudness(samples, rate) == pytest.approx(-30, abs=0.1)
    refused = voices("speak", "alice", "Hello", "--speed", "5", code=1).stderr
    assert "speed: Input should be less than or equal to 4" in refused


@pytest.mark.parametrize("format", ["wav", "flac", "pcm", "mp3", "opus", "aac", "ulaw", "alaw"])
def test_the_file_is_the_whole_answer_and_nothing_else_is_left(
    voices: Voices, remote: httpx.Client, home: Path, format: str
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    there = set(home.iterdir())
    said = voices("speak", "alice", "Hello", "--seed", "3", "-o", f"a.{format}").stderr
    request = {"voice": "alice", "text": "Hello", "seed": 3, "format": format}
    assert Path(f"a.{format}").read_bytes() == remote.post("/speak", json=request).content
    assert said == f"Wrote a.{format}: 0.250 s, prompt from file, seed 3.\n"
    assert set(home.iterdir()) - there == {home / f"a.{format}"}


@pytest.mark.parametrize("format", ["wav", "flac", "pcm"])
def test_speech_that_breaks_off_leaves_no_file(
    voices: Voices, remote: httpx.Client, fake: FakeInference, home: Path, format: str
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    Path("old").write_bytes(b"old")
    there = set(home.iterdir())
    for output in (("-o", "new"), ("-o", "old", "--force")):
        with ThreadPoolExecutor() as threads:
            fake.pace = Pace(free=2)
            threads.submit(fake.pace.give, error=SpeechFailed("It broke."))
            broken = voices("speak", "alice", "Hello", "--format", format, *output, code=1)
        reason = "It broke." if format == "flac" else "broke off before its end."
        assert broken.stderr.startswith("Error: ")
        assert broken.stderr.endswith(f"{reason}\n")
    assert set(home.iterdir()) == there
    assert Path("old").read_bytes() == b"old"


def test_stdout_has_the_audio_as_it_is_spoken(
    voices: Voices, remote: httpx.Client, fake: FakeInference
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    fake.pace = Pace(free=1)
    with speaking("pcm") as process:
        heard = process.stdout.read(3000)
        fake.pace.give()
        heard += process.stdout.read(3000)
        fake.pace.give(2)
        rest, talk = process.communicate(timeout=30)
    assert (process.returncode, talk) == (0, b"")
    request = {"voice": "alice", "text": "Hello", "format": "pcm"}
    fake.pace = None
    assert heard + rest == remote.post("/speak", json=request).content


def test_a_break_on_stdout_is_said_and_exits_with_1(
    voices: Voices, remote: httpx.Client, fake: FakeInference
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    fake.pace = Pace(free=2)
    with speaking("wav") as process:
        header = process.stdout.read(44)
        fake.pace.give(error=SpeechFailed("It broke."))
        rest, talk = process.communicate(timeout=30)
    assert process.returncode == 1
    assert talk.endswith(b"broke off before its end.\n")
    assert (header[:4], header[40:]) == (b"RIFF", b"\xff" * 4)
    assert len(rest) == 2 * 1500 * 2


def test_a_listener_who_leaves_ends_the_speech_quietly(
    voices: Voices, remote: httpx.Client, fake: FakeInference
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    fake.pace = Pace(free=1)
    with speaking("wav") as process:
        process.stdout.read(44)
        process.stdout.close()
        fake.pace.give()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1
    assert fake.chunks[0].ended.wait(PATIENCE_S)
    assert fake.chunks[0].was_closed_early


def speaking(format: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli.main", "speak", "alice", "Hello", "-o", "-"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, "--format", format], bufsize=0, **pipes)


def test_what_can_not_be_written_is_said(voices: Voices, remote: httpx.Client, home: Path) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)  # so that no writer waits for one
    there = set(home.iterdir())
    for output, code, said in [
        ("no/a.wav", 1, "Can't write no/a.wav: No such file"),
        ("ref.wav/a.wav", 1, "Can't write ref.wav/a.wav: Not a directory"),
        ("pipe", 2, "`-o - > pipe` writes to it"),
    ]:
        refused = voices("speak", "alice", "Hello", "--force", "-o", output, code=code)
        assert said in refused.stderr
    assert set(home.iterdir()) == there
    os.close(reader)


def test_a_link_still_leads_to_the_file_that_is_replaced(
    voices: Voices, remote: httpx.Client, home: Path
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    (home / "folder").mkdir()
    Path("folder/real.wav").write_bytes(b"old")
    Path("link.wav").symlink_to("folder/real.wav")
    voices("speak", "alice", "Hello", "--force", "-o", "link.wav")
    assert Path("link.wav").is_symlink()
    assert Path("folder/real.wav").read_bytes().startswith(b"RIFF")


def test_a_link_of_another_account_leads_nowhere(
    voices: Voices, remote: httpx.Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write in a folder could have put it where a file of ours is to be."""
    voices("add", "alice", "ref.wav", "hello there")
    Path("precious.txt").write_bytes(b"old")
    Path("link.wav").symlink_to("precious.txt")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for verb in ("speak alice Hello", "clip alice"):
        refused = voices(*verb.split(), "--force", "-o", "link.wav", code=1)
        assert "is a link of another account" in refused.stderr
    assert Path("precious.txt").read_bytes() == b"old"


def test_texts_come_from_arguments_files_and_stdin(voices: Voices, remote: httpx.Client) -> None:
    Path("words.txt").write_text("wörds of the clip\n", encoding="utf-8")
    voices("add", "a", "ref.wav", "@words.txt")
    voices("add", "b", "ref.wav", "-", input="wörds of the clip".encode())
    shown = [json.loads(voices("show", name, "--json").stdout) for name in "ab"]
    assert [voice["transcript"] for voice in shown] == ["wörds of the clip"] * 2
    spoken = voices("speak", "a", "-", "-o", "-", "--format", "pcm", input=b"Hello\n")
    assert len(spoken.stdout_bytes) == 5 * 1200 * 2
    gone = voices("speak", "a", "@gone.txt", "-o", "-", code=2).stderr
    assert "Can't read 'gone.txt': No such file or directory." in gone
    assert "not UTF-8" in voices("speak", "a", "-", "-o", "-", code=2, input=b"Zo\xeb").stderr


def test_without_a_transcript_x_vector_mode_is_said_aloud(
    voices: Voices, remote: httpx.Client
) -> None:
    assert "x-vector mode" in voices("add", "alice", "ref.wav").stderr


def test_verbs_on_a_voice(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there", "--label", "a=1", "--description", "calm")
    voices("edit", "alice", "--label", "b=2", "--remove-label", "a", "--temperature", "0.5")
    voices("rename", "alice", "Alice (studio)")
    found = json.loads(voices("show", "alice (STUDIO)", "--json").stdout)
    assert found["labels"] == {"b": "2"}
    assert found["defaults"]["temperature"] == 0.5
    assert found["description"] == "calm"
    assert "calm" in voices("show", "Alice (studio)").stdout
    voices("clip", "Alice (studio)", "-o", "back.wav")
    assert Path("back.wav").read_bytes() == CLIP
    assert "Rebuilt" in voices("rebuild", "Alice (studio)").stderr
    kept = voices("rm", "Alice (studio)", code=1, input=b"n\n")
    assert "Delete" in kept.stderr
    voices("rm", "Alice (studio)", "--yes")
    assert json.loads(voices("list", "--json").stdout) == []


@pytest.mark.slow
def test_a_transcript_is_put_right(voices: Voices, remote: httpx.Client) -> None:
    many = "hello there, " * 5
    noted = voices("add", "alice", "ref.wav", many).stderr
    assert "Note: The transcript has 10 words for 2.0 s of speech" in noted
    assert "10 words for 2.0 s" in voices("show", "alice").stdout
    edited = voices("edit", "alice", "--transcript", "hello there", "--label", "a=1")
    assert edited.stderr == "Note: The clip lasts 2.0 s; 3 to 30 s make the best voice.\n" + (
        "Edited alice.\n"
    )
    found = json.loads(voices("show", "alice", "--json").stdout)
    assert (found["version"], found["transcript"]) == (2, "hello there")
    Path("words.txt").write_text("hello you", encoding="utf-8")
    voices("edit", "alice", "--transcript", "@words.txt")
    assert "is so already" in voices("edit", "alice", "--transcript", "hello you").stderr
    voices("edit", "alice", "--transcript", "-", input=b"hello")
    assert json.loads(voices("show", "alice", "--json").stdout)["transcript"] == "hello"
    assert "x-vector mode" in voices("edit", "alice", "--no-transcript").stderr
    last = json.loads(voices("edit", "alice", "--transcript", "hello", "--json").stdout)
    assert (last["version"], last["id"]) == (6, found["id"])
    assert "as fast as" in voices("edit", "alice", "--transcript", "hello " * 99, code=1).stderr


@pytest.mark.slow
def test_a_default_is_unset(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there", "--language", "en-US")
    voices("edit", "alice", "--temperature", "0.5", "--top-k", "9", "--mode", "icl")
    voices("edit", "alice", "--unset", "temperature", "--unset", "mode", "--top-p", "0.9")
    defaults = {"language": "english", "top_k": 9, "top_p": 0.9, "temperature": None, "mode": None}
    assert json.loads(voices("show", "alice", "--json").stdout)["defaults"] == defaults
    voices("edit", "alice", "--unset", "top-k", "--unset", "language", "--unset", "top-p")
    found = json.loads(voices("show", "alice", "--json").stdout)["defaults"]
    assert set(found.values()) == {None}
    assert "is so already" in voices("edit", "alice", "--unset", "top-k").stderr


def test_the_servers_sentence_is_the_commands_error(voices: Voices, remote: httpx.Client) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    wrong = voices("speak", "alcie", "Hello", "-o", "x.wav", code=1)
    assert wrong.stderr == "Error: No voice named 'alcie'. Did you mean 'alice'?\n"
    assert not Path("x.wav").exists()
    assert "already a voice" in voices("add", "Alice", "ref.wav", code=1).stderr
    Path("page.html").write_text("<html>")
    assert "Error: " in voices("add", "bob", "page.html", code=1).stderr


def test_a_change_in_between_is_not_overwritten(voices: Voices, remote: httpx.Client) -> None:
    """`rm` reads, asks, and deletes what it read: here someone edits while it asks."""
    voices("add", "alice", "ref.wav", "hello there")
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "rm", "alice"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.read(6) == "Delete"
    remote.patch("/voices/alice", json={"description": "theirs"})
    _, rest = process.communicate("y\n", timeout=30)
    assert process.returncode == 1
    assert "is at edit 2" in rest
    assert remote.get("/voices/alice").status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("speak",),
        ("bogus",),
        ("edit", "alice"),
        ("edit", "alice", "--transcript", "a", "--no-transcript"),
        ("edit", "alice", "--temperature", "1", "--unset", "temperature"),
        ("edit", "alice", "--unset", "volume"),
        ("add", "a", "missing.wav"),
        ("add", "a", "ref.wav", "--label", "x"),
        ("speak", "alice", "x", "--mode", "both"),
        ("speak", "alice", "x", "-o", "."),
        ("--url", "nonsense", "list"),
        ("serve", "--host", "0.0.0.0"),
        ("serve", "--host", "example.org"),
    ],
)
def test_wrong_usage_exits_with_2(voices: Voices, arguments: tuple[str, ...]) -> None:
    assert "Error" in voices(*arguments, code=2).stderr


def test_an_unreachable_server_is_one_sentence(voices: Voices) -> None:
    refused = voices("--url", "http://127.0.0.1:9", "list", code=1)
    assert refused.stderr.startswith("Error: Can't talk to http://127.0.0.1:9")


@pytest.mark.parametrize("verb", [("doctor",), ("model", "list"), ("model", "use", "demo")])
def test_verbs_on_this_machine_refuse_a_remote(
    voices: Voices, remote: httpx.Client, verb: tuple[str, ...]
) -> None:
    assert "this machine" in voices(*verb, code=2).stderr


def test_a_model_that_is_not_here_names_both_ways_out(
    voices: Voices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VOICES_MODEL")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for arguments in (("add", "alice", "ref.wav"), ("serve", "--port", "0")):
        missing = voices(*arguments, code=1)
        assert "voices model download" in missing.stderr
        assert "voices model use demo" in missing.stderr


@pytest.mark.slow
def test_the_model_is_changed_on_purpose_only(
    voices: Voices, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    monkeypatch.setenv("VOICES_MODEL", "demo")
    refused = voices("add", "bob", "ref.wav", code=1)
    assert "voices model use" in refused.stderr
    voices("model", "use", "demo")
    assert json.loads(voices("show", "alice", "--json").stdout)["prompt"]["state"] == "stale"
    spoken = voices("speak", "alice", "This sentence is long enough to be heard.", "--seed", "3")
    assert "prompt from rebuilt" in spoken.stderr
    listed = json.loads(voices("model", "list", "--json").stdout)
    assert [row["model"] for row in listed if row["used"]] == ["demo"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("VOICES_QUEUE_LIMIT", "many"), ("VOICES_DTYPE", "int4"), ("VOICES_QUEU_LIMIT", "4")],
)
def test_a_bad_setting_names_itself(
    voices: Voices, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert variable in voices("list", code=2).stderr


@pytest.mark.slow
def test_doctor_finds_and_mends(voices: Voices, home: Path) -> None:
    voices("add", "alice", "ref.wav", "hello there")
    told = voices("doctor", "--read-data").stdout
    assert "qwen-tts" in told and "The program that opens clips is confined" in told
    prompt = next((home / "home" / "prompts").glob("*/*"))
    prompt.write_bytes(b"x" + prompt.read_bytes()[1:])
    found = json.loads(voices("doctor", "--read-data", "--json", code=1).stdout)
    assert [finding["severity"] for finding in found["findings"]] == ["repairable"]
    voices("doctor", "--read-data", "--repair")
    voices("doctor", "--read-data")
    assert "prompt from rebuilt" in voices("speak", "alice", "Hello", "--seed", "7").stderr


@pytest.mark.slow
def test_the_demo_speaks_in_both_voices_and_measures_them(voices: Voices) -> None:
    done = voices("demo")
    assert "espeak-ng" in done.stderr
    rows = re.findall(r"^(\w+) +(\d+) Hz +(\d+) Hz$", done.stdout, re.MULTILINE)
    pitches = {name: (float(clip), float(speech)) for name, clip, speech in rows}
    assert set(pitches) == {"alice", "bob"}
    assert all(abs(speech / clip - 1) < 0.12 for clip, speech in pitches.values())
    samples, rate = soundfile.read("demo.wav")
    assert 6 < len(samples) / rate < 9
    assert 0.3 < abs(samples).max() <= 1


def test_the_demo_empties_no_folder_but_its_own(voices: Voices, home: Path) -> None:
    (home / "precious").mkdir()
    (home / "precious" / "file").touch()
    assert "Name another folder" in voices("demo", "--home", "precious", code=1).stderr
    assert (home / "precious" / "file").exists()
