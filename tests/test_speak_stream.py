"""Streaming over real sockets: when bytes come, what they are, and what ends a speech early."""

import asyncio
import io
import json
import logging
import socket
import struct
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import httpx
import numpy as np
import pytest
import soundfile
from api import add, problem
from fakes import PATIENCE_S, Chunks, FakeInference, Pace, tone

from registry.api import speech_response
from registry.api.speech_response import AudioStream
from registry.audio.encoding.encoders import FLAC_HEADER_BYTES
from registry.contract import PromptRef, Speech, SpeechRequest
from registry.errors import SpeechFailed, SpeechUnfinished
from registry.speech.local import LocalInference

REQUEST = {"voice": "alice", "text": "Hello there, you.", "seed": 3}
STREAM = REQUEST | {"stream": True}
CHUNK_BYTES = 17 * 1200 * 2 // 4
BROKEN = SpeechFailed("What the model made is not finite.")


@pytest.fixture
def alice(client: httpx.Client) -> httpx.Client:
    assert add(client, "alice").status_code == 201
    return client


def take(parts: Iterator[bytes], size: int) -> bytes:
    """At least `size` bytes; waits for no more than that."""
    taken = b""
    while len(taken) < size:
        taken += next(parts)
    return taken


def streamed(client: httpx.Client, format: str) -> httpx.Response:
    reply = client.post("/speak", json=STREAM | {"format": format})
    assert reply.status_code == 200
    return reply


def whole(client: httpx.Client, format: str) -> httpx.Response:
    return client.post("/speak", json=REQUEST | {"format": format})


@pytest.mark.parametrize(("format", "header_bytes"), [("pcm", 0), ("wav", 44)])
def test_each_chunk_arrives_before_the_next_one_is_made(
    alice: httpx.Client, fake: FakeInference, format: str, header_bytes: int
) -> None:
    expected = whole(alice, format).content
    fake.pace = Pace(free=1)
    with alice.stream("POST", "/speak", json=STREAM | {"format": format}) as reply:
        parts = reply.iter_raw()
        arrived = take(parts, header_bytes + CHUNK_BYTES)
        for _ in range(3):
            fake.pace.give()
            arrived += take(parts, CHUNK_BYTES)
        assert arrived[header_bytes:] == expected[header_bytes:]
        assert list(parts) == []


def test_pcm_is_the_same_streamed_and_whole(alice: httpx.Client) -> None:
    assert streamed(alice, "pcm").content == whole(alice, "pcm").content


def test_a_streamed_wav_differs_only_in_its_two_sizes(alice: httpx.Client) -> None:
    audio, expected = streamed(alice, "wav").content, whole(alice, "wav").content
    assert audio[4:8] == audio[40:44] == b"\xff\xff\xff\xff"
    sizes = struct.pack("<I", len(audio) - 8), struct.pack("<I", len(audio) - 44)
    assert audio[:4] + sizes[0] + audio[8:40] + sizes[1] + audio[44:] == expected
    for reader in (io.BytesIO(audio), io.BytesIO(expected)):
        np.testing.assert_array_equal(soundfile.read(reader, dtype="int16")[0], pcm_of(alice))


def test_a_streamed_flac_decodes_to_exactly_the_pcm(alice: httpx.Client) -> None:
    audio, expected = streamed(alice, "flac").content, whole(alice, "flac").content
    assert audio[FLAC_HEADER_BYTES:] == expected[FLAC_HEADER_BYTES:]
    samples = soundfile.read(io.BytesIO(expected), dtype="int16")[0]
    np.testing.assert_array_equal(samples, pcm_of(alice))
    np.testing.assert_array_equal(flac_samples(audio), samples)


def test_a_flac_is_decoded_while_it_arrives(alice: httpx.Client, fake: FakeInference) -> None:
    expected = pcm_of(alice)
    fake.pace = Pace(free=2)
    with alice.stream("POST", "/speak", json=STREAM | {"format": "flac"}) as reply:
        parts = reply.iter_raw()
        start = take(parts, 200)
        early = flac_samples(start)
        fake.pace.give(2)
        late = flac_samples(start + b"".join(parts))
    np.testing.assert_array_equal(late, expected)
    np.testing.assert_array_equal(early, expected[: len(early)])
    assert 0 < len(early) < len(late)


