"""`voices login`: the token reaches its registry, and nobody else."""

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from clips import file, tone
from fakes import FakeInference
from keys import key_for
from serving import serving
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cli.destination import Login, config_file
from cli.main import cli
from registry.app import create_app
from registry.keys.secret import new_id, new_key
from registry.settings import Settings
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

ID, SECRET = "wk-1234abcd", "ws-5678efgh"
PIPED = f"{ID}\n{SECRET}\n".encode()
Voices = Callable[..., Result]


class Gate:
    """Stands before an app as Modal's edge does, and notes what tokens come by."""

    def __init__(self, app: ASGIApp, token: tuple[str, str] | None = (ID, SECRET)) -> None:
        self._app, self._token = app, token
        self.tokens: list[tuple[str, str] | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        sent = "modal-key" in headers or "modal-secret" in headers
        self.tokens.append((headers["modal-key"], headers["modal-secret"]) if sent else None)
        refusal = PlainTextResponse("modal-http: missing credentials", 401)
        passes = self._token is None or self.tokens[-1] == self._token
        await (self._app if passes else refusal)(scope, receive, send)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the login, in a folder of its own; the data directory is one too."""
    monkeypatch.chdir(tmp_path)
    for name in ("VOICES_URL", "VOICES_KEY", "VOICES_TOKEN_ID", "VOICES_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "config"):
        variable = {"home": "VOICES_HOME", "config": "VOICES_CONFIG_HOME"}[name]
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path / "config" / "login.json"


@pytest.fixture
def voices(config: Path) -> Voices:
    def run(*arguments: str, code: int = 0, input: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, input=input)
        assert result.exit_code == code, result.output
        assert SECRET not in result.output
        return result

    return run


@pytest.fixture
def gate(data: DataDir, store: VoiceStore, fake: FakeInference) -> Gate:
    return Gate(create_app(store, fake, Settings(home=data.root)))


@pytest.fixture
def url(gate: Gate) -> Iterator[str]:
    with serving(gate) as client:
        yield address(client)


def address(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def elsewhere(token: tuple[str, str] | None = None) -> Gate:
    """Another server, which has no voices."""
    routes = [
        Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
        Route("/voices", lambda request: JSONResponse({"data": [], "damaged": [], "next": None})),
    ]
    return Gate(Starlette(routes=routes), token)


def test_after_login_the_same_commands_work_there(
    voices: Voices, url: str, gate: Gate, config: Path
) -> None:
    Path("ref.wav").write_bytes(file(tone(), 24_000))
    assert f"the commands go to {url}, " in voices("login", url, input=PIPED).stderr
    voices("add", "alice", "ref.wav", "hello there")
    voices("speak", "alice", "Hello")
    assert json.loads(voices("list", "--json").stdout)[0]["name"] == "alice"
    assert set(gate.tokens) == {(ID, SECRET)}
    assert not (config.parent.parent / "home").exists()
    assert "this machine again" in voices("logout").stderr
    assert json.loads(voices("list", "--json").stdout) == []
    assert "not logged in" in voices("logout").stderr


def test_the_file_is_for_its_owner_alone(voices: Voices, url: str, config: Path) -> None:
    before = os.umask(0)
    try:
        voices("login", url, input=PIPED)
    finally:
        os.umask(before)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert list(config.parent.iterdir()) == [config]
    assert json.loads(config.read_text()) == {"url": url, "token_id": ID, "token_secret": SECRET}


@pytest.mark.parametrize("way", ["pipe", "environment", "options", "half"])
def test_a_token_comes_in_several_ways(
    voices: Voices, url: str, config: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "environment":
        monkeypatch.setenv("VOICES_TOKEN_ID", ID)
        monkeypatch.setenv("VOICES_TOKEN_SECRET", SECRET)
        voices("login", url)
    elif way == "options":
        voices("login", url, "--token-id", ID, "--token-secret", SECRET)
    elif way == "half":
        voices("login", url, "--token-id", ID, input=SECRET.encode())
    else:
        voices("login", f"{url}/", input=PIPED)
    assert json.loads(config.read_text())["token_secret"] == SECRET
    voices("where")


def test_a_terminal_is_asked_and_does_not_echo_the_secret(url: str, config: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli.main", "login", url]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    for awaited, answer in (("Key (vr_", ID), ("Token secret", SECRET), ("Logged in", "")):
        while awaited.encode() not in seen:
            seen += (part := os.read(ours, 1000))
            assert part, seen
        os.write(ours, f"{answer}\n".encode())
    assert process.wait(30) == 0
    os.close(ours)
    assert ID.encode() not in seen and SECRET.encode() not in seen
    assert json.loads(config.read_text())["token_secret"] == SECRET


def test_login_asks_the_server_before_it_believes(voices: Voices, url: str, config: Path) -> None:
    wrong = f"{ID}\nws-wrong\n".encode()
    refused = voices("login", url, input=wrong, code=1).stderr
    assert refused == (
        f"Error: {url} does not accept the token {ID} (modal-http: missing credentials). With a "
        f"proxy token of its workspace, `voices login {url}` stores another one.\n"
    )
    asks = voices("login", url, "--no-token", code=1).stderr
    assert asks == (
        f"Error: {url} asks for a token, which `voices login {url}` takes and stores.\n"
    )
    unreachable = voices("login", "http://127.0.0.1:9", input=PIPED, code=1).stderr
    assert unreachable.startswith("Error: Can't talk to http://127.0.0.1:9")
    assert not config.exists()


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("hello"),
        JSONResponse(["ok"]),
        JSONResponse({}),
        PlainTextResponse("", 404),
    ],
)
def test_another_kind_of_server_is_told_from_a_registry(
    voices: Voices, config: Path, answer: PlainTextResponse | JSONResponse
) -> None:
    routes = [Route(path, lambda request: answer) for path in ("/healthz", "/voices")]
    with serving(Starlette(routes=routes)) as client:
        refused = voices("login", address(client), "--no-token", code=1)
    assert f"{address(client)} is no voice registry" in refused.stderr
    assert not config.exists()


def test_no_token_means_none_is_sent(voices: Voices, config: Path) -> None:
    other = elsewhere()
    with serving(other) as client:
        voices("login", address(client), "--no-token")
        voices("list")
        assert "without a token or key" in voices("where").stderr
    assert set(other.tokens) == {None}


def test_the_token_goes_to_its_own_origin_only(
    voices: Voices, url: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices("login", url, input=PIPED)
    other = elsewhere()
    with serving(other) as client:
        voices("--url", address(client), "list")
        monkeypatch.setenv("VOICES_URL", address(client))
        voices("list")
    assert other.tokens == [None, None]
    port = url.rpartition(":")[2]
    gate.tokens.clear()
    asked = voices("--url", f"http://localhost:{port}", "list", code=1)
    assert "asks for a token" in asked.stderr
    voices("--url", f"{url}/", "list")
    assert gate.tokens == [None, (ID, SECRET)]


def test_other_origins_differ_by_scheme_host_or_port() -> None:
    login = Login("https://ann.example", ID, SECRET)
    for same in ("https://ann.example:443/", "HTTPS://ANN.example"):
        assert login.headers(same)
    for other in (
        "http://ann.example",
        "https://ann.example:8443",
        "https://bob.example",
        "https://ann.example.org",
        "https://ann.example@bob.example",
        "https://bob.example#@ann.example",
    ):
        assert login.headers(other) == {}
    assert SECRET not in repr(login)


def test_a_redirect_carries_no_token_and_is_not_followed(voices: Voices, url: str) -> None:
    other = elsewhere()
    with serving(other) as target:
        leads = RedirectResponse(f"{address(target)}/voices")
        routes = [Route("/voices", lambda request: leads)]
        with serving(Starlette(routes=routes)) as client:
            keep_login(address(client))
            refused = voices("list", code=1)
    assert f"which leads to {address(target)}/voices: no redirect is followed." in refused.stderr
    assert other.tokens == []


def keep_login(url: str, mode: int = 0o600, **fields: object) -> None:
    """A login as it would be in the file, without asking a server."""
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": url, "token_id": ID, "token_secret": SECRET} | fields))
    path.chmod(mode)


def test_a_token_never_travels_over_plain_http(voices: Voices, config: Path) -> None:
    said = "Error: No token or key is sent to http://ann.example: over http:// all on the way can"
    assert said in voices("login", "http://ann.example", input=PIPED, code=1).stderr
    keep_login("http://ann.example")
    assert said in voices("list", code=1).stderr
    assert said in voices("where", code=1).stderr


def test_a_proxy_never_sees_a_token_for_this_machine(
    voices: Voices, url: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere()
    with serving(other) as proxy:
        monkeypatch.setenv("HTTP_PROXY", address(proxy))
        monkeypatch.delenv("NO_PROXY", raising=False)
        voices("login", url, input=PIPED)
    assert (other.tokens, gate.tokens) == ([], [(ID, SECRET)] * 2)


def test_local_and_url_go_before_the_login(voices: Voices, url: str, gate: Gate) -> None:
    voices("login", url, input=PIPED)
    gate.tokens.clear()
    voices("--local", "list")
    assert gate.tokens == []
    home = str(Path("home").resolve())
    local = voices("--local", "where")
    assert (local.stdout, local.stderr) == (f"{home}\n", "--local says so.\n")
    assert voices("where").stdout == f"{url}\n"
    assert json.loads(voices("where", "--json").stdout) | {"because": ""} == {
        "url": url,
        "home": None,
        "token_id": ID,
        "key_id": None,
        "because": "",
    }
    assert "contradict" in voices("--local", "--url", url, "list", code=2).stderr


def test_local_goes_before_the_variable(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICES_URL", "http://127.0.0.1:9")
    assert "No voices yet" in voices("--local", "list").stderr
    assert "VOICES_URL says so" in voices("where").stderr
    assert voices("where").stdout == "http://127.0.0.1:9\n"


def test_verbs_on_this_machine_work_while_logged_in(voices: Voices, url: str) -> None:
    voices("login", url, input=PIPED)
    done = voices("model", "list")
    assert done.stderr.startswith(f"Note: this is about this machine, not about {url}, where")
    assert "Note" not in voices("--local", "model", "list").stderr
    assert "voices where" in voices("--help").stdout


def test_a_file_that_others_can_read_is_not_used(voices: Voices, config: Path) -> None:
    keep_login("https://ann.example", mode=0o640)
    refused = voices("list", code=1).stderr
    assert f"`chmod 600 {config}`" in refused
    voices("logout")
    assert "No voices yet" in voices("list").stderr


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"url": 3}',
        b'{"url": "ftp://ann.example"}',
        b'{"url": "https://ann.example", "token_id": "wk-1"}',
        b'{"url": "https://ann.example", "token_id": "wk-1", "token_secret": "a\\nb"}',
        b'{"url": "https://ann.example", "colour": "red"}',
    ],
)
def test_a_damaged_file_is_said(voices: Voices, config: Path, content: bytes) -> None:
    keep_login("https://ann.example")
    config.write_bytes(content)
    refused = voices("list", code=1).stderr
    assert refused.startswith("Error: ") and f"{config}" in refused
    assert "`voices logout` removes it." in refused
    assert "--local says so" in voices("--local", "where").stderr


@pytest.mark.parametrize(
    ("arguments", "piped", "said"),
    [
        (("https://ann.example",), b"", "no terminal to ask"),
        (("https://ann.example",), b"wk-1\n", "no terminal to ask"),
        (("https://ann.example",), b"ak-1\nas-1\n", "a token of the Modal account (ak-…)"),
        (("https://ann.example",), b"wk-1\nas-1\n", "a token of the Modal account (as-…)"),
        (("https://ann.example",), b"wk-1 1\nws-1\n", "no token"),
        (("https://ann.example",), b"ws-1\n", "no whole key"),
        (("https://ann.example", "--key", "vr_x"), b"", "no whole key"),
        (("https://ann.example", "--key", new_key(new_id())[:-1]), b"", "no whole key"),
        (("https://ann:pass@ann.example",), PIPED, "no user"),
        (("https://ann.example/?a=1",), PIPED, "no user"),
        (("ann.example",), PIPED, "not an http:// or https:// URL"),
        ((), PIPED, "Missing argument"),
    ],
)
def test_wrong_usage_is_a_sentence_and_nothing_is_kept(
    voices: Voices, config: Path, arguments: tuple[str, ...], piped: bytes, said: str
) -> None:
    assert said in voices("login", *arguments, input=piped, code=2).stderr
    assert not config.exists()


# Keys


@pytest.fixture
def asking(store: VoiceStore, fake: FakeInference) -> Iterator[str]:
    with serving(create_app(store, fake, Settings(home=store.data.root), asks_keys=True)) as client:
        yield address(client)


def test_a_key_is_stored_and_sent(
    voices: Voices, asking: str, store: VoiceStore, config: Path
) -> None:
    key = key_for(store, "voices:read", "voices:write")
    for given in ((("--key", key), None), ((), f"{key}\n".encode())):
        voices("login", asking, *given[0], input=given[1])
        assert json.loads(config.read_text()) == {"url": asking, "key": key}
        assert "No voices yet" in voices("list").stderr
        voices("logout")
    refused = voices("--url", asking, "list", code=1).stderr
    assert "asks for a key" in refused and f"`voices login {asking}` takes one" in refused
    voices("login", asking, "--key", new_key(new_id()), code=1)
    assert not config.exists()


def test_a_key_of_the_environment_goes_where_the_command_goes(
    voices: Voices, asking: str, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICES_KEY", key_for(store, "voices:read"))
    assert "No voices yet" in voices("--url", asking, "list").stderr
    assert "with the key" in voices("--url", asking, "where").stderr
    said = voices("--url", "http://ann.example", "list", code=1).stderr
    assert "No token or key is sent to http://ann.example" in said
    assert "No voices yet" in voices("--local", "list").stderr, "it is no setting of a server"
    monkeypatch.setenv("VOICES_KEY", "two words")
    assert "VOICES_KEY holds no key" in voices("--url", asking, "list", code=2).stderr


def test_a_token_and_a_key_go_together(
    voices: Voices, store: VoiceStore, fake: FakeInference, config: Path
) -> None:
    gate = Gate(create_app(store, fake, Settings(home=store.data.root), asks_keys=True))
    key = key_for(store, "admin")
    with serving(gate) as client:
        url = address(client)
        voices("login", url, input=PIPED, code=2)
        voices("login", url, input=PIPED + key.encode())
        assert json.loads(config.read_text())["key"] == key
        assert "a test" in voices("keys", "list").stdout
        assert gate.tokens[-1] == (ID, SECRET)
        where = voices("where")
        assert f"with the token {ID} and the key {key.split('_')[1]}" in where.stderr
        assert json.loads(voices("where", "--json").stdout)["key_id"] == key.split("_")[1]
        assert key.split("_")[2] not in where.output
    assert key.split("_")[2] not in repr(Login(url, ID, SECRET, key))


def test_a_key_goes_to_its_own_origin_only() -> None:
    login = Login("https://ann.example", key=new_key(new_id()))
    assert login.headers("https://ann.example/")
    assert login.headers("https://bob.example") == login.headers("http://ann.example") == {}


def test_the_folder_is_the_users_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOICES_CONFIG_HOME", raising=False)
    assert config_file().parts[-2:] == ("voices", "login.json")
