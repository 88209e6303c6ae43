"""The class with the GPU, on a CPU: it enrols, speaks, refuses and is left."""

import asyncio
import inspect
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import modal
import numpy as np
import pytest
import soundfile
from conftest import ROOT, Enrol, make_clip
from images import hiding, not_in_image
from local_remote import Container, FakeVolume, container, deployed, put_model, until
from modal_proto import api_pb2 as pb
from modal_server import ModalServer
from speaking import run, run_python

from cli.modal import account
from cli.modal.deployed import sources
from inference.modal import app
from inference.modal.calls import Item, RemoteCalls, to_pcm
from inference.models.catalog import DEMO_FILES, LocatedModel, locate
from inference.models.marker import MARKER, bring, marked
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from inference.serving.voice_files import VolumeFiles
from registry import errors
from registry.audio.encoding.encoders import to_int16
from registry.contract import PromptRef, PromptSource, SpeakParams, SpeechRequest
from registry.modal.plan import SHARED_FILES
from registry.speech.items import BY_CODE, checked
from registry.storage.data_dir import DataDir

pytestmark = pytest.mark.filterwarnings("ignore:The Voices:UserWarning")

PATIENCE_S = 60.0
TEXT = "A short text to say."
LONG = "And so it goes on. " * 17  # for a speech that never ends, 1,982 frames
Enter = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
def volume() -> FakeVolume:
    return FakeVolume()


@pytest.fixture
def enter(data: DataDir, located: LocatedModel, tmp_path: Path, volume: FakeVolume) -> Enter:
    """A container whose Volumes hold the tiny model (or another) and the data directory."""

    def begin(model: LocatedModel | None = located) -> AbstractContextManager[Container]:
        weights = tmp_path / "weights"
        if model is not None:
            put_model(weights, model)
        return container(data.root, weights, volume)

    return begin


@pytest.fixture
def voices(enter: Enter) -> Iterator[Container]:
    with enter() as voices:
        yield voices


@pytest.fixture
def endless(enter: Enter, endless_checkpoint: Path, tmp_path: Path) -> Iterator[Container]:
    """Its speeches never end."""
    with enter(locate(str(endless_checkpoint), DataDir(tmp_path / "hashes"))) as voices:
        yield voices


def enrolled(voices: Container, source: PromptSource) -> dict[str, str]:
    """The plain form of a PromptRef."""
    found = voices.extract_prompt(asdict(source))["prompt"]
    return asdict(PromptRef(source.voice_id, found["fingerprint"], found["sha256"]))


def say(voices: Container, ref: dict[str, str], text: str = TEXT, **params: Any) -> list[Item]:
    """What comes after the call's own name."""
    return list(voices.speak(ref, text, {"seed": 7} | params))[1:]


def pcm_of(items: list[Item]) -> bytes:
    return b"".join(item["pcm"] for item in items if "pcm" in item)


def code_of(items: list[Item]) -> str:
    assert len(items) == 1, "something was sent before the refusal"
    error = items[0]["error"]
    assert error["detail"].endswith((".", ")"))
    return str(error["code"])


# What it says


@pytest.mark.slow
def test_it_enrols_and_speaks_what_the_service_would(
    voices: Container, enrol: Enrol, data: DataDir, service_factory: Any
) -> None:
    source = enrol(1)
    ref = enrolled(voices, source)
    assert data.prompt(PromptRef(**ref)).is_file()
    begin, *sound, end = say(voices, ref)
    assert (begin["speech"]["sample_rate"], begin["speech"]["seed"]) == (24_000, 7)
    assert begin["speech"]["prompt_cache"] == "file" and begin["speech"]["mode"] == "icl"
    assert len(sound) > 1 and {item["run"] for item in [begin, *sound, end]} == {begin["run"]}

    async def directly() -> bytes:
        speech = await service_factory(slots=32).speak(
            PromptRef(**ref), SpeechRequest(TEXT, SpeakParams(seed=7))
        )
        return b"".join([to_int16(chunk).tobytes() async for chunk in speech.chunks])

    assert pcm_of(sound) == run(directly())
    assert end["end"]["samples"] * 2 == len(pcm_of(sound))
    assert say(voices, ref)[0]["speech"]["prompt_cache"] == "memory"


