"""Keys are made, listed, rotated, revoked, forgotten; their secrets are in no file and no log."""

import json
import logging
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from api import add, problem
from conftest import PYTHON, ROOT
from fakes import FakeInference
from keys import asking, bearer, id_of, key_for

from registry.keys.issuing import has_usable_key
from registry.storage import keys as stored
from registry.storage.data_dir import DataDir
from registry.storage.keys import KEPT_REVOKED, ApiKey
from registry.storage.store import VoiceStore
from registry.storage.tables import utc_now
from registry.storage.volume.store import VolumeStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup, unpack_backup

NEVER_TOLD = {"secret_sha256", "former_sha256", "key"}


@pytest.fixture
def http(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    """As an admin."""
    with asking(store, fake) as client:
        client.headers.update(bearer(key_for(store, "admin")))
        yield client


def made(http: httpx.Client, **fields: object) -> dict[str, Any]:
    answer = http.post("/keys", json={"name": "shop", "scopes": ["voices:read"]} | fields)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


def status(http: httpx.Client, key: str) -> int:
    return http.get("/voices", headers=bearer(key)).status_code


def change(store: VoiceStore, key: str, **columns: object) -> None:
    """As another process might."""
    named = ", ".join(f"{name} = ?" for name in columns)
    with closing(sqlite3.connect(store.data.database)) as database, database:
        database.execute(
            f"UPDATE api_key SET {named} WHERE id = ?", [*columns.values(), id_of(key)]
        )


# Making and listing


def test_a_key_is_shown_once_and_listed_without_its_secret(http: httpx.Client) -> None:
    one = made(http, name="web shop", scopes=["speak", "voices:read", "speak"])
    assert one["scopes"] == ["speak", "voices:read"] and one["voices"] is None
    assert status(http, one["key"]) == 200
    listed = http.get("/keys")
    assert [key["name"] for key in listed.json()["data"]] == ["web shop", "a test"]
    assert not NEVER_TOLD & set(listed.json()["data"][0])
    assert {k: v for k, v in one.items() if k != "key"} == listed.json()["data"][0]
    assert one["key"].split("_")[2] not in listed.text


@pytest.mark.slow
def test_a_key_for_voices_has_their_ids(http: httpx.Client) -> None:
    ids = [add(http, name).json()["id"] for name in ("alice", "bob")]
    assert made(http, voices=["ALICE", ids[1], "alice"])["voices"] == sorted(ids)
    unknown = http.post("/keys", json={"name": "x", "scopes": ["speak"], "voices": ["alcie"]})
    assert problem(unknown) == (404, "voice-not-found")
    wide = http.post("/keys", json={"name": "x", "scopes": ["admin"], "voices": ["alice"]})
    assert problem(wide) == (422, "admin-limited") and "admin" in wide.json()["detail"]
    assert len(http.get("/keys").json()["data"]) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "scopes": "speak"},
        {"name": "", "scopes": ["speak"]},
        {"name": "x" * 65, "scopes": ["speak"]},
        {"name": "a\nb", "scopes": ["speak"]},
        {"name": "a\x1bb", "scopes": ["speak"]},
        {"name": "x", "scopes": ["speak"], "voices": []},
        {"name": "x", "scopes": ["speak"], "voices": [""]},
        {"name": "x", "scopes": ["speak"], "voices": ["a"] * 1001},
        {"name": "x", "scopes": ["speak"], "expires_in_s": 0},
        {"name": "x", "scopes": ["speak"], "expires_in_s": -5},
        {"name": "x", "scopes": ["speak"], "expires_in_s": 1.5e300},
        {"name": "x", "scopes": ["speak"], "expires_in_s": "60"},
        {"name": "x", "scopes": ["speak"], "key": "vr_mine"},
        {"name": "x", "scopes": ["speak"], "id": "00000000"},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_what_makes_no_key_is_a_sentence(http: httpx.Client, body: dict[str, object]) -> None:
    assert problem(http.post("/keys", json=body)) == (422, "request-invalid")
    assert len(http.get("/keys").json()["data"]) == 1


def test_half_a_character_is_no_name(http: httpx.Client) -> None:
    body = b'{"name": "\\ud800", "scopes": ["speak"]}'
    answer = http.post("/keys", content=body, headers={"content-type": "application/json"})
    assert problem(answer) == (422, "request-invalid")


