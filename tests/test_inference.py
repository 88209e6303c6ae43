"""The engine and the service on the tiny checkpoint, compared with qwen_tts called directly."""

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
import torch
from conftest import PYTHON, ROOT, TRANSCRIPT, Enrol, ServiceFactory, make_clip
from numpy.typing import NDArray

from inference import errors
from inference.checkpoint import Recipe, build_random_model
from inference.device_thread import DeviceThread
from inference.engine.params import SpeechParams, frame_budget
from inference.engine.qwen import import_qwen_tts
from inference.engine.stock import Features, StockEngine, default_dtype
from inference.service import ExtractedPrompt, InferenceService, Speech
from inference.weights import LocatedModel, locate
from registry.files import DataDir, PromptRef, PromptSource, fingerprint, sha256_of

T = TypeVar("T")
TEXT = "A short text to say."
LEFTOVER = "Enough words to go on."


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> StockEngine:
    return StockEngine.load(checkpoint, "cpu", None, threads=1)


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Any:
    torch.set_num_threads(1)
    return import_qwen_tts().Qwen3TTSModel.from_pretrained(str(checkpoint))


def run(job: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(job, 60))


async def collect(speech: Speech) -> NDArray[np.float32]:
    return np.concatenate([chunk async for chunk in speech.chunks])


def ref_of(source: PromptSource, found: ExtractedPrompt) -> PromptRef:
    return PromptRef(source.voice_id, found.fingerprint, found.sha256)


async def enrolled(service: InferenceService, source: PromptSource) -> PromptRef:
    return ref_of(source, await service.extract_prompt(source))


async def say(service: InferenceService, ref: PromptRef, text: str = TEXT, **params: Any) -> Any:
    return await collect(await service.speak(ref, text, {"seed": 7} | params))


# The engine


def test_features_are_those_of_qwen_tts(engine: StockEngine, stock: Any) -> None:
    clip = make_clip(3, 1.5)
    found = engine.extract(clip, TRANSCRIPT)
    [item] = stock.create_voice_clone_prompt((clip, 24_000), TRANSCRIPT)
    assert found.ref_code is not None and found.ref_code.dtype == np.int16
    assert np.array_equal(found.ref_code, item.ref_code.numpy())
    assert np.array_equal(found.ref_spk_embedding, item.ref_spk_embedding.numpy())
    assert found.ref_text == item.ref_text == TRANSCRIPT


def test_without_a_transcript_there_are_no_codes(engine: StockEngine) -> None:
    with_text, without = (engine.extract(make_clip(3, 1.0), t) for t in (TRANSCRIPT, None))
    assert without.ref_code is None and without.ref_text is None
    assert np.array_equal(without.ref_spk_embedding, with_text.ref_spk_embedding)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_is_refused(engine: StockEngine, value: float) -> None:
    clip = make_clip(0, 1.0)
    clip[1000] = value
    with pytest.raises(errors.ExtractionFailed, match="not finite"):
        engine.extract(clip, TRANSCRIPT)


@pytest.mark.parametrize("samples", [0, 1, 200])
def test_a_clip_too_short_to_encode_is_refused(engine: StockEngine, samples: int) -> None:
    with pytest.raises(errors.ExtractionFailed, match="can't encode"):
        engine.extract(np.zeros(samples, np.float32), TRANSCRIPT)


