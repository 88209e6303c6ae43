"""Who may ask what: scopes by route, voices that are not there for a key, headers of every form."""

import re
import socket
from collections.abc import Iterator
from itertools import product

import httpx
import pytest
from api import add, problem
from fakes import FakeInference
from fastapi import APIRouter
from fastapi.routing import APIRoute
from keys import asking, bearer, id_of, key_for

from registry.api.access import describe, need_of
from registry.api.uploads import client_of
from registry.app import ROUTES, create_app
from registry.keys.grant import GRANT, Grant
from registry.keys.secret import DIGITS, new_id, new_key, presented, without_keys
from registry.storage.keys import Scope
from registry.storage.store import VoiceStore

SCOPES: tuple[Scope, ...] = ("voices:read", "voices:write", "speak", "admin")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
PATHS = sorted({route.path for route in ROUTES})
PUBLIC = {"/", "/docs", "/docs/{name}", "/openapi.json", "/healthz", "/readyz"}
ABSENT = {"{voice}": "nobody", "{model:path}": "none", "{key_id}": "00000000", "{name}": "start.js"}


@pytest.fixture
def http(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    with asking(store, fake) as client:
        yield client


def filled(path: str, **values: str) -> str:
    for name, value in (ABSENT | {f"{{{k}}}": v for k, v in values.items()}).items():
        path = path.replace(name, value)
    return path


def route_of(method: str, path: str) -> APIRoute | None:
    of_get = "GET" if method == "HEAD" else method
    return next(
        (r for r in ROUTES if path in (r.path, r.path_format) and of_get in (r.methods or ())), None
    )


def is_refused(answer: httpx.Response) -> tuple[int, str] | None:
    """The status and code of a 401 or 403, by its headers if it has no body."""
    if answer.status_code not in (401, 403):
        return None
    if answer.request.url.path.startswith("/v1/") and answer.content:
        return answer.status_code, answer.json()["error"]["code"].replace("_", "-")
    return (answer.status_code, problem(answer)[1] if answer.content else "")


# Scopes


def test_every_route_says_what_it_takes() -> None:
    needs = {route.path: need_of(route) for route in ROUTES}
    assert {path for path, need in needs.items() if need is None} == PUBLIC
    assert {need.scope for need in needs.values() if need} == {None, *SCOPES}
    any_key = {path for path, need in needs.items() if need and need.scope is None}
    assert any_key == {"/v1/models", "/v1/models/{model:path}", "/v1/audio/models"}


def test_a_route_that_says_nothing_stops_the_server_from_starting() -> None:
    router = APIRouter()

    @router.get("/forgotten")
    def forgotten() -> None: ...

    app = create_app.__globals__["FastAPI"]()
    with pytest.raises(AttributeError, match="voices_need"):
        describe(app, [route for route in router.routes if isinstance(route, APIRoute)])


@pytest.mark.parametrize("path", PATHS)
def test_who_may_do_what_is_what_the_routes_say(
    http: httpx.Client, store: VoiceStore, path: str
) -> None:
    keys = {scope: key_for(store, scope) for scope in SCOPES}
    for method in METHODS:
        route, place = route_of(method, path), filled(path)
        need = need_of(route) if route else None
        is_open = route is not None and need is None
        without = is_refused(http.request(method, place))
        assert without == (None if is_open else (401, "key-missing" * (method != "HEAD"))), method
        for scope, key in keys.items():
            answer = http.request(method, place, headers=bearer(key))
            may = need is None or need.scope is None or scope in (need.scope, "admin")
            code = "scope-missing" * (method != "HEAD")
            assert is_refused(answer) == (None if may else (403, code)), (method, scope)
            if not may and method != "HEAD":
                assert need is not None
                assert path.startswith("/v1/") or answer.json()["scope"] == need.scope
                assert f'scope="{need.scope}"' in answer.headers["www-authenticate"]


def test_a_path_without_a_route_is_told_to_who_has_a_key_alone(
    http: httpx.Client, store: VoiceStore
) -> None:
    for path in ("/nothing", "/voices/a/b/c", "/healthz/", "/keys/"):
        assert problem(http.get(path)) == (401, "key-missing")
        assert http.get(path, headers=bearer(key_for(store, "speak"))).status_code == 404


def test_openapi_says_what_a_server_takes_and_nothing_where_it_asks_for_no_key(
    http: httpx.Client, client: httpx.Client
) -> None:
    schema = http.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "xi-api-key"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            need = need_of(route) if (route := route_of(method.upper(), path)) else None
            ways = ("bearer", "xi-api-key") if need else ()
            scopes = [need.scope] if need and need.scope else []
            assert operation["security"] == [{way: scopes} for way in ways]
    assert "security" not in client.get("/openapi.json").text


def test_a_stranger_s_body_is_not_waited_for(http: httpx.Client, store: VoiceStore) -> None:
    """Nor the body of somebody who may not do this."""
    for head, status in (("", b"401"), (f"xi-api-key: {key_for(store, 'speak')}\r\n", b"403")):
        with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
            raw.settimeout(5)
            raw.sendall(
                b"POST /voices HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n" + head.encode() + b"\r\n"
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 " + status)


def test_a_full_server_tells_a_stranger_nothing_of_it(
    http: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    fake.room_in_line = 0
    body = {"voice": "alice", "text": "Hello"}
    assert problem(http.post("/speak", json=body)) == (401, "key-missing")
    reader, speaker = key_for(store, "voices:read"), key_for(store, "speak")
    refused = http.post("/speak", json=body, headers=bearer(reader))
    assert problem(refused) == (403, "scope-missing")
    refused = http.post("/speak", json=body, headers=bearer(speaker))
    assert problem(refused) == (503, "overloaded")


# Voices that are not there


def answers_of(client: httpx.Client, key: str, voice: str) -> dict[str, tuple[int, bytes]]:
    """Of each operation on a voice, with the name of it taken out."""
    found = {}
    for route in ROUTES:
        for method in sorted(route.methods or ()):
            if "{voice}" not in route.path:
                continue
            body = {"json": {"description": "x"}} if method == "PATCH" else {}
            for tag in (None, "*", '"1-00000000"'):
                headers = bearer(key) | ({"If-Match": tag} if tag else {})
                path = filled(route.path, voice=voice)
                answer = client.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
                said = answer.content.replace(voice.encode(), b"?")
                found[f"{method} {route.path} {tag}"] = (answer.status_code, said)
    spoken = client.post("/speak", headers=bearer(key), json={"voice": voice, "text": "Hello"})
    found["speak"] = (spoken.status_code, spoken.content.replace(voice.encode(), b"?"))
    body = {"model": "tts-1", "voice": voice, "input": "Hello"}
    spoken = client.post("/v1/audio/speech", headers=bearer(key), json=body)
    found["speech"] = (spoken.status_code, spoken.content.replace(voice.encode(), b"?"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["server", "volume"])
def test_another_voice_is_as_one_that_is_missing(
    deployment: str, store: VoiceStore, fake: FakeInference, client: httpx.Client
) -> None:
    ids = {name: add(client, name).json()["id"] for name in ("alice", "alicia", "bob")}
    with asking(store, fake) as http:
        keys = {
            name: key_for(store, "voices:read", "voices:write", "speak", voices=[name])
            for name in ("alice", "bob")
        }
        for name, key in keys.items():
            missing = answers_of(http, key, "nobody"), answers_of(http, key, f"voice_{'0' * 32}")
            assert {status for status, _ in missing[0].values()} == {404}
            for other in ids.keys() - {name}:
                assert answers_of(http, key, other) == missing[0]
                assert answers_of(http, key, ids[other]) == missing[1]
            listed = http.get("/voices", headers=bearer(key)).json()
            assert [voice["name"] for voice in listed["data"]] == [name]
            assert listed["next"] is None and listed["damaged"] == []
            names = http.get("/v1/audio/voices", headers=bearer(key)).json()
            assert [voice["id"] for voice in names["data"]] == [ids[name]]
            for after in {*ids.values()} - {ids[name]}:
                query = {"after": after}
                refused = http.get("/v1/audio/voices", params=query, headers=bearer(key))
                assert refused.json()["error"]["code"] == "cursor_invalid"
            for near in ("ali", "alic", "alice2", "bo", "bobb"):
                refused = http.get(f"/voices/{near}", headers=bearer(key)).json()
                assert set(refused["near"]) <= {name}
            own = http.get(f"/voices/{name}", headers=bearer(key))
            assert own.status_code == 200 and own.json()["id"] == ids[name]
    assert client.get("/voices").json()["data"].__len__() == 3, "nothing was deleted"


@pytest.mark.slow
def test_a_page_of_few_voices_ends_and_is_filled(
    store: VoiceStore, fake: FakeInference, client: httpx.Client
) -> None:
    for name in "abcdefgh":
        add(client, name)
    with asking(store, fake) as http:
        key, after, seen = key_for(store, "voices:read", voices=["b", "f", "h"]), None, []
        while True:
            query = {"limit": "2"} | ({"after": after} if after else {})
            page = http.get("/voices", params=query, headers=bearer(key)).json()
            seen += [[voice["name"] for voice in page["data"]]]
            if (after := page["next"]) is None:
                break
    assert seen == [["b", "f"], ["h"]]


@pytest.mark.slow
def test_a_key_of_some_voices_learns_no_name_by_taking_it(
    store: VoiceStore, fake: FakeInference, client: httpx.Client
) -> None:
    for name in ("alice", "bob"):
        add(client, name)
    with asking(store, fake) as http:
        key = key_for(store, "voices:read", "voices:write", "speak", voices=["alice"])
        http.headers.update(bearer(key))
        for name in ("bob", "nobody"):
            assert problem(add(http, name)) == (403, "key-limited")
            for voice in ("alice", "bob", "nobody"):
                renamed = http.patch(f"/voices/{voice}", json={"name": name})
                assert problem(renamed) == (403, "key-limited")
        assert problem(http.post("/clone")) == (403, "key-limited")
        assert http.post("/v1/audio/voices").json()["error"]["code"] == "key_limited"
        assert http.patch("/voices/alice", json={"description": "x"}).status_code == 200


def test_a_key_is_for_a_voice_and_not_for_its_name(
    store: VoiceStore, fake: FakeInference, client: httpx.Client
) -> None:
    alice = add(client, "alice").json()["id"]
    key = key_for(store, "voices:read", voices=["alice"])
    with asking(store, fake) as http:
        client.patch("/voices/alice", json={"name": "anna"})
        add(client, "alice")
        assert problem(http.get("/voices/alice", headers=bearer(key))) == (404, "voice-not-found")
        assert http.get("/voices/anna", headers=bearer(key)).json()["id"] == alice
        client.delete("/voices/anna")
        assert http.get("/voices", headers=bearer(key)).json()["data"] == []


# Headers


def forms_of(key: str, other: str, strange: str) -> dict[str, tuple[list[tuple[str, str]], int]]:
    """Ways to send a key, and what comes of each."""
    changed = key[:-1] + ("a" if key[-1] != "a" else "b")
    swapped = key[:13] + key[13:56].swapcase() + key[56:]
    b, x = "Authorization", "xi-api-key"
    return {
        "bearer": ([(b, f"Bearer {key}")], 200),
        "lower case": ([(b, f"bearer {key}")], 200),
        "capitals": ([(b, f"BEARER {key}")], 200),
        "more spaces": ([(b, f"Bearer    {key}  ")], 200),
        "xi-api-key": ([(x, key)], 200),
        "spaces around": ([(x, f"  {key}  ")], 200),
        "both alike": ([(b, f"Bearer {key}"), (x, key)], 200),
        "beside another scheme": ([(b, "Basic YTpi"), (x, key)], 200),
        "beside a token of Modal's": ([(b, "Bearer wk-1.ws-2"), (x, key)], 200),
        "beside an empty one": ([(b, f"Bearer {key}"), (x, "")], 200),
        "none": ([], 401),
        "empty": ([(b, "")], 401),
        "a scheme alone": ([(b, "Bearer")], 401),
        "a scheme and spaces": ([(b, "Bearer   ")], 401),
        "no scheme": ([(b, key)], 401),
        "another scheme": ([(b, f"Basic {key}")], 401),
        "a tab": ([(b, f"Bearer\t{key}")], 401),
        "no space": ([(b, f"Bearer{key}")], 401),
        "a colon": ([(b, f"Bearer: {key}")], 401),
        "in quotes": ([(b, f'Bearer "{key}"')], 401),
        "the key twice": ([(b, f"Bearer {key} {key}")], 401),
        "two with a comma": ([(b, f"Bearer {key}, Bearer {key}")], 401),
        "the header twice": ([(b, f"Bearer {key}"), (b, f"Bearer {key}")], 401),
        "the header twice, once empty": ([(b, f"Bearer {key}"), (b, "")], 401),
        "xi-api-key twice": ([(x, key), (x, key)], 401),
        "two keys": ([(b, f"Bearer {key}"), (x, other)], 401),
        "two keys, one of them bad": ([(b, f"Bearer {key}"), (x, "vr_")], 401),
        "a token of Modal's": ([(b, "Bearer wk-1.ws-2")], 401),
        "another server's": ([(b, f"Bearer {strange}")], 401),
        "its id with another secret": ([(b, f"Bearer {new_key(id_of(key))}")], 401),
        "a wrong check": ([(x, changed)], 401),
        "a wrong secret": ([(x, swapped)], 401),
        "a character less": ([(x, key[:-1])], 401),
        "a character more": ([(x, f"{key}0")], 401),
        "without its check": ([(x, key[:-7])], 401),
        "capitals throughout": ([(x, key.upper())], 401),
        "another prefix": ([(x, f"sk{key[2:]}")], 401),
        "non-ascii": ([(x, f"{key}é")], 401),
        "a digit of another script": ([(x, f"{key[:-1]}\u0660")], 401),
        "10 kB": ([(x, "v" * 10_000)], 401),
        "10 kB that begins well": ([(b, f"Bearer {key}{'_' * 10_000}")], 401),
        "a null": ([(x, f"{key}%00")], 401),
        "in a query": ([("X-Other", key)], 401),
    }


def sent_as_it_is(http: httpx.Client, headers: list[tuple[str, str]]) -> httpx.Response:
    """Of what httpx itself would refuse to send."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    asked = f"GET /voices HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
        raw.sendall(asked.encode())
        head, _, body = b"".join(iter(lambda: raw.recv(65536), b"")).partition(b"\r\n\r\n")
    first, *rest = head.decode().splitlines()
    told = dict(line.split(": ", 1) for line in rest)
    return httpx.Response(int(first.split()[1]), headers=told, content=body)


def test_a_key_is_taken_in_two_headers_and_in_no_other_form(
    http: httpx.Client, store: VoiceStore
) -> None:
    key, other = key_for(store, "voices:read"), key_for(store, "voices:read")
    for name, (headers, status) in forms_of(key, other, new_key(new_id())).items():
        answer = sent_as_it_is(http, headers)
        assert answer.status_code == status, name
        if status == 401:
            code = problem(answer)[1]
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith('Bearer realm="voices"'), name
            assert ("error=" in challenge) == (code == "key-invalid"), name
            secrets = (part.rpartition("_")[0][12:] for part in (key, other))
            assert not any(secret in answer.text for secret in secrets), name


def test_a_typo_is_told_from_a_wrong_key(http: httpx.Client, store: VoiceStore) -> None:
    key = key_for(store, "voices:read")
    for number in range(3, len(key)):
        for wrong in {"a", "Z", "0"} - {key[number]}:
            typo = key[:number] + wrong + key[number + 1 :]
            assert presented(typo) is None, number
    for wrong, said in ((key[:-1], "no whole key"), (new_key(id_of(key)), "not known here")):
        answer = http.get("/voices", headers=bearer(wrong))
        assert problem(answer) == (401, "key-invalid") and said in answer.json()["detail"]


def test_an_unknown_id_a_wrong_secret_and_a_revoked_key_are_told_alike(
    http: httpx.Client, store: VoiceStore
) -> None:
    key, gone = key_for(store, "admin"), key_for(store, "admin")
    http.delete(f"/keys/{id_of(gone)}", headers=bearer(key))
    wrong = (new_key(new_id()), new_key(id_of(key)), gone)
    assert len({http.get("/voices", headers=bearer(one)).text for one in wrong}) == 1


def test_a_refusal_has_the_shape_that_the_client_reads(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers=bearer("sk-1234"))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (401, "false")
    assert answer.json()["error"]["code"] == "key_invalid"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["x-request-id"]


# Turns


def test_the_client_of_a_request_is_its_key_where_keys_are_asked_for() -> None:
    scope = {"type": "http", "client": ("192.0.2.1", 1)}
    assert client_of(scope) == "192.0.2.1"
    one, other = (
        client_of(scope | {GRANT: Grant(key, frozenset(), None)})
        for key in ("aaaaaaaa", "bbbbbbbb")
    )
    assert one != other and "192.0.2.1" not in (one, other)


# Text


def test_keys_differ_and_have_256_random_bits() -> None:
    made = [new_key(new_id()) for _ in range(500)]
    assert len({key.split("_")[2] for key in made}) == 500
    assert {len(key) for key in made} == {62} and len(DIGITS) ** 43 > 2**256
    assert all(re.fullmatch(r"vr_[0-9a-z]{8}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", k) for k in made)
    digits = {digit for key in made for digit in key.split("_")[2]}
    assert digits == set(DIGITS)


def test_of_a_key_in_a_text_the_id_is_left() -> None:
    for key, end in product((new_key(new_id()) for _ in range(20)), ("", "x", "/", " ", "_", "\n")):
        for text in (f"GET /keys/{key}{end}", f"{key[:-1]}{end}", f"{key[:30]}{end}"):
            left = without_keys(text)
            assert key.split("_")[2][:10] not in left and id_of(key) in left
    assert without_keys("voice_00 vr_short vr_12345678") == "voice_00 vr_short vr_12345678"
