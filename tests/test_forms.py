"""What comes in is what was sent: forms, JSON, paths and queries in any charset, or a refusal."""

import encodings
import json
import socket
from contextlib import suppress

import httpx
import pytest
from api import CLIP, add, problem

from registry.api.charset import NotText, decode

Part = tuple[str, bytes]  # what follows `form-data; `, headers included; the content
AUDIO: Part = ('name="audio"; filename="ref.wav"', CLIP)
CHINESE = "你好世界"
FRENCH = "naïve café"


def form(*parts: Part) -> bytes:
    head = b"--x\r\nContent-Disposition: form-data; "
    made = [head + about.encode() + b"\r\n\r\n" + content + b"\r\n" for about, content in parts]
    return b"".join(made) + b"--x--\r\n"


def send(client: httpx.Client, *parts: Part, more: str = "") -> httpx.Response:
    headers = {"content-type": f"multipart/form-data; boundary=x{more}"}
    given = (('name="name"', b"alice"), AUDIO, *parts)
    return client.post("/voices", content=form(*given), headers=headers)


TYPED = 'name="transcript"\r\nContent-Type: text/plain; charset='


@pytest.mark.slow
@pytest.mark.parametrize(
    ("about", "content", "words"),
    [
        ('name="transcript"', CHINESE.encode(), CHINESE),
        ('name="transcript"', b"\xef\xbb\xbf" + CHINESE.encode(), CHINESE),
        ('name="transcript"; filename="words.txt"', CHINESE.encode(), CHINESE),
        ("name=transcript", CHINESE.encode(), CHINESE),
        (TYPED + "gbk", CHINESE.encode("gbk"), CHINESE),
        (TYPED + '"GB18030"', CHINESE.encode("gb18030"), CHINESE),
        (TYPED + "big5", "你好".encode("big5"), "你好"),
        (TYPED + "shift_jis", "こんにちは".encode("shift_jis"), "こんにちは"),
        (TYPED + "iso-8859-1", FRENCH.encode("latin-1"), FRENCH),
        (TYPED + "windows-1252", "dé€u".encode("cp1252"), "dé€u"),
        (TYPED + "koi8-r", "привет".encode("koi8-r"), "привет"),
        (TYPED + "utf-16", FRENCH.encode("utf-16"), FRENCH),
        (TYPED + "utf-16be", FRENCH.encode("utf-16be"), FRENCH),
        (TYPED + "utf-8", CHINESE.encode(), CHINESE),
    ],
)
def test_a_transcript_in_a_declared_charset_is_that_text(
    client: httpx.Client, about: str, content: bytes, words: str
) -> None:
    created = send(client, (about, content))
    assert created.status_code == 201, created.text
    assert created.json()["transcript"] == words


def test_charsets_that_nobody_knows_are_not_kept() -> None:
    """Python keeps every name that it was asked for, for ever."""
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(2000):
        for name in (
            f"x-{number}",
            f"utf-{'-' * (number % 30)}8",
            f"{number:0100}",
            f"ut\u00f8{number}",
        ):
            with suppress(NotText):
                decode(b"hello", name)
    assert len(encodings._cache) <= before + 2  # type: ignore[attr-defined]
    assert decode(b"hello", "utf-----8") == "hello"


@pytest.mark.parametrize(
    ("about", "content"),
    [
        ('name="transcript"', CHINESE.encode("gbk")),
        ('name="transcript"', FRENCH.encode("latin-1")),
        ('name="transcript"', FRENCH.encode("utf-16")),
        ('name="transcript"; filename="words.txt"', CHINESE.encode("gbk")),
        ('name="transcript"', "\ud83d\ude00".encode("utf-8", "surrogatepass")),
        ('name="transcript"', b"over\xc0\xaflong"),
        ('name="transcript"', CHINESE.encode()[:-1]),
        ('name="transcript"', "hello there".encode("utf-16le")),
        ('name="description"; filename="a.txt"', "hello there".encode("utf-16be")),
        (TYPED + "utf-8", CHINESE.encode("gbk")),
        (TYPED + "us-ascii", CHINESE.encode()),
        (TYPED + "utf-16", FRENCH.encode("utf-16le")),
        (TYPED + "klingon", b"hello"),
        (TYPED + "unicode_escape", b"hello"),
        (TYPED + "utf-7", b"hello"),
        (TYPED + "rot13", b"hello"),
        ('name="description"', CHINESE.encode("gbk")),
        ('name="language"', CHINESE.encode("gbk")),
        ('name="labels"', b'{"a": "' + CHINESE.encode("gbk") + b'"}'),
    ],
)
def test_a_field_of_any_other_charset_is_refused_by_name(
    client: httpx.Client, about: str, content: bytes
) -> None:
    refused = send(client, (about, content))
    assert problem(refused) == (422, "request-invalid")
    assert refused.json()["field"] == about.split('"')[1]
    assert "UTF-8" in refused.json()["detail"]
    assert client.get("/voices").json()["data"] == []