ORDINARY = [
    "Hello.",
    "Grüße aus 北京, 안녕 🎉",
    " two  spaces ",
    "a\nb\n\nc",
    "it's 12,000 €",
    "e\u0301",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ids_of_ordinary_text_are_those_of_qwen_tts(
    engine: StockEngine, stock: Any, text: str
) -> None:
    [target] = stock._tokenize_texts([stock._build_assistant_text(text)])
    [reference] = stock._tokenize_texts([stock._build_ref_text(text)])
    assert engine._text.target(text) == target[0].tolist()
    assert engine._text.reference(text) == reference[0].tolist()


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<|im_start|>", "<tts_pad>", "<tts_text_eod>", "<think>", "<|endoftext|>"],
)
def test_control_tokens_that_a_user_writes_are_text(
    engine: StockEngine, stock: Any, token: str
) -> None:
    added = set(stock.processor.tokenizer.added_tokens_decoder)
    assert stock._tokenize_texts([token])[0].numel() == 1  # qwen_tts takes it for the token
    assert len(engine._text.ids(token)) > 1 and not added & set(engine._text.ids(token))
    assert engine._text.target(f"a{token}b")[3:-5] == engine._text.ids(f"a{token}b")
    assert engine._text.reference(token)[3:-2] == engine._text.ids(token)


def test_a_local_folder_keeps_qwens_pre_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    large = shutil.copytree(checkpoint, tmp_path / "large")
    vocabulary = json.loads((large / "vocab.json").read_text("utf-8"))
    fillers = {f"filler{i}": 400 + i for i in range(100_001)}
    (large / "vocab.json").write_text(json.dumps(vocabulary | fillers), "utf-8")
    engine = StockEngine.load(large, "cpu", None)
    splitter = engine._model.processor.tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("iPhone")] == ["iPhone"]
    replaced = import_qwen_tts().Qwen3TTSModel.from_pretrained(str(large)).processor.tokenizer
    splitter = replaced.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("iPhone")] == ["i", "Phone"]


def speak_directly(stock: Any, items: Any, text: str, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    [wav], _ = stock.generate_voice_clone(
        text, voice_clone_prompt=items, **{"max_new_tokens": 500} | options
    )
    return wav


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({}, {}),
        (
            {"temperature": 0.6, "top_k": 9, "top_p": 0.8},
            {
                "temperature": 0.6,
                "top_k": 9,
                "top_p": 0.8,
                "subtalker_temperature": 0.6,
                "subtalker_top_k": 9,
                "subtalker_top_p": 0.8,
            },
        ),
        ({"temperature": 0}, {"do_sample": False, "subtalker_dosample": False}),
        ({"language": "German"}, {"language": "german"}),
    ],
)
def test_params_reach_the_talker_and_its_subtalker(
    engine: StockEngine, stock: Any, params: dict[str, Any], options: dict[str, Any]
) -> None:
    clip = make_clip(1, 1.0)
    prompt = engine.prepare(engine.extract(clip, None))
    items = stock.create_voice_clone_prompt((clip, 24_000), None, x_vector_only_mode=True)
    pcm = engine.speak(prompt, TEXT, SpeechParams(seed=5, **params))
    assert np.array_equal(pcm, speak_directly(stock, items, TEXT, 5, **options))


def test_seeds_differ_when_sampled_and_agree_when_greedy(engine: StockEngine) -> None:
    prompt = engine.prepare(engine.extract(make_clip(1, 1.0), None))

    def differing(temperature: float) -> bool:
        a, b = (
            engine.speak(prompt, "Hi.", SpeechParams(seed=seed, temperature=temperature))
            for seed in (1, 2)
        )
        return not np.array_equal(a, b)

    assert differing(0.9) and not differing(0) and not differing(0.005)


@pytest.mark.parametrize("frames", range(1, 40, 3))
def test_the_length_is_a_whole_number_of_frames(engine: StockEngine, frames: int) -> None:
    codes = np.zeros((frames, 16), np.int16)
    prompt = engine.prepare(Features(codes, np.zeros(64, np.float32), "x"))
    assert len(engine.speak(prompt, "yz", SpeechParams(seed=1))) % 1920 == 0


def test_a_transcript_longer_than_its_codes_does_not_use_up_the_budget(engine: StockEngine) -> None:
    codes, transcript = np.zeros((10, 16), np.int16), "much more transcript than sound " * 3
    prompt = engine.prepare(Features(codes, np.zeros(64, np.float32), transcript))
    pcm = engine.speak(prompt, "Hi.", SpeechParams(seed=1))
    assert len(pcm) // 1920 == len(transcript) + 3 - 10 + 1 > frame_budget(3)


