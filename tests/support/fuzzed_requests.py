"""Parsers of what clients send, to be fuzzed: bodies, headers, names and words."""

import asyncio
import math
import unicodedata
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fuzzing import JSON_TOKENS, Parser
from pydantic import TypeAdapter, ValidationError

from registry.api.charset import NotText, decode
from registry.api.etags import Tags
from registry.api.events import accepted
from registry.api.file_answers import spans_of
from registry.api.forms import MEDIA_TYPE, read_form
from registry.api.host_and_origin import Fence, Hosts
from registry.api.native.voices import EnrolmentForm, LabelQuery, VoicePatch, _labels
from registry.api.requests import (
    _query_names,
    _refuse_unknown_fields,
    deadline_of,
    parse_json,
    refuse_other_type,
    refuse_unknown,
)
from registry.errors import (
    ContentTypeUnsupported,
    CursorInvalid,
    FieldInvalid,
    HostUnknown,
    LanguageUnsupported,
    NameInvalid,
    OriginRefused,
    RangeUnsatisfiable,
    RequestMalformed,
    TextInvalid,
    TextTooLong,
)
from registry.invisible import JOINERS
from registry.names import check_name, name_key
from registry.storage.queries import _key_of
from registry.storage.stored_voice import cursor
from registry.storage.uploads import Upload
from registry.text import clean_text
from registry.voices.languages import ALSO, language_named

# Bodies


class Untouched(Upload):
    """A clip that is counted, and kept nowhere."""

    def __init__(self) -> None:
        super().__init__(None, "", lambda upload: None)  # type: ignore[arg-type]

    def write(self, part: bytes | bytearray) -> None:
        self._hash.update(part)


def read_a_form(data: bytes) -> None:
    """Its Content-Type is in the first line; the body comes in two parts."""
    kind, _, body = data.partition(b"\n")
    at = len(data) % (len(body) + 1)
    parts = [body[:at], body[at:]]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def read() -> None:
        refuse_other_type(request, MEDIA_TYPE)
        form = await read_form(request, EnrolmentForm, Untouched())
        _labels(form.labels)

    request = Request(scope(content_type=kind), receive)
    asyncio.run(read())


def scope(**headers: bytes) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "scheme": "http", "headers": named}


def form(*parts: tuple[str, bytes], kind: bytes = b"multipart/form-data; boundary=x") -> bytes:
    head = "--x\r\nContent-Disposition: form-data; name="
    made = [head.encode() + about.encode() + b"\r\n\r\n" + value for about, value in parts]
    return kind + b"\n" + b"\r\n".join([*made, b"--x--\r\n"])


CLIP_FIELD = ('"audio"; filename="a.wav"\r\nContent-Type: audio/wav', b"RIFF")
FORM = Parser(
    read_a_form,
    (RequestMalformed, FieldInvalid, ContentTypeUnsupported, RequestValidationError),
    [
        form(('"name"', b"alice"), CLIP_FIELD),
        form(CLIP_FIELD, ('"name"', b"bob"), ('"labels"', b'{"use": "demo"}')),
        form(
            ("name", b"a"),
            ("audio", b""),
            ('"transcript"', "Grüße".encode()),
            ('"language"', b"en"),
        ),
        form(('"_charset_"', b"gb18030"), ('"name"', "你".encode("gb18030")), CLIP_FIELD),
        form(
            ("name; filename*=UTF-8''a%20b", b"a"),
            CLIP_FIELD,
            kind=b'Multipart/Form-Data;boundary="x"',
        ),
        form(
            ('"name"\r\nContent-Type: text/plain; charset=utf-16', "a".encode("utf-16")), CLIP_FIELD
        ),
    ],
    [
        *(
            b"--x",
            b"--x--",
            b"\r\n",
            b"\r",
            b"\n",
            b"\r\n\r\n",
            b"; ",
            b'"',
            b"\\",
            b"=",
            b":",
            b"\0",
        ),
        *(b"name=", b"filename=", b"filename*=", b"charset=", b"boundary=", b"UTF-8''%FF", b"\xff"),
        *(b"Content-Disposition: form-data; ", b"Content-Type: text/plain", b"name*0=", b"name*1="),
        *(
            b"Content-Transfer-Encoding: base64",
            b"audio",
            b"labels",
            b"_charset_",
            b"utf-16",
            b"idna",
        ),
    ],
)


