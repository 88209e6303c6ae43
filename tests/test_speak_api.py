"""Speaking over HTTP: the real app and database, and a stand-in for the model."""

import io
import threading

import httpx
import numpy as np
import pytest
import soundfile
from api import add, problem
from clips import pitch
from deployments import DEPLOYMENTS
from fakes import SAMPLE_RATE, FakeInference, Pace, tone, tone_hz
from heard import heard

from registry.audio.encoding.encoders import encode
from registry.audio.encoding.loudness import loudness
from registry.audio.formats import SPEECH, AudioFormat, format_named
from registry.contract import ModelRef
from registry.storage.store import VoiceStore

pytestmark = pytest.mark.parametrize("deployment", DEPLOYMENTS)
STREAM = {"stream": True}


def test_speaking_says_where_the_prompt_came_from(client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    first = client.post("/speak", json={"voice": "alice", "text": "Hello", "seed": 7})
    second = client.post("/speak", json={"voice": voice["id"], "text": "Hello", "seed": 7})
    assert [r.headers["x-prompt-cache"] for r in (first, second)] == ["file", "memory"]
    assert first.content == second.content
    assert first.headers["x-voice-id"] == voice["id"]
    assert first.headers["x-voice-version"] == "1"
    assert first.headers["x-seed"] == "7"
    timings = [part.split(";")[0] for part in first.headers["server-timing"].split(", ")]
    assert timings == ["queue", "prompt", "ttfa", "total"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_broken_prompt_is_rebuilt_once_and_said(
    client: httpx.Client, store: VoiceStore, fake: FakeInference, damage: str
) -> None:
    voice = add(client, "alice").json()
    path = next(store.data.prompts(voice["id"]).iterdir())
    sound = path.read_bytes()
    broken = {"truncated": sound[:-9], "flipped": bytes([sound[0] ^ 1]) + sound[1:]}
    path.unlink() if damage == "missing" else path.write_bytes(broken[damage])
    assert problem(client.get("/voices/alice/prompt")) == (409, "prompt-not-ready")
    spoken = client.post("/speak", json={"voice": "alice", "text": "Hello"})
    again = client.post("/speak", json={"voice": "alice", "text": "Hello"})
    assert [r.headers["x-prompt-cache"] for r in (spoken, again)] == ["rebuilt", "memory"]
    assert path.read_bytes() == sound
    assert fake.extracted == 2
    assert client.get("/voices/alice/prompt").content == sound


@pytest.mark.slow
def test_many_callers_of_a_broken_prompt_rebuild_it_once(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    voice = add(client, "alice").json()
    next(store.data.prompts(voice["id"]).iterdir()).unlink()
    replies: list[httpx.Response] = []

    def speak() -> None:
        replies.append(client.post("/speak", json={"voice": "alice", "text": "Hello"}))

    threads = [threading.Thread(target=speak) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.status_code for r in replies} == {200}
    assert fake.extracted == 2


def test_what_a_voice_defaults_to_yields_to_the_request(
    client: httpx.Client, fake: FakeInference
) -> None:
    add(client, "alice", language="english")
    client.patch("/voices/alice", json={"defaults": {"mode": "xvec", "temperature": 0.1}})
    client.post("/speak", json={"voice": "alice", "text": "x"})
    client.post("/speak", json={"voice": "alice", "text": "x", "mode": "icl", "top_k": 5})
    assert [(p.mode, p.temperature, p.top_k) for p in fake.params] == [
        ("xvec", 0.1, None),
        ("icl", 0.1, 5),
    ]


def test_two_voices_never_mix(client: httpx.Client) -> None:
    for name in ("alice", "bob"):
        voice = add(client, name).json()
        reply = client.post("/speak", json={"voice": name, "text": "ten letters"})
        samples, rate = soundfile.read(io.BytesIO(reply.content))
        peak = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
        assert abs(peak - tone_hz(voice["id"])) < 3


def test_formats(client: httpx.Client) -> None:
    voice = add(client, "alice").json()
    for name in (*SPEECH, *(f"{name}_{8_000}" for name in ("wav", "flac", "pcm")), "mp3_44100_128"):
        reply = client.post("/speak", json={"voice": "alice", "text": "Hello", "format": name})
        format = format_named(name)
        rate, _ = format.rates(SAMPLE_RATE)
        assert reply.headers["content-type"] == format.content_type(rate)
        assert float(reply.headers["x-audio-seconds"]) == 0.25
        samples = heard(reply.content, format, rate)
        assert 0.25 * rate <= len(samples) < 0.25 * rate + 3 * 1152
        if tone_hz(voice["id"]) < 3_500 or rate > 8_000:  # what its rate can hold
            assert abs(pitch(samples, rate) - tone_hz(voice["id"])) < 8


def test_what_is_no_format_is_refused_with_what_is(client: httpx.Client) -> None:
    add(client, "alice")
    for name, told in (("mp4", ", ".join(SPEECH)), ("mp3_44100_129", "mp3 is made as mp3, mp3_2")):
        refused = client.post("/speak", json={"voice": "alice", "text": "Hi", "format": name})
        assert problem(refused) == (422, "request-invalid")
        assert told in refused.json()["detail"]


@pytest.mark.parametrize("speed", [0.25, 1.5, 4])
def test_speed(client: httpx.Client, speed: float) -> None:
    voice = add(client, "alice").json()
    asked = {"voice": "alice", "text": "ten letters", "format": "pcm_16000", "speed": speed}
    whole, streamed = client.post("/speak", json=asked), client.post("/speak", json=asked | STREAM)
    assert whole.content == streamed.content
    samples = np.frombuffer(whole.content, "<i2")
    assert len(samples) == round(0.55 / speed * 16_000)
    assert float(whole.headers["x-audio-seconds"]) == round(0.55 / speed, 3)
    assert pitch(samples, 16_000) == pytest.approx(tone_hz(voice["id"]), rel=0.01, abs=10)


@pytest.mark.parametrize("unasked", [{}, {"speed": 1}, {"speed": 1.0, "loudness": None}])
def test_without_effects_it_is_what_the_model_made(client: httpx.Client, unasked: dict) -> None:  # type: ignore[type-arg]
    voice = add(client, "alice").json()
    asked = {"voice": "alice", "text": "Hello", "format": "pcm"}
    reply = client.post("/speak", json=asked | unasked)
    assert reply.content == encode(tone(voice["id"], 5), SAMPLE_RATE, AudioFormat("pcm"))
    assert "x-loudness" not in reply.headers


def test_loudness_is_told_of_what_is_whole(client: httpx.Client) -> None:
    add(client, "alice")
    asked = {"voice": "alice", "text": "ten letters", "format": "pcm", "loudness": -30.0}
    whole, streamed = client.post("/speak", json=asked), client.post("/speak", json=asked | STREAM)
    samples = np.frombuffer(whole.content, "<i2").astype(np.float32) / 32768
    assert loudness(samples, SAMPLE_RATE) == pytest.approx(-30, abs=0.1)
    assert whole.headers["x-loudness"] == "-30.0"
    assert streamed.headers["x-loudness"] == "running"
    assert len(streamed.content) == len(whole.content)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"speed": wrong} for wrong in (0.2, 4.1, "fast", None)),
        *({"loudness": wrong} for wrong in (-41, -11, "loud")),
    ],
    ids=str,
)
def test_effects_have_bounds(client: httpx.Client, fake: FakeInference, wrong: dict) -> None:  # type: ignore[type-arg]
    add(client, "alice")
    refused = client.post("/speak", json={"voice": "alice", "text": "Hello"} | wrong)
    assert problem(refused) == (422, "request-invalid")
    assert next(iter(wrong)) in refused.json()["detail"]
    assert fake.started == []