def test_speech_without_an_end_is_an_error_and_not_a_clip(endless_checkpoint: Path) -> None:
    engine = StockEngine.load(endless_checkpoint, "cpu", None, threads=1)
    prompt = engine.prepare(engine.extract(make_clip(1, 1.0), None))
    with pytest.raises(errors.SpeechUnfinished, match="within 56 frames"):
        engine.speak(prompt, "x", SpeechParams(seed=1))


def test_sound_that_is_not_finite_is_an_error(engine: StockEngine) -> None:
    nowhere = engine.prepare(Features(None, np.full(64, np.nan, np.float32), None))
    with pytest.raises(errors.SpeechFailed, match="failed while speaking"):
        engine.speak(nowhere, "Hi.", SpeechParams(seed=1))
    model = build_random_model(Recipe(), "cpu", "float32")
    model.model.speech_tokenizer.model.decoder.decoder[-1].conv.bias.data.fill_(np.nan)
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    with pytest.raises(errors.SpeechFailed, match="not finite"):
        StockEngine(model).speak(prompt, "Hi.", SpeechParams(seed=1))


def test_a_text_beyond_the_limit_names_it_in_frames_seconds_and_tokens(engine: StockEngine) -> None:
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    assert frame_budget(333) == 2048
    with pytest.raises(errors.TextTooLong, match=r"334 tokens.*333 at most.*2048 frames, 164 s"):
        engine.speak(prompt, "x" * 334, SpeechParams(seed=1))


@pytest.mark.parametrize("language", ["klingon", "en", "", "engl ish"])
def test_an_unknown_language_is_refused_with_the_known_ones(
    engine: StockEngine, language: str
) -> None:
    prompt = engine.prepare(Features(None, np.zeros(64, np.float32), None))
    with pytest.raises(errors.LanguageUnsupported, match=r"chinese, english, french"):
        engine.speak(prompt, "Hi.", SpeechParams(seed=1, language=language))


def test_languages_are_those_of_the_located_model(
    engine: StockEngine, located: LocatedModel
) -> None:
    assert sorted(engine.languages) == list(located.languages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "both"},
        {"seed": -1},
        {"seed": 2**31},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
    ],
)
def test_params_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpeechParams(**wrong)


def test_a_cpu_computes_in_float32(engine: StockEngine) -> None:
    assert default_dtype(torch.device("cpu")) == engine.dtype == "float32"
    assert engine.device == "cpu"


def test_an_explicit_dtype_wins(checkpoint: Path) -> None:
    assert StockEngine.load(checkpoint, "cpu", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("options", [("cpu", "int8"), ("no-such-device", None), ("cuda:99", None)])
def test_a_wrong_device_or_dtype_is_one_sentence(
    checkpoint: Path, options: tuple[str, str | None]
) -> None:
    with pytest.raises(errors.ModelUnavailable, match="did not load"):
        StockEngine.load(checkpoint, *options)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vocab.json", "speech_tokenizer/config.json"]
)
def test_damaged_weights_or_configs_are_one_sentence(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "damaged")
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(errors.ModelUnavailable, match="did not load"):
        StockEngine.load(copy, "cpu", None)


