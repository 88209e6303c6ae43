"""Who says two things at once is not obeyed in one of them: another reader would take the other."""

import json

import httpx
import pytest
from api import CLIP, add, problem

SPEECH = {"voice": "alice", "text": "Grüße"}
JSON = ("Content-Type", "application/json")
FORM = ("Content-Type", "multipart/form-data; boundary=x")
NAME = b'Content-Disposition: form-data; name="name"'


@pytest.fixture
def alice(client: httpx.Client) -> httpx.Client:
    assert add(client, "alice").status_code == 201
    return client


@pytest.mark.parametrize(
    "headers",
    [
        [JSON, ("Content-Type", "text/plain")],
        [JSON, ("Content-Type", "application/json; charset=utf-16")],
        [JSON, JSON],
        [("Content-Type", "application/json; charset=utf-8; charset=latin-1")],
        [("Content-Type", 'application/json; charset="utf-8"; CHARSET=utf-16')],
        [JSON, ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
    ],
)
def test_a_body_of_two_types_is_refused(
    alice: httpx.Client, headers: list[tuple[str, str]]
) -> None:
    body = json.dumps(SPEECH, ensure_ascii=False).encode()
    refused = alice.post("/speak", content=body, headers=headers)
    assert problem(refused) == (400, "request-malformed")
    assert "twice" in refused.json()["detail"]
    assert problem(alice.patch("/voices/alice", content=b"{}", headers=headers))[0] == 400
    assert alice.post("/speak", content=body, headers=[JSON]).status_code == 200


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (NAME, [FORM, JSON]),
        (NAME, [FORM, ("Content-Type", "multipart/form-data; boundary=y")]),
        (NAME, [("Content-Type", "multipart/form-data; boundary=y; boundary=x")]),
        (NAME, [("Content-Type", "multipart/form-data; boundary=x; charset=a; charset=b")]),
        (NAME + b'\r\nContent-Disposition: form-data; name="transcript"', [FORM]),
        (NAME + b"\r\nContent-Type: text/plain\r\ncontent-type: text/plain; charset=big5", [FORM]),
        (NAME + b'; name="transcript"', [FORM]),
        (NAME + b'; filename="a;b\\"c"; Name=transcript', [FORM]),
        (NAME + b"\r\nContent-Type: text/plain; charset=utf-8; charset=utf-16le", [FORM]),
    ],
)
def test_a_form_that_can_be_read_in_two_ways_is_refused(
    client: httpx.Client, head: bytes, kind: list[tuple[str, str]]
) -> None:
    def send(first: bytes, headers: list[tuple[str, str]]) -> httpx.Response:
        audio = b'Content-Disposition: form-data; name="audio"; filename="a;name=b.wav"'
        parts = (first + b"\r\n\r\nbob", audio + b"\r\n\r\n" + CLIP)
        body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
        return client.post("/voices", content=body, headers=headers)

    refused = send(head, kind)
    assert problem(refused) == (400, "request-malformed"), refused.text
    assert "twice" in refused.json()["detail"]
    assert send(NAME, [FORM]).status_code == 201


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_json_of_wide_characters_is_told_what_it_is(alice: httpx.Client, charset: str) -> None:
    body = json.dumps(SPEECH | {"text": "plain"})
    refused = alice.post("/speak", content=body.encode(charset), headers=[JSON])
    assert problem(refused) == (400, "request-malformed")
    assert "zero bytes, as UTF-16 has. Send it as UTF-8." in refused.json()["detail"]


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "NaN", "Infinity", "-1", "1.5", "2147483648"]
)
def test_a_seed_is_a_whole_number(alice: httpx.Client, number: str) -> None:
    body = f'{{"voice": "alice", "text": "a", "seed": {number}}}'
    assert problem(alice.post("/speak", content=body, headers=[JSON]))[0] in (400, 422)
    for whole, seed in (("-0", "0"), ("-0.0", "0"), ("1e3", "1000"), ("7.0", "7")):
        said = alice.post("/speak", content=body.replace(number, whole), headers=[JSON])
        assert (said.status_code, said.headers["x-seed"]) == (200, seed)


def test_ranges_in_two_lines_are_no_range(alice: httpx.Client) -> None:
    lines = [("Range", "bytes=0-1"), ("Range", "bytes=0-2")]
    assert alice.get("/voices/alice/clip", headers=lines).content == CLIP