def test_a_caller_who_leaves_the_queue_never_starts(
    client: httpx.Client, fake: FakeInference
) -> None:
    add(client, "alice")
    fake.pace = Pace()
    with pytest.raises(httpx.ReadTimeout):
        client.post("/speak", json={"voice": "alice", "text": "gone"}, timeout=0.3)
    while client.get("/healthz").status_code != 200:
        pass
    fake.pace = None
    assert client.post("/speak", json={"voice": "alice", "text": "here"}).status_code == 200
    assert fake.started == ["here"]


@pytest.mark.slow
def test_the_model_may_change_only_on_purpose(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    add(client, "alice")
    store.choose_model("other", ModelRef("other", "r2"))
    stale = client.get("/voices/alice").json()
    assert stale["prompt"]["state"] == "stale"
    refused = client.post("/speak", json={"voice": "alice", "text": "x"})
    assert problem(refused) == (503, "model-mismatch")
    assert problem(add(client, "bob")) == (503, "model-mismatch")
    fake.model = ModelRef("other", "r2")
    healed = client.post("/speak", json={"voice": "alice", "text": "x"})
    assert healed.headers["x-prompt-cache"] == "rebuilt"
    assert client.get("/voices/alice").json()["prompt"]["state"] == "ready"


def test_invisible_characters_change_no_byte(client: httpx.Client, fake: FakeInference) -> None:
    add(client, "alice", transcript="hel\u00adlo\u200b\u2028there\f")
    assert client.get("/voices/alice").json()["transcript"] == "hello\nthere"
    texts = (
        "some\u200bthing is bro\u00adken",
        "something\u00a0is\u2003broken",
        "something is broken",
    )
    spoken = [client.post("/speak", json={"voice": "alice", "text": text}) for text in texts]
    assert fake.started == ["something is broken"] * 3
    assert len({reply.content for reply in spoken}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["***", "\U0001f602", "\ufeff", "- - -", "\u200b", "?", "a\x1b[1m"]
)
def test_what_can_not_be_spoken_is_422(
    client: httpx.Client, fake: FakeInference, text: str
) -> None:
    add(client, "alice")
    refused = client.post("/speak", json={"voice": "alice", "text": text})
    assert problem(refused) == (422, "text-invalid")
    assert problem(add(client, "bob", transcript=text)) == (422, "text-invalid")
    assert fake.started == [] and len(client.get("/voices").json()["data"]) == 1


def test_half_a_surrogate_pair_is_422(client: httpx.Client) -> None:
    add(client, "alice")
    body = b'{"voice": "alice", "text": "\\ud83d hello"}'
    reply = client.post("/speak", content=body, headers={"content-type": "application/json"})
    assert problem(reply)[0] == 422