def read_an_edit(body: bytes) -> None:
    """As the route does, in its order."""
    found = parse_json(body)
    try:
        VoicePatch.model_validate(found)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        invalid = RequestValidationError(found)
        if any(one["type"] == "extra_forbidden" for one in found):
            _refuse_unknown_fields(invalid, VoicePatch)
        raise invalid from error


JSON = Parser(
    read_an_edit,
    (RequestMalformed, FieldInvalid, RequestValidationError),
    [
        b'{"name": "alice", "description": "calm", "transcript": null}',
        b'{"labels": {"use": "demo", "a.b": ""}, "transcript": "Gr\\u00fc\\u00dfe, \xe4\xb8\x96"}',
        b'{"defaults": {"mode": "icl", "temperature": 0.9, "top_k": 50, "seed": 3.0}}',
        b"{}",
    ],
    JSON_TOKENS,
)
CHARSETS = Parser(
    lambda name: decode(b"a\x80\xe4\xbd\xa0+AGE-\x1b$B\xff\xfe\0", name),
    (NotText,),
    [*("utf-8", "UTF_16", "gb18030", "latin-1", "iso-2022-jp", "cp1252", "shift_jis", "koi8-r")],
    [
        *("utf", "-", "_", " ", "16", "le", "\0", "idna", "punycode", "hex", "rot13", "raw", "sig"),
        *("hz", "utf-7", "mbcs", "undefined", "unicode_escape", "big5", "base64", "\ud800"),
    ],
)


# Headers, which are ISO 8859-1 by now


def read_a_range(header: str) -> None:
    spans = spans_of(header, 1000)
    assert all(0 <= start < end <= 1000 for start, end in spans)
    assert sum(end - start for start, end in spans) <= 1000


def read_tags(header: str) -> None:
    found = Tags.of(header)
    assert all(found.has(tag) for tag in found.tags)


def read_prefer(header: str) -> None:
    found = asyncio.run(deadline_of(header)).most_s
    assert 0 <= found <= 9999 or found == math.inf


def read_who_asks(header: bytes) -> None:
    """Host and Origin, as the fence asks for them."""
    host, _, origin = header.partition(b"\n")
    if refused := FENCE._refusal(scope(host=host, origin=origin)):
        raise refused


FENCE = Fence(None, Hosts.of(["127.0.0.1", "::1"], ["*.example.org"]), ["https://a.example"])  # type: ignore[arg-type]
RANGE = Parser(
    read_a_range,
    (RangeUnsatisfiable,),
    ["bytes=0-1", "bytes=-500", "bytes=9-", "bytes=0-0, 5-9,-1", "Bytes = 999-1000"],
    [*("bytes", "=", "-", ",", " ", "0", "999", "1000", "9" * 18, "9" * 19, "\xb2", "\t", "0-1,")],
)
TAGS = Parser(
    read_tags,
    (),
    ['"1"', 'W/"a", "b"', "*", '"é", , "x"'],
    [*('"', "W/", ",", " ", "*", '""', "\t", "\x7f", "\xff", "\\")],
)
PREFER = Parser(
    read_prefer,
    (),
    ["wait=30", "respond-async, wait = 5; x=y", "WAIT=9999", "handling=lenient"],
    [*("wait", "=", ",", ";", " ", "9", "99999", "-1", "\t", "\xb2", '"')],
)
ACCEPT = Parser(
    accepted,
    (),
    ["text/event-stream", "*/*", "text/event-stream;q=0, audio/wav", "audio/*;q=0.5,text/html"],
    [*("text/event-stream", ";", ",", "q=0.0", "q=", "=", "*", "/", " ", "\xa0", '"')],
)
WHO = Parser(
    read_who_asks,
    (HostUnknown, OriginRefused),
    [
        b"localhost:8000\nhttp://localhost:8000",
        b"127.0.0.1\nnull",
        b"[::1]:80\nhttp://[::1]",
        b"a.example.org.\nhttps://a.example",
        b"[::ffff:127.0.0.1%25eth0]\n",
    ],
    [
        *(b":", b"[", b"]", b"::", b"%", b".", b"@", b"/", b"\n", b"http://", b"https://", b"null"),
        *(b"127.0.0.1", b"localhost", b"65536", b"0", b"0x7f", b"\xff", b"\xb2", b"example.org"),
    ],
)


