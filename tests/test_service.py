"""The service on the tiny checkpoint: prompt files, refusals, callers who share it."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TRANSCRIPT, Enrol, ServiceFactory, make_clip
from numpy.typing import NDArray
from speaking import LEFTOVER, TEXT, collect, enrolled, ref_of, run, run_python, say, speak_directly

from inference.models.catalog import LocatedModel, locate
from inference.serving.service import InferenceService
from inference.serving.voice_files import VoiceFiles
from registry import errors
from registry.contract import (
    ExtractedPrompt,
    PromptRef,
    PromptSource,
    SpeakParams,
    Speech,
    SpeechRequest,
    fingerprint,
)
from registry.storage.data_dir import DataDir, sha256_of


def test_service_weights_and_errors_import_no_torch() -> None:
    script = """
import sys
import registry.errors, inference.models.catalog, inference.prompts.features
import inference.serving.prompt_cache, inference.serving.service
unwanted = {"torch", "qwen_tts", "transformers", "fastapi", "sqlmodel", "click"}
print(sorted(unwanted & set(sys.modules)))
"""
    assert run_python(script).stdout == "[]\n"


# The service


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["icl", "xvec"])
def test_a_prompt_from_disk_speaks_as_qwen_tts_with_a_fresh_one(
    service_factory: ServiceFactory, enrol: Enrol, stock: Any, mode: str
) -> None:
    first, restarted, source = service_factory(), service_factory(), enrol(1)

    async def from_disk() -> Any:
        ref = await enrolled(first, source)
        speech = await restarted.speak(
            ref, SpeechRequest(LEFTOVER, SpeakParams(temperature=0, mode=mode))
        )
        assert (speech.prompt_cache, speech.mode) == ("file", mode)
        return await collect(speech)

    pcm = run(from_disk())
    items = stock.create_voice_clone_prompt(
        (make_clip(1, 2.0), 24_000),
        TRANSCRIPT if mode == "icl" else None,
        x_vector_only_mode=mode == "xvec",
    )
    greedy = {"do_sample": False, "subtalker_dosample": False}
    direct = speak_directly(stock, items, LEFTOVER, 0, **greedy)
    assert 0 <= len(direct) - len(pcm) <= 1  # qwen_tts may leave one sample of the reference
    assert np.abs(pcm - direct[len(direct) - len(pcm) :]).max() < 2e-5
    assert len(pcm) > 0 and np.abs(pcm).max() > 0.1


def test_extraction_writes_the_file_that_it_names(
    service_factory: ServiceFactory, enrol: Enrol, data: DataDir, located: LocatedModel
) -> None:
    source = enrol(2)
    found = run(service_factory().extract_prompt(source))
    assert found.fingerprint == fingerprint(source, located.ref) and found.model == located.ref
    assert (found.frames, found.modes, found.room) == (25, ("icl", "xvec"), 333)
    assert sha256_of(data.prompt(ref_of(source, found)).read_bytes()) == found.sha256
    assert list(data.leftovers()) == []


def test_whoever_leaves_waits_for_a_file_that_is_being_made(
    service_factory: ServiceFactory,
    enrol: Enrol,
    data: DataDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that nothing comes after what it has left was removed; one that waits is just gone."""
    service, sources = service_factory(), (enrol(1), enrol(2))
    begun, go, keep = threading.Event(), threading.Event(), VoiceFiles.keep

    def keep_slowly(files: VoiceFiles, ref: PromptRef, content: bytes) -> None:
        begun.set()
        assert go.wait(60)
        keep(files, ref, content)

    async def leave() -> None:
        made, waiting = (asyncio.create_task(service.extract_prompt(one)) for one in sources)
        assert await asyncio.to_thread(begun.wait, 60)
        for task in (made, waiting):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not made.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await made
        assert len(list(data.prompts(sources[0].voice_id).iterdir())) == 1
        assert not data.prompts(sources[1].voice_id).exists()

    monkeypatch.setattr(VoiceFiles, "keep", keep_slowly)
    run(leave())


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
        assert (found.frames, found.modes, found.room) == (0, ("xvec",), None)
        with pytest.raises(errors.ModeUnavailable, match="no transcript"):
            await service.speak(ref_of(source, found), SpeechRequest(TEXT, SpeakParams(mode="icl")))
        return await service.speak(
            ref_of(source, found), SpeechRequest(TEXT, SpeakParams(mode="auto"))
        )

    assert run(go()).mode == "xvec"


