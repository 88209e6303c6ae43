"""Other names of voices: what they stand for, what they never hide, and with what they go."""

from pathlib import Path

import httpx
import pytest
from api import add, problem
from click.testing import CliRunner, Result
from deployments import DEPLOYMENTS, client_of
from fakes import FakeInference
from sqlmodel import select
from test_openai_models import told

from cli.main import cli
from registry.errors import VoiceNotFound
from registry.names import OPENAI_VOICES
from registry.storage import aliases
from registry.storage.rows.row_faults import row_faults
from registry.storage.store import VoiceStore
from registry.storage.tables import Alias


@pytest.fixture(params=[d for d in DEPLOYMENTS if d != "socket"])
def deployment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def voices(client: httpx.Client) -> dict[str, str]:
    """Their ids."""
    return {name: add(client, name).json()["id"] for name in ("alice", "bob")}


def put(client: httpx.Client, alias: str, voice: str) -> httpx.Response:
    return client.put(f"/aliases/{alias}", json={"voice": voice})


def speaker(client: httpx.Client, voice: str) -> str:
    return client.post("/speak", json={"voice": voice, "text": "Hi."}).headers["x-voice-id"]


def test_an_alias_stands_for_a_voice_wherever_one_is_named(
    client: httpx.Client, voices: dict[str, str]
) -> None:
    made = put(client, "Alloy", "alice")
    assert made.status_code == 200
    shown = made.json()
    assert shown.pop("created_at").endswith("Z")
    assert shown == {"alias": "Alloy", "voice": "alice", "voice_id": voices["alice"]}
    assert speaker(client, "alloy") == speaker(client, "ALLOY") == voices["alice"]
    assert client.get("/voices/alloy").json()["id"] == voices["alice"]
    spoken = client.post("/v1/audio/speech", json={"voice": "alloy", "input": "Hi."})
    assert spoken.headers["x-voice-id"] == voices["alice"]
    assert put(client, "alloy", voices["bob"]).json()["voice"] == "bob"
    assert speaker(client, "alloy") == voices["bob"]
    assert put(client, "nova", "alloy").json()["voice"] == "bob"
    listed = client.get("/aliases").json()["data"]
    assert [(one["alias"], one["voice"]) for one in listed] == [("alloy", "bob"), ("nova", "bob")]


def test_it_follows_its_voice_and_goes_with_it(
    client: httpx.Client, voices: dict[str, str]
) -> None:
    assert put(client, "alloy", "alice").status_code == 200
    assert client.patch("/voices/alice", json={"name": "anna"}).status_code == 200
    assert speaker(client, "alloy") == voices["alice"]
    assert client.delete("/voices/alloy").status_code == 204
    assert problem(client.get("/voices/alloy")) == (404, "voice-not-found")
    assert client.get("/aliases").json() == {"data": []}
    assert add(client, "alloy").status_code == 201


def test_names_and_aliases_are_one_space(client: httpx.Client, voices: dict[str, str]) -> None:
    assert problem(put(client, "BOB", "alice")) == (409, "name-taken")
    assert problem(put(client, "alice", "alice")) == (409, "name-taken")
    assert put(client, "alloy", "alice").status_code == 200
    taken = add(client, "ALLOY")
    assert problem(taken) == (409, "name-taken") and "an alias" in taken.json()["detail"]
    renamed = client.patch("/voices/bob", json={"name": "Alloy"})
    assert problem(renamed) == (409, "name-taken")
    files = {"audio_sample": ("a.wav", b"RIFF"), "name": (None, "alloy")}
    assert told(client.post("/v1/audio/voices", files=files))[:2] == (400, "name_taken")
    assert client.delete("/aliases/alloy").status_code == 204
    assert client.patch("/voices/bob", json={"name": "Alloy"}).status_code == 200


def test_what_is_removed_stands_for_nothing(client: httpx.Client, voices: dict[str, str]) -> None:
    assert put(client, "alloy", "alice").status_code == 200
    assert client.delete("/aliases/ALLOY").status_code == 204
    assert problem(client.delete("/aliases/alloy")) == (404, "alias-not-found")
    assert problem(client.get("/voices/alloy")) == (404, "voice-not-found")


