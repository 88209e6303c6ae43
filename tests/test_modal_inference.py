"""Inference on Modal as the registry has it: as good as local, and honest where it can't be."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import modal
import numpy as np
import pytest
from clips import file
from conftest import TRANSCRIPT, Enrol, make_clip
from local_remote import Container, FakeVolume, LocalRemote, container, deployed, put_model, until
from modal_server import ModalServer
from serving import serving
from speaking import run

from inference.modal import app as deploy
from inference.models.catalog import LocatedModel, locate
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.contract import (
    Deadline,
    Inference,
    PromptRef,
    PromptSource,
    SpeakParams,
    Speech,
    SpeechRequest,
)
from registry.errors import (
    GpuCold,
    InferenceUnreachable,
    LanguageUnsupported,
    ModelUnavailable,
    Overloaded,
    PromptBroken,
    RegistryError,
    SpeechFailed,
    StorageUnavailable,
    StreamBroken,
    TextTooLong,
)
from registry.settings import Settings
from registry.speech import modal as modal_inference
from registry.speech.local import LocalInference
from registry.speech.modal import Load, ModalClass, ModalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.text import spoken_s

pytestmark = pytest.mark.filterwarnings("ignore:The Voices:UserWarning")

TEXT = "A short text to say."
LONG = "And so it goes on. " * 17  # for a speech that never ends, 1,982 frames
REF = PromptRef("voice_1", "f" * 64, "5" * 64)
CONFIG = ServiceConfig(device="cpu", dtype="float32", slots=deploy.plan.slots)
FAILURES = (modal.exception.Error, OSError)
TOLD = {
    "sample_rate": 24_000,
    "seed": 1,
    "prompt_cache": "file",
    "mode": "icl",
    "timings": {"ttfa": 0.1},
}
CALL = {"call": "fc-1", "run": "a"}
BEGIN = {"speech": TOLD, "run": "a"}
PCM = {"pcm": np.array([1, -1], "<i2").tobytes(), "run": "a"}
END = {"end": {"samples": 4}, "run": "a"}
WHOLE = [CALL, BEGIN, PCM, PCM, END]


@dataclass
class Scripted:
    """Says what no container can be brought to say: the items that it was given.

    It raises those that are exceptions, and waits at `...`.
    """

    items: list[Any] = field(default_factory=lambda: list(WHOLE))
    texts: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    asked: int = 0
    now: Load | Exception = field(default=Load(0, 0, 0))
    refuses_to_cancel: bool = False

    async def speak(
        self, ref: Any, text: str, params: Any, until_s: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.texts.append(text)
        for item in self.items:
            yield await self._said(item)

    async def extract_prompt(self, source: Any, until_s: float) -> dict[str, Any]:
        return await self._said(self.items[0])

    async def cancel(self, call: str) -> None:
        self.cancelled.append(call)
        if self.refuses_to_cancel:
            raise modal.exception.ConnectionError("no way there")

    def load(self) -> Load:
        self.asked += 1
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    async def _said(self, item: Any) -> dict[str, Any]:
        if item is ...:
            await asyncio.Event().wait()
        if isinstance(item, Exception):
            raise item
        return dict(item)


def made(remote: Any, weights: Path = Path("nowhere"), **options: Any) -> ModalInference:
    given = {"failures": FAILURES, "limit_s": 120.0, "slots": 32} | options
    return ModalInference(remote, weights, **given)


def test_the_tokens_of_a_text_are_told_by_whoever_knows_them() -> None:
    async def tokens(begin: dict[str, Any]) -> int | None:
        items = [CALL, begin, PCM, PCM, END]
        return (await made(Scripted(items)).speak(REF, SpeechRequest("Hello."))).text_tokens

    assert asyncio.run(tokens(BEGIN | {"text_tokens": 3})) == 3
    assert asyncio.run(tokens(BEGIN)) is None  # a container of an older version


async def sound_of(speech: Speech) -> bytes:
    parts = [np.asarray(chunk * 32768, "<i2").tobytes() async for chunk in speech.chunks]
    return b"".join(parts)


async def said(inference: Inference, text: str = TEXT) -> bytes:
    return await sound_of(await inference.speak(REF, SpeechRequest(text)))


# Both sides: the registry's, and the real class over a real service


@pytest.fixture
def voices(data: DataDir, located: LocatedModel, tmp_path: Path) -> Iterator[Container]:
    put_model(tmp_path / "weights", located)
    with container(data.root, tmp_path / "weights", FakeVolume()) as voices:
        yield voices


@pytest.fixture
def remote(voices: Container) -> LocalRemote:
    return LocalRemote(voices)


@pytest.fixture
def inference(remote: LocalRemote, tmp_path: Path) -> ModalInference:
    return made(remote, tmp_path / "weights")


def tell(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/speak", json={"voice": "ann", "text": TEXT, "seed": 7} | body)


def enrol_and_speak(inference: Inference, data: DataDir) -> list[bytes]:
    """A voice through the whole app: spoken in each way, then healed, then refused."""
    app = create_app(VoiceStore(data), inference, Settings(home=data.root, trial="off"))
    form = {"name": "ann", "transcript": TRANSCRIPT}
    clip = {"audio": file(make_clip(1, 2.0)[None], 24_000)}
    with serving(app) as http:
        added = http.post("/voices", data=form, files=clip)
        assert added.status_code == 201, added.text
        whole = tell(http, format="pcm")
        streamed = tell(http, format="pcm", stream=True)
        plain = tell(http, format="pcm", mode="xvec")
        assert whole.headers["X-Prompt-Cache"] == "file" and whole.headers["X-Seed"] == "7"
        assert streamed.headers["X-Prompt-Cache"] == "memory"
        [prompt] = (data.root / "prompts").glob("*/*")
        prompt.write_bytes(b"damaged")
        wrong = tell(http, language="klingon")
        return [whole.content, streamed.content, plain.content, wrong.content]


@pytest.mark.slow
def test_over_http_it_is_as_good_as_local_inference(
    inference: ModalInference, located: LocatedModel, data: DataDir, tmp_path: Path
) -> None:
    here = enrol_and_speak(inference, data)
    assert here[0] == here[1] != here[2]
    near = DataDir(tmp_path / "near")
    near.create()
    there = LocalInference(lambda: InferenceService(near, located, CONFIG))
    assert enrol_and_speak(there, near) == here


@pytest.mark.slow
def test_a_damaged_prompt_is_healed_through_it(
    inference: ModalInference, remote: LocalRemote, data: DataDir
) -> None:
    app = create_app(VoiceStore(data), inference, Settings(home=data.root, trial="off"))
    clip = {"audio": file(make_clip(1, 2.0)[None], 24_000)}
    with serving(app) as http:
        assert http.post("/voices", data={"name": "ann"}, files=clip).status_code == 201
        [prompt] = (data.root / "prompts").glob("*/*")
        prompt.write_bytes(b"damaged")
        healed = tell(http)
        assert (healed.status_code, healed.headers["X-Prompt-Cache"]) == (200, "rebuilt")


def submitted(voices: Container) -> int:
    """Speeches that the engine was ever asked for."""
    counters = voices.remote._service.counters()
    assert counters is not None
    return int(counters.submitted)


def enrol_over(http: httpx.Client, name: str, wait: str) -> httpx.Response:
    clip = {"audio": file(make_clip(1, 2.0)[None], 24_000)}
    form = {"name": name, "transcript": TRANSCRIPT}
    return http.post("/voices", data=form, files=clip, headers={"Prefer": f"wait={wait}"})


@pytest.mark.slow
def test_who_does_not_wait_for_a_cold_gpu_stops_nobody_who_comes_later(
    voices: Container, data: DataDir, tmp_path: Path
) -> None:
    remote = LocalRemote(voices, cold=True)
    inference = made(remote, tmp_path / "weights")
    app = create_app(VoiceStore(data), inference, Settings(home=data.root, trial="off"))
    with serving(app) as http:
        for number in range(3):
            cold = enrol_over(http, f"impatient {number}", "0")
            assert (cold.status_code, cold.json()["code"]) == (503, "gpu-cold")
        until(lambda: len(remote.sent) == 3)
        remote.come_up()
        until(lambda: not inference._left)
        for name in ("ann", "ben"):
            added = enrol_over(http, name, "60")
            assert added.status_code == 201, added.text
        remote.cold = True
        for voice in ("ann", "ben"):
            cold = http.post(
                "/speak", json={"voice": voice, "text": TEXT}, headers={"Prefer": "wait=0"}
            )
            assert cold.json()["code"] == "gpu-cold"
        before = submitted(voices)
        until(lambda: len(remote.sent) == 7)
        remote.come_up()
        until(lambda: not inference._left)
        assert submitted(voices) == before, "for those that left nothing was spoken"
        [prompt, _] = (data.root / "prompts").glob("*/*")
        prompt.write_bytes(b"damaged")
        spoken = [http.post("/speak", json={"voice": v, "text": TEXT}) for v in ("ann", "ben")]
        assert [answer.status_code for answer in spoken] == [200, 200]
        assert "rebuilt" in {answer.headers["X-Prompt-Cache"] for answer in spoken}
    assert not remote.cancelled, "a call that was refused needs no cancelling"


@pytest.fixture
def endless(
    endless_checkpoint: Path, data: DataDir, tmp_path: Path
) -> Iterator[tuple[LocalRemote, ModalInference]]:
    """A container whose speeches never end."""
    put_model(tmp_path / "weights", locate(str(endless_checkpoint), DataDir(tmp_path / "hashes")))
    with container(data.root, tmp_path / "weights", FakeVolume()) as voices:
        remote = LocalRemote(voices)
        yield remote, made(remote)


async def enrolled(inference: ModalInference, source: PromptSource) -> PromptRef:
    found = await inference.extract_prompt(source)
    return PromptRef(source.voice_id, found.fingerprint, found.sha256)


def test_who_leaves_frees_the_slot_there_and_no_other(
    endless: tuple[LocalRemote, ModalInference], enrol: Enrol
) -> None:
    remote, inference = endless

    async def leave_early() -> None:
        ref = await enrolled(inference, enrol(1))
        stays = await inference.speak(ref, SpeechRequest(LONG))
        leaves = await inference.speak(ref, SpeechRequest(LONG))
        await anext(leaves.chunks)
        await leaves.chunks.aclose()
        await asyncio.gather(*inference._left)
        _, first, second = remote.sent
        assert remote.cancelled == [second]
        await anext(stays.chunks)
        await stays.chunks.aclose()
        await asyncio.gather(*inference._left)
        assert remote.cancelled == [second, first]

    run(leave_early())
    remote.container.until_silent()


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(6))
def test_whoever_leaves_at_any_step_of_the_way_leaves_no_speech_behind(
    endless: tuple[LocalRemote, ModalInference], enrol: Enrol, steps: int
) -> None:
    remote, inference = endless

    async def leave() -> None:
        ref = await enrolled(inference, enrol(1))
        asking = asyncio.create_task(inference.speak(ref, SpeechRequest(LONG)))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.gather(*inference._left)
        assert asking.cancelled()

    run(leave())
    remote.container.until_silent()
    assert len(remote.cancelled) == len(remote.sent) - 1, "all but the enrolment"


def test_whoever_leaves_while_the_gpu_starts_is_cancelled_as_soon_as_that_is_possible(
    endless: tuple[LocalRemote, ModalInference], enrol: Enrol
) -> None:
    remote, inference = endless

    async def leave() -> None:
        ref = await enrolled(inference, enrol(1))
        remote.cold = True
        asking = asyncio.create_task(inference.speak(ref, SpeechRequest(LONG)))
        while len(remote.sent) < 2:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert inference._left and not remote.cancelled
        remote.come_up()
        await asyncio.gather(*inference._left)

    run(leave())
    remote.container.until_silent()
    assert remote.cancelled == remote.sent[1:]


def test_of_too_many_that_were_left_the_oldest_is_given_up(
    remote: LocalRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_inference, "LEFT", 2)
    remote.cold = True
    inference = made(remote, wait_s=0)

    async def ask() -> None:
        for _ in range(5):
            with pytest.raises(GpuCold):
                await inference.speak(REF, SpeechRequest(TEXT))
            with pytest.raises(GpuCold):
                await inference.extract_prompt(PromptSource("v", "c", None))
            await asyncio.sleep(0)
        assert len(inference._left) == 2
        inference.close()
        await asyncio.wait(list(inference._left))

    run(ask())
    assert not inference._left


# A remote end of our own


def test_a_whole_speech_is_heard_and_nothing_is_cancelled() -> None:
    remote = Scripted()
    assert np.frombuffer(run(said(made(remote))), "<i2").tolist() == [1, -1, 1, -1]
    assert not remote.cancelled


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([CALL, BEGIN, PCM], "stopped before its end"),
        ([CALL, BEGIN, PCM, END], "lacks 2 samples"),
        ([CALL, BEGIN, PCM, modal.exception.InternalFailure("lost")], "InternalFailure: lost"),
        ([CALL, BEGIN, PCM, ConnectionResetError("reset")], "ConnectionResetError: reset"),
        ([CALL, BEGIN, PCM, PCM | {"run": "b"}], "another one began anew"),
        ([CALL, BEGIN, PCM, PCM, END | {"run": "b"}], "another one began anew"),
    ],
)
def test_a_speech_that_is_cut_off_is_broken_and_never_asked_for_again(
    items: list[Any], sentence: str
) -> None:
    remote = Scripted(items)
    heard: list[int] = []

    async def listen() -> None:
        speech = await made(remote).speak(REF, SpeechRequest(TEXT))
        async for chunk in speech.chunks:
            heard.append(len(chunk))

    with pytest.raises(StreamBroken, match=sentence) as caught:
        run(listen())
    assert caught.value.code == "stream-broken" and heard and len(remote.texts) == 1


def test_a_stream_that_is_cut_off_does_not_look_whole(
    fake: Any, data: DataDir, store: VoiceStore
) -> None:
    loud = {"pcm": np.tile(np.array([9000, -9000], "<i2"), 1200).tobytes(), "run": "a"}
    remote = Scripted([CALL, BEGIN, loud])

    class Cut(type(fake)):  # type: ignore[misc]
        async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
            return await made(remote).speak(ref, asked)

    clip = {"audio": file(make_clip(1, 2.0)[None], 24_000)}
    with serving(create_app(store, Cut(data), Settings(home=data.root))) as http:
        http.post("/voices", data={"name": "ann"}, files=clip)
        whole = tell(http)
        assert (whole.status_code, whole.json()["code"]) == (500, "stream-broken")
        with pytest.raises(httpx.RemoteProtocolError):
            tell(http, stream=True)
    assert len(remote.texts) == 2


def test_a_second_container_is_told_to_be_silent() -> None:
    remote = Scripted([CALL, BEGIN, PCM | {"run": "b"}, ...])

    async def listen() -> None:
        inference = made(remote)
        speech = await inference.speak(REF, SpeechRequest(TEXT))
        with pytest.raises(StreamBroken):
            await anext(speech.chunks)
        await speech.chunks.aclose()
        await asyncio.gather(*inference._left)

    run(listen())
    assert remote.cancelled == ["fc-1"]


def error(code: str, retry_after_s: float | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "detail": "Because.", "retry_after_s": retry_after_s}}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("prompt-missing", PromptBroken),
        ("prompt-corrupt", PromptBroken),
        ("text-too-long", TextTooLong),
        ("language-unsupported", LanguageUnsupported),
        ("overloaded", Overloaded),
        ("model-unavailable", ModelUnavailable),
        ("model-cannot-clone", ModelUnavailable),
        ("storage-unavailable", StorageUnavailable),
        ("speech-unfinished", SpeechFailed),
        ("inference-failed", SpeechFailed),
    ],
)
def test_an_error_item_is_the_registrys_error(code: str, kind: type[RegistryError]) -> None:
    for items in ([error(code)], [CALL, BEGIN, PCM, error(code)]):
        remote = Scripted(items)
        with pytest.raises(kind, match="Because") as caught:
            run(said(made(remote)))
        assert caught.value.code in (code, "prompt-broken") and not remote.cancelled
    with pytest.raises(kind, match="Because"):
        run(made(Scripted([error(code)])).extract_prompt(PromptSource("v", "c", None)))


def test_what_overloaded_says_about_coming_back_is_kept() -> None:
    with pytest.raises(Overloaded) as caught:
        run(said(made(Scripted([error("overloaded", 7.0)]))))
    assert caught.value.headers() == {"Retry-After": "7"}


@pytest.mark.parametrize(
    ("failure", "kind", "sentence"),
    [
        (modal.exception.NotFoundError("gone"), InferenceUnreachable, "`voices deploy`"),
        (modal.exception.AuthError("no token"), InferenceUnreachable, "refuses.*no token"),
        (modal.exception.ResourceExhaustedError("quota"), Overloaded, "takes no more"),
        (modal.exception.FunctionTimeoutError("late"), InferenceUnreachable, "in time"),
        (modal.exception.ConnectionError("offline"), InferenceUnreachable, "offline"),
        (modal.exception.RemoteError("crashed"), InferenceUnreachable, "crashed"),
        (ConnectionRefusedError("refused"), InferenceUnreachable, "refused"),
    ],
)
def test_a_call_that_does_not_get_through_says_why(
    failure: Exception, kind: type[RegistryError], sentence: str
) -> None:
    remote = Scripted([failure])
    with pytest.raises(kind, match=sentence) as caught:
        run(said(made(remote)))
    assert caught.value.status == 503 and caught.value.detail.endswith(".")
    with pytest.raises(kind, match=sentence):
        run(made(remote).extract_prompt(PromptSource("v", "c", None)))
    assert len(remote.texts) == 1 and not remote.cancelled


# A GPU that is off


def test_a_cold_gpu_is_said(remote: LocalRemote) -> None:
    remote.cold = True

    async def ask() -> None:
        inference = made(remote, wait_s=0.01)
        with pytest.raises(GpuCold, match=r"within 0.01 s. It is starting") as caught:
            await inference.speak(REF, SpeechRequest(TEXT))
        assert (caught.value.status, caught.value.code) == (503, "gpu-cold")
        assert caught.value.headers()["Retry-After"] == "20"
        with pytest.raises(GpuCold):
            await inference.extract_prompt(PromptSource("v", "c", None))
        assert len(remote.sent) == 2, "each of which starts a GPU"
        remote.come_up()
        await asyncio.gather(*inference._left)

    run(ask())


@pytest.mark.parametrize("asked_s", [0.0, 0.02])
def test_whoever_asks_may_wait_for_less_but_not_for_more(asked_s: float) -> None:
    async def ask(seconds: float) -> None:
        asked = SpeechRequest(TEXT, deadline=Deadline(seconds))
        await made(Scripted([...]), wait_s=0.05).speak(REF, asked)

    with pytest.raises(GpuCold, match=f"within {asked_s:g} s"):
        run(ask(asked_s))
    with pytest.raises(GpuCold, match=r"within 0\.05 s"):
        run(ask(1000.0))


def test_only_the_first_sound_is_waited_for() -> None:
    """What comes later may come as slowly as it is made."""

    async def listen() -> None:
        speech = await made(Scripted([CALL, BEGIN, PCM, ...]), wait_s=0.05).speak(
            REF, SpeechRequest(TEXT)
        )
        await anext(speech.chunks)
        waiting = asyncio.ensure_future(anext(speech.chunks))
        assert not (await asyncio.wait([waiting], timeout=0.1))[0]
        waiting.cancel()
        await asyncio.wait([waiting])
        await speech.chunks.aclose()

    run(listen())


def test_a_cancelling_that_fails_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    remote = Scripted([CALL, BEGIN, ...], refuses_to_cancel=True)

    async def leave() -> None:
        inference = made(remote)
        speech = await inference.speak(REF, SpeechRequest(TEXT))
        await speech.chunks.aclose()
        await asyncio.gather(*inference._left)

    run(leave())
    assert remote.cancelled and "no way there" in caplog.text


# What is known without a GPU


def test_the_model_is_described_by_its_file(located: LocatedModel, tmp_path: Path) -> None:
    remote, looks = Scripted(), []

    def refresh() -> None:
        looks.append(1)
        if len(looks) == 2:
            put_model(tmp_path / "weights", located)

    inference = made(remote, tmp_path / "weights", refresh=refresh)
    with pytest.raises(ModelUnavailable, match="`voices deploy model`"):
        inference.describe()
    found = inference.describe()
    assert (found.model, found.languages) == (located.ref, located.languages)
    assert found.sample_rate == 24_000 and found.source.startswith("Qwen/")
    inference.describe()
    assert len(looks) == 2 and not remote.texts and not remote.asked


@pytest.mark.parametrize("content", ["{", "[]", "[" * 50_000, json.dumps({"model_id": "x"})])
def test_a_damaged_description_is_no_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelUnavailable):
        made(Scripted(), tmp_path).describe()


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (Load(0, 0, 0), "cold"),
        (Load(0, 0, 2), "cold"),
        (Load(1, 0, 2), "warming"),
        (Load(1, 3, 2), "warm"),
        (Load(1, 0, 0), "warm"),
    ],
)
def test_the_status_is_of_the_last_look(now: Load, state: str) -> None:
    remote = Scripted(now=now)
    inference = made(remote)
    inference._look()
    status = inference.status()
    assert status is not None and status.state == state
    assert (status.queued, status.running, status.slots) == (now.waiting, now.running, 32)


def test_asking_for_the_status_waits_for_nothing_and_looks_seldom() -> None:
    from threading import Event

    class Slow(Scripted):
        looking, go_on, looked = Event(), Event(), Event()

        def load(self) -> Load:
            self.looking.set()
            assert self.go_on.wait(60)
            return super().load()

    remote = Slow(now=modal.exception.NotFoundError("gone"))
    inference = made(remote)
    assert inference.status() is None and remote.looking.wait(60)
    assert [inference.status() for _ in range(50)] == [None] * 50
    remote.go_on.set()
    while (status := inference.status()) is None:
        remote.looked.wait(0.01)
    assert remote.asked == 1 and status.state == "failed"
    assert status.error is not None and "`voices deploy`" in status.error


# Text


def test_a_text_that_would_not_be_done_in_time_is_refused_before_it_is_sent() -> None:
    remote = Scripted()
    words, wide = "One word after another. " * 100, "語" * 700
    for text in (words, wide):
        with pytest.raises(TextTooLong, match="one request may take 120 s") as caught:
            run(said(made(remote), text))
        most = caught.value.extra["limit"]
        assert isinstance(most, int) and spoken_s(text[:most]) <= 120 < spoken_s(text)
        run(said(made(remote), text[:most]))
    assert len(remote.texts) == 2


# Modal's own client


@pytest.fixture(scope="module")
def server() -> Iterator[ModalServer]:
    with deployed() as server:
        yield server


@pytest.fixture
def by_name(server: ModalServer) -> ModalClass:
    """The class as the registry finds it; a test answers for it."""
    voices = modal.Cls.from_name("voices-inference", "Voices")()
    return ModalClass(voices, modal.FunctionCall.from_id)


@pytest.mark.slow
def test_through_modals_client_it_speaks_enrols_and_cancels(
    server: ModalServer, by_name: ModalClass
) -> None:
    heard: list[Any] = []
    prompt = {"fingerprint": "f", "sha256": "s", "frames": 3, "modes": ["icl"]}
    model = {"model": {"id": "m", "revision": "r"}}
    server.answers["Voices.speak"] = lambda *given: (heard.append(given), WHOLE)[1]
    server.answers["Voices.extract_prompt"] = lambda *_: {"prompt": prompt | model}
    server.stats["Voices.*"] = load_of(containers=1, running=2)

    async def ask() -> None:
        inference = made(by_name)
        pcm = await sound_of(await inference.speak(REF, SpeechRequest(TEXT, SpeakParams(seed=5))))
        assert len(pcm) == 8
        found = await inference.extract_prompt(PromptSource("v", "c", None))
        assert (found.modes, found.model.revision) == (("icl",), "r")
        speech = await inference.speak(REF, SpeechRequest(TEXT))
        await speech.chunks.aclose()
        await asyncio.gather(*inference._left)

    asked_s = time.time()
    run(ask())
    ref, text, params, until_s = heard[0]
    assert (ref, text, params) == (asdict(REF), TEXT, {"seed": 5})
    assert asked_s < until_s <= time.time() + modal_inference.WAIT_S
    [cancel] = server.sent("FunctionCallCancel")
    assert cancel.function_call_id == "fc-1" and not cancel.terminate_containers
    assert by_name.load() == Load(1, 2, 0)


def load_of(containers: int, running: int) -> Any:
    from modal_proto import api_pb2 as pb

    return pb.FunctionStats(num_total_tasks=containers, num_running_inputs=running)


def test_through_modals_client_what_breaks_is_said(
    server: ModalServer, by_name: ModalClass
) -> None:
    lost = modal.exception.InternalFailure("the container died")
    server.answers["Voices.speak"] = lambda *_: [CALL, BEGIN, PCM, lost]
    with pytest.raises(StreamBroken, match="the container died"):
        run(said(made(by_name)))
    nobody = modal.Cls.from_name("nobody", "Voices")()
    elsewhere = ModalClass(nobody, modal.FunctionCall.from_id)
    with pytest.raises(InferenceUnreachable, match="`voices deploy`"):
        run(said(made(elsewhere)))
    with pytest.raises(modal.exception.NotFoundError):
        elsewhere.load()