# Words


def read_a_text(text: str) -> None:
    """What is clean stays so; but for joiners, which marks in another order can stand before."""
    clean = clean_text(text, 200)
    assert without_joiners(clean_text(clean, 200)) == without_joiners(clean)


def without_joiners(text: str) -> str:
    """In NFC, for a joiner keeps the marks around it in their order."""
    found = "".join(character for character in text if character not in JOINERS)
    return unicodedata.normalize("NFC", found)


def read_a_name(text: str) -> None:
    name = check_name(text)
    assert check_name(name) == name and name_key(name_key(name)) == name_key(name)


MARKS = [
    *("\u0301", "\u0323", "\u200d", "\u200c", "\u00ad\n", "\u202e", "\ufeff", "\u3164", "\u2800"),
    *("\ufdfa", "\u1100\u1161", "\u2028", "\x85", "\r\n", "\t", " ", "\u3000", "\0", "\ud800"),
    *("\uff0f", "\U000e0041", "\u0130", "\u094d", "\u0345", "\u1fb3", "\ufffc", "👩‍👩‍👧"),
]
SENTENCES = [
    "Hello, world.",
    "Grüße an Zoë",
    "世界、こんにちは",
    "می‌خواهم",
    "हिन्दी क्‍ष",
    "ﬁﬀ ǅ ß ŉ",
    "a1",
]
TEXT = Parser(read_a_text, (TextInvalid, TextTooLong), SENTENCES, [*MARKS, "a" * 199, "%"])
NAME = Parser(
    read_a_name, (NameInvalid,), [*SENTENCES, "alice-2"], [*MARKS, "voice_", "-", ".", "@", "/"]
)
LANGUAGE = Parser(
    lambda text: language_named(text, ("chinese", "english", "french")),
    (LanguageUnsupported,),
    [*ALSO, "en-US", "EN_us", "zh-Hans", "zh-yue", "auto", "fr.UTF-8@euro", "Français", "中文"],
    [*("-", "_", "zh", "yue", ".", "@", "=", "x-", *MARKS)],
)


def read_a_query(query: bytes) -> None:
    """What a page of voices is asked by, up to the database."""
    request = Request(scope() | {"query_string": query})
    for name in _query_names(request, {"label"}):
        refuse_unknown(name, ("after", "label", "search"), "a query parameter here")
    for label in request.query_params.getlist("label"):
        LABEL.validate_python(label)
    if (after := request.query_params.get("after")) is not None:
        _key_of(after).encode()
    name_key(request.query_params.get("search", "")).encode()


LABEL: TypeAdapter[str] = TypeAdapter(LabelQuery)
QUERY = Parser(
    read_a_query,
    (FieldInvalid, CursorInvalid, ValidationError),
    [
        b"label=use%3Ddemo&label=a&search=al",
        b"after=" + cursor("grüße").encode(),
        b"after=YWxpY2U%3D&search=%E4%B8%96",
    ],
    [
        *(b"&", b"=", b"%", b"%ff", b"%00", b"%ed%a0%80", b";", b"+", b"after=", b"label=", b"_"),
        *(b"%3D", b"-", b"\xff", b"search=", b"YQ", b"7aCA", b"%ef%b7%ba", b"a" * 330),
    ],
)


REQUESTS: dict[str, Parser[Any]] = {
    "a form": FORM,
    "an edit": JSON,
    "a charset": CHARSETS,
    "Range": RANGE,
    "If-Match": TAGS,
    "Prefer": PREFER,
    "Accept": ACCEPT,
    "Host and Origin": WHO,
    "a text": TEXT,
    "a name": NAME,
    "a language": LANGUAGE,
    "a query": QUERY,
}
