"""What the command line names: texts, recordings, files to write, and voices for a shell."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from api import CLIP, add
from click.testing import CliRunner, Result
from fakes import FakeInference, Pace

from cli import output
from cli.filenames import file_for, format_for
from cli.main import cli
from registry.contract import Deadline, PromptSource

ROOT = Path(__file__).parent.parent
Voices = Callable[..., Result]


@pytest.fixture
def voices(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Voices:
    """Verbs at a server that has alice, in a folder with her clip."""
    assert add(client, "alice").status_code == 201
    monkeypatch.setenv("VOICES_URL", str(client.base_url))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("ref.wav").write_bytes(CLIP)

    def run(*arguments: str, code: int = 0, input: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, input=input)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def shown(voices: Voices, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(voices("show", name, "--json").stdout)
    return found


@pytest.mark.slow
def test_a_clip_comes_from_stdin_a_pipe_or_a_device(voices: Voices) -> None:
    said = voices("add", "bob", "-", "hello there", input=CLIP)
    assert said.stdout == f"{shown(voices, 'bob')['id']}\n"
    line = f"{sys.executable} -m cli.main add {{}} {{}} 'hello there'"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, source in {"carol": "<(cat ref.wav)", "dan": "/dev/stdin < ref.wav"}.items():
        place, _, rest = source.partition(" < ")
        command = line.format(name, place) + (f" < {rest}" if rest else "")
        done = subprocess.run(["bash", "-c", command], capture_output=True, env=environ)
        assert done.returncode == 0, done.stderr
        voices("clip", name, "-o", f"{name}.wav")
        assert Path(f"{name}.wav").read_bytes() == CLIP


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.wav", "Can't read 'missing.wav': No such file or directory."),
        ("/dev/null", "'/dev/null' is empty."),
        ("/dev/zero", "'/dev/zero' has more than 20 MiB, too much for a clip."),
        (".", "Can't read '.': Is a directory."),
        ("-", "stdin is empty."),
        ("ref.wav/x", "Can't read 'ref.wav/x': Not a directory."),
    ],
)
def test_what_is_no_clip_is_said(voices: Voices, source: str, said: str) -> None:
    assert said in voices("add", "bob", source, code=2).stderr


def test_stdin_has_one_thing_to_give(voices: Voices) -> None:
    assert "can't both come from stdin" in voices("add", "bob", "-", "-", code=2).stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_of_words_says_its_encoding_or_is_utf_8(voices: Voices, encoding: str) -> None:
    Path("words.txt").write_bytes("wörds of it".encode(encoding))
    voices("add", "bob", "ref.wav", "@words.txt")
    assert shown(voices, "bob")["transcript"] == "wörds of it"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("@", "`@` names no file; a text that begins with @ is written `@@…`."),
        ("@missing", "Can't read 'missing': No such file"),
        ("@.", "Can't read '.': Is a directory."),
        ("@latin-1", "'latin-1' is not UTF-8 text: byte 2 is 0xeb."),
        ("@utf-16-le", "'utf-16-le' holds bytes of 0, so it is no UTF-8 text."),
        ("@/dev/zero", "'/dev/zero' has more than 1 MiB, too much for a text."),
        ("\udce9", r"'\\udce9' is not UTF-8 text."),
        ("-5 degrees", "A text that begins with '-' goes after `--`"),
        ("--five degrees", "A text that begins with '-' goes after `--`"),
        ("-hello there", "A text that begins with '-' goes after `--`"),
    ],
)
def test_what_is_no_text_is_said(voices: Voices, given: str, said: str) -> None:
    Path("latin-1").write_bytes("Zoë".encode("latin-1"))
    Path("utf-16-le").write_bytes("words".encode("utf-16-le"))
    assert said in voices("speak", "alice", given, code=2).stderr
    assert set(Path().glob("*.wav")) == {Path("ref.wav")}


def test_words_that_look_like_a_file_or_an_option_are_spoken(
    voices: Voices, fake: FakeInference
) -> None:
    voices("speak", "alice", "@@home", "-o", "a")
    voices("speak", "-o", "b", "alice", "--", "-5 degrees")
    assert fake.started == ["@home", "-5 degrees"]


@pytest.mark.parametrize("name", ["x.m4a", "x.MP4", "x.wma", "x.aiff", "x.webm"])
def test_a_format_that_is_not_spoken_is_refused(voices: Voices, name: str) -> None:
    ending = name.partition(".")[2].lower()
    formats = "wav, flac, pcm, mp3, opus, aac, ulaw, alaw, or with their rates, as mp3_44100_128"
    said = f"There is no {ending} yet: the formats are {formats}."
    for options in ((), ("--format", "wav")):
        assert said in voices("speak", "alice", "Hello", "-o", name, *options, code=2).stderr
    assert "is wav: " in voices("clip", "alice", "-o", name, code=2).stderr
    assert not Path(name).exists()


@pytest.mark.parametrize("asked", ["wav", "pcm_16000", "mp3_44100_128"])
@pytest.mark.parametrize("name", ["x.wav", "x.WAVE", "x.pcm", "x.raw", "x.mp3", "x.MP3"])
def test_a_format_and_a_name_agree(voices: Voices, name: str, asked: str) -> None:
    named = format_for(Path(name), None)
    if named.name == asked.partition("_")[0]:
        voices("speak", "alice", "Hello", "-o", name, "--format", asked)
        return
    refused = voices("speak", "alice", "Hello", "-o", name, "--format", asked, code=2)
    assert f"--format {asked} and the name '{name}' contradict each other." in refused.stderr


@pytest.mark.parametrize("name", ["x", "take.1", "x.tar.2", "notes.txt", ".hidden"])
def test_an_ending_that_says_nothing_gets_wav(voices: Voices, name: str) -> None:
    voices("speak", "alice", "Hello", "-o", name)
    assert Path(name).read_bytes().startswith(b"RIFF")


@pytest.mark.parametrize(
    "name", ["😀" * 64, "CON", ".hidden", "é" * 64, "a:b", "lpt1.x", "می\u200cرود"]
)
def test_a_file_named_after_a_voice_can_be_made(voices: Voices, name: str) -> None:
    voices("rename", "alice", name)
    voices("speak", name, "Hello")
    voices("clip", name)
    made = set(Path().iterdir()) - {Path("ref.wav")}
    assert len(made) == 2 and all(path.read_bytes().startswith(b"RIFF") for path in made)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alice", "alice.wav"),
        ("Alice (studio)", "Alice (studio).wav"),
        ("a/b\\c:d\0e", "a_b_c_d_e.wav"),
        ("../../etc", "_.._.._etc.wav"),
        ("-rf", "_-rf.wav"),
        ("nul", "_nul.wav"),
        ("com1.tar", "_com1.tar.wav"),
        ("\udcff\x1b", "__.wav"),
    ],
)
def test_no_part_of_a_name_leads_elsewhere(name: str, file: str) -> None:
    assert file_for(name, ".wav") == Path(file)
    assert len(os.fsencode(file_for(name * 300, ".wav"))) <= 255


def test_what_came_of_a_speech_is_data_too(voices: Voices) -> None:
    told = json.loads(voices("speak", "alice", "Hello", "--seed", "3", "--json").stdout)
    assert told["voice_id"] == shown(voices, "alice")["id"]
    assert (told["seed"], told["seconds"], told["file"]) == (3, 0.25, "alice.wav")
    assert (told["cache"], told["mode"], told["format"]) == ("file", "icl", "wav")
    both = voices("speak", "alice", "Hello", "-o", "-", "--json", code=2)
    assert "contradict" in both.stderr


def test_labels_are_told_in_words(voices: Voices) -> None:
    for label in ("x", "=x", "=", ""):
        refused = voices("edit", "alice", "--label", label, code=2).stderr
        assert f"as in `--label use=audiobook`; {label!r} has not" in refused


@pytest.mark.slow
def test_a_narrow_terminal_shortens_the_id_and_no_name(
    voices: Voices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voices("rename", "alice", "Bartholomew the Elder")
    voices("edit", "Bartholomew the Elder", "--description", "A calm narrator of tales.")
    found = json.loads(voices("list", "--json").stdout)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_voices(found)
    printed = capsys.readouterr().out
    assert "Bartholomew the Elder" in printed and f"{found[0]['id'][:14]}…" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "\x1b" not in line)
    assert found[0]["id"] in voices("list").stdout


def completed(line: str, **environ: str) -> list[str]:
    """What bash offers for a line whose last word is not done."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    asked |= {"_VOICES_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)}
    code = "from cli.main import cli; cli(prog_name='voices')"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=os.environ | asked | environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [offered.removeprefix("plain,") for offered in done.stdout.split("\n") if offered]