def pcm_of(client: httpx.Client) -> np.ndarray:
    return np.frombuffer(whole(client, "pcm").content, "<i2")


def flac_samples(audio: bytes) -> np.ndarray:
    with av.open(io.BytesIO(audio), format="flac") as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(frames)


def test_a_stream_says_all_but_its_length(alice: httpx.Client) -> None:
    stream, full = streamed(alice, "wav").headers, whole(alice, "wav").headers
    ours = {name for name in full if name.startswith("x-")}
    assert ours - set(stream) == {"x-audio-seconds"}
    assert stream["transfer-encoding"] == "chunked"
    assert "content-length" not in stream
    assert stream["content-type"] == full["content-type"]
    timings = [part.split(";")[0] for part in stream["server-timing"].split(", ")]
    assert timings == ["queue", "prompt", "ttfa"]


def test_what_is_wrong_before_the_first_chunk_is_a_status(
    alice: httpx.Client, fake: FakeInference
) -> None:
    assert problem(alice.post("/speak", json=STREAM | {"voice": "bob"})) == (404, "voice-not-found")
    fake.pace = Pace()
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(alice.post, "/speak", json=STREAM)
        fake.pace.give(error=BROKEN)
    assert problem(reply.result()) == (500, "speech-failed")


@pytest.mark.parametrize("format", ["mp3", "opus_48000_64", "aac", "ulaw", "alaw"])
@pytest.mark.parametrize("speed", [1, 1.5])
def test_what_a_codec_makes_is_the_same_streamed_and_whole(
    alice: httpx.Client, format: str, speed: float
) -> None:
    asked = REQUEST | {"format": format, "speed": speed}
    whole = alice.post("/speak", json=asked)
    assert whole.content == alice.post("/speak", json=asked | {"stream": True}).content
    assert len(whole.content) > 1000


@pytest.mark.parametrize("format", ["mp3", "mp3_44100_128", "opus", "aac_44100_128", "alaw"])
def test_sound_of_the_first_chunk_comes_before_the_next_one_is_made(
    alice: httpx.Client, fake: FakeInference, format: str
) -> None:
    fake.pace = Pace(free=1)
    with alice.stream("POST", "/speak", json=STREAM | {"format": format}) as reply:
        parts = reply.iter_raw()
        assert len(take(parts, 300)) >= 300  # more than the headers of Ogg
        fake.pace.give(3)
        assert all(parts)


@pytest.mark.parametrize("format", ["wav", "pcm", "flac", "mp3", "opus"])
def test_a_break_cuts_the_stream_and_is_logged_once(
    alice: httpx.Client, fake: FakeInference, caplog: pytest.LogCaptureFixture, format: str
) -> None:
    fake.pace = Pace(free=2)
    with alice.stream("POST", "/speak", json=STREAM | {"format": format}) as reply:
        assert reply.status_code == 200
        fake.pace.give(error=BROKEN)
        with pytest.raises(httpx.RemoteProtocolError):
            reply.read()
    assert fake.chunks[0].ended.wait(PATIENCE_S)
    logged = [record for record in caplog.records if record.name == "registry"]
    said = [(r.levelno, r.getMessage().partition(" ")[2]) for r in logged]  # after the request's id
    assert said == [(logging.WARNING, f"POST /speak broke off: {BROKEN.detail}")]
    fake.pace = None
    assert streamed(alice, format).status_code == 200


def test_a_break_of_a_whole_answer_is_a_status(alice: httpx.Client, fake: FakeInference) -> None:
    fake.pace = Pace(free=2)
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(alice.post, "/speak", json=REQUEST)
        fake.pace.give(error=BROKEN)
    assert problem(reply.result()) == (500, "speech-failed")
    assert fake.chunks[0].was_closed_early


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_first_chunk_ends_the_request(
    alice: httpx.Client, fake: FakeInference, stream: bool
) -> None:
    fake.pace = Pace()
    with asked(alice, REQUEST | {"stream": stream}):
        fake.pace.until_asked()
    assert fake.pace.left.wait(PATIENCE_S)
    assert fake.chunks == []


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_leaving_while_the_engine_is_silent_closes_the_chunks(
    alice: httpx.Client, fake: FakeInference, stream: bool, chunks: int
) -> None:
    fake.pace = Pace(free=chunks)
    with asked(alice, REQUEST | {"stream": stream}):
        fake.pace.until_asked()
    assert fake.chunks[0].ended.wait(PATIENCE_S)
    assert fake.chunks[0].was_closed_early
    assert fake.pace.left.is_set()


