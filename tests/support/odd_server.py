"""A server on loopback that answers as no registry does: the first part of a path says how.

`http://127.0.0.1:PORT/html` answers a page of HTML to everything, `…/html-after-get` a sound voice
to what is read and then HTML.
"""

import gzip
import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

VOICE = {
    "id": "voice_00000000000000000000000000000001",
    "name": "alice",
    "description": "",
    "labels": {},
    "defaults": {},
    "version": 1,
    "row_version": 1,
    "modes": ["icl", "xvec"],
    "transcript": None,
    "clip": {"media_type": "audio/wav", "duration_s": 2.0},
    "prompt": {"state": "ready"},
    "warnings": [],
}
SPEECH = {
    "X-Voice-Id": VOICE["id"],
    "X-Prompt-Cache": "file",
    "X-Mode": "icl",
    "X-Seed": "7",
}
ESC = "\x1b]0;owned\x07\x9b31m\u202e"


def answer(status: str, body: bytes = b"", kind: str = "text/html", **headers: str) -> bytes:
    told = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{n}: {v}" for n, v in told.items() if v), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def of_json(value: object, status: str = "200 OK", kind: str = "application/json") -> bytes:
    return answer(status, json.dumps(value).encode(), kind)


def of_problem(detail: object, status: str = "422 Unprocessable", code: str = "odd") -> bytes:
    body = {"type": "about:blank", "detail": detail, "code": code}
    return of_json(body, status, "application/problem+json")


def of_raw_json(body: bytes) -> bytes:
    return answer("200 OK", body, "application/json")


def of_sound(body: bytes = b"\1\0" * 480, kind: str = "", **changed: str | None) -> bytes:
    headers = {n: v for n, v in (SPEECH | changed).items() if v is not None}
    return answer("200 OK", body, kind or "audio/pcm; rate=24000; channels=1", **headers)


def with_voice(**changed: object) -> bytes:
    """As a voice and as a page, for what is asked may be either."""
    voice = VOICE | changed
    return of_json(voice | {"status": "ok", "data": [voice], "damaged": [], "next": None})


HTML = b"<html><title>Welcome</title><body>It works!</body></html>"
BOMB = gzip.compress(b"[" + b" " * (64 << 20) + b"]")
NO_LENGTH = {"Content_Length": ""}
CHUNKED = NO_LENGTH | {"Transfer_Encoding": "chunked"}
ENDLESS_CHUNKS = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

