"""POST /v1/audio/speech: what each key does, what is passed over, and what a client is told."""

import json
from base64 import b64decode
from typing import Any

import httpx
import numpy as np
import pytest
from api import add
from fakes import FakeInference, Pace, tone_hz
from heard import heard
from test_openai_models import told

from registry.audio.formats import AudioFormat
from registry.errors import Overloaded, SpeechFailed

SPEECH = "/v1/audio/speech"
ASKED: dict[str, Any] = {"model": "tts-1", "voice": "alice", "input": "Hello there, you."}
PCM = ASKED | {"response_format": "pcm"}
CUT = httpx.RemoteProtocolError
TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg;codecs=opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm;rate=24000;channels=1",
}


@pytest.fixture
def alice(client: httpx.Client) -> httpx.Client:
    assert add(client, "alice").status_code == 201
    return client


def hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.argmax(spectrum) * rate / len(samples))


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    *lines, end = reply.text.split("\n\n")
    assert end == "" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("format", [None, *TYPES])
@pytest.mark.parametrize("how", [{}, {"stream": False}, {"stream_format": "sse"}])
def test_each_format_is_the_voice_however_it_is_sent(
    alice: httpx.Client, format: str | None, how: dict[str, Any]
) -> None:
    spoken = alice.post(SPEECH, json=ASKED | how | {"response_format": format})
    assert spoken.status_code == 200
    name = format or "mp3"
    content, kind = spoken.content, spoken.headers["content-type"]
    if "stream_format" in how:
        assert kind.startswith("text/event-stream")
        kind = spoken.headers["x-audio-type"]
        content = b"".join(b64decode(event.get("audio", "")) for event in events(spoken))
    assert kind == TYPES[name]
    assert ("content-length" in spoken.headers) == ("stream" in how)
    if name == "flac" and "stream" not in how:
        return  # its length is 0, which libsndfile does not take
    samples = heard(content, AudioFormat(name), rate := 24_000)
    voice = alice.get("/voices/alice").json()["id"]
    assert len(samples) / rate == pytest.approx(0.85, abs=0.1)
    assert hz(samples, rate) == pytest.approx(tone_hz(voice), abs=10)


def test_a_voice_is_named_or_is_an_object_with_an_id(alice: httpx.Client) -> None:
    voice = alice.get("/voices/alice").json()["id"]
    sounds = {
        alice.post(SPEECH, json=PCM | {"voice": named}).content
        for named in ("alice", "ALICE", voice, {"id": "alice"}, {"id": voice})
    }
    assert len(sounds) == 1


def test_every_key_that_may_be_left_out_may_be_null(alice: httpx.Client) -> None:
    keys = ("response_format", "speed", "stream_format", "stream", "language", "mode", "seed")
    keys += ("temperature", "top_k", "top_p", "model", "instructions", "whatever")
    spoken = alice.post(SPEECH, json=ASKED | dict.fromkeys(keys))
    assert spoken.status_code == 200 and "x-ignored-fields" not in spoken.headers


def test_what_is_passed_over_is_named(alice: httpx.Client) -> None:
    more = {"instructions": "Whisper.", "backend": {"a": [1]}, "voice": {"id": "alice", "x": 1}}
    for how in ({}, {"stream": False}, {"stream_format": "sse"}):
        spoken = alice.post(f"{SPEECH}?user=me", json=ASKED | more | how)
        assert spoken.status_code == 200
        assert spoken.headers["x-ignored-fields"] == "user, instructions, backend, voice.x"


def test_our_own_keys_are_asked_of_the_model(alice: httpx.Client, fake: FakeInference) -> None:
    ours = {"language": "en", "mode": "xvec", "seed": 7, "temperature": 0.5, "top_k": 9}
    assert alice.post(SPEECH, json=ASKED | ours | {"top_p": 0.7}).status_code == 200
    asked = fake.params[-1]
    assert (asked.language, asked.mode, asked.seed) == ("english", "xvec", 7)
    assert (asked.temperature, asked.top_k, asked.top_p) == (0.5, 9, 0.7)


@pytest.mark.parametrize(
    ("model", "language"),
    [
        ("tts-1-en", "english"),
        ("tts-1-english", "english"),
        ("tts-1-hd", None),
        ("tts-1-1106", None),
        ("tts-1-", None),
        ("gpt-4o-mini-tts-2025-12-15", None),
        ("whatever", None),
        (None, None),
    ],
)
def test_a_model_may_force_a_language(
    alice: httpx.Client, fake: FakeInference, model: str | None, language: str | None
) -> None:
    assert alice.post(SPEECH, json=ASKED | {"model": model}).status_code == 200
    assert fake.params[-1].language == language