@pytest.mark.slow
def test_a_shell_completes_the_names_of_voices(voices: Voices, tmp_path: Path) -> None:
    voices("add", "Alice (studio)", "ref.wav", "hello there")
    voices("add", "bob", "ref.wav", "hello there")
    assert completed("voices show al") == ["alice", r"Alice\ \(studio\)"]
    assert completed("voices speak b") == ["bob"]
    home = {"VOICES_URL": "", "VOICES_HOME": str(tmp_path / "data")}
    assert completed("voices rm AL", **home) == ["alice", r"Alice\ \(studio\)"]
    assert completed("voices --local clip al", VOICES_HOME=home["VOICES_HOME"])[0] == "alice"


@pytest.mark.parametrize(
    "environ",
    [
        {"VOICES_URL": "http://127.0.0.1:9"},
        {"VOICES_URL": "nonsense"},
        {"VOICES_URL": "", "VOICES_HOME": "/nonexistent"},
        {"VOICES_URL": "", "VOICES_HOME": "/dev/null"},
        {"VOICES_URL": "", "VOICES_QUEUE_LIMIT": "many"},
    ],
)
def test_completion_that_can_not_ask_is_silent(environ: dict[str, str]) -> None:
    assert completed("voices show a", **environ) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (
            ("add", "bob", "ref.wav", "hello there"),
            "Interrupted. bob may have been enrolled: `voices show bob`",
        ),
        (("speak", "alice", "Hello"), "Interrupted. Nothing was written."),
        (("speak", "alice", "Hello", "-o", "-"), "Interrupted. What stdout has got is not all"),
        (("rebuild", "alice"), "Interrupted. It may have been rebuilt"),
    ],
)
def test_ctrl_c_ends_a_verb_and_tells_the_outcome(
    voices: Voices,
    fake: FakeInference,
    verb: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = fake.pace = Pace()

    async def extract_prompt(
        source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        await pace.turn()
        return await FakeInference.extract_prompt(fake, source)

    monkeypatch.setattr(fake, "extract_prompt", extract_prompt)
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *verb],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pace.until_asked()
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 130
    assert talk.decode().strip().startswith(said)
    assert set(Path().iterdir()) == {Path("ref.wav")}
