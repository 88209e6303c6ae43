"""The verbs that ask a registry, when something else answers: a sentence, and nothing is kept."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from clips import file, tone
from odd_server import AFTER_GET, KINDS, VOICE, odd_server

from cli.api import answers, client
from cli.main import cli

CLIP = file(tone(), 24_000)
ID = str(VOICE["id"])
VERBS = {
    "add": ("add", "bob", "ref.wav", "hello"),
    "list": ("list",),
    "list --json": ("list", "--json"),
    "show": ("show", "alice"),
    "speak": ("speak", "alice", "hi"),
    "speak --json": ("speak", "alice", "hi", "--json"),
    "speak -o -": ("speak", "alice", "hi", "-o", "-"),
    "speak x.flac": ("speak", "alice", "hi", "-o", "x.flac"),
    "clip": ("clip", "alice"),
    "clip -o -": ("clip", "alice", "-o", "-"),
    "edit": ("edit", "alice", "--description", "x", "--label", "b=c"),
    "rename": ("rename", "alice", "bob"),
    "rm": ("rm", "alice", "--yes"),
    "rebuild": ("rebuild", "alice"),
}
WRITING = ("add", "edit", "rename", "rm", "rebuild")
COMMANDS = ("\x1b", "\x07", "\x9b", "\u202e", "\ud800")
Run = Callable[[str, str], Result]


@pytest.fixture(scope="module")
def url() -> Iterator[Callable[[str], str]]:
    with odd_server() as url:
        yield url


@pytest.fixture
def run(url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A verb against a kind of answer, with limits that a test can wait for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOICES_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(client, "BUSY_S", 0.2)
    monkeypatch.setattr(client, "COLD_S", 0.2)
    monkeypatch.setattr(answers, "SPEECH_LIMIT", 4 << 20)
    Path("ref.wav").write_bytes(CLIP)

    def run(verb: str, kind: str) -> Result:
        return CliRunner().invoke(cli, ["--url", url(kind), *VERBS[verb]])

    return run


def ended_well(result: Result) -> bool:
    """With a code of ours; the runner keeps what would have been a traceback."""
    known = result.exception is None or isinstance(result.exception, SystemExit)
    return known and result.exit_code in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_answers_the_command_says_one_sentence(run: Run, kind: str) -> None:
    for verb in VERBS:
        for answered in {kind, kind + AFTER_GET if verb in WRITING else kind}:
            there = set(Path().iterdir())
            result = run(verb, answered)
            assert ended_well(result), (verb, answered, result.exception)
            assert not any(command in result.output for command in COMMANDS), (verb, answered)
            left = set(Path().iterdir()) - there
            if result.exit_code == 0:
                [path.unlink() for path in left]
                continue
            assert left == set(), (verb, answered)
            assert result.stderr.splitlines()[-1].startswith("Error: "), (verb, answered)
            assert result.stdout == "" or verb == "speak -o -" or "pages" in answered, verb


NOT_A_REGISTRY = ("html", "html-as-json", "text", "empty", "no-content", "list", "null", "object")
NOT_A_REGISTRY += ("cut-off", "latin-1", "deep", "huge-number", "gzip-bomb", "no-end", "redirect")
NOT_A_REGISTRY += ("not-http", "tls", "silence", "http-0.9", "upgrade", "speech-html")


@pytest.mark.parametrize("kind", NOT_A_REGISTRY)
def test_nothing_is_taken_for_done_that_no_registry_answered(run: Run, kind: str) -> None:
    for verb in VERBS:
        assert run(verb, kind).exit_code == 1, verb
        deleted = verb == "rm" and kind == "no-content"
        if verb in WRITING:
            assert run(verb, kind + AFTER_GET).exit_code == (0 if deleted else 1), verb


@pytest.mark.parametrize(
    ("kind", "verb", "said"),
    [
        (
            "html",
            "list",
            "/html/voices answers as no voice registry does: it sends text/html, not JSON",
        ),
        ("html", "clip", "it sends text/html, not a clip."),
        ("html", "speak", "it sends text/html, not audio/pcm."),
        ("html-as-audio", "clip", "what it calls audio/html is none."),
        *(
            (f"{kind}-id", verb, "'id' is of another shape, or missing.")
            for kind in ("accented", "surrogate")
            for verb in ("rm", "edit", "rename", "list")
        ),
        ("path-as-id", "rm", "'id' is of another shape, or missing."),
        ("cut", "list", "The connection to http://127.0.0.1:"),
        ("many-values", "list", "it sends more than 1,000,000 values."),
        ("null-labels", "show", "'labels' is of another shape, or missing."),
        ("gzip-bomb", "list", "it sends 'gzip', which was not asked for."),
        ("endless", "list", "it sends more than 32 MiB."),
        ("endless-clip", "clip", "it sends more than 64 MiB."),
        ("endless-speech", "speak", "it speaks more than 4 MiB."),
        ("endless-pages", "list", "its pages of voices do not end."),
        ("speech-no-headers", "speak", "its headers do not tell of a speech."),
        ("speech-no-rate", "speak", "it sends samples of an unknown rate."),
        ("speech-empty", "speak", "it sends no sound."),
        ("speech-no-end", "speak", "it does not tell where its answer ends."),
        ("speech-cut-off", "speak", "broke off before its end."),
        ("html-after-get", "rm", "it answers 200 to a deletion, not 204."),
        ("not-http", "list", "does not speak HTTP as a registry does: illegal status line"),
        (
            "gone",
            "list",
            "(modal-http: invalid function call). There is no registry at this address.",
        ),
        (
            "gone-html",
            "list",
            "On Modal it is stopped, or was never deployed: `voices deploy` puts",
        ),
        ("forbidden", "list", "lets nobody in from here (modal-http: invalid credentials)."),
        ("redirect-to-no-port", "list", "leads to https:////: https:////a/b: no redirect is"),
        ("not-done", "add", "Modal's edge waits 150 s for an answer, and this one took longer"),
        ("too-slow", "list", "waited no longer: ask again."),
        ("bad-gateway", "list", "On Modal, `voices deploy logs` says why."),
        ("rate", "list", "answered 429 Too Many Requests. It takes no more requests at the moment"),
        ("problem-codes", "list", r"Error: No \x1b]0;owned\x07\x9b31m\u202e such thing."),
    ],
)
def test_what_is_said_names_the_cause(run: Run, kind: str, verb: str, said: str) -> None:
    assert said in run(verb, kind).stderr


def test_a_clip_is_kept_only_if_it_is_sound(run: Run) -> None:
    for kind in ("html", "html-as-json", "html-as-audio", "text", "no-type", "empty", "no-content"):
        assert run("clip", kind).exit_code == 1, kind
    assert set(Path().iterdir()) == {Path("ref.wav")}


def test_json_of_hidden_characters_is_json_without_them(run: Run) -> None:
    shown = run("list --json", "control-codes").stdout
    assert json.loads(shown)[0]["name"] == "al\x1b]0;owned\x07\x9b31m\u202e"
    assert json.loads(run("list --json", "surrogates").stdout)[0]["name"] == "al\ud800ice"


def test_a_line_of_a_table_is_a_line(run: Run) -> None:
    assert "a Error: b" in run("list", "newlines").stdout
    assert "\nError" not in run("list", "newlines").stdout
    assert "\nid   b" not in run("show", "newlines").stdout


@pytest.mark.slow
def test_pages_that_always_go_on_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_BYTES", 100_000)
    asked: list[str] = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            page = json.dumps({"data": [VOICE], "damaged": [], "next": f"p{len(asked)}"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        Thread(target=server.serve_forever).start()
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as http,
            pytest.raises(click.ClickException, match="has more voices than a command can list"),
        ):
            list(client.Registry(http).pages())
        server.shutdown()
    assert 10 < len(asked) < 1000


def test_values_are_counted_but_not_what_stands_in_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_VALUES", 3)
    assert answers.values_in(b"[1,2]") == 2
    assert answers.values_in(rb'{"a, [": "b\",,", "c": [1, 2]}') == 4
    assert answers.values_in(b'[,,,"' + b",[" * 9) == 4, "to its end, where it has none"
