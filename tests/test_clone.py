"""Speaking like a clip that is not enrolled: checked as an enrolment is, and nothing stays."""

import asyncio
import io
import json
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import faults
import httpx
import numpy as np
import pytest
import soundfile
from api import CLIP, add, problem
from clips import file, tone
from deployments import DEPLOYMENTS, client_of
from fakes import PATIENCE_S, FakeInference, Pace
from faults import age, noise, server
from modal_volume import Cloud, Dict
from reported_files import ALICE
from reported_files import WORDS as WORDS_OF_ALICE
from serving import serving
from speaking import enrolled, run, say
from volume_faults import FAILURES, Gpu

from cli.pitch import median_pitch_hz
from inference.models.catalog import locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.audio.clips import ReferenceClip
from registry.contract import Deadline, PromptSource
from registry.settings import Settings
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.volume.snapshots import Mount
from registry.storage.volume.store import SharedDict, SharedVolume, VolumeStore
from registry.threads import to_its_end
from registry.upkeep.doctor import Finding, examine

WORDS = "hello there"
SENTENCE = "A voice is enrolled once, and from then on it speaks by name."
TEXT = {"text": "Hello", "seed": "7"}


def every_deployment(test: object) -> object:
    return pytest.mark.parametrize("deployment", DEPLOYMENTS)(test)


def clone(
    client: httpx.Client, clip: bytes = CLIP, transcript: str | None = WORDS, **fields: str
) -> httpx.Response:
    form = TEXT | fields | ({} if transcript is None else {"transcript": transcript})
    return client.post("/clone", data=form, files={"audio": ("ref", clip)})


