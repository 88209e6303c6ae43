"""POST /speak as server-sent events: what is heard, how it ends, and how it breaks off."""

import json
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import click
import httpx
import pytest
from api import add, problem
from fakes import FakeInference, Pace

from cli.api.client import Registry
from cli.api.connection import http_client
from cli.api.events import audio_of
from registry.errors import SpeechFailed

REQUEST = {"voice": "alice", "text": "Hello there, you.", "seed": 3}
EVENTS = {"stream_format": "sse"}
BROKEN = SpeechFailed("What the model made is not finite.")


@pytest.fixture
def alice(client: httpx.Client) -> httpx.Client:
    assert add(client, "alice").status_code == 201
    return client


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    *lines, end = reply.text.split("\n\n")
    assert end == "" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def audio(found: list[dict[str, Any]]) -> bytes:
    return b"".join(b64decode(event["audio"], validate=True) for event in found if "audio" in event)


@pytest.mark.parametrize("format", ["pcm", "wav", "flac", "mp3_44100_128", "opus", "aac"])
def test_the_parts_of_all_events_are_what_a_stream_sends(alice: httpx.Client, format: str) -> None:
    asked = REQUEST | {"format": format}
    reply = alice.post("/speak", json=asked | EVENTS)
    plain = alice.post("/speak", json=asked | {"stream": True})
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["X-Audio-Type"] == plain.headers["Content-Type"]
    assert reply.headers["X-Seed"] == "3" and reply.headers["Cache-Control"] == "no-cache"
    *parts, last = events(reply)
    assert audio(parts) == plain.content
    assert {part["type"] for part in parts} == {"speech.audio.delta"} and len(parts) > 1
    assert last == {"type": "speech.audio.done", "seconds": 0.85}


def test_the_last_event_tells_the_length_at_the_speed_that_was_asked(alice: httpx.Client) -> None:
    reply = alice.post("/speak", json=REQUEST | EVENTS | {"format": "pcm_8000", "speed": 2})
    assert reply.headers["X-Audio-Type"] == "audio/pcm;rate=8000;channels=1"
    *parts, last = events(reply)
    assert last == {"type": "speech.audio.done", "seconds": 0.425}
    assert len(audio(parts)) == 2 * 0.425 * 8000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("audio/wav;q=0.5, text/event-stream;q=0.9", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream; q=0.000", False),
        ("*/*", False),
        ("text/*", False),
        ("audio/pcm", False),
        ("text/event-streams", False),
        ("", False),
    ],
)
def test_accept_asks_for_them_too(alice: httpx.Client, accept: str, asked: bool) -> None:
    reply = alice.post("/speak", json=REQUEST, headers={"Accept": accept})
    assert reply.headers["Content-Type"].startswith("text/event-stream") == asked


def test_each_event_arrives_before_the_next_one_is_made(
    alice: httpx.Client, fake: FakeInference
) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", "/speak", json=REQUEST | EVENTS | {"format": "pcm"}) as reply:
        parts: Iterator[str] = (line for line in reply.iter_lines() if line)
        assert "speech.audio.delta" in next(parts)
        for _ in range(3):
            fake.pace.give()
            assert "speech.audio.delta" in next(parts)
        assert "speech.audio.done" in next(parts)


def test_what_is_refused_is_no_event(alice: httpx.Client, fake: FakeInference) -> None:
    missing = alice.post("/speak", json=REQUEST | EVENTS | {"voice": "nobody"})
    assert problem(missing) == (404, "voice-not-found")
    wrong = alice.post("/speak", json=REQUEST | {"stream_format": "audios"})
    assert problem(wrong) == (422, "request-invalid")


def test_what_breaks_off_is_told_and_then_cut(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=1)
    heard: list[str] = []
    with alice.stream("POST", "/speak", json=REQUEST | EVENTS) as reply:
        lines = (line for line in reply.iter_lines() if line)
        heard.append(next(lines))
        fake.pace.give(error=BROKEN)
        with pytest.raises(httpx.RemoteProtocolError):
            heard.extend(lines)
    error = json.loads(heard[-1].removeprefix("data: "))
    assert error == {
        "type": "error",
        "error": {"code": "speech-failed", "message": "What the model made is not finite."},
    }
    assert not any("speech.audio.done" in line for line in heard)


def test_who_leaves_ends_the_speech(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", "/speak", json=REQUEST | EVENTS) as reply:
        next(reply.iter_lines())
        fake.pace.until_asked()
    assert fake.pace.left.wait(30)


# The command line behind Modal


def spoken(client: httpx.Client, **headers: str) -> tuple[bytes, float]:
    with http_client(str(client.base_url), headers) as http:
        file = BytesIO()
        _, seconds = Registry(http).speak(REQUEST | {"format": "wav"}, file)
        return file.getvalue(), seconds


def test_the_command_line_asks_modal_for_events(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stream = Registry.stream

    def noted(self: Registry, *request: Any, **options: Any) -> Any:
        asked.append(options["headers"].get("Accept", ""))
        return stream(self, *request, **options)

    monkeypatch.setattr(Registry, "stream", noted)
    direct, behind = spoken(alice), spoken(alice, **{"Modal-Key": "wk-1", "Modal-Secret": "ws-1"})
    assert asked == ["", "text/event-stream"]
    assert direct == behind and direct[1] == 0.85


AUDIO = b'data: {"type": "speech.audio.delta", "audio": "AAAA"}\n\n'
DONE = b'data: {"type": "speech.audio.done"}\n\n'


def test_events_may_come_in_any_pieces() -> None:
    body = (
        b": a comment\r\n\r\n" + AUDIO + b'event: x\ndata: {"type": "new.kind"}\n\n' + AUDIO + DONE
    )
    for size in (1, 2, 7, 1000):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        assert b"".join(audio_of(iter(pieces))) == bytes(6)
    assert b"".join(audio_of(iter([body.replace(b"\n", b"\r\n")]))) == bytes(6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (AUDIO, "broke off before its end."),
        (b"", "broke off before its end."),
        (AUDIO + b"data: {\n\n", "no event of a speech"),
        (b"data: []\n\n", "no event of a speech"),
        (b"data: 1\n\n", "no event of a speech"),
        (b'data: {"type": "speech.audio.delta"}\n\n', "no event of a speech"),
        (b'data: {"type": "speech.audio.delta", "audio": "A"}\n\n', "no event of a speech"),
        (b'data: {"type": "speech.audio.delta", "audio": 1}\n\n', "no event of a speech"),
        (b'data: {"type": "error"}\n\n', "no event of a speech"),
        (b'data: {"type": "error", "error": {"message": "Lost."}}\n\n', "before its end. Lost."),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no event of a speech"),
        (b"data: \xff\n\n", "no event of a speech"),
        (b"x" * (5 << 20), "has no end"),
    ],
)
def test_events_that_are_none_get_a_sentence(body: bytes, said: str) -> None:
    with pytest.raises(click.ClickException, match=said):
        list(audio_of(iter([body])))