def test_speech_says_what_it_did(service_factory: ServiceFactory, enrol: Enrol) -> None:
    service = service_factory()

    async def go() -> tuple[Speech, NDArray[np.float32], Speech]:
        ref = await enrolled(service, enrol())
        first = await service.speak(ref, SpeechRequest("Hi.", SpeakParams(mode="xvec")))
        pcm = await collect(first)
        again = await service.speak(
            ref, SpeechRequest("Hi.", SpeakParams(mode="xvec", seed=first.seed))
        )
        assert np.array_equal(await collect(again), pcm)
        return first, pcm, again

    first, pcm, again = run(go())
    assert (first.prompt_cache, again.prompt_cache) == ("file", "memory")
    assert first.sample_rate == 24_000 and pcm.dtype == np.float32 and pcm.ndim == 1
    assert 0 <= first.seed < 2**31 and len(pcm) == 4 * 1920
    assert set(first.timings) == {"load", "prompt", "queue", "ttfa"}
    assert all(0 <= seconds <= first.timings["ttfa"] for seconds in first.timings.values())


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
                await service.speak(ref, SpeechRequest("Hi."))
        path.unlink()
        with pytest.raises(errors.PromptMissing):
            await service.speak(ref, SpeechRequest("Hi."))
        path.mkdir()
        with pytest.raises(errors.PromptCorrupt):
            await service.speak(ref, SpeechRequest("Hi."))
        path.rmdir()
        assert await enrolled(service, source) == ref
        assert (await service.speak(ref, SpeechRequest("Hi."))).prompt_cache == "file"

    run(go())


def test_a_prompt_of_another_model_is_missing(
    service_factory: ServiceFactory, enrol: Enrol, endless_checkpoint: Path, data: DataDir
) -> None:
    other = service_factory(locate(str(endless_checkpoint), data))

    async def go() -> None:
        ref = await enrolled(service_factory(), enrol())
        with pytest.raises(errors.PromptMissing, match="for local/tiny, not local/endless"):
            await other.speak(ref, SpeechRequest("Hi."))

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
        if event == "open" and current and not isinstance(arguments[0], int):
            current[-1].append(str(arguments[0]))

    def begin() -> list[str]:
        current[:] = [[]]
        return current[-1]

    sys.addaudithook(watch)
    yield begin
    current.clear()


@pytest.mark.slow
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


def test_the_first_enrolment_on_a_warm_service_loads_nothing(
    service_factory: ServiceFactory, enrol: Enrol, opened: Callable[[], list[str]]
) -> None:
    service, source = service_factory(), enrol()

    async def go() -> None:
        service.warm()
        await service.ready()
        await until_idle(service)
        seen = opened()
        await enrolled(service, source)
        assert seen and not [path for path in seen if path.endswith("model.safetensors")]

    run(go())


def counted(service: InferenceService) -> tuple[int, int]:
    """Steps and frames that the engine has made."""
    counters = service.counters()
    assert counters is not None
    return counters.steps, counters.frames


@pytest.mark.slow
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
        before = counted(service)
        together = await asyncio.gather(*(one(*request) for request in wanted))
        for single, mixed in zip(alone, together, strict=True):
            assert len(single) == len(mixed) and np.abs(single - mixed).max() < 1 / 32768
        assert len({pcm.tobytes() for pcm in alone}) == 16
        steps, frames = (after - then for after, then in zip(counted(service), before, strict=True))
        assert frames > 3 * steps  # they shared the engine's steps

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
    assert len(results) == 4
    assert all(np.abs(pcm - expected).max() < 1 / 32768 for pcm in results)