def test_a_language_that_is_forced_must_be_spoken_by_the_model(alice: httpx.Client) -> None:
    refused = alice.post(SPEECH, json=ASKED | {"model": "tts-1-de"})
    assert told(refused) == (400, "language_unsupported", "language")


def test_a_speech_is_faster_if_asked(alice: httpx.Client) -> None:
    calm, fast = (alice.post(SPEECH, json=PCM | {"speed": speed}) for speed in (1, 2))
    assert len(fast.content) == pytest.approx(len(calm.content) / 2, rel=0.05)


def test_events_end_with_what_was_used(alice: httpx.Client) -> None:
    asked = PCM | {"stream_format": "sse", "speed": 2}
    *parts, last = events(alice.post(SPEECH, json=asked))
    assert {part["type"] for part in parts} == {"speech.audio.delta"}
    used = {"input_tokens": 3, "output_tokens": 11, "total_tokens": 14}  # 0.85 s of the model's
    assert last == {"type": "speech.audio.done", "usage": used}


def test_a_stream_begins_before_it_ends(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", SPEECH, json=PCM) as reply:
        parts = reply.iter_raw()
        assert next(parts)
        fake.pace.give(3)
        assert len(b"".join(parts)) > 0


def test_what_breaks_off_is_told_and_cut(alice: httpx.Client, fake: FakeInference) -> None:
    broken = SpeechFailed("What the model made is not finite.")
    fake.pace = Pace(free=1)
    with alice.stream("POST", SPEECH, json=PCM | {"stream_format": "sse"}) as reply:
        fake.pace.give(error=broken)
        lines = iter(reply.iter_lines())
        said = [json.loads(line[6:]) for line in (next(lines), *_until_cut(lines)) if line]
    assert said[-1]["type"] == "error"
    assert said[-1]["error"] == {
        "message": broken.detail,
        "type": "server_error",
        "param": None,
        "code": "speech_failed",
    }
    fake.pace = Pace(free=1)
    with alice.stream("POST", SPEECH, json=PCM) as reply, pytest.raises(CUT):
        fake.pace.give(error=broken)
        reply.read()


def _until_cut(lines: Any) -> Any:
    try:
        yield from lines
    except CUT:
        return
    raise AssertionError("the stream ended as a whole one does")


def test_who_leaves_frees_the_slot(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", SPEECH, json=PCM) as reply:
        next(reply.iter_raw())
        fake.pace.until_asked()
    assert fake.chunks[-1].ended.wait(10) and fake.chunks[-1].was_closed_early


def test_a_full_line_is_told_by_the_head_alone(alice: httpx.Client, fake: FakeInference) -> None:
    fake.room_in_line = 0
    refused = alice.post(SPEECH, content=b"not read")
    assert told(refused) == (503, "overloaded", None)
    assert refused.headers["retry-after"] == "3" and refused.headers["x-should-retry"] == "true"


def test_what_may_heal_by_itself_is_left_to_the_client(
    alice: httpx.Client, fake: FakeInference
) -> None:
    fake.pace = Pace()

    def refuse(error: Exception) -> httpx.Response:
        async def speak(*_: object) -> None:
            raise error

        fake.speak = speak  # type: ignore[assignment,method-assign]
        return alice.post(SPEECH, json=ASKED)

    busy = refuse(Overloaded("Too many wait.", 5))
    assert told(busy)[:2] == (503, "overloaded") and busy.headers["retry-after"] == "5"
    failed = refuse(SpeechFailed("The model broke."))
    assert told(failed)[:2] == (500, "speech_failed") and "x-should-retry" not in failed.headers


WORDS = "Hello there, you."
REFUSED: dict[str, tuple[dict[str, Any], tuple[int, str, str | None]]] = {
    "nobody's voice": ({"voice": "alcie"}, (404, "voice_not_found", "voice")),
    "a voice of OpenAI's": ({"voice": "alloy"}, (404, "voice_not_found", "voice")),
    "nobody's id": ({"voice": {"id": f"voice_{'0' * 32}"}}, (404, "voice_not_found", "voice")),
    "no voice": ({"voice": None}, (400, "request_invalid", "voice")),
    "an empty voice": ({"voice": ""}, (400, "request_invalid", "voice.id")),
    "a voice that is a number": ({"voice": 7}, (400, "request_invalid", "voice")),
    "voices": ({"voice": ["alice"]}, (400, "request_invalid", "voice")),
    "a voice without an id": ({"voice": {"name": "alice"}}, (400, "request_invalid", "voice.id")),
    "a voice with a number": ({"voice": {"id": 7}}, (400, "request_invalid", "voice.id")),
    "a long voice": ({"voice": "x" * 257}, (400, "request_invalid", "voice.id")),
    "a voice that is no text": ({"voice": "a\x00"}, (400, "request_invalid", "voice.id")),
    "no input": ({"input": None}, (400, "request_invalid", "input")),
    "an empty input": ({"input": ""}, (400, "text_invalid", "input")),
    "no words": ({"input": "…!?"}, (400, "text_invalid", "input")),
    "input that is a list": ({"input": [WORDS]}, (400, "request_invalid", "input")),
    "control characters": ({"input": "a\x07b"}, (400, "text_invalid", "input")),
    "half a character": ({"input": "a\ud800b"}, (400, "text_invalid", "input")),
    "too much": ({"input": "word " * 1001}, (400, "text_too_long", "input")),
    "an unknown format": ({"response_format": "mp4"}, (400, "request_invalid", "response_format")),
    "no format": ({"response_format": ""}, (400, "request_invalid", "response_format")),
    "formats": ({"response_format": ["mp3"]}, (400, "request_invalid", "response_format")),
    "too slow": ({"speed": 0.24}, (400, "request_invalid", "speed")),
    "too fast": ({"speed": 4.01}, (400, "request_invalid", "speed")),
    "speed in words": ({"speed": "1"}, (400, "request_invalid", "speed")),
    "speed that is true": ({"speed": True}, (400, "request_invalid", "speed")),
    "an endless speed": ({"speed": 1e999}, (400, "request_malformed", None)),
    "an unknown stream": ({"stream_format": "ndjson"}, (400, "request_invalid", "stream_format")),
    "a stream in words": ({"stream": "yes"}, (400, "request_invalid", "stream")),
    "an unknown language": ({"language": "klingon"}, (400, "language_unsupported", "language")),
    "a language in a list": ({"language": ["en"]}, (400, "request_invalid", "language")),
    "an unknown mode": ({"mode": "loud"}, (400, "request_invalid", "mode")),
    "a seed below": ({"seed": -1}, (400, "request_invalid", "seed")),
    "a seed above": ({"seed": 2**31}, (400, "request_invalid", "seed")),
    "half a seed": ({"seed": 0.5}, (400, "request_invalid", "seed")),
    "too hot": ({"temperature": 2.1}, (400, "request_invalid", "temperature")),
    "none at the top": ({"top_k": 0}, (400, "request_invalid", "top_k")),
    "more than all": ({"top_p": 1.1}, (400, "request_invalid", "top_p")),
    "a model that is a number": ({"model": 1}, (400, "request_invalid", "model")),
    "a long model": ({"model": "m" * 257}, (400, "request_invalid", "model")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(client: httpx.Client, what: str) -> None:
    assert add(client, "alice").status_code == 201
    changed, expected = REFUSED[what]
    body = json.dumps(ASKED | changed)
    refused = client.post(SPEECH, content=body, headers={"content-type": "application/json"})
    assert told(refused) == expected
    assert refused.headers["x-should-retry"] == "false"


JSON = {"content-type": "application/json"}
RAW: dict[str, tuple[bytes, dict[str, str], tuple[int, str, str | None]]] = {
    "nothing": (b"", JSON, (400, "request_malformed", None)),
    "no JSON": (b"{", JSON, (400, "request_malformed", None)),
    "a list": (b"[]", JSON, (400, "request_invalid", "body")),
    "null": (b"null", JSON, (400, "request_invalid", "body")),
    "a key twice": (b'{"input": "a", "input": "b"}', JSON, (400, "request_invalid", "input")),
    "an unknown key twice": (b'{"x": 1, "x": 2}', JSON, (400, "request_invalid", "x")),
    "no UTF-8": (b'{"input": "\xff"}', JSON, (400, "request_malformed", None)),
    "UTF-16": ('{"input": "a"}'.encode("utf-16"), JSON, (400, "request_malformed", None)),
    "a deep one": (b"[" * 30_000, JSON, (400, "request_malformed", None)),
    "too much": (b" " * 70_000, JSON, (413, "body_too_large", None)),
    "no type": (b"{}", {}, (415, "content_type_unsupported", None)),
    "a form": (
        b"input=a",
        {"content-type": "application/x-www-form-urlencoded"},
        (415, "content_type_unsupported", None),
    ),
    "compressed": (
        b"{}",
        JSON | {"content-encoding": "gzip"},
        (415, "content_type_unsupported", None),
    ),
}


@pytest.mark.parametrize("what", RAW)
def test_a_body_that_can_not_be_read_is_refused(client: httpx.Client, what: str) -> None:
    content, headers, expected = RAW[what]
    assert told(client.post(SPEECH, content=content, headers=headers)) == expected


def test_a_get_says_what_is_possible(client: httpx.Client) -> None:
    refused = client.get(SPEECH)
    assert told(refused) == (405, "method_not_allowed", None)
    assert refused.headers["allow"] == "POST"