def test_a_name_of_another_charset_is_no_name(client: httpx.Client) -> None:
    body = form(('name="name"', CHINESE.encode("gbk")), AUDIO)
    refused = client.post(
        "/voices", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert problem(refused) == (422, "request-invalid")


def test_a_form_declares_its_charset_in_a_field_or_in_its_type(client: httpx.Client) -> None:
    words = ('name="transcript"', CHINESE.encode("gbk"))
    assert send(client, ('name="_charset_"', b"gbk"), words).json()["transcript"] == CHINESE
    client.delete("/voices/alice")
    assert send(client, words, more="; charset=gbk").json()["transcript"] == CHINESE


@pytest.mark.parametrize("about", ['name="audio"', 'name="audio"; filename=""', "name=audio"])
def test_a_clip_needs_no_file_name(client: httpx.Client, about: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    body = form(('name="name"', b"alice"), (about, CLIP))
    assert client.post("/voices", content=body, headers=headers).status_code == 201
    assert client.get("/voices/alice/clip").content == CLIP


@pytest.mark.parametrize("sent", ["one\r\ntwo", "one\rtwo", "one\ntwo"])
def test_lines_end_as_in_unix_wherever_they_come_from(client: httpx.Client, sent: str) -> None:
    created = add(client, "alice", description=sent, labels=json.dumps({"a": sent}))
    assert created.json()["description"] == created.json()["labels"]["a"] == "one\ntwo"
    edited = client.patch("/voices/alice", json={"description": sent, "labels": {"b": sent}})
    assert edited.json()["description"] == edited.json()["labels"]["b"] == "one\ntwo"
    assert add(client, "bob", description="a\r\n" * 1000).status_code == 201


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (('name="trascript"', b"x"), "Did you mean 'transcript'?"),
        (('name="Audio"', b"x"), "Did you mean 'audio'?"),
        (('name="file"; filename="a.wav"', CLIP), "There are name, audio, transcript,"),
        (('name="audio"; filename="b.wav"', CLIP), "'audio' is given twice"),
        (('name="name"', b"bob"), "'name' is given twice"),
        (('name="labels"', b"use=books"), 'such as {"use": "books"}'),
        (('name="labels"', b'{"a": "1", "a": "2"}'), "'a' twice"),
        (('name="transcript"\r\nContent-Transfer-Encoding: base64', b"aGk="), "'base64'"),
        (('name="transcript"', b"x" * 70_000), "more than 64 KiB"),
        (('name="transcript"\r\nContent-Type: application/rtf', b"{\\rtf1 hi}"), "application/rtf"),
        (
            (
                'name="transcript"\r\nContent-Type: multipart/mixed; boundary=y',
                b"--y\r\n\r\nhi\r\n--y--",
            ),
            "sent as multipart/mixed, not as plain text",
        ),
        (('name="transcript"; filename="a.wav"', CLIP[:5000]), "is not UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_can_not_be_meant_is_told_so(
    client: httpx.Client, part: Part, said: str
) -> None:
    refused = send(client, part)
    assert problem(refused) == (422, "request-invalid")
    assert said in refused.json()["detail"]


WHOLE = form(('name="name"', b"alice"), AUDIO)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", WHOLE),
        ("; boundary=", WHOLE),
        ("; boundary=y", WHOLE),
        ("; boundary=" + "x" * 300, WHOLE),
        ("; boundary=x", WHOLE[:-5]),
        ("; boundary=x", WHOLE[: len(WHOLE) // 2]),
        ("; boundary=x", b""),
        ("; boundary=x", CLIP),
        ("; boundary=x", WHOLE.replace(b'name="audio"', b'nome="audio"')),
        ("; boundary=x", WHOLE.replace(b'name="audio"', b"name*=utf-8''audio")),
        ("; boundary=x", WHOLE.replace(b"Content-Disposition", b"Content Disposition")),
        ("; boundary=x", WHOLE.replace(b'name="audio"', 'name="é"'.encode("latin-1"))),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_form_is_malformed(client: httpx.Client, kind: str, body: bytes) -> None:
    headers = {"content-type": f"multipart/form-data{kind}"}
    assert problem(client.post("/voices", content=body, headers=headers)) == (
        400,
        "request-malformed",
    )


def test_a_body_of_another_kind_is_415(client: httpx.Client) -> None:
    for kind, more in (
        ("application/x-www-form-urlencoded", {}),
        ("multipart/mixed; boundary=x", {}),
        ("multipart/form-data; boundary=x", {"content-encoding": "gzip"}),
    ):
        refused = client.post("/voices", content=WHOLE, headers={"content-type": kind} | more)
        assert problem(refused) == (415, "content-type-unsupported")


JSON = "application/json"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b"{'description': 'x'}", JSON),
        (b'{"description": "x",}', JSON),
        (b'{"description": NaN}', JSON),
        (b"[" * 30_000, JSON),
        (b"1" * 5000, JSON),
        (b'{"description": "caf\xe9"}', JSON),
        ('{"description": "你"}'.encode("gbk"), JSON),
        ('{"description": "x"}'.encode("utf-16"), JSON),
        (b'{"description": "x"}', JSON + "; charset=klingon"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json_is_malformed(client: httpx.Client, body: bytes, kind: str) -> None:
    add(client, "alice")
    refused = client.patch("/voices/alice", content=body, headers={"content-type": kind})
    assert problem(refused) == (400, "request-malformed")
    assert client.get("/voices/alice").json()["row_version"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"description": "a", "description": "b"}', "'description' twice"),
        (b'{"labels": {"a": "1", "a": "2"}}', "'a' twice"),
        (b'{"descripton": "a"}', "Did you mean 'description'?"),
        (b'{"defaults": {"temprature": 1}}', "Did you mean 'temperature'?"),
        (b'{"description": 1}', "description: Input should be a valid string"),
        (b'{"description": "a\\u0007"}', "description: holds U+0007"),
        (b'{"\\udfff": "a", "\\udfff": "b"}', "twice"),
        (b'{"\\udfff": "a"}', "The request is not valid"),
        (b'{"labels": {"\\udfff": 1}}', "The request is not valid"),
        (b'{"labels": {"\\udfff": "\\udfff"}}', "The request is not valid"),
        (b'{"defaults": {"\\udfff": 1}}', "The request is not valid"),
        (b"null", "The request is not valid"),
        (b'"x"', "The request is not valid"),
    ],
)
def test_json_of_a_wrong_shape_is_invalid(client: httpx.Client, body: bytes, said: str) -> None:
    add(client, "alice")
    refused = client.patch("/voices/alice", content=body, headers={"content-type": JSON})
    assert problem(refused) == (422, "request-invalid")
    assert said in refused.json()["detail"]
    assert client.get("/voices/alice").json()["row_version"] == 1


def test_json_in_a_declared_charset_is_that_text(client: httpx.Client) -> None:
    add(client, "alice")
    for charset in ("gbk", "utf-16", "utf-8"):
        body = json.dumps({"description": CHINESE}, ensure_ascii=False).encode(charset)
        kind = {"content-type": f"{JSON}; charset={charset}"}
        edited = client.patch("/voices/alice", content=body, headers=kind)
        assert edited.json()["description"] == CHINESE


def test_a_path_that_is_no_text_is_nobodys(client: httpx.Client) -> None:
    add(client, "caf\ufffd")
    assert client.get("/voices/caf%EF%BF%BD").status_code == 200
    for path in ("caf%E9", "caf%FF", "%ED%A0%80", "caf%E9/clip"):
        assert problem(client.get(f"/voices/{path}")) == (404, "not-found")
    assert problem(client.delete("/voices/caf%E9")) == (404, "not-found")
    assert problem(client.get("/voices/%00")) == (404, "voice-not-found")
    assert client.get("/voices/caf%EF%BF%BD").status_code == 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("search=caf%E9", "is not UTF-8"),
        ("labl=a", "Did you mean 'label'?"),
        ("offset=5", "There are limit, after, search, label."),
        ("limit=1&limit=2", "'limit' is given twice"),
        ("search=a&search=b", "'search' is given twice"),
    ],
)
def test_a_query_is_known_and_text(client: httpx.Client, query: str, said: str) -> None:
    refused = client.get(f"/voices?{query}")
    assert problem(refused) == (422, "request-invalid")
    assert said in refused.json()["detail"]
    assert problem(client.get("/voices/alice?x=1")) == (422, "request-invalid")


def test_raw_bytes_in_a_target_are_no_http(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 0)
    for target in ("/voices/é", "/voices?search=é"):
        with socket.create_connection(address, 30) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")
