"""No verb ends in a traceback: each one, through odd arguments, folders, environments and streams.

What odd servers answer is in test_odd_answers.py. A verb that is added is in here, or a test fails.
"""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import click
import httpx
import pytest
from api import add
from click.testing import CliRunner
from clips import file, tone

from cli.api import client as http_client
from cli.main import cli

ROOT = Path(__file__).parent.parent
CLIP = file(tone(), 24_000)
ODD_WORDS = (
    "",
    "-",
    "-5 degrees",
    "@",
    "@missing",
    "@@home",
    "@folder",
    "@/dev/null",
    "@latin-1.txt",
    "@utf-16.txt",
    "@zeros.bin",
    "\udcff",
    "[/red]",
    "😀" * 64,
    "CON",
    "a/b",
    ".hidden",
    "\x1b[31m",
    "e\u0301\u202e",
    "می\u200cرود",
    "x" * 100_000,
)
ODD_PATHS = (
    "",
    "-",
    "missing.wav",
    "folder",
    "empty.wav",
    "page.html",
    "a\nb",
    "no/where.wav",
    "ref.wav/x.wav",
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "socket",
    "\udcff.wav",
    "x" * 300,
    "link-to-itself",
    "x.mp3",
    "take.1",
)


@dataclass(frozen=True)
class Verb:
    """What it takes where WORDS or a PATH stands; the rest of it is always the same."""

    arguments: tuple[str, ...] = ()
    asks: bool = False  # a registry, over HTTP
    options: tuple[str, ...] = field(default=())


WORDS, PATH = "<words>", "<path>"
VERBS = {
    "add": Verb(
        (WORDS, PATH, WORDS), asks=True, options=("--label", "--description", "--language")
    ),
    "list": Verb(asks=True, options=("--search", "--label")),
    "show": Verb((WORDS,), asks=True),
    "speak": Verb((WORDS, WORDS), asks=True, options=("--output", "--language", "--seed")),
    "clip": Verb((WORDS,), asks=True, options=("--output",)),
    "edit": Verb((WORDS,), asks=True, options=("--description", "--label", "--remove-label")),
    "rename": Verb((WORDS, WORDS), asks=True),
    "rm": Verb((WORDS,), asks=True),
    "rebuild": Verb((WORDS,), asks=True),
    "alias": Verb((WORDS, WORDS), asks=True),
    "keys create": Verb((WORDS,), asks=True, options=("--voice", "--expires")),
    "keys list": Verb(asks=True),
    "keys rotate": Verb((WORDS,), asks=True, options=("--grace",)),
    "keys revoke": Verb((WORDS,), asks=True),
    "serve": Verb(options=("--host", "--port", "--model", "--device")),
    "demo": Verb(options=("--home",)),
    "model list": Verb(),
    "model path": Verb((WORDS,)),
    "model download": Verb((WORDS,)),
    "model use": Verb((WORDS,)),
    "bench": Verb(options=("--streams", "--seconds")),
    "doctor": Verb(),
    "backup": Verb(options=("--output",)),
    "restore": Verb((PATH,)),
    "deploy": Verb(options=("--name", "--model", "--gpu", "--region", "--slots")),
    "deploy logs": Verb((WORDS,)),
    "deploy model": Verb(),
    "deploy settings": Verb(),
    "deploy status": Verb(),
    "deploy stop": Verb(),
    "deploy warm": Verb(),
    "login": Verb((WORDS,), options=("--token-id", "--token-secret")),
    "logout": Verb(),
    "where": Verb(),
    "version": Verb(),
}
LEAVES = ("deploy",)  # this machine: their options are tried with --dry-run alone