@pytest.mark.slow
def test_calls_are_served_together(voices: Container, enrol: Enrol) -> None:
    refs = [enrolled(voices, enrol(seed)) for seed in range(2)]
    alone = [pcm_of(say(voices, ref)) for ref in refs]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda i: pcm_of(say(voices, refs[i % 2])), range(4)))
    for one, other in zip(together, alone * 2, strict=True):
        one_by_one = np.frombuffer(other, np.int16).astype(int)
        assert np.abs(np.frombuffer(one, np.int16) - one_by_one).max() <= 1  # batches round apart


def test_pcm_crosses_exactly_as_the_registry_encodes_it() -> None:
    samples = np.random.default_rng(1).uniform(-1.2, 1.2, 10_000).astype(np.float32)
    assert to_pcm(samples) == to_int16(samples).tobytes()


def test_describe_and_status_are_plain(voices: Container, located: LocatedModel) -> None:
    found = voices.ask("describe")["model"]
    assert found["model"] == asdict(located.ref) and found["device"] == "cpu"
    status = {"state": "warm", "queued": 0, "running": 0, "slots": app.plan.slots, "error": None}
    assert voices.ask("status") == status | {"queue_limit": app.WAITING}


# What it refuses


REFUSED = [
    ("words " * 2000, {}, "text-too-long"),
    (TEXT, {"language": "klingon"}, "language-unsupported"),
    (TEXT, {"mode": "icl"}, "mode-unavailable"),
    (TEXT, {"temperature": 9.0}, "inference-failed"),
    (TEXT, {"unheard_of": 1}, "inference-failed"),
]


def test_a_refusal_is_one_item(voices: Container, enrol: Enrol) -> None:
    ref = enrolled(voices, enrol(1, transcript=None))
    for text, params, code in REFUSED:
        assert code_of(say(voices, ref, text, **params)) == code