def contents(store: VoiceStore) -> dict[str, bytes]:
    """All files but the database's own and snapshots of it."""
    root = store.data.root
    paths = (path for folder in KEPT for path in root.glob(f"{folder}/**/*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


KEPT = ("clips", "conditioned", "prompts", "transient")


def left(store: VoiceStore) -> list[Path]:
    return list(store.data.transients())


@every_deployment
def test_a_clip_speaks_and_nothing_of_it_stays(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    spoken = clone(client)
    assert spoken.status_code == 200, spoken.text
    assert spoken.content.startswith(b"RIFF")
    assert spoken.headers["x-seed"] == "7"
    assert spoken.headers.keys().isdisjoint({"x-voice-id", "x-voice-version"})
    assert (fake.extracted, fake.started) == (1, ["Hello"])
    assert contents(store) == {}
    assert left(store) == []
    assert client.get("/voices").json()["data"] == []


@every_deployment
@pytest.mark.parametrize("format", ["wav", "flac", "pcm", "opus_48000_32"])
def test_it_sounds_the_same_whole_and_streamed(
    client: httpx.Client, store: VoiceStore, format: str
) -> None:
    whole, streamed = clone(client, format=format), clone(client, format=format, stream="true")
    assert whole.headers["content-type"] == streamed.headers["content-type"]
    assert "x-audio-seconds" in whole.headers.keys() - streamed.headers.keys()
    assert left(store) == []


@every_deployment
def test_an_enrolled_voice_of_the_same_clip_keeps_its_files(
    client: httpx.Client, store: VoiceStore
) -> None:
    add(client, "alice")
    before = contents(store)
    assert clone(client).status_code == 200
    assert contents(store) == before
    assert client.get("/voices/alice/clip").content == CLIP


@pytest.mark.slow
@every_deployment
def test_ten_at_once_of_one_clip_take_nothing_from_each_other(
    client: httpx.Client, store: VoiceStore
) -> None:
    with ThreadPoolExecutor(12) as threads:
        spoken = [threads.submit(clone, client) for _ in range(10)]
        enrolled = [threads.submit(add, client, name) for name in ("alice", "bob")]
    assert [reply.result().status_code for reply in spoken] == [200] * 10
    assert [reply.result().status_code for reply in enrolled] == [201] * 2
    assert left(store) == []
    assert client.get("/voices/bob/clip").content == CLIP


# What is refused and warned of


@pytest.mark.parametrize(
    ("clip", "fields", "refusal"),
    [
        (b"text", {}, (415, "audio-unsupported")),
        (file(tone(0.3), 24_000), {}, (422, "audio-too-short")),
        (file(0 * tone(), 24_000), {}, (422, "audio-silent")),
        (CLIP, {"transcript": "word " * 390}, (422, "transcript-mismatch")),
        (CLIP, {"transcript": "***"}, (422, "text-invalid")),
        (CLIP, {"text": "***"}, (422, "text-invalid")),
        (CLIP, {"text": "x" * 6000}, (422, "text-too-long")),
        (CLIP, {"language": "klingon"}, (422, "language-unsupported")),
        (CLIP, {"format": "mp4"}, (422, "request-invalid")),
        (CLIP, {"speed": "4.1"}, (422, "request-invalid")),
        (CLIP, {"loudness": "0"}, (422, "request-invalid")),
        (CLIP, {"seed": "-1"}, (422, "request-invalid")),
        (CLIP, {"temperature": "nan"}, (422, "request-invalid")),
        (CLIP, {"stream": "perhaps"}, (422, "request-invalid")),
        (CLIP, {"voice": "alice"}, (422, "request-invalid")),
        (CLIP, {"name": "alice"}, (422, "request-invalid")),
    ],
)
def test_what_an_enrolment_or_a_speech_refuses_is_refused(
    client: httpx.Client,
    store: VoiceStore,
    fake: FakeInference,
    clip: bytes,
    fields: dict[str, str],
    refusal: tuple[int, str],
) -> None:
    transcript = fields.pop("transcript", WORDS)
    assert problem(clone(client, clip, transcript, **fields)) == refusal
    assert fake.started == []
    assert contents(store) == {}


def test_a_form_without_a_clip_or_of_another_type_is_refused(client: httpx.Client) -> None:
    lacking = client.post("/clone", files={"text": (None, "Hello")})
    assert problem(lacking) == (422, "request-invalid")
    assert problem(client.post("/clone", json=TEXT)) == (415, "content-type-unsupported")
    large = client.post("/clone", data=TEXT, files={"audio": bytes(21 << 20)})
    assert problem(large) == (413, "body-too-large")


def test_what_an_enrolment_warns_of_is_in_a_header(client: httpx.Client) -> None:
    enrolled = add(client, "alice", transcript="<absent>").json()["warnings"]
    warned = clone(client, transcript=None).headers["x-warnings"]
    assert json.loads(warned) == enrolled != []


def test_all_parameters_reach_the_model(client: httpx.Client, fake: FakeInference) -> None:
    given = {"mode": "xvec", "temperature": "0.5", "top_k": "9", "top_p": "0.25"}
    assert clone(client, language="en", **given).status_code == 200
    [params] = fake.params
    assert params.given() == {
        "language": "english",
        "mode": "xvec",
        "seed": 7,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.25,
    }


# Whoever leaves, and what breaks


@every_deployment
def test_what_breaks_leaves_nothing(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    fake.pace = Pace()
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(clone, client)
        fake.pace.give(error=RuntimeError("The device is gone."))
        assert reply.result().status_code == 500
    assert left(store) == []


@every_deployment
def test_the_files_are_gone_before_a_stream_is_heard(
    client: httpx.Client, store: VoiceStore, fake: FakeInference
) -> None:
    fake.pace = Pace(free=1)
    form, files = TEXT | {"stream": "true"}, {"audio": CLIP}
    with client.stream("POST", "/clone", data=form, files=files) as answer:
        assert next(answer.iter_raw())
        assert left(store) == []
    assert fake.chunks[0].ended.wait(PATIENCE_S)
    assert fake.chunks[0].was_closed_early


class Unstoppable(FakeInference):
    """Makes features on a thread, as a model does: nobody who leaves can stop it."""

    def __init__(self, data: DataDir) -> None:
        super().__init__(data)
        self.begun, self.go = threading.Event(), threading.Event()

    async def extract_prompt(self, source: PromptSource, deadline: Deadline | None = None) -> Any:
        return await to_its_end(self._make, source)

    def _make(self, source: PromptSource) -> Any:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return asyncio.run(super().extract_prompt(source))


def test_whoever_leaves_while_features_are_made_leaves_nothing(
    store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped, drop = threading.Event(), store.drop_transient
    monkeypatch.setattr(store, "drop_transient", lambda voice: (drop(voice), dropped.set()))
    inference = Unstoppable(store.data)
    with client_of("server", store, inference) as client:
        with left_alone(client):
            assert inference.begun.wait(PATIENCE_S)
        inference.go.set()
        assert dropped.wait(PATIENCE_S)
    assert inference.extracted == 1
    assert inference.started == []
    assert left(store) == []


@contextmanager
def left_alone(client: httpx.Client) -> Iterator[None]:
    """A caller who has asked for a clone, and leaves at the end of the block."""
    request = client.build_request("POST", "/clone", data=TEXT, files={"audio": CLIP})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(f"POST /clone HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        yield


# A server that dies


class DiesWriting(VoiceStore):
    def keep_transient(self, source: PromptSource, clip: ReferenceClip) -> None:
        super().keep_transient(source, clip)
        os.kill(os.getpid(), signal.SIGKILL)


class DiesRemoving(VoiceStore):
    def drop_transient(self, voice_id: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=[DiesWriting, DiesRemoving])
def killed(request: pytest.FixtureRequest, tmp_path: Path) -> DataDir:
    """A directory in which a server died over a clone."""
    with (
        server(tmp_path, request.param) as (_, url),
        faults.client_of(url) as client,
        pytest.raises(httpx.TransportError),
    ):
        clone(client, noise(random.Random(1)))
    data = DataDir(tmp_path)
    assert len(list(data.transients())) == 1
    return data


@pytest.mark.slow
def test_the_next_start_removes_what_a_killed_server_left(killed: DataDir) -> None:
    VoiceStore(killed).close()
    assert len(list(killed.transients())) == 1, "it may be spoken with by another server"
    age(killed)
    VoiceStore(killed).close()
    assert list(killed.transients()) == []


@pytest.mark.slow
def test_the_doctor_names_what_a_killed_server_left(killed: DataDir) -> None:
    assert examine(killed, read_data=True, repair=False) == []
    age(killed)
    [folder] = killed.transients()
    [named] = examine(killed, read_data=True, repair=False)
    assert named == Finding("repairable", f"transient/{folder.name} belongs to no voice")
    [mended] = examine(killed, read_data=True, repair=True)
    assert mended.severity == "repaired"
    assert list(killed.transients()) == []
    assert examine(killed, read_data=True, repair=True) == []


def test_on_a_volume_both_containers_leave_nothing(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    container, mount = cloud.container("registry"), cloud.container("gpu").mount("state")
    shared = container.mount("state")
    claims = SharedDict(Dict(container, "claims"), "vo-1", FAILURES)
    store = VolumeStore(Mount(shared.path, SharedVolume(shared, FAILURES)), claims, container.disk)
    gpu = Gpu(mount.container)
    with client_of("server", store, gpu) as client:
        assert clone(client).status_code == 200
    kept = {path for path in cloud.committed("state") if not path.startswith("snapshots")}
    assert kept == {"transient"}, "a folder that is empty"


# In memory, and in sound


@pytest.mark.slow
def test_a_voice_that_is_not_kept_puts_no_other_out_of_memory(
    service_factory: Any, data: DataDir, enrol: Any
) -> None:
    service, kept = service_factory(), enrol()
    passing = replace(kept, voice_id="transient_1")
    data.conditioned(passing).parent.mkdir(parents=True)
    shutil.copy(data.conditioned(kept), data.conditioned(passing))
    refs = [run(enrolled(service, source)) for source in (kept, passing)]
    sounds = [run(say(service, ref)) for ref in refs]
    assert np.array_equal(*sounds)
    loaded = service._loaded
    assert [loaded.voices.find(ref) is not None for ref in refs] == [True, False]
    assert len(loaded.voices) == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data = DataDir(tmp_path_factory.mktemp("clone") / "data")
    store = VoiceStore(data)
    config = ServiceConfig(device="cpu", threads=1, queue_timeout_s=280)
    service = InferenceService(data, locate("demo", data), config)
    app = create_app(store, LocalInference(lambda: service), Settings(home=data.root))
    with serving(app) as client:
        client.timeout = 280
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alice", "bob"])
@pytest.mark.parametrize("mode", ["icl", "xvec"])
def test_the_demo_model_speaks_as_high_as_the_clip(
    demo: httpx.Client, name: str, mode: str
) -> None:
    folder = resources.files("cli.data")
    clip, words = (folder.joinpath(f"{name}.{kind}").read_bytes() for kind in ("wav", "txt"))
    spoken = clone(demo, clip, words.decode(), text=SENTENCE, mode=mode)
    assert spoken.status_code == 200, spoken.text
    heights = [median_pitch_hz(*sound(wav)) for wav in (clip, spoken.content)]
    assert heights[1] == pytest.approx(heights[0], rel=0.2)


def sound(wav: bytes) -> tuple[Any, int]:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return samples, rate


@pytest.mark.slow
def test_a_clone_is_the_voice_that_an_enrolment_would_be(demo: httpx.Client) -> None:
    clip, words = ALICE, WORDS_OF_ALICE
    form = {"name": "alice", "transcript": words}
    assert demo.post("/voices", data=form, files={"audio": clip}).status_code == 201
    request = {"voice": "alice", "text": SENTENCE, "seed": 7}
    enrolled = demo.post("/speak", json=request)
    assert clone(demo, clip, words, text=SENTENCE).content == enrolled.content