def verbs(group: click.Group, context: click.Context) -> Iterator[str]:
    """Every command that does something, by its words."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name
        if isinstance(command, click.Group):
            yield from (f"{name} {below}" for below in verbs(command, context))


def test_every_verb_is_tried_here() -> None:
    assert set(verbs(cli, click.Context(cli))) == set(VERBS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every odd kind, for all to share: no verb may change them."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "ref.wav").write_bytes(CLIP)
    (folder / "empty.wav").touch()
    (folder / "page.html").write_bytes(b"<html></html>")
    (folder / "latin-1.txt").write_bytes("Zoë".encode("latin-1"))
    (folder / "utf-16.txt").write_bytes("hello there".encode("utf-16"))
    (folder / "zeros.bin").write_bytes(bytes(100))
    (folder / "folder").mkdir()
    (folder / "folder" / "file").touch()
    (folder / "link-to-itself").symlink_to("link-to-itself")
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("VOICES_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VOICES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VOICES_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "modal.toml"))  # nobody's account
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(http_client, "BUSY_S", 0.2)
    return folder


def tried(*arguments: str, input: bytes = b"") -> str:
    """What a verb said on stderr, if it ended as a verb does."""
    there = set(Path().rglob("*"))
    result = CliRunner().invoke(cli, list(arguments), input=input)
    known = result.exception is None or isinstance(result.exception, SystemExit)
    shown = arguments, result.exception, result.stderr[-500:]
    assert known and result.exit_code in (0, 1, 2, 130), shown
    if result.exit_code:
        modal_says_it = arguments[:2] == ("deploy", "logs")
        found = arguments[0] == "doctor" and "\nrepairable " in result.stdout
        assert "Error: " in result.stderr or modal_says_it or found, shown
        assert len(result.stderr.splitlines()) < 12, shown
        assert set(Path().rglob("*")) == there, shown
    assert "Traceback" not in result.output, shown
    assert not any(code in result.stderr for code in ("\x1b", "\x9b", "\u202e")), shown
    for left in set(Path().rglob("*")) - there:
        left.unlink()
    return result.stderr


def arguments(verb: str) -> Iterator[tuple[str, ...]]:
    """The verb with one of its places odd, and the others as they should be."""
    good = {WORDS: "alice", PATH: "ref.wav"}
    taken = VERBS[verb].arguments
    for place, kind in enumerate(taken):
        for odd in ODD_WORDS if kind is WORDS else ODD_PATHS:
            given = [good[one] for one in taken]
            yield (*verb.split(), *given[:place], odd, *given[place + 1 :])
            yield (*verb.split(), "--", *given[:place], odd, *given[place + 1 :])
    for option, odd in product(VERBS[verb].options, (*ODD_WORDS, *ODD_PATHS)):
        extra = ("--dry-run",) if verb in LEAVES else ()
        yield (*verb.split(), *extra, f"{option}={odd}", *(good[one] for one in taken))


def is_quick(words: tuple[str, ...]) -> bool:
    """Only what is refused before a server starts, or a model is loaded or fetched."""
    host_only = words[0] == "serve" and not words[-1].startswith(("--port=", "--device="))
    return (
        not host_only and words[0] not in ("demo", "bench") and words[:2] != ("model", "download")
    )


ASKING = [verb for verb, one in VERBS.items() if one.asks]
OTHERS = [verb for verb, one in VERBS.items() if not one.asks and not verb.startswith("deploy ")]


@pytest.fixture
def registry_url(client: httpx.Client) -> str:
    assert add(client, "alice").status_code == 201
    return str(client.base_url)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ASKING)
@pytest.mark.usefixtures("here")
def test_odd_arguments_of_verbs_that_ask_a_registry(verb: str, registry_url: str) -> None:
    for words in arguments(verb):
        tried("--url", registry_url, *words)


@pytest.mark.parametrize("verb", OTHERS)
@pytest.mark.usefixtures("here")
def test_odd_arguments_of_verbs_on_this_machine(verb: str) -> None:
    for words in filter(is_quick, arguments(verb)):
        tried(*words)


@pytest.fixture(scope="module")
def taken_port() -> Iterator[str]:
    """So that `serve` does all but serve."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


def usual(verb: str, taken_port: str) -> tuple[str, ...]:
    """The verb with arguments that are as they should be, but that load no model."""
    options = {
        "serve": ("--no-inference", "--port", taken_port),
        "demo": ("--home", "folder"),  # which is none of a demo's
        "rm": ("--yes",),
        "edit": ("--description", "x"),
        "deploy": ("--dry-run",),
        "deploy stop": ("--yes",),
        "login": ("--no-token",),
        "keys revoke": ("--yes",),
        "backup": ("--output", "-"),
    }
    good = {WORDS: "alice", PATH: "ref.wav"}
    taken = [good[one] for one in VERBS[verb].arguments]
    taken = ["http://127.0.0.1:9"] if verb == "login" else taken
    taken = ["registry"] if verb == "deploy logs" else taken
    return (*verb.split(), *options.get(verb, ()), *taken)