ANSWERS: dict[str, bytes] = {
    "html": answer("200 OK", HTML),
    "html-as-json": of_raw_json(HTML),
    "html-as-audio": answer("200 OK", HTML, "audio/html"),
    "text": answer("200 OK", b"ok", "text/plain"),
    "no-type": answer("200 OK", b"ok", ""),
    "empty": answer("200 OK"),
    "empty-json": of_raw_json(b""),
    "created-empty": answer("201 Created"),
    "no-content": answer("204 No Content"),
    "partial": answer("206 Partial Content", b"{", "application/json"),
    "list": of_json([]),
    "scalar": of_json(3),
    "null": of_json(None),
    "object": of_json({}),
    "status-only": of_json({"status": "ok"}),
    "cut-off": answer("200 OK", b'{"data": [', "application/json", Content_Length="500"),
    "half-json": of_raw_json(b'{"data": ['),
    "latin-1": of_raw_json('{"name": "Zoë"}'.encode("latin-1")),
    "utf-16": of_raw_json('{"name": 1}'.encode("utf-16")),
    "deep": of_raw_json(b"[" * 100_000),
    "deep-object": of_raw_json(b'{"id":' * 900 + b"1" + b"}" * 900),
    "deep-in-a-voice": with_voice(more=json.loads('{"a":' * 300 + "1" + "}" * 300)),
    "huge-number": of_raw_json(b"1" * 5000),
    "nan": of_raw_json(b'{"data": NaN}'),
    "null-labels": with_voice(labels=None),
    "list-labels": with_voice(labels=["a"]),
    "number-name": with_voice(name=3),
    "text-version": with_voice(row_version="1"),
    "true-version": with_voice(row_version=True),
    "no-duration": with_voice(clip={}),
    "text-duration": with_voice(clip={"duration_s": "2"}),
    "huge-duration": with_voice(clip={"duration_s": 10**400}),
    "null-warnings": with_voice(warnings=None),
    "mode-object": with_voice(modes=[{}]),
    "many-values": of_raw_json(b'{"data": [' + b"[]," * 1_100_000 + b'[]], "next": null}'),
    "surrogate-label": with_voice(labels={"a": "\ud800"}),
    "null-id": with_voice(id=None),
    "accented-id": with_voice(id="voice_a\u00e9"),
    "surrogate-id": with_voice(id="\ud800"),
    "path-as-id": with_voice(id="../voices"),
    "control-codes": with_voice(name=f"al{ESC}", warnings=[ESC], labels={ESC: ESC}),
    "surrogates": with_voice(name="al\ud800ice", description="\udfff"),
    "markup": with_voice(name="[/red]", description="[link=x]"),
    "newlines": with_voice(name="a\nError: b", description="a\nid   b"),
    "endless-pages": of_json({"data": [VOICE], "damaged": [], "next": "x"}),
    "empty-pages": of_json({"data": [], "damaged": [], "next": "x"}),
    "null-next": of_json({"data": [VOICE], "damaged": [], "next": 3}),
    "gzip-bomb": answer("200 OK", BOMB, "application/json", Content_Encoding="gzip"),
    "gzip": answer("200 OK", gzip.compress(b"{}"), "application/json", Content_Encoding="gzip"),
    "brotli": answer("200 OK", b"\x0b\x01", "application/json", Content_Encoding="br"),
    "no-end": answer("200 OK", b"{}", "application/json", **NO_LENGTH),
    "bad-chunk": answer("200 OK", b"zz\r\n", **CHUNKED),
    "redirect": answer("301 Moved", b"", Location="https://elsewhere.example/voices"),
    "redirect-to-itself": answer("307 Again", b"", Location="/redirect-to-itself/voices"),
    "redirect-to-nonsense": answer("302 Found", b"", Location="http://[::1"),
    "redirect-to-no-port": answer("302 Found", b"", Location="https:////: https:////a/b"),
    "redirect-to-half-a-bracket": answer("302 Found", b"", Location=":https://elsewh]ere"),
    "redirect-to-half-a-name": answer("302 Found", b"", Location="http://xn--a/"),
    "redirect-to-no-name": answer("302 Found", b"", Location="http://xn--/x"),
    "redirect-with-codes": answer("302 Found", b"", Location="/\x9b31m"),
    "not-done": answer("303 See Other", b"", Location="?__modal_function_call_id=fc-1"),
    "bad-request": answer("400 Bad Request", HTML),
    "token": answer("401 Unauthorized", b"modal-http: missing credentials", "text/plain"),
    "token-html": answer("401 Unauthorized", HTML),
    "forbidden": answer("403 Forbidden", b"modal-http: invalid credentials", "text/plain"),
    "gone": answer("404 Not Found", b"modal-http: invalid function call", "text/plain"),
    "gone-html": answer("404 Not Found", HTML),
    "too-slow": answer("408 Request Timeout", b"modal-http: took too long", "text/plain"),
    "teapot": answer("418 I'm a teapot", ESC.encode(), "text/plain"),
    "rate": answer("429 Too Many Requests", b"", Retry_After="86400"),
    "rate-silent": answer("429 Too Many Requests", b"slow down", "text/plain"),
    "rate-nonsense": answer("429 Too Many Requests", b"", Retry_After="soon"),
    "rate-date": answer("429 Too Many", b"", Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    "broken": answer("500 Internal Server Error", HTML),
    "bad-gateway": answer("502 Bad Gateway", b"modal-http: internal error", "text/plain"),
    "unavailable": answer("503 Service Unavailable", HTML),
    "unavailable-long": answer("503 Service Unavailable", b"", Retry_After="99999999999"),
    "gateway-time": answer("504 Gateway Timeout", HTML),
    "odd-status": answer("799 Whatever", HTML),
    "problem": of_problem("No such thing."),
    "problem-codes": of_problem(f"No {ESC} such\nthing."),
    "problem-list": of_problem(["no"]),
    "problem-long": of_problem("no " * 100_000),
    "problem-broken": answer("422 No", b"{", "application/problem+json"),
    "problem-deep": answer("422 No", b"[" * 100_000, "application/problem+json"),
    "problem-cold": of_problem("Cold.", "503 Service Unavailable", "gpu-cold"),
    "not-http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x28",
    "http-0.9": HTML,
    "silence": b"",
    "half-a-header": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "bad-header": b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
    "huge-header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    "two-lengths": answer("200 OK", b"{}", "application/json", Content_length="5"),
    "upgrade": answer("101 Switching Protocols", b"", Upgrade="h2c", Connection="upgrade"),
    "speech": of_sound(),
    "speech-no-headers": answer("200 OK", b"\1\0" * 480, "audio/pcm; rate=24000"),
    "speech-no-seed": of_sound(**{"X-Seed": None}),
    "speech-text-seed": of_sound(**{"X-Seed": "seven"}),
    "speech-huge-seed": of_sound(**{"X-Seed": "7" * 5000}),
    "speech-codes": of_sound(**{"X-Prompt-Cache": "\x9b31m"}),
    "speech-no-rate": of_sound(kind="audio/pcm"),
    "speech-zero-rate": of_sound(kind="audio/pcm; rate=0"),
    "speech-html": of_sound(HTML, "text/html"),
    "speech-flac": of_sound(b"fLaC", "audio/flac", **{"X-Audio-Seconds": "nan"}),
    "speech-empty": of_sound(b""),
    "speech-cut-off": of_sound(b"\1\0", Content_Length="48000"),
    "speech-no-end": of_sound(Content_Length=""),
}
FOREVER = {  # beginning, and what follows without end
    "endless": answer("200 OK", b"", "application/json", **CHUNKED),
    "endless-refusal": answer("500 No", **CHUNKED),
    "endless-speech": of_sound(b"", **CHUNKED),
    "endless-clip": answer("200 OK", b"", "audio/wav", **CHUNKED),
}
AFTER_GET = "-after-get"
CUT = "cut"
KINDS = (*ANSWERS, *FOREVER, CUT)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            method, _, kind = self._request()
            if kind.endswith(AFTER_GET):
                kind = kind.removesuffix(AFTER_GET) if method != "GET" else ""
            if kind == CUT:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                return os.close(self.connection.detach())  # resets it
            if kind in FOREVER:
                self.wfile.write(FOREVER[kind])
                while True:
                    self.wfile.write(ENDLESS_CHUNKS)
            self.wfile.write(ANSWERS.get(kind) or with_voice() if kind != "silence" else b"")

    def _request(self) -> tuple[str, str, str]:
        """Its method, its path and the kind of answer that it asks for; the body is read."""
        line = self.rfile.readline().decode("latin-1")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0]
        size, chunked = 0, False
        while (header := self.rfile.readline().decode("latin-1").strip().lower()) != "":
            if header.startswith("content-length:"):
                size = int(header.partition(":")[2])
            chunked |= header == "transfer-encoding: chunked"
        assert not chunked, "the command line knows how long its bodies are"
        self.rfile.read(size)
        return method, path, path.split("/")[1]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def odd_server() -> Iterator[Callable[[str], str]]:
    """What gives the URL for each kind of answer."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield lambda kind: f"http://127.0.0.1:{server.server_address[1]}/{kind}"
        finally:
            server.shutdown()
            thread.join()