def test_every_error_of_inference_crosses_by_its_code(
    voices: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, source = asdict(PromptRef("voice_1", "f", "s")), asdict(PromptSource("v", "c", None))
    for wire_code, kind in BY_CODE.items():
        busy = issubclass(kind, errors.Overloaded)
        error = kind("Because.", 9.0) if busy else kind("Because.")

        async def fail(*_: object, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(InferenceService, "speak", fail)
        monkeypatch.setattr(InferenceService, "extract_prompt", fail)
        waits = error.retry_after_s
        said = {"code": wire_code, "detail": "Because.", "retry_after_s": waits}
        assert say(voices, ref) == [{"error": said}]
        assert voices.extract_prompt(source) == {"error": said}
        with pytest.raises(kind, match="Because") as raised:
            checked({"error": said})
        assert type(raised.value) is kind and raised.value.retry_after_s == waits


# The Volume


def test_a_prompt_file_is_committed_before_it_is_told(
    voices: Container, enrol: Enrol, volume: FakeVolume
) -> None:
    enrolled(voices, enrol(1))
    assert (volume.commits, volume.reloads) == (1, 0)


def test_what_others_committed_is_found_after_one_reload(
    voices: Container, enrol: Enrol, data: DataDir, volume: FakeVolume, tmp_path: Path
) -> None:
    source, aside = enrol(1), tmp_path / "aside"
    ref = enrolled(voices, source)
    path = data.prompt(PromptRef(**ref))
    for hidden in (data.conditioned(source), path):
        shutil.move(hidden, aside)
        volume.others = lambda hidden=hidden: shutil.move(aside, hidden)  # type: ignore[misc]
        before = volume.reloads
        if hidden == path:
            assert say(voices, ref)[-1]["end"]
        else:
            enrolled(voices, source)
        assert volume.reloads == before + 1


def test_an_older_prompt_file_is_replaced_by_a_reload(
    voices: Container, enrol: Enrol, data: DataDir, volume: FakeVolume
) -> None:
    ref = enrolled(voices, enrol(1))
    path = data.prompt(PromptRef(**ref))
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    volume.others = lambda: path.write_bytes(sound)
    assert say(voices, ref)[-1]["end"] and volume.reloads == 1


def test_what_is_nowhere_is_said_after_one_reload(
    voices: Container, enrol: Enrol, data: DataDir, volume: FakeVolume
) -> None:
    ref = enrolled(voices, enrol(1))
    data.prompt(PromptRef(**ref)).write_bytes(b"damaged")
    assert code_of(say(voices, ref)) == "prompt-corrupt" and volume.reloads == 1
    data.prompt(PromptRef(**ref)).unlink()
    assert code_of(say(voices, ref)) == "prompt-missing" and volume.reloads == 2
    missing = voices.extract_prompt(asdict(PromptSource("voice_2", "2" * 64, None)))
    assert code_of([missing]) == "extraction-failed" and volume.reloads == 3


@pytest.mark.parametrize("failure", [RuntimeError("open files"), modal.exception.InternalError()])
def test_a_volume_that_fails_is_said(
    voices: Container, enrol: Enrol, data: DataDir, volume: FakeVolume, failure: Exception
) -> None:
    source = enrol(1)
    ref = enrolled(voices, source)
    volume.failure = failure
    stored = voices.extract_prompt(asdict(source))
    data.prompt(PromptRef(**ref)).unlink()
    assert code_of([stored]) == code_of(say(voices, ref)) == "storage-unavailable"


def test_no_file_is_open_while_the_volume_is_reloaded(data: DataDir) -> None:
    """Whoever reads waits for the reload, and the reload for whoever reads."""
    reading, reloaded = threading.Event(), threading.Event()

    class Volume(FakeVolume):
        def reload(self) -> None:
            reading.set()
            assert not reloaded.wait(0.05)
            super().reload()

    volume = Volume()
    files = VolumeFiles(data, volume, ())
    source = PromptSource("voice_1", "1" * 64, None)
    soundfile.write(
        data.conditioned(source), make_clip(1, 1.0), 24_000, subtype="FLOAT", format="WAV"
    )
    missing = PromptRef("voice_9", "f", "s")

    def read() -> None:
        reading.wait(PATIENCE_S)
        files.clip(source)
        reloaded.set()

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.raises(errors.PromptMissing):
        files.prompt(missing)
    reader.join(PATIENCE_S)
    assert reloaded.is_set()


# Leaving


def test_a_speech_that_is_cancelled_frees_its_slot_and_stops_no_other(
    endless: Container, enrol: Enrol
) -> None:
    ref = enrolled(endless, enrol(1))
    first, second = (endless.speak(ref, LONG, {}) for _ in range(2))
    calls = [next(items)["call"] for items in (first, second)]
    assert all("speech" in next(items) for items in (first, second))
    endless.cancel(calls[0])
    with pytest.raises(modal.exception.RemoteError):
        list(first)
    until(lambda: endless.ask("status")["running"] == 1)
    assert "pcm" in next(second)
    second.close()
    endless.until_silent()
    assert len(set(calls)) == 2


def test_any_method_may_be_cancelled_while_somebody_listens(
    endless: Container, enrol: Enrol
) -> None:
    """Of a sync one Modal could only stop by ending the container."""
    assert endless.methods.keys() == {"speak", "extract_prompt", "describe", "status"}
    for name, method in endless.methods.items():
        assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), name
    source = enrol(1)
    ref = enrolled(endless, source)
    items = endless.speak(ref, LONG, {})
    assert "call" in next(items) and "speech" in next(items)
    for name, given in (
        ("extract_prompt", (asdict(source), inf)),
        ("describe", ()),
        ("status", ()),
    ):
        endless.cancel(endless.begin(name, *given, put=lambda _: None).name)
    assert "pcm" in next(items)
    items.close()
    endless.until_silent()
    again = endless.speak(ref, TEXT, {})
    assert "call" in next(again) and "speech" in next(again)
    again.close()


def test_what_comes_when_nobody_waits_any_more_is_refused(voices: Container, enrol: Enrol) -> None:
    source = enrol(1)
    ref, past_s = enrolled(voices, source), time.time() - 1
    assert code_of(list(voices.speak(ref, TEXT, {}, past_s))) == "overloaded"
    assert code_of([voices.extract_prompt(asdict(source), past_s)]) == "overloaded"
    assert voices.remote._service.counters().submitted == 0
    assert say(voices, ref)[-1]["end"], "which holds for no later call"


@pytest.mark.slow
def test_a_speech_ends_after_as_long_as_one_may_take(endless: Container, enrol: Enrol) -> None:
    ref = enrolled(endless, enrol(1))
    loading = endless.speak(ref, TEXT, {})
    assert "call" in next(loading) and "speech" in next(loading)
    loading.close()
    endless.remote._limit_s = 2.5
    *sound, last = say(endless, ref, LONG)
    assert sound and last["error"]["code"] == "speech-unfinished"
    assert "2.5 s" in last["error"]["detail"]
    until(lambda: not endless.ask("status")["running"])


def test_the_end_of_the_container_leaves_no_thread_behind(endless: Container, enrol: Enrol) -> None:
    """Modal cancels what runs, then asks the hook; `leave` does the same."""
    items = endless.speak(enrolled(endless, enrol(1)), LONG, {})
    assert "call" in next(items) and "speech" in next(items)
    endless.leave()
    with pytest.raises(modal.exception.RemoteError):
        list(items)
    assert not {"engine", "extract"} & {thread.name for thread in threading.enumerate()}


# The model, and the snapshot


@pytest.mark.slow
def test_without_a_model_it_says_what_brings_one(
    enter: Enter, enrol: Enrol, located: LocatedModel, tmp_path: Path
) -> None:
    with enter(None) as voices:
        refused = [voices.extract_prompt(asdict(enrol(1)))]
        assert code_of(refused) == "model-unavailable"
        assert "voices deploy model" in refused[0]["error"]["detail"]
        assert code_of(say(voices, asdict(PromptRef("v", "f", "s")))) == "model-unavailable"
        put_model(tmp_path / "weights", located)  # and the Volume is looked at again
        assert say(voices, enrolled(voices, enrol(1)))[-1]["end"]


def test_another_model_than_the_deployments_is_refused(
    located: LocatedModel, tmp_path: Path
) -> None:
    put_model(tmp_path / "weights", located, source="someone/else")
    with pytest.raises(errors.ModelUnavailable, match="holds the model someone/else, not Qwen"):
        marked(tmp_path / "weights", app.plan.model)
    for damaged in ("{", "[" * 50_000):
        (tmp_path / "weights" / MARKER).write_text(damaged)
        with pytest.raises(errors.ModelUnavailable, match="damaged"):
            marked(tmp_path / "weights", app.plan.model)


def test_the_demo_is_copied_then_committed_then_marked(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    def commit() -> None:
        seen.append((any(tmp_path.rglob("model.safetensors")), (tmp_path / MARKER).exists()))

    marker = bring(tmp_path, "demo", commit)
    found = marked(tmp_path, "demo")
    assert seen == [(True, False), (True, True)]
    assert (found.source, found.ref.id) == ("demo", "demo") == (marker.source, marker.model_id)
    assert (found.path / "model.safetensors").is_file() and bring(tmp_path, "demo", commit)


def test_a_model_that_changed_since_the_snapshot_is_read_anew(
    enter: Enter, located: LocatedModel, data: DataDir, tmp_path: Path
) -> None:
    from inference.modal import memory_snapshot as snapshot

    weights = tmp_path / "weights"
    put_model(weights, located)
    kept = snapshot.read(weights, app.plan.model, "float32")
    assert kept is not None

    def checkpoint_kept() -> Any:
        files = VolumeFiles(data, FakeVolume(), ())
        config = ServiceConfig(device="cpu")
        return snapshot.service(kept, weights, app.plan.model, files, config)._checkpoint

    assert checkpoint_kept() is kept.checkpoint
    (weights / "model").unlink()
    put_model(weights, located, revision="another")
    assert checkpoint_kept() is None


SNAPSHOT = """
import socket, threading
from pathlib import Path
import torch
from inference.modal import app as deploy
from inference.modal import memory_snapshot as snapshot

def refuse(*_, **__):
    raise AssertionError("this is not for a snapshot")

with __import__("pytest").MonkeyPatch.context() as patch:
    for name in ("is_available", "device_count", "init", "_lazy_init", "current_device",
                 "get_device_capability", "get_device_properties", "is_bf16_supported"):
        patch.setattr(torch.cuda, name, refuse)
    for name in ("_cuda_getDeviceCount", "_cuda_init"):  # a build for CPUs has them not
        if hasattr(torch._C, name):
            patch.setattr(torch._C, name, refuse)
    patch.setattr(socket.socket, "__init__", refuse)
    seeds = torch.get_rng_state()
    kept = snapshot.read(Path(sys.argv[1]), deploy.plan.model, "float16")
assert kept.checkpoint.weights.talker.head.dtype == torch.float16
assert torch.equal(torch.get_rng_state(), seeds)
assert [t.name for t in threading.enumerate() if not t.daemon] == ["MainThread"]
heavy = {"qwen_tts", "inference.serving.loaded_engine", "inference.engine.extract"}
assert heavy <= set(sys.modules)

from inference.engine.extract import Extractor
from inference.engine.model_config import read_model_config
import numpy as np

extractor = Extractor.load(kept.model.path, read_model_config(kept.model.path), "cpu")
extractor.extract(np.zeros(24_000, np.float32), "Words.")
"""


@pytest.mark.slow
def test_the_snapshot_asks_for_no_gpu_no_socket_and_no_package_that_the_image_lacks(
    located: LocatedModel, tmp_path: Path
) -> None:
    """Of all that is installed here it finds what the image names, and what that requires."""
    put_model(tmp_path / "weights", located)
    missing = not_in_image([*app.PACKAGES, "torch", "pytest"], "qwen-tts")
    assert {"gradio", "onnxruntime", "torchaudio", "fastapi"} <= missing
    script = hiding(missing) + SNAPSHOT
    done = run_python(script, str(tmp_path / "weights"))
    assert done.returncode == 0, done.stderr


# What is sent to Modal


@pytest.fixture(scope="module")
def sent() -> Iterator[ModalServer]:
    with deployed() as server:
        yield server


@pytest.mark.slow
def test_the_class_is_sent_as_it_was_planned(sent: ModalServer) -> None:
    plan, found = app.plan, sent.functions["Voices.*"]
    assert found.resources.gpu_config.gpu_type == plan.gpu == "T4"
    assert (found.resources.milli_cpu, found.resources.memory_mb) == (2000, 8192)
    assert (found.timeout_secs, found.startup_timeout_secs) == (300, 600)
    assert found.HasField("retry_policy") and found.retry_policy.retries == 0
    assert found.max_concurrent_inputs == plan.slots + app.WAITING + app.AT_ONCE
    assert found.checkpointing_enabled and not found.enable_gpu_snapshot
    assert not found.secret_ids and not found.class_parameter_info.schema
    scaling = found.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 1, 60)
    kinds = {name: method.function_type for name, method in found.method_definitions.items()}
    assert kinds.pop("speak") == pb.Function.FUNCTION_TYPE_GENERATOR
    assert kinds.keys() == {"extract_prompt", "describe", "status"}


@pytest.mark.slow
@pytest.mark.parametrize("snapshot", ["off", "gpu"])
def test_other_plans_can_be_deployed(snapshot: str) -> None:
    other = {"SNAPSHOT": snapshot, "GPU": "L4", "REGION": "eu", "MODEL": "demo", "NAME": "team"}
    with deployed(**{f"VOICES_DEPLOY_{name}": value for name, value in other.items()}) as server:
        found = server.functions["Voices.*"]
        assert server.apps["team-inference"].deployed
        assert found.resources.gpu_config.gpu_type == "L4"
        assert list(found.scheduler_placement.regions) == ["eu"]
        assert found.checkpointing_enabled == (snapshot != "off")
        wanted = {"enable_gpu_snapshot": "True"} if snapshot == "gpu" else {}
        assert dict(found.experimental_options) == wanted


def test_only_who_downloads_the_model_may_write_it(sent: ModalServer) -> None:
    names = {volume.id: name for name, volume in sent.volumes.items()}
    mounts = {
        tag: {(m.mount_path, names[m.volume_id], m.read_only) for m in function.volume_mounts}
        for tag, function in sent.functions.items()
    }
    weights, state = "voices-weights", "voices-state"
    assert mounts == {
        "Voices.*": {("/weights", weights, True), ("/state", state, False)},
        "download_model": {("/weights", weights, False)},
    }
    assert sent.functions["download_model"].resources.gpu_config.count == 0


def test_our_files_are_all_that_is_uploaded_and_come_last(sent: ModalServer) -> None:
    ours = {f"/root/registry/{name}" for name in SHARED_FILES}
    folder = ROOT / "inference"
    demo = [folder / "demo" / name for name in DEMO_FILES]
    sources = [*folder.rglob("*.py"), *folder.rglob("*.cu"), *demo]
    ours |= {f"/root/{path.relative_to(ROOT).as_posix()}" for path in sources}
    assert "/root/inference/engine/kernels/kernels.cu" in ours
    for function in sent.functions.values():
        assert set(sent.uploaded(*function.mount_ids)) == ours


STRAY = (
    "notes.txt",
    ".env",
    "alice.wav",
    "config.json.orig",
    "secret.json",
    "code.py",
    "kernels.cu",
    "speech_tokenizer/notes.txt",
    "speech_tokenizer/code.py",
    "backup/model.safetensors",
    "checkpoints/1/config.json",
)


@pytest.mark.parametrize("name", STRAY)
def test_what_else_lies_beside_the_demo_model_is_not_uploaded(name: str) -> None:
    assert not app.OURS(Path("demo", name))


def test_the_demo_model_is_uploaded_whole_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent, and what is hashed to see whether it must be sent again, are the same."""
    listed = subprocess.run(["git", "ls-files", "inference/demo"], cwd=ROOT, capture_output=True)
    if listed.stdout:
        assert {f"inference/demo/{n}" for n in DEMO_FILES} == {*listed.stdout.decode().split()}
    assert all(app.OURS(Path("demo", name)) for name in DEMO_FILES)
    for name in (*DEMO_FILES, *STRAY):
        path = tmp_path / "inference" / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in SHARED_FILES:
        path = tmp_path / "registry" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(account, "SOURCES", tmp_path)
    hashed = {name for name, _ in sources(inference=True) if name.startswith("inference/")}
    assert hashed == {f"inference/demo/{name}" for name in DEMO_FILES}


def test_the_image_is_pinned_and_its_largest_layer_comes_first(sent: ModalServer) -> None:
    served, fetching = (sent.functions[tag].image_id for tag in ("Voices.*", "download_model"))
    layers = [" ".join(layer.dockerfile_commands) for layer in sent.images[served][1:]]
    wanted = ["torch==2.11.0", "transformers==4.57.3", "qwen-tts==0.1.1", "HF_HUB_OFFLINE=1"]
    assert [found for found in wanted for layer in layers if found in layer] == wanted
    assert "--no-deps" in layers[2] and "VOICES_DEPLOY_GPU=T4" in layers[3]
    assert sent.images[served][:4] == sent.images[fetching][:4]
    assert "HF_HUB_OFFLINE" not in " ".join(sent.commands(fetching))


def test_a_call_that_breaks_in_our_own_code_is_said_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def describe(self) -> None:
            raise KeyError("a bug")

    item = asyncio.run(RemoteCalls(Broken(), 1.0).describe())  # type: ignore[arg-type]
    assert item["error"]["code"] == "inference-failed"
    assert "A call failed." in caplog.text