LONG = "x" * 100
ENVIRONMENTS: list[dict[str, str | None]] = [
    {},
    {"HOME": None, "VOICES_HOME": None},
    {"VOICES_HOME": "~nosuchuser/voices"},
    {"VOICES_HOME": "ref.wav"},
    {"VOICES_HOME": "ref.wav/below"},
    {"VOICES_HOME": "link-to-itself"},
    {"VOICES_HOME": "/proc/voices"},
    {"VOICES_HOME": "/dev/null"},
    {"VOICES_HOME": f"{LONG * 3}"},
    {"VOICES_CONFIG_HOME": "ref.wav"},
    {"VOICES_CONFIG_HOME": "login-is-a-folder"},
    {"VOICES_CONFIG_HOME": "login-is-deep"},
    {"VOICES_CONFIG_HOME": "login-is-endless"},
    {"VOICES_CONFIG_HOME": "~nosuchuser/voices"},
    {"VOICES_QUEUE_LIMIT": "many"},
    {"VOICES_MODEL": "\udcff"},
    {"VOICES_SPELLED_WRONG": "1"},
    {"VOICES_URL": "nonsense"},
    {"VOICES_URL": "http://[::1"},
    {"VOICES_URL": "http://\udcff"},
    {"VOICES_URL": "http://h:99999"},
    {"VOICES_URL": f"http://{LONG}.example"},
    {"VOICES_URL": "http://a..b"},
    {"VOICES_URL": "http://u:p@127.0.0.1:9/?a=1"},
    {"VOICES_URL": "http://127.0.0.1:9"},
    {"VOICES_URL": "http://0.0.0.0:9", "ALL_PROXY": "socks5h://127.0.0.1:9"},
    {"VOICES_URL": "http://0.0.0.0:9", "HTTP_PROXY": "http://[::1"},
    {"VOICES_URL": "http://0.0.0.0:9", "http_proxy": "foo://bar"},
    {"VOICES_URL": "http://0.0.0.0:9", "http_proxy": "http://u:passw0rd@127.0.0.1:99999"},
    {"VOICES_URL": "http://0.0.0.0:9", "http_proxy": "http://127.0.0.1:9"},
    {
        "VOICES_URL": "http://0.0.0.0:9",
        "http_proxy": "foo://bar",
        "no_proxy": "[::1]:80, 0.0.0.0/8",
    },
    {"VOICES_URL": "https://0.0.0.0:9", "SSL_CERT_FILE": "missing.pem"},
    {"VOICES_URL": "https://0.0.0.0:9", "SSL_CERT_FILE": "ref.wav"},
    {"VOICES_URL": "https://0.0.0.0:9", "SSL_CERT_FILE": "folder"},
    {"VOICES_URL": "https://0.0.0.0:9", "SSL_CERT_FILE": "", "SSL_CERT_DIR": "missing"},
    {"TMPDIR": LONG},
    {"TMPDIR": "missing"},
    {"COLUMNS": "0", "LINES": "-1", "TERM": ""},
    {"COLUMNS": "x", "TERM": "nonsense", "LANG": "xx"},
]


@pytest.fixture
def odd_folders(here: Path) -> None:
    (here / LONG).mkdir(exist_ok=True)
    for name, content in {"login-is-deep": "[" * 100_000, "login-is-endless": None}.items():
        (here / name).mkdir(exist_ok=True)
        login = here / name / "login.json"
        if content is None and not login.is_symlink():
            login.symlink_to("/dev/zero")
        elif content is not None:
            login.write_text(content)
            login.chmod(0o600)
    (here / "login-is-a-folder" / "login.json").mkdir(parents=True, exist_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("odd_folders")
def test_odd_environments(verb: str, taken_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = 3 if verb == "deploy logs" else None  # a process of Modal's each
    for environment in ENVIRONMENTS[:few]:
        with monkeypatch.context() as given:
            given.setattr(tempfile, "tempdir", None)
            given.setenv("VOICES_INFERENCE", "off")
            for name, value in environment.items():
                given.delenv(name, raising=False) if value is None else given.setenv(name, value)
            said = tried(*usual(verb, taken_port), input=CLIP)
        assert "passw0rd" not in said


STREAMS = [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full", "| head -c 1"]


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(
    "verb", ["version --json", "where", "list", "add bob -", "clip alice -o -"]
)
def test_odd_streams(verb: str, streams: str, here: Path, registry_url: str) -> None:
    line = f"{sys.executable} -m cli.main --url {registry_url} {verb} {streams}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        errors="replace",
        env=environ,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    full = "> /dev/full" in streams and "2>" not in streams
    if full and verb.startswith(("version", "where", "clip")):
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            1,
            "Error: Can't write to stdout: No space left on device.",
        )


@pytest.mark.slow
def test_stdout_that_can_not_hold_a_name_gets_it_escaped(here: Path, registry_url: str) -> None:
    httpx.patch(f"{registry_url}/voices/alice", json={"name": "Zoë"}).raise_for_status()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "cli.main", "--url", registry_url]
    as_json = subprocess.run([*line, "list", "--json"], capture_output=True, env=environ)
    assert json.loads(as_json.stdout)[0]["name"] == "Zoë"
    table = subprocess.run([*line, "list"], capture_output=True, env=environ)
    assert (table.returncode, b"Zo\\xeb" in table.stdout) == (0, True)