def test_import_loading_and_speaking_print_nothing(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from inference.engine.stock import StockEngine
from inference.engine.params import SpeechParams
engine = StockEngine.load(Path(sys.argv[1]), "cpu", None, threads=1)
clip = np.sin(np.arange(24000) / 20).astype(np.float32)
prompt = engine.prepare(engine.extract(clip, "Hi."))
engine.speak(prompt, "Hi.", SpeechParams(seed=1, temperature=0))
assert not {"torchaudio", "sox", "onnxruntime"} & set(sys.modules)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-W", "error", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_service_weights_and_errors_import_no_torch() -> None:
    script = """
import sys
import inference.service, inference.weights, inference.errors, inference.prompt, inference.voices
unwanted = {"torch", "qwen_tts", "transformers", "fastapi", "sqlmodel", "click"}
print(sorted(unwanted & set(sys.modules)))
"""
    assert run_python(script).stdout == "[]\n"


# The service


@pytest.mark.parametrize("mode", ["icl", "xvec"])
def test_a_prompt_from_disk_speaks_as_qwen_tts_with_a_fresh_one(
    service_factory: ServiceFactory, enrol: Enrol, stock: Any, mode: str
) -> None:
    first, restarted, source = service_factory(), service_factory(), enrol(1)

    async def from_disk() -> Any:
        ref = await enrolled(first, source)
        speech = await restarted.speak(ref, LEFTOVER, {"seed": 11, "mode": mode})
        assert (speech.prompt_cache, speech.mode) == ("file", mode)
        return speech, await collect(speech)

    speech, pcm = run(from_disk())
    items = stock.create_voice_clone_prompt(
        (make_clip(1, 2.0), 24_000),
        TRANSCRIPT if mode == "icl" else None,
        x_vector_only_mode=mode == "xvec",
    )
    direct = speak_directly(stock, items, LEFTOVER, 11)
    assert 0 <= len(direct) - len(pcm) <= 1  # qwen_tts may leave one sample of the reference
    assert np.array_equal(pcm, direct[len(direct) - len(pcm) :])
    assert speech.frames * 1920 == len(pcm) > 0 and np.abs(pcm).max() > 0.1


def test_extraction_writes_the_file_that_it_names(
    service_factory: ServiceFactory, enrol: Enrol, data: DataDir, located: LocatedModel
) -> None:
    source = enrol(2)
    found = run(service_factory().extract_prompt(source))
    assert found.fingerprint == fingerprint(source, located.ref) and found.model == located.ref
    assert (found.frames, found.modes) == (25, ("icl", "xvec"))
    assert sha256_of(data.prompt(ref_of(source, found)).read_bytes()) == found.sha256
    assert list(data.leftovers()) == []


def test_extracting_again_gives_the_same_file(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service, source = service_factory(), enrol(2)

    async def twice() -> list[ExtractedPrompt]:
        return [await service.extract_prompt(source) for _ in range(2)]

    first, second = run(twice())
    assert first == second


def test_a_voice_without_transcript_speaks_xvec_and_refuses_icl(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service, source = service_factory(), enrol(3, transcript=None)

    async def go() -> Speech:
        found = await service.extract_prompt(source)
        assert (found.frames, found.modes) == (0, ("xvec",))
        with pytest.raises(errors.ModeUnavailable, match="no transcript"):
            await service.speak(ref_of(source, found), TEXT, {"mode": "icl"})
        return await service.speak(ref_of(source, found), TEXT, {"mode": "auto"})

    assert run(go()).mode == "xvec"


def test_speech_says_what_it_did(service_factory: ServiceFactory, enrol: Enrol) -> None:
    service = service_factory()

    async def go() -> tuple[Speech, NDArray[np.float32], Speech]:
        ref = await enrolled(service, enrol())
        first = await service.speak(ref, "Hi.", {"mode": "xvec"})
        pcm = await collect(first)
        again = await service.speak(ref, "Hi.", {"mode": "xvec", "seed": first.seed})
        assert np.array_equal(await collect(again), pcm)
        return first, pcm, again

    first, pcm, again = run(go())
    assert (first.prompt_cache, again.prompt_cache) == ("file", "memory")
    assert first.sample_rate == 24_000 and pcm.dtype == np.float32 and pcm.ndim == 1
    assert 0 <= first.seed < 2**31 and first.frames == 4 and len(pcm) == 4 * 1920
    assert set(first.timings) == {"queue", "prompt", "ttfa", "total"}
    assert all(0 <= seconds <= first.timings["total"] for seconds in first.timings.values())


def test_an_unknown_parameter_is_a_type_error(service_factory: ServiceFactory) -> None:
    with pytest.raises(TypeError, match="speed"):
        run(service_factory().speak(PromptRef("v", "f", "s"), "Hi.", {"speed": 1.0}))


def test_a_missing_prompt_is_told_from_a_damaged_one(
    service_factory: ServiceFactory, enrol: Enrol, data: DataDir
) -> None:
    service, source = service_factory(), enrol()

    async def go() -> None:
        ref = await enrolled(service, source)
        path = data.prompt(ref)
        content = path.read_bytes()
        for damaged in (content[:-1], b"", content[:200] + b"\0" + content[201:]):
            path.write_bytes(damaged)
            with pytest.raises(errors.PromptCorrupt):
                await service.speak(ref, "Hi.", {})
        path.unlink()
        with pytest.raises(errors.PromptMissing):
            await service.speak(ref, "Hi.", {})
        path.mkdir()
        with pytest.raises(errors.PromptCorrupt):
            await service.speak(ref, "Hi.", {})
        path.rmdir()
        assert await enrolled(service, source) == ref
        assert (await service.speak(ref, "Hi.", {})).prompt_cache == "file"

    run(go())


def test_a_prompt_of_another_model_is_missing(
    service_factory: ServiceFactory, enrol: Enrol, endless_checkpoint: Path, data: DataDir
) -> None:
    other = service_factory(locate(str(endless_checkpoint), data))

    async def go() -> None:
        ref = await enrolled(service_factory(), enrol())
        with pytest.raises(errors.PromptMissing, match="for local/tiny, not local/endless"):
            await other.speak(ref, "Hi.", {})

    run(go())


def write_clip(data: DataDir, source: PromptSource, samples: Any, rate: int = 24_000) -> None:
    soundfile.write(data.conditioned(source), samples, rate, "FLOAT", format="WAV")


def test_a_clip_that_is_not_conditioned_is_refused(
    service_factory: ServiceFactory, enrol: Enrol, data: DataDir
) -> None:
    service, source, tone = service_factory(), enrol(), make_clip(0, 1.0)

    async def refused(match: str) -> None:
        with pytest.raises(errors.ExtractionFailed, match=match):
            await service.extract_prompt(source)

    async def go() -> None:
        write_clip(data, source, tone, 22_050)
        await refused("not mono at 24 kHz")
        write_clip(data, source, np.stack([tone, tone], axis=1))
        await refused("not mono at 24 kHz")
        write_clip(data, source, np.full(24_000, np.nan, np.float32))
        await refused("not finite")
        write_clip(data, source, np.zeros(0, np.float32))
        await refused("can't encode")
        data.conditioned(source).write_bytes(b"RIFF")
        await refused("can't be read")
        data.conditioned(source).unlink()
        await refused("can't be read")
        assert not list(data.root.glob("prompts/*/*"))

    run(go())


def test_overshoot_is_clipped_and_nothing_is_printed(
    service_factory: ServiceFactory, enrol: Enrol, data: DataDir, capfd: pytest.CaptureFixture[str]
) -> None:
    service, source = service_factory(), enrol()
    write_clip(data, source, make_clip(0, 1.0) * 3)
    run(service.extract_prompt(source))
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[], list[str]]]:
    """Call it to begin again; the list then grows by each path that any thread opens."""
    current: list[list[str]] = [[]]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and current:
            current[-1].append(str(arguments[0]))

    def begin() -> list[str]:
        current[:] = [[]]
        return current[-1]

    sys.addaudithook(watch)
    yield begin
    current.clear()


def test_a_miss_opens_the_prompt_file_alone_and_a_hit_opens_nothing(
    service_factory: ServiceFactory,
    enrol: Enrol,
    data: DataDir,
    opened: Callable[[], list[str]],
) -> None:
    service = service_factory()

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.", mode="xvec")
        rebuilt = await enrolled(service, enrol(1))
        seen = opened()
        await say(service, rebuilt, "Hi.", mode="xvec")
        assert seen == [str(data.prompt(rebuilt))]
        seen = opened()
        await say(service, rebuilt, "Hi.", mode="icl")
        assert seen == []

    run(go())


def test_sixteen_callers_of_two_voices_never_mix(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory()
    wanted = [(i % 2, "Some words."[: 2 + i // 4], i) for i in range(16)]

    async def go() -> None:
        refs = [await enrolled(service, enrol(1)), await enrolled(service, enrol(4))]

        def one(voice: int, text: str, seed: int) -> Coroutine[Any, Any, NDArray[np.float32]]:
            return say(service, refs[voice], text, seed=seed, mode="xvec")

        alone = [await one(*request) for request in wanted]
        together = await asyncio.gather(*(one(*request) for request in wanted))
        assert all(map(np.array_equal, alone, together))
        assert len({pcm.tobytes() for pcm in alone}) == 16

    run(go())


def test_callers_on_several_event_loops_share_one_service(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory()
    ref = run(enrolled(service, enrol()))
    expected = run(say(service, ref, "Hi.", mode="xvec"))
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(run(say(service, ref, "Hi.", mode="xvec"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(pcm, expected) for pcm in results)


class Gate:
    """A model finder that waits until it is opened, so that the device thread is busy at will."""

    def __init__(self, model: LocatedModel) -> None:
        self.model = model
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> LocatedModel:
        self.entered.set()
        assert self.open.wait(60)
        return self.model


@pytest.fixture
def gate(located: LocatedModel) -> Iterator[Gate]:
    gate = Gate(located)
    yield gate
    gate.open.set()


async def busy(service: InferenceService, gate: Gate, source: PromptSource) -> "asyncio.Task[Any]":
    """A first request that holds the device thread until the gate opens."""
    first = asyncio.create_task(service.extract_prompt(source))
    await asyncio.to_thread(gate.entered.wait, 60)
    return first


def test_a_queued_caller_who_leaves_never_starts(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate, data: DataDir
) -> None:
    service = service_factory(gate)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        left = asyncio.create_task(service.extract_prompt(enrol(2)))
        stayed = asyncio.create_task(service.extract_prompt(enrol(3)))
        await asyncio.sleep(0)
        assert (service.status().queued, service.status().running) == (2, 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert service.status().queued == 1
        gate.open.set()
        await asyncio.gather(first, stayed)

    run(go())
    assert {path.name for path in (data.root / "prompts").iterdir()} == {"voice_1", "voice_3"}


def test_a_running_caller_who_leaves_is_discarded_and_the_next_is_served(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate)

    async def go() -> ExtractedPrompt:
        first = await busy(service, gate, enrol(1))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        following = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        gate.open.set()
        return await following

    assert run(go()).frames == 25


def test_a_full_queue_refuses_at_once(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate, queue_limit=1)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        queued = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="1 requests are waiting") as refused:
            await service.extract_prompt(enrol(3))
        assert refused.value.retry_after_s >= 1
        queued.cancel()
        await asyncio.wait({queued})
        following = asyncio.create_task(service.extract_prompt(enrol(4)))
        gate.open.set()
        await asyncio.gather(first, following)

    run(go())


def test_waiting_too_long_is_refused_while_another_job_still_runs(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate, data: DataDir
) -> None:
    service = service_factory(gate, queue_timeout_s=0.05)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        with pytest.raises(errors.Overloaded, match=r"still loading.*waited 0\.05 s"):
            await service.extract_prompt(enrol(2))
        assert service.status().running == 1 and not first.done()
        gate.open.set()
        await first

    run(go())
    assert [path.name for path in (data.root / "prompts").iterdir()] == ["voice_1"]


def test_a_failed_load_is_told_to_each_caller_and_tried_again(
    service_factory: ServiceFactory, enrol: Enrol, located: LocatedModel
) -> None:
    attempts = iter([errors.ModelUnavailable("no disk"), errors.ModelUnavailable("no disk"), None])

    def find() -> LocatedModel:
        if failure := next(attempts):
            raise failure
        return located

    service = service_factory(find)
    assert service.status().state == "cold"
    for _ in range(2):
        with pytest.raises(errors.ModelUnavailable, match="no disk"):
            run(service.extract_prompt(enrol()))
        assert (service.status().state, service.status().error) == ("failed", "no disk")
    run(service.extract_prompt(enrol()))
    assert (service.status().state, service.status().error) == ("warm", None)


def test_without_qwen_tts_the_package_to_install_is_named(
    service_factory: ServiceFactory, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qwen_tts", None)  # as if it were not installed
    service = service_factory()
    with pytest.raises(
        errors.ModelUnavailable, match="pip install 'voice-registry\\[inference\\]'"
    ):
        run(service.extract_prompt(enrol()))
    assert service.status().state == "failed"


def test_describing_loads_nothing_until_warmed(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate, located: LocatedModel
) -> None:
    cold = service_factory().describe()
    assert (cold.model, cold.source) == (located.ref, located.source)
    assert (cold.languages, cold.sample_rate) == (located.languages, 24_000)
    assert (cold.dtype, cold.device) == (None, None)
    service = service_factory(gate)
    service.warm()
    assert gate.entered.wait(60) and service.status().state == "warming"
    gate.open.set()
    run(service.extract_prompt(enrol()))
    warm = service.describe()
    assert (service.status().state, warm.dtype, warm.device) == ("warm", "float32", "cpu")


def test_closing_fails_the_queued_and_lets_the_running_finish(
    service_factory: ServiceFactory, enrol: Enrol, gate: Gate
) -> None:
    service = service_factory(gate)

    async def go() -> None:
        first = await busy(service, gate, enrol(1))
        queued = asyncio.create_task(service.extract_prompt(enrol(2)))
        await asyncio.sleep(0)
        assert service.close(timeout_s=0.01) is False
        with pytest.raises(errors.Overloaded, match="shutting down"):
            await queued
        with pytest.raises(errors.Overloaded, match="shutting down"):
            await service.extract_prompt(enrol(3))
        gate.open.set()
        assert await asyncio.to_thread(service.close, 60)
        assert (await first).frames == 25

    run(go())


def test_the_device_thread_outlives_any_failure_of_a_job() -> None:
    thread = DeviceThread(queue_limit=8)

    def fail(error: BaseException) -> None:
        raise error

    failures = (ValueError("a"), MemoryError("b"), SystemExit(3), KeyboardInterrupt())
    jobs: list[Future[None]] = [thread.submit(lambda e=e: fail(e)) for e in failures]  # type: ignore[misc]
    assert [type(job.exception(60)) for job in jobs] == [type(e) for e in failures]
    assert thread.submit(lambda: 5).result(60) == 5
    assert thread.close(60)


def test_jobs_run_in_order_of_arrival_on_one_thread() -> None:
    thread = DeviceThread(queue_limit=100)
    jobs = [thread.submit(lambda i=i: (i, threading.get_ident())) for i in range(50)]  # type: ignore[misc]
    results = [job.result(60) for job in jobs]
    assert [number for number, _ in results] == list(range(50))
    assert len({ident for _, ident in results}) == 1
    assert results[0][1] != threading.get_ident() and thread.close(60)


def all_errors() -> list[errors.InferenceError]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    plain = [
        k for k in kinds if issubclass(k, errors.InferenceError) and k is not errors.Overloaded
    ]
    return [*(kind("A sentence.") for kind in plain), errors.Overloaded("A sentence.", 2.5)]


def test_errors_survive_pickling_and_have_a_code_each() -> None:
    for error in all_errors():
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == "A sentence."
        assert vars(copy) == vars(error)
    assert len({error.code for error in all_errors()}) == len(all_errors()) == 12
    assert all(error.code in (errors.__doc__ or "") for error in all_errors()[1:])