def test_there_is_an_end_to_keys(
    http: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MOST_KEYS", 3)
    one, _ = made(http), made(http)
    full = http.post("/keys", json={"name": "x", "scopes": ["speak"]})
    assert problem(full) == (409, "keys-full")
    http.delete(f"/keys/{one['id']}")
    made(http)
    with store.transaction() as session:
        for number in range(KEPT_REVOKED + 5):
            at = f"2026-01-01T00:00:{number % 60:02}.{number:03}Z"
            session.add(a_row(f"{number:08}", revoked_at=at))
    live = [key for key in http.get("/keys").json()["data"] if not key["revoked_at"]]
    http.delete(f"/keys/{next(key['id'] for key in live if key['name'] == 'shop')}")
    made(http)
    listed = http.get("/keys").json()["data"]
    assert sum(key["revoked_at"] is not None for key in listed) == KEPT_REVOKED


def a_row(key_id: str, **columns: object) -> ApiKey:
    sound = {"name": "x", "scopes": ["speak"], "created_at": utc_now(), "secret_sha256": "0" * 64}
    return ApiKey(id=key_id, **(sound | columns))  # type: ignore[arg-type]


# Rotation, expiry, revocation


def test_a_rotated_key_has_two_secrets_for_a_while(http: httpx.Client, store: VoiceStore) -> None:
    first = made(http)
    second = http.post(f"/keys/{first['id']}/rotate", json={}).json()
    assert second["id"] == first["id"] and second["key"] != first["key"]
    assert (status(http, first["key"]), status(http, second["key"])) == (200, 200)
    third = http.post(f"/keys/{first['id']}/rotate", json={"grace_s": 3600}).json()
    assert status(http, first["key"]) == 401, "of two there is one grace"
    assert (status(http, second["key"]), status(http, third["key"])) == (200, 200)
    change(store, first["key"], former_until=utc_now(-1))
    assert_within_a_second(http, second["key"])
    assert status(http, third["key"]) == 200
    last = http.post(f"/keys/{first['id']}/rotate", json={"grace_s": 0}).json()
    assert (status(http, third["key"]), status(http, last["key"])) == (401, 200)
    assert last["former_until"] is None


def test_a_key_ends_with_its_time(http: httpx.Client, store: VoiceStore) -> None:
    one = made(http, expires_in_s=60)
    assert utc_now(59) < one["expires_at"] <= utc_now(60)
    assert status(http, one["key"]) == 200
    change(store, one["key"], expires_at=utc_now(0.3))
    assert_within_a_second(http, one["key"])
    rotated = http.post(f"/keys/{one['id']}/rotate", json={}).json()
    assert status(http, rotated["key"]) == 401, "another secret is no longer life"


def assert_within_a_second(http: httpx.Client, key: str) -> None:
    until_s = time.monotonic() + 1
    while status(http, key) != 401:
        assert time.monotonic() < until_s


def test_a_key_that_this_server_revokes_is_refused_at_once(http: httpx.Client) -> None:
    one = made(http)
    assert status(http, one["key"]) == 200
    assert http.delete(f"/keys/{one['id']}").status_code == 204
    assert status(http, one["key"]) == 401
    assert problem(http.delete(f"/keys/{one['id']}")) == (404, "key-not-found")
    rotated = http.post(f"/keys/{one['id']}/rotate", json={})
    assert problem(rotated) == (404, "key-not-found")
    assert http.get("/keys").json()["data"][0]["revoked_at"] is not None


REVOKE = """
import sys
from pathlib import Path
from registry.keys.issuing import revoke_key
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
store = VoiceStore(DataDir(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
revoke_key(store, sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_key_that_another_process_revokes_is_refused_within_a_second(
    http: httpx.Client, store: VoiceStore
) -> None:
    key = made(http)["key"]
    command = [PYTHON, "-c", REVOKE, str(store.data.root), id_of(key)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        for _ in range(20):
            assert status(http, key) == 200
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        assert_within_a_second(http, key)


def test_a_key_that_was_just_made_elsewhere_is_taken_at_once(
    http: httpx.Client, store: VoiceStore
) -> None:
    for _ in range(5):
        assert status(http, key_for(store, "voices:read")) == 200


def test_a_server_whose_keys_did_not_change_reads_none(
    http: httpx.Client, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = made(http)["key"]
    assert status(http, key) == 200
    monkeypatch.setattr("registry.keys.keyring.key_rows", lambda session: pytest.fail("was read"))
    time.sleep(0.3)
    assert status(http, key) == 200


def test_when_a_key_was_used_is_written_later_and_seldom(
    store: VoiceStore, fake: FakeInference
) -> None:
    used, unused = key_for(store, "voices:read", "admin"), key_for(store, "speak")
    with asking(store, fake) as http:
        assert status(http, used) == 200
        assert last_use(store) == {id_of(used): None, id_of(unused): None}, "not by the request"
    first = last_use(store)
    assert first[id_of(unused)] is None and first[id_of(used)] is not None
    with asking(store, fake) as http:
        assert status(http, used) == 200
    assert last_use(store) == first, "it was told less than a minute ago"
    change(store, used, last_used_at=utc_now(-61))
    with asking(store, fake) as http:
        assert status(http, used) == 200
    assert (last_use(store)[id_of(used)] or "") > (first[id_of(used)] or "")
    assert VolumeStore.use_noted_s > store.use_noted_s == 60


def last_use(store: VoiceStore) -> dict[str, str | None]:
    with store.reading() as session:
        return {row["id"]: row["last_used_at"] for row in stored.key_rows(session)}


def test_what_can_not_be_noted_hinders_nobody(
    store: VoiceStore, fake: FakeInference, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_for(store, "voices:read")
    with asking(store, fake) as http:
        assert status(http, key) == 200
        store._db._damage = "It is damaged."  # so that nothing is written any more
    assert "When keys were last used is not written" in caplog.text


# Rows


@pytest.mark.parametrize(
    "damage",
    [
        {"scopes": '["everything"]'},
        {"scopes": "[]"},
        {"scopes": "no JSON"},
        {"voices": '["voice_x"]'},
        {"voices": "[]"},
        {"voices": '"alice"'},
        {"expires_at": "never"},
        {"expires_at": 7},
        {"revoked_at": ""},
        {"former_until": "soon"},
        {"secret_sha256": b"\x00"},
        {"name": "a\nb"},
        {"created_at": ""},
    ],
    ids=str,
)
def test_a_row_that_no_request_could_have_stored_lets_nobody_in(
    http: httpx.Client, store: VoiceStore, damage: dict[str, object]
) -> None:
    key, other = key_for(store, "voices:read"), key_for(store, "voices:read")
    change(store, key, **damage)
    assert (status(http, key), status(http, other)) == (401, 200)
    assert id_of(key) not in {one["id"] for one in http.get("/keys").json()["data"]}
    (finding,) = examine(store.data, read_data=False, repair=False)
    assert f"key.{next(iter(damage))}" in finding.what
    assert http.delete(f"/keys/{id_of(key)}").status_code in (204, 404)


def test_only_a_key_that_opens_counts_for_a_start(store: VoiceStore) -> None:
    assert not has_usable_key(store)
    key = key_for(store, "speak")
    assert has_usable_key(store)
    change(store, key, expires_at=utc_now(-1))
    assert not has_usable_key(store)
    change(store, key, expires_at=utc_now(9), revoked_at=utc_now())
    assert not has_usable_key(store)


# Backups


@pytest.fixture
def backup(store: VoiceStore, client: httpx.Client, tmp_path: Path) -> tuple[str, Path]:
    """A key, and a backup that was made when it was there."""
    add(client, "alice")
    key = key_for(store, "admin")
    save_backup(store, tmp_path / "voices.tar")
    return key, tmp_path / "voices.tar"


def keys_of(home: Path) -> list[str]:
    with closing(VoiceStore(DataDir(home))) as store, store.reading() as session:
        return [row["id"] for row in stored.key_rows(session)]


@pytest.mark.slow
def test_no_key_is_in_a_backup(backup: tuple[str, Path], tmp_path: Path) -> None:
    key, tar = backup
    content = tar.read_bytes()
    assert id_of(key).encode() not in content
    with open(tar, "rb") as file:
        restore_backup(file, tmp_path / "new")
    assert keys_of(tmp_path / "new") == []


def test_a_restore_leaves_the_keys_that_are_there(
    backup: tuple[str, Path], store: VoiceStore, tmp_path: Path
) -> None:
    """One that was revoked since the backup stays so; one that was made since stays."""
    key, tar = backup
    change(store, key, revoked_at=utc_now())
    later = key_for(store, "speak")
    store.close()
    before = rows_of(store.data.root)
    with open(tar, "rb") as file:
        assert not restore_backup(file, store.data.root).keys_lost
    assert rows_of(store.data.root) == before
    assert {row["id"] for row in before} == {id_of(key), id_of(later)}


def rows_of(home: Path) -> list[dict[str, Any]]:
    with closing(VoiceStore(DataDir(home))) as store, store.reading() as session:
        return stored.key_rows(session)


@pytest.mark.slow
def test_keys_that_somebody_put_into_a_backup_are_not_restored(
    backup: tuple[str, Path], store: VoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_for(store, "admin")
    monkeypatch.setattr("registry.upkeep.backup.forget_keys", lambda database: None)
    save_backup(store, tmp_path / "with.tar")
    with open(tmp_path / "with.tar", "rb") as file:
        unpack_backup(file, tmp_path / "unpacked")
    assert keys_of(tmp_path / "unpacked") == []
    with open(tmp_path / "with.tar", "rb") as file:
        restore_backup(file, tmp_path / "new")
    assert keys_of(tmp_path / "new") == []


def test_keys_that_can_not_be_read_are_told_to_be_lost(
    backup: tuple[str, Path], store: VoiceStore
) -> None:
    _, tar = backup
    store.close()
    store.data.database.write_bytes(b"no database" * 1000)
    with open(tar, "rb") as file:
        assert restore_backup(file, store.data.root).keys_lost
    assert keys_of(store.data.root) == []


@pytest.mark.parametrize("deployment", ["volume"])
def test_a_restore_on_a_volume_leaves_the_keys_that_are_there(
    backup: tuple[str, Path], store: VolumeStore, tmp_path: Path
) -> None:
    key, tar = backup
    later = key_for(store, "speak")
    with open(tar, "rb") as file:
        unpack_backup(file, tmp_path / "unpacked")
    store.restore(DataDir(tmp_path / "unpacked"))
    with store.reading() as session:
        assert {row["id"] for row in stored.key_rows(session)} == {id_of(key), id_of(later)}
    assert store.get("alice").row.name == "alice"


@pytest.mark.parametrize("deployment", ["volume"])
def test_on_a_volume_a_key_is_revoked_at_once_by_its_own_server(
    store: VoiceStore, http: httpx.Client
) -> None:
    one = made(http)
    assert status(http, one["key"]) == 200
    http.delete(f"/keys/{one['id']}")
    assert status(http, one["key"]) == 401


# Secrets


def test_no_secret_is_in_any_file_answer_or_log(
    store: VoiceStore, fake: FakeInference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = [key_for(store, "admin"), key_for(store, "speak")]
    with asking(store, fake) as http:
        server = logging.getLogger("uvicorn")
        server.addHandler(caplog.handler)
        answers = []
        for key in keys:
            for headers in (bearer(key), {"xi-api-key": key}, bearer(key[:-1] + "!")):
                answers += [
                    http.get("/voices", headers=headers),
                    http.get("/keys", headers=headers),
                    http.post("/keys", headers=headers, json={"name": key, "scopes": [key]}),
                    http.post("/keys", headers=headers, json={key: key}),
                    http.post("/speak", headers=headers, json={"voice": 1, "text": {"key": key}}),
                    http.delete(f"/keys/{key}", headers=headers),
                ]
        made_now = http.post(
            "/keys", headers=bearer(keys[0]), json={"name": "x", "scopes": ["speak"]}
        ).json()["key"]
        server.removeHandler(caplog.handler)
    save_backup(store, tmp_path / "voices.tar")
    secrets = [key.split("_")[2] for key in (*keys, made_now)]
    ours = [record.getMessage() for record in caplog.records if record.name == "registry"]
    echoed = [answer for answer in answers if "is not a field" in answer.text]
    for secret in secrets:
        assert not any(secret in line for line in ours)
        for answer in answers:
            assert answer in echoed or secret not in answer.text, answer.text
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