LONG = "Enough words to go on for a while, so that nobody is done before the others have begun."


@pytest.mark.slow
def test_sound_comes_before_the_speech_is_made(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory()

    async def go() -> None:
        ref = await enrolled(service, enrol())
        speech = await service.speak(ref, SpeechRequest(LONG, SpeakParams(seed=1, mode="xvec")))
        assert len(await anext(speech.chunks)) == 1920
        assert service.status().running == 1
        rest = [len(chunk) // 1920 async for chunk in speech.chunks]
        assert sum(rest) == len(LONG) and max(rest) >= 8
        assert service.status().running == 0

    run(go())


async def until_idle(service: InferenceService) -> None:
    while service.status().running or service.status().queued:
        await asyncio.sleep(0.001)


def test_whoever_closes_the_chunks_frees_the_slot(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory(slots=1)

    async def go() -> None:
        ref = await enrolled(service, enrol())
        speech = await service.speak(ref, SpeechRequest(LONG, SpeakParams(mode="xvec")))
        waiting = asyncio.create_task(say(service, ref, "Hi.", mode="xvec"))
        await asyncio.sleep(0)
        await speech.chunks.aclose()
        await speech.chunks.aclose()
        assert len(await waiting) == 4 * 1920
        assert [chunk async for chunk in speech.chunks] == []
        counters = service.counters()
        assert counters is not None and counters.cancelled == 1 and counters.finished == 1

    run(go())


def test_whoever_leaves_before_the_first_chunk_takes_nothing(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory(slots=1)

    async def go() -> None:
        ref = await enrolled(service, enrol())
        first = await service.speak(ref, SpeechRequest(LONG, SpeakParams(mode="xvec")))
        left = asyncio.create_task(
            service.speak(ref, SpeechRequest(LONG, SpeakParams(mode="xvec")))
        )
        counters = service.counters()
        while counters is None or counters.submitted < 2:
            await asyncio.sleep(0.001)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        await first.chunks.aclose()
        await until_idle(service)
        assert (counters.cancelled, counters.finished) == (2, 0)

    run(go())


@pytest.mark.slow
def test_waiting_too_long_for_a_slot_is_refused(
    service_factory: ServiceFactory, enrol: Enrol
) -> None:
    service = service_factory(slots=1, queue_timeout_s=0.3)

    async def go() -> None:
        ref = await enrolled(service, enrol())
        speeches = [await service.speak(ref, SpeechRequest("Hi.", SpeakParams(mode="xvec")))]
        await collect(speeches[0])
        running = await service.speak(ref, SpeechRequest(LONG * 3, SpeakParams(mode="xvec")))
        with pytest.raises(errors.Overloaded, match=r"waited 0\.\d* s for a slot"):
            await service.speak(ref, SpeechRequest("Hi.", SpeakParams(mode="xvec")))
        await running.chunks.aclose()

    run(go())


@pytest.mark.slow
def test_an_engine_that_breaks_is_told_and_loaded_again(
    service_factory: ServiceFactory,
    enrol: Enrol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = service_factory()

    async def go() -> None:
        ref = await enrolled(service, enrol())
        await say(service, ref, "Hi.")
        with monkeypatch.context() as broken:
            broken.setattr("inference.engine.Engine.step", lambda engine: 1 / 0)
            with pytest.raises(errors.SpeechFailed, match="ZeroDivisionError"):
                await say(service, ref, "Hi.")
        assert service.status().state == "failed"
        assert len(await say(service, ref, "Hi.")) > 0
        assert service.status().state == "warm"

    run(go())
    assert "The engine failed while speaking." in caplog.text
