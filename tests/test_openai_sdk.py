"""OpenAI's own package, as it is, at a live server: what it makes, hears, raises and repeats."""

import asyncio
import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import openai
import pytest
from api import CLIP
from fakes import FakeInference, Pace
from heard import heard
from serving import serving
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import AutoTokenizer

from inference.models.catalog import LocatedModel
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.audio.formats import AudioFormat
from registry.errors import InferenceUnreachable, Overloaded, SpeechFailed
from registry.settings import Settings
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

WORDS = "Hello there, you."
LONGER = "The birch canoe slid on the smooth planks."
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


class Counting:
    """Counts the requests that a server gets, by their path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests[scope["path"]] += 1
        await self._app(scope, receive, send)


@pytest.fixture
def counting(store: VoiceStore, fake: FakeInference) -> Counting:
    return Counting(create_app(store, fake, Settings(home=store.data.root)))


@pytest.fixture
def server(counting: Counting) -> Iterator[str]:
    with serving(counting) as http:  # type: ignore[arg-type]
        yield f"{http.base_url}/v1"


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server, api_key="none") as client:
        yield client


@pytest.fixture
def alice(client: openai.OpenAI) -> str:
    """Her id."""
    return made(client, "alice")


def made(client: openai.OpenAI, name: str) -> str:
    voice = client.audio.voices.create(
        name=name,
        consent="cons_1",
        audio_sample=("sample.wav", CLIP, "audio/x-wav"),
        extra_body={"ref_text": "hello there"},
    )
    assert (voice.object, voice.name, voice.type) == ("audio.voice", name, "audio_sample")
    return voice.id


def test_models_are_listed_and_read(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["tts-1", "tts-1-hd"]
    assert client.models.retrieve("tts-1").owned_by == "voice-registry"


def test_a_voice_is_made_and_deleted(client: openai.OpenAI, store: VoiceStore) -> None:
    voice = made(client, "alice")
    assert store.get("alice").row.id == voice
    assert store.get("alice").enrolment.transcript == "hello there"
    gone = client.audio.voices.delete(voice)
    assert (gone.id, gone.deleted, gone.object) == (voice, True, "audio.voice.deleted")
    with pytest.raises(openai.NotFoundError):
        client.audio.voices.delete(voice)


def test_voices_are_listed_by_the_path_that_clients_read(client: openai.OpenAI, alice: str) -> None:
    listed = client.get("/audio/voices", cast_to=dict[str, object])
    assert listed["voices"] == [{"id": "alice", "name": "alice", "voice_id": alice}]


@pytest.mark.parametrize("format", FORMATS)
def test_a_whole_speech_is_heard_in_each_format(
    client: openai.OpenAI, alice: str, format: str
) -> None:
    for voice in ("alice", {"id": alice}):
        spoken = client.audio.speech.create(
            model="tts-1",
            voice=voice,  # type: ignore[arg-type]
            input=WORDS,
            response_format=format,  # type: ignore[arg-type]
            extra_body={"stream": False},
        )
        samples = heard(spoken.content, AudioFormat(format), 24_000)
        assert len(samples) / 24_000 == pytest.approx(0.85, abs=0.1)


def test_a_speech_is_written_to_a_file(client: openai.OpenAI, alice: str, tmp_path: Path) -> None:
    spoken = client.audio.speech.create(model="tts-1", voice="alice", input=WORDS)
    spoken.write_to_file(tmp_path / "hello.mp3")
    samples = heard((tmp_path / "hello.mp3").read_bytes(), AudioFormat("mp3"), 24_000)
    assert len(samples) / 24_000 == pytest.approx(0.85, abs=0.1)


def test_a_stream_is_heard_while_it_is_spoken(
    client: openai.OpenAI, alice: str, fake: FakeInference
) -> None:
    fake.pace = pace = Pace(free=1)
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="alice",
        input=WORDS,
        response_format="pcm",
        instructions="Whisper.",
    ) as spoken:
        assert spoken.headers["x-ignored-fields"] == "instructions"
        assert spoken.headers["x-request-id"].startswith("req_")
        parts = spoken.iter_bytes()
        first = next(parts)
        pace.give(3)
        rest = b"".join(parts)
    assert len(first + rest) == 2 * round(0.85 * 24_000)


def test_events_carry_the_file_and_what_was_used(client: openai.OpenAI, alice: str) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alice", input=WORDS, response_format="wav", stream_format="sse"
    ) as spoken:
        lines = [line for line in spoken.iter_lines() if line]
    *parts, last = [json.loads(line.removeprefix("data: ")) for line in lines]
    audio = b"".join(b64decode(part["audio"]) for part in parts)
    samples = heard(audio, AudioFormat("wav"), 24_000)
    assert len(samples) == round(0.85 * 24_000)
    assert last["usage"] == {"input_tokens": 3, "output_tokens": 11, "total_tokens": 14}


def test_all_of_it_works_without_waiting(server: str, client: openai.OpenAI) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=server, api_key="none") as ask:
            assert "tts-1" in [model.id async for model in ask.models.list()]
            voice = await ask.audio.voices.create(
                name="bob", consent="cons_1", audio_sample=("a.wav", BytesIO(CLIP), "audio/wav")
            )
            said = await asyncio.gather(
                *(
                    ask.audio.speech.create(
                        model="tts-1", voice={"id": voice.id}, input=WORDS, response_format=format
                    )
                    for format in ("mp3", "wav", "opus")
                )
            )
            for one, format in zip(said, ("mp3", "wav", "opus"), strict=True):
                assert len(heard(one.content, AudioFormat(format), 24_000)) > 19_000
            async with ask.audio.speech.with_streaming_response.create(
                model="tts-1", voice="bob", input=WORDS, response_format="pcm"
            ) as spoken:
                assert len(await spoken.read()) == 2 * round(0.85 * 24_000)
            assert (await ask.audio.voices.delete(voice.id)).deleted

    asyncio.run(run())


SPEECH = {"model": "tts-1", "voice": "alice", "input": WORDS}


@pytest.mark.parametrize(
    ("changed", "kind", "code", "param"),
    [
        ({"voice": "alcie"}, openai.NotFoundError, "voice_not_found", "voice"),
        ({"voice": "alloy"}, openai.NotFoundError, "voice_not_found", "voice"),
        ({"input": "…"}, openai.BadRequestError, "text_invalid", "input"),
        ({"speed": 9.0}, openai.BadRequestError, "request_invalid", "speed"),
        ({"extra_body": {"language": "xx"}}, openai.BadRequestError, "language_unsupported", None),
    ],
)
def test_what_is_refused_is_raised_at_once_with_its_reason(
    client: openai.OpenAI,
    alice: str,
    counting: Counting,
    changed: dict[str, object],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(kind) as refused:
        client.audio.speech.create(**SPEECH | changed)  # type: ignore[arg-type]
    assert refused.value.code == code and refused.value.param in (param, "language")
    assert refused.value.message.startswith(f"Error code: {refused.value.status_code}")
    assert refused.value.request_id and refused.value.request_id.startswith("req_")
    assert counting.requests["/v1/audio/speech"] == 1


def test_a_name_that_is_taken_is_no_conflict_to_repeat(
    client: openai.OpenAI, alice: str, counting: Counting
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        made(client, "Alice")
    assert refused.value.code == "name_taken"
    assert counting.requests["/v1/audio/voices"] == 2  # with that of the fixture
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.voices.create(
            name="bob",
            consent="c",
            audio_sample=CLIP,
            type="prompt",  # type: ignore[call-overload]
        )
    assert refused.value.code == "unsupported_value"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (Overloaded("Too many wait.", 1), 3),
        (InferenceUnreachable("The model's app can't be called."), 3),
        (SpeechFailed("The model broke."), 3),
        (ZeroDivisionError("unexpected"), 1),
    ],
)
def test_only_what_may_heal_is_asked_again(
    client: openai.OpenAI,
    alice: str,
    counting: Counting,
    fake: FakeInference,
    error: Exception,
    asked: int,
) -> None:
    async def speak(*_: object) -> None:
        raise error

    fake.speak = speak  # type: ignore[assignment,method-assign]
    with pytest.raises(openai.InternalServerError):
        client.audio.speech.create(**SPEECH)  # type: ignore[arg-type]
    assert counting.requests["/v1/audio/speech"] == asked


def test_a_stream_that_breaks_off_is_no_short_file(
    client: openai.OpenAI, alice: str, fake: FakeInference
) -> None:
    fake.pace = pace = Pace(free=1)
    speaking = client.audio.speech.with_streaming_response
    with speaking.create(**SPEECH, response_format="pcm") as spoken:  # type: ignore[arg-type]
        parts = spoken.iter_bytes()
        next(parts)
        pace.give(error=SpeechFailed("The model broke."))
        with pytest.raises(Exception, match="incomplete"):
            list(parts)


def test_a_model_says_it_and_counts_its_own_tokens(data: DataDir, located: LocatedModel) -> None:
    config = ServiceConfig(device="cpu", threads=1, queue_timeout_s=300)
    inference = LocalInference(lambda: InferenceService(data, located, config))
    app = create_app(VoiceStore(data), inference, Settings(home=data.root))
    with serving(app) as http, openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="n") as client:
        made(client, "alice")
        with client.audio.speech.with_streaming_response.create(
            model="tts-1",
            voice="alice",
            input=LONGER,
            response_format="pcm",
            stream_format="sse",
            extra_body={"seed": 5},
        ) as spoken:
            lines = [line for line in spoken.iter_lines() if line]
    *parts, last = [json.loads(line.removeprefix("data: ")) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(located.path)
    audio = b"".join(b64decode(part["audio"]) for part in parts)
    assert last["usage"]["input_tokens"] == len(tokenizer(LONGER).input_ids)
    assert last["usage"]["output_tokens"] == len(audio) / 2 / 1920