@pytest.mark.parametrize(
    ("alias", "voice", "expected"),
    [
        ("alloy", "nobody", (404, "voice-not-found")),
        ("alloy", "nova", (404, "voice-not-found")),
        ("alloy", "", (422, "request-invalid")),
        ("a%2Fb", "alice", (404, "not-found")),
        ("voice_1", "alice", (422, "name-invalid")),
        ("-x", "alice", (422, "name-invalid")),
        ("x" * 65, "alice", (422, "name-invalid")),
        ("%FF", "alice", (404, "not-found")),
    ],
)
def test_what_can_be_no_alias_is_refused(
    client: httpx.Client, voices: dict[str, str], alias: str, voice: str, expected: tuple[int, str]
) -> None:
    assert problem(put(client, alias, voice)) == expected
    assert client.get("/aliases").json() == {"data": []}


@pytest.mark.parametrize("name", sorted(OPENAI_VOICES))
def test_a_name_of_openais_that_is_not_set_is_never_another_voice(
    client: httpx.Client, voices: dict[str, str], name: str
) -> None:
    refused = client.post("/v1/audio/speech", json={"voice": name.upper(), "input": "Hi."})
    assert told(refused) == (404, "voice_not_found", "voice")
    assert f"`voices alias {name} VOICE`" in refused.json()["error"]["message"]
    assert "voices alias" not in client.get("/voices/nobody").json()["detail"]


def test_there_are_not_endlessly_many(store: VoiceStore, client: httpx.Client) -> None:
    voice = add(client, "alice").json()["id"]
    with store.transaction() as session:
        for number in range(aliases.MOST):
            aliases.put_alias(session, f"a{number}", voice)
    assert problem(put(client, "one more", "alice")) == (422, "request-invalid")
    assert put(client, "a7", "alice").status_code == 200
    assert len(client.get("/aliases").json()["data"]) == aliases.MOST


@pytest.mark.parametrize(
    "changed",
    [
        {"voice_id": f"voice_{'0' * 32}"},
        {"voice_id": "\x1b"},
        {"name": "another"},
        {"name": ""},
        {"name_key": "bob"},
        {"created_at": "yesterday"},
    ],
)
def test_rows_that_no_request_could_have_made_are_found_and_not_shown(
    store: VoiceStore, client: httpx.Client, voices: dict[str, str], changed: dict[str, str]
) -> None:
    assert put(client, "alloy", "alice").status_code == 200
    with store.reading() as session:
        assert [*row_faults(session)] == []
    with store._db.write(references=False) as session:
        row = session.exec(select(Alias)).one()
        session.delete(row)
        session.flush()
        session.add(Alias(**row.model_dump() | changed))
    with store.reading() as session:
        faults = [*row_faults(session)]
    assert [fault.field for fault in faults] == ["alias"] and "alias" in str(faults[0])
    assert client.get("/aliases").status_code == 200
    assert speaker(client, "bob") == voices["bob"]


def test_aliases_outlive_the_server(
    deployment: str, store: VoiceStore, fake: FakeInference
) -> None:
    with client_of(deployment, store, fake) as client:
        voice = add(client, "alice").json()["id"]
        assert put(client, "alloy", "alice").status_code == 200
        assert store.get("alloy").row.id == voice
        with pytest.raises(VoiceNotFound):
            store.get("nova")


def test_the_command_sets_shows_lists_and_removes(
    client: httpx.Client,
    voices: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOICES_URL", str(client.base_url))

    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["alias", *words])
        assert result.exit_code == code, result.output
        return result

    assert "No aliases yet" in run().stderr
    assert run("alloy", "alice").stderr == "alloy stands for alice now.\n"
    assert voices["bob"] in run("nova", "bob", "--json").stdout
    assert all(word in run().stdout for word in ("alloy", "nova", "alice", voices["bob"]))
    assert "nova" not in run("ALLOY").stdout
    assert "Did you mean 'alice'" in run("alloy", "alcie", code=1).stderr
    assert "already a voice named 'bob'" in run("bob", "alice", code=1).stderr
    assert run("alloy", "--remove").stderr == "alloy stands for no voice any more.\n"
    assert "There is no alias 'alloy'" in run("alloy", "--remove", code=1).stderr
    assert "There is no alias 'alloy'" in run("alloy", code=1).stderr
    assert "no voice" in run("--remove", code=2).stderr