def test_leaving_while_much_is_unread_closes_the_chunks(
    alice: httpx.Client, fake: FakeInference
) -> None:
    """Three megabytes a chunk: more than the sockets hold, so the server waits for the reader."""
    with asked(alice, STREAM | {"text": "x" * 5000}) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert fake.chunks[0].ended.wait(PATIENCE_S)
    assert fake.chunks[0].was_closed_early


def test_a_caller_who_takes_nothing_is_cut_off(
    alice: httpx.Client, fake: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech_response, "STALLED_S", 0.2)
    with asked(alice, STREAM | {"text": "x" * 5000}) as connection:
        assert fake_chunks_ended(fake)
        assert fake.chunks[0].was_closed_early
        assert not read_all(connection).endswith(b"0\r\n\r\n")  # no end of a chunked body


def fake_chunks_ended(fake: FakeInference) -> bool:
    deadline_s = time.monotonic() + PATIENCE_S
    while not fake.chunks and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return fake.chunks[0].ended.wait(PATIENCE_S)


def read_all(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.read()


def test_a_speech_that_is_heard_to_its_end_is_not_cancelled(
    alice: httpx.Client, fake: FakeInference
) -> None:
    streamed(alice, "wav")
    whole(alice, "wav")
    assert [c.ended.is_set() and not c.was_closed_early for c in fake.chunks] == [True, True]


def test_http_1_0_gets_the_whole_for_it_could_not_see_a_break(alice: httpx.Client) -> None:
    with asked(alice, STREAM, version="1.0") as connection, connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.splitlines()
    assert body == whole(alice, "wav").content


def asked(client: httpx.Client, body: dict[str, object], version: str = "1.1") -> socket.socket:
    """A connection on which the request is sent; leaving it is what a client does that gives up."""
    url, content = client.base_url, json.dumps(body).encode()
    head = f"POST /speak HTTP/{version}\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    connection = socket.create_connection((url.host, url.port), PATIENCE_S)
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    return connection


def test_nothing_is_asked_of_the_engine_before_the_last_part_is_sent() -> None:
    made, sent_at = 0, []

    async def parts() -> AsyncGenerator[bytes, None]:
        nonlocal made
        for _ in range(3):
            made += 1
            yield b"x"

    async def send(message: dict[str, object]) -> None:
        await asyncio.sleep(0)
        sent_at.append(made)

    async def serve() -> None:
        scope = {"type": "http", "method": "POST", "path": "/speak", "headers": []}
        stream = AudioStream(b"x", parts(), media_type="audio/pcm", headers={})
        await stream(scope, asyncio.Event().wait, send)

    asyncio.run(serve())
    assert sent_at == [0, 0, 1, 2, 3, 3]


class LocalService:
    """As much of inference's service as it takes to speak."""

    def __init__(self, pace: Pace) -> None:
        self.chunks = Chunks(tone("voice", 4), pace)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        return Speech(24_000, 0, "file", "icl", {}, self.chunks)


def test_what_inference_raises_half_way_comes_through_as_it_is() -> None:
    async def listen() -> None:
        pace = Pace(free=0)
        speech = await LocalInference(lambda: LocalService(pace)).speak(
            PromptRef("voice", "f", "s"), SpeechRequest("x")
        )
        await anext(speech.chunks)
        waiting = asyncio.ensure_future(anext(speech.chunks))
        await asyncio.to_thread(pace.give, error=SpeechUnfinished("No end."))
        with pytest.raises(SpeechUnfinished, match="No end"):
            await waiting

    asyncio.run(listen())


def test_closing_a_speech_before_its_first_chunk_reaches_inference() -> None:
    service = LocalService(Pace())

    async def leave() -> None:
        speech = await LocalInference(lambda: service).speak(
            PromptRef("voice", "f", "s"), SpeechRequest("x")
        )
        await speech.chunks.aclose()

    asyncio.run(leave())
    assert service.chunks.was_closed_early
