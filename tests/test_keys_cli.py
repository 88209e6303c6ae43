"""`voices keys …` without a server and with one; when `voices serve` asks for a key; its log."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from keys import bearer, id_of, key_for
from test_serve import served

from cli.commands.keys import SCOPES
from cli.commands.serve import asks_keys
from cli.main import cli
from registry.keys.secret import presented
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.tables import Voice

Voices = Callable[..., Result]


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Voices:
    monkeypatch.delenv("VOICES_URL", raising=False)
    monkeypatch.setenv("VOICES_HOME", str(tmp_path / "data"))

    def run(*words: str, code: int = 0, input: str = "") -> Result:
        result = CliRunner().invoke(cli, words, input=input)
        assert result.exit_code == code, result.output
        return result

    return run


def listed(voices: Voices, *words: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(voices("keys", "list", "--json", *words).stdout)
    return found


def test_a_key_is_the_one_line_of_stdout(voices: Voices) -> None:
    made = voices("keys", "create", "web shop")
    assert presented(made.stdout.removesuffix("\n"))
    assert made.stderr == (
        f"Made the key web shop ({id_of(made.stdout)}). It is shown this once:\n"
    )
    (key,) = listed(voices)
    assert key["name"] == "web shop" and key["scopes"] == ["voices:read", "speak"]
    for shown in (voices("keys", "list").output, json.dumps(key)):
        assert made.stdout.split("_")[2] not in shown and id_of(made.stdout) in shown


def test_what_is_asked_of_a_key_is_kept(voices: Voices, tmp_path: Path) -> None:
    made = voices("keys", "create", "x", "--scope", "speak", "--expires", "90d", "--json")
    key = json.loads(made.stdout)
    assert key["scopes"] == ["speak"] and made.stderr == ""
    (kept,) = listed(voices)
    assert kept == {k: v for k, v in key.items() if k != "key"}
    assert set(SCOPES) == {*map(str, key["scopes"]), "voices:read", "voices:write", "admin"}
    unknown = voices("keys", "create", "x", "--voice", "nobody", code=1)
    assert "No voice named 'nobody'" in unknown.stderr
    add_voice(tmp_path / "data")
    limited = voices("keys", "create", "y", "--voice", "alice", "--json")
    assert json.loads(limited.stdout)["voices"] == [f"voice_{'0' * 32}"]
    assert f"voice_{'0' * 32}" in voices("keys", "list").stdout


def add_voice(home: Path) -> None:
    now = "2026-11-28T00:00:00.000Z"
    row = {"name": "alice", "name_key": "alice", "description": "", "defaults": {}}
    with closing(VoiceStore(DataDir(home))) as store, store.transaction() as session:
        row |= {"version": 1, "row_version": 1, "created_at": now, "updated_at": now}
        session.add(Voice(id=f"voice_{'0' * 32}", **row))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("create",), 2, "Missing argument"),
        (("create", "x", "--scope", "everything"), 2, "is not one of"),
        (("create", "x", "--expires", "soon"), 2, "is no time such as 90d"),
        (("create", "x", "--expires", "90"), 2, "is no time such as 90d"),
        (("create", "x", "--expires", "1s"), 1, "greater than or equal to 60"),
        (("create", "x" * 65), 1, "at most 64"),
        (("create", "a\nb"), 1, "not text of one line"),
        (("create", "x", "--scope", "admin", "--voice", "y"), 1, "can't be for some"),
        (("rotate", "nobody"), 1, "No key has the id or name 'nobody'"),
        (("revoke", "nobody", "--yes"), 1, "No key has the id or name 'nobody'"),
    ],
)
def test_a_mistake_is_a_sentence_and_makes_no_key(
    voices: Voices, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in voices("keys", *words, code=code).stderr
    assert listed(voices) == []


def test_a_key_is_rotated_and_revoked_by_id_by_name_or_by_itself(voices: Voices) -> None:
    first, twin, other = (voices("keys", "create", n).stdout.strip() for n in ("a", "a", "b"))
    assert f"2 keys are called 'a': {id_of(twin)}" in voices("keys", "rotate", "a", code=1).stderr
    second = voices("keys", "rotate", id_of(first), "--grace", "0s").stdout.strip()
    assert second != first and id_of(second) == id_of(first)
    third = voices("keys", "rotate", "b", "--json").stdout
    assert json.loads(third)["former_until"] is not None
    asked = voices("keys", "revoke", "b", input="n\n", code=1)
    assert f"Revoke b ({id_of(other)})?" in asked.stderr and "Nothing was revoked" in asked.stderr
    assert "give --yes" in voices("keys", "revoke", "b", code=2).stderr
    done = voices("keys", "revoke", twin, "--yes")
    assert done.stderr == f"Revoked a ({id_of(twin)}).\n" and done.stdout == ""
    voices("keys", "revoke", "b", input="y\n")
    assert [key["id"] for key in listed(voices)] == [id_of(first)]
    assert {key["id"] for key in listed(voices, "--all")} == {
        id_of(k) for k in (first, twin, other)
    }
    assert "revoked 2" in voices("keys", "list", "--all").stdout


def test_nothing_is_listed_where_there_is_none(voices: Voices) -> None:
    assert "No keys yet" in voices("keys", "list").stderr
    assert listed(voices) == []


# When a server asks


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_a_server_asks_if_it_is_told_to(host: str) -> None:
    assert not asks_keys(host, "auto", insecure_no_auth=False)
    assert asks_keys(host, "on", insecure_no_auth=False)
    assert not asks_keys(host, "auto", insecure_no_auth=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "voices.example.org", ""])
def test_elsewhere_it_asks_unless_it_is_told_not_to(host: str) -> None:
    assert asks_keys(host, "auto", insecure_no_auth=False)
    assert not asks_keys(host, "auto", insecure_no_auth=True)


def test_a_server_that_nobody_could_ask_does_not_start(voices: Voices, tmp_path: Path) -> None:
    said = "there is none yet: `voices keys create NAME --scope admin` makes one."
    for words in (("--host", "0.0.0.0"), ("--host", "::")):
        assert said in voices("serve", "--no-inference", *words, code=2).stderr
    key = voices("keys", "create", "ann").stdout.strip()
    voices("keys", "revoke", key, "--yes")
    assert said in voices("serve", "--no-inference", "--host", "0.0.0.0", code=2).stderr


def test_two_wishes_that_contradict_each_other_stop_the_start(
    voices: Voices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICES_AUTH", "on")
    assert "contradict" in voices("serve", "--insecure-no-auth", code=2).stderr
    assert "there is none yet" in voices("serve", "--no-inference", code=2).stderr
    monkeypatch.setenv("VOICES_AUTH", "off")
    assert "VOICES_AUTH='off' can't be used" in voices("serve", code=2).stderr


@pytest.mark.slow
def test_who_is_asked_for_a_key(tmp_path: Path) -> None:
    home = tmp_path / "data"
    with closing(VoiceStore(DataDir(home))) as store:
        key = key_for(store, "voices:read")
    everywhere = ("--no-inference", "--host", "0.0.0.0")
    for options, settings, asks in (
        (everywhere, {}, True),
        ((*everywhere, "--insecure-no-auth"), {}, False),
        (("--no-inference",), {}, False),
        (("--no-inference",), {"auth": "on"}, True),
    ):
        with served(home, *options, **settings) as server:
            assert server.ask("GET", "/voices")[0] == (401 if asks else 200)
            assert server.ask("GET", "/voices", **bearer(key))[0] == 200
            assert server.ask("GET", "/healthz")[0] == 200


@pytest.mark.slow
def test_a_running_server_takes_what_commands_beside_it_make_and_revoke(
    voices: Voices, tmp_path: Path
) -> None:
    voices("keys", "create", "first")
    with served(tmp_path / "data", "--no-inference", auth="on") as server:
        key = voices("keys", "create", "second").stdout.strip()
        assert server.ask("GET", "/voices", **bearer(key))[0] == 200
        voices("keys", "revoke", "second", "--yes")
        while server.ask("GET", "/voices", **bearer(key))[0] != 401:  # which it is within a second
            pass


@pytest.mark.slow
def test_the_log_of_a_server_has_no_key(tmp_path: Path) -> None:
    home = tmp_path / "data"
    with closing(VoiceStore(DataDir(home))) as store:
        key = key_for(store, "admin")
    with served(home, "--no-inference", auth="on", log_level="debug") as server:
        for path in ("/voices", f"/keys/{key}", f"/voices/{key}", f"/{key}?key={key}"):
            for headers in ({}, bearer(key), bearer(key[:-1]), {"X-Forwarded-For": key}):
                for method in ("GET", "DELETE", "POST"):
                    server.ask(method, path, **headers)
        server.ask("POST", "/keys", json.dumps({"name": key}), **bearer(key))
    log = "\n".join(server.log)
    assert key.split("_")[2] not in log
    assert re.search(rf'"GET /keys/vr_{id_of(key)}_… HTTP/1.1" 40', log)
