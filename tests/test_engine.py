"""The engine as a library: what goes in, what is refused, and that requests share it fairly."""

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import ask, hear, hear_one, load, make_voice
from speaking import run_python

from inference.engine import Engine, EngineConfig, SamplingParams
from inference.engine.config import default_dtype
from inference.engine.frame_budget import frame_budget
from inference.models.catalog import LocatedModel
from registry import errors


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint, slots=8)


@pytest.fixture(scope="module")
def endless(endless_checkpoint: Path) -> Engine:
    return load(endless_checkpoint, slots=4)


def is_empty(engine: Engine) -> bool:
    """Nothing waits or runs, and every slot and cache entry is free."""
    limits = engine.setup.limits
    free = (len(engine._free), engine._pages.free_entries)
    return not engine.busy and free == (limits.slots, limits.cache_entries // 64 * 64)


def test_a_speech_is_its_frames(engine: Engine) -> None:
    heard = hear_one(engine, ask(make_voice(engine), "Hello."))
    assert heard.finished and heard.error is None
    assert len(heard.all_codes()) == 7  # the maker's checkpoint ends with the text
    assert heard.all_pcm().shape == (7 * 1920,) and heard.all_pcm().dtype == np.float32
    assert np.abs(heard.all_pcm()).max() > 0.05


def test_sound_comes_in_growing_chunks(engine: Engine) -> None:
    heard = hear_one(engine, ask(make_voice(engine), "x" * 30))
    assert [len(codes) for codes in heard.codes] == [1, 2, 4, 8, 8, 8]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_sound_whatever_else_runs(engine: Engine) -> None:
    voices = [make_voice(engine, 1), make_voice(engine, 2, frames=20)]
    requests = [ask(voices[i % 2], f"Number {i}"[: 3 + i], seed=i) for i in range(12)]
    alone = [hear_one(engine, request) for request in requests]
    again = [hear_one(engine, request) for request in requests]
    together = hear(engine, requests, every=1)
    for first, second, mixed in zip(alone, again, together, strict=True):
        assert np.array_equal(first.all_pcm(), second.all_pcm())
        assert np.array_equal(first.all_codes(), mixed.all_codes())
        assert np.abs(first.all_pcm() - mixed.all_pcm()).max() < 1 / 32768
    assert len({heard.all_codes().tobytes() for heard in alone}) == 12


def test_greedy_needs_no_seed_and_sampling_does(engine: Engine) -> None:
    voice = make_voice(engine)

    def differing(temperature: float) -> bool:
        requests = [ask(voice, seed=seed, temperature=temperature) for seed in (1, 2)]
        first, second = hear(engine, requests)
        return not np.array_equal(first.all_codes(), second.all_codes())

    assert differing(0.9) and not differing(0) and not differing(0.005)


def test_top_k_of_one_is_greedy_and_a_tiny_top_p_too(engine: Engine) -> None:
    voice = make_voice(engine, 5)
    greedy, one, tiny = hear(
        engine, [ask(voice, temperature=0), ask(voice, top_k=1), ask(voice, top_p=0.001)]
    )
    assert np.array_equal(greedy.all_codes(), one.all_codes())
    assert np.array_equal(greedy.all_codes(), tiny.all_codes())


@pytest.mark.slow
def test_a_transcript_longer_than_its_codes_does_not_use_up_the_budget(engine: Engine) -> None:
    transcript = "much more transcript than sound " * 3
    voice = engine.prepare(np.zeros(64, np.float32), np.zeros((10, 16), np.int16), transcript)
    heard = hear_one(engine, ask(voice, "Hi."))
    assert len(heard.all_codes()) == len(transcript) + 3 - 10 + 1 > frame_budget(3)


@pytest.mark.slow
def test_speech_without_an_end_is_an_error_that_says_so(endless: Engine) -> None:
    heard = hear_one(endless, ask(make_voice(endless), "x"))
    assert isinstance(heard.error, errors.SpeechUnfinished) and "56 frames" in str(heard.error)
    assert not heard.finished and is_empty(endless)


@pytest.mark.slow
def test_a_row_that_is_not_finite_fails_alone(engine: Engine) -> None:
    voice, broken = make_voice(engine, 1), make_voice(engine, 2)
    broken.speaker.fill_(torch.nan)
    good = hear_one(engine, ask(voice, "Hello to you.", seed=4))
    bad, neighbour = hear(engine, [ask(broken), ask(voice, "Hello to you.", seed=4)])
    assert isinstance(bad.error, errors.SpeechFailed) and "not finite" in str(bad.error)
    assert neighbour.finished and np.array_equal(neighbour.all_codes(), good.all_codes())
    assert hear_one(engine, ask(voice)).finished and is_empty(engine)


def test_sound_that_is_not_finite_is_an_error(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=2)
    voice = make_voice(engine, 1, frames=4)
    assert voice.past is not None
    voice.past.histories.fill_(torch.nan)
    heard = hear_one(engine, ask(voice))
    assert isinstance(heard.error, errors.SpeechFailed) and not heard.pcm and is_empty(engine)


@pytest.mark.parametrize(
    ("embedding", "codes", "match"),
    [
        (np.zeros(63, np.float32), None, r"\(63,\)"),
        (np.full(64, np.nan, np.float32), None, "finite"),
        (np.zeros(64, np.float32), np.zeros((4, 8), np.int16), r"\(4, 8\)"),
        (np.zeros(64, np.float32), np.full((4, 16), 128, np.int16), "128"),
        (np.zeros(64, np.float32), np.full((4, 16), -1, np.int16), "-1"),
        (np.zeros(64, np.float32), np.zeros((0, 16), np.int16), r"\(0, 16\)"),
    ],
)
def test_features_are_checked_before_they_reach_the_device(
    engine: Engine, embedding: Any, codes: Any, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        engine.prepare(embedding, codes, None if codes is None else "x")


def test_an_empty_text_and_icl_without_a_reference_are_refused(engine: Engine) -> None:
    voice = make_voice(engine)
    with pytest.raises(errors.SpeechFailed, match="no text"):
        engine.submit(ask(voice, ""))
    with pytest.raises(errors.ModeUnavailable, match="no transcript"):
        engine.submit(ask(voice, mode="icl"))
    assert is_empty(engine)


def test_a_text_beyond_the_limit_names_it_in_frames_seconds_and_tokens(engine: Engine) -> None:
    assert frame_budget(333) == 2048
    with pytest.raises(errors.TextTooLong, match=r"334 tokens.*333 at most.*2048 frames, 164 s"):
        engine.submit(ask(make_voice(engine), "x" * 334))


def test_what_no_cache_can_hold_is_refused_at_once(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=2, request_positions=128)
    with pytest.raises(errors.TextTooLong, match="one request has 128"):
        engine.submit(ask(make_voice(engine, frames=60), "x" * 20))
    assert hear_one(engine, ask(make_voice(engine, frames=20), "Hi.")).finished


@pytest.mark.parametrize(
    ("limits", "frames", "text"),
    [
        ({"positions": 140}, 0, "x" * 12),  # 9 + 122 + 1 positions
        ({"positions": 140}, 10, "x" * 9),
        ({"request_positions": 700, "positions": 4096}, 560, "x" * 11),
        ({"request_positions": 140}, 0, "x" * 12),
    ],
)
def test_what_is_accepted_fits_whatever_the_limits(
    checkpoint: Path, limits: dict[str, int], frames: int, text: str
) -> None:
    engine = load(checkpoint, slots=2, **limits)
    engine.submit(ask(make_voice(engine, frames=frames), text))
    assert [len(engine.step()), engine.queued] == [1, 0]
    assert [output.finished for output in engine.run()][-1] and is_empty(engine)


@pytest.mark.parametrize("limit", [64, 100, 256, 704, 1000, 2816])
def test_no_prompt_is_padded_beyond_its_table(checkpoint: Path, limit: int) -> None:
    engine = load(checkpoint, slots=1, request_positions=limit)
    longest = min(1024, engine.setup.limits.request_positions)
    assert limit <= engine.setup.limits.request_positions < limit + 64
    assert engine._prefill._sizes[-1] == longest
    engine._prefill._run((1, longest))  # as it is captured


@pytest.mark.parametrize("language", ["klingon", "en", "", "engl ish"])
def test_an_unknown_language_is_refused_with_the_known_ones(engine: Engine, language: str) -> None:
    with pytest.raises(errors.LanguageUnsupported, match=r"chinese, english, french"):
        engine.submit(ask(make_voice(engine), language=language))


def test_languages_are_those_of_the_located_model(engine: Engine, located: LocatedModel) -> None:
    assert sorted(engine.model_config.codec_tokens.languages) == list(located.languages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**31},
        {"seed": 1.5},
        {"top_k": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
    ],
)
def test_params_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_a_mode_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="mode is auto"):
        ask(make_voice(engine), mode="both")


def test_more_requests_than_slots_wait_their_turn(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=2)
    requests = [ask(make_voice(engine), "Hi.", seed=i) for i in range(5)]
    for request in requests:
        engine.submit(request)
    engine.step()
    assert [engine.position(request) for request in requests] == [None, None, 0, 1, 2]
    assert (engine.running, engine.queued) == (2, 3)
    ended = [output.request for output in engine.run() if output.finished]
    assert ended == requests and engine.counters.largest_batch == 2


def test_a_full_queue_refuses_and_says_when_to_come_back(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=1, queue_limit=2)
    voice = make_voice(engine)
    for _ in range(2):
        engine.submit(ask(voice))
    with pytest.raises(errors.Overloaded, match="2 requests are waiting") as refused:
        engine.submit(ask(voice))
    assert refused.value.retry_after_s >= 1


def test_patience_ends_in_the_queue_and_not_in_a_slot(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=1)
    voice = make_voice(engine)
    patient, late = ask(voice, patience_s=60), ask(voice, patience_s=0)
    heard = hear(engine, [patient, late])
    assert heard[0].finished and isinstance(heard[1].error, errors.Overloaded)
    assert engine.counters.refused == 1 and is_empty(engine)


@pytest.mark.parametrize("patience_s", [0, -5, float("nan")])
def test_who_finds_a_slot_free_needs_no_patience(engine: Engine, patience_s: float) -> None:
    asked = [ask(make_voice(engine), "x" * 20, patience_s=patience_s) for _ in range(8)]
    assert all(heard.finished for heard in hear(engine, asked)) and is_empty(engine)


def test_a_burst_is_prefilled_over_several_steps_and_loses_nobody(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=4, prefill_positions=40)
    voice = make_voice(engine, frames=20)  # 30 positions each
    asked = [ask(voice, "x" * 20, patience_s=0) for _ in range(5)]
    for request in asked:
        engine.submit(request)
    running = [(engine.step(), engine.running)[1] for _ in range(2)]
    assert running == [2, 4] and engine.counters.refused == 0
    refused = [output.request for output in engine.run() if output.error]
    assert refused == asked[4:] and engine.counters.finished == 4


@pytest.mark.slow
def test_a_short_request_may_pass_one_that_does_not_fit(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=4, positions=448)
    voice = make_voice(engine)
    first, long, short = ask(voice, "x" * 20), ask(voice, "y" * 40), ask(voice, "z")
    for request in (first, long, short):
        engine.submit(request)
    ended = [output.request for output in engine.run() if output.finished]
    assert ended == [short, first, long] and is_empty(engine)


@pytest.mark.slow
def test_a_request_that_is_passed_often_gets_its_turn(endless_checkpoint: Path) -> None:
    engine = load(endless_checkpoint, slots=4, positions=640)
    voice = make_voice(engine)
    requests = [ask(voice, "x" * 40), ask(voice, "y" * 60), *(ask(voice, "z") for _ in range(12))]
    for request in requests:
        engine.submit(request)
    while engine.position(requests[1]) is not None:
        engine.step()
    assert engine.queued == 12 - 8 - 1  # eight passed it, one came in with it
    for request in requests:
        engine.cancel(request)
    assert is_empty(engine)


def test_a_cancelled_request_is_silent_and_gives_everything_back(engine: Engine) -> None:
    voice = make_voice(engine)
    gone, stays = ask(voice, "x" * 60), ask(voice, "Hi.")
    engine.submit(gone)
    engine.submit(stays)
    engine.step()
    engine.cancel(gone)
    heard = [output.request for output in engine.run()]
    assert set(heard) == {stays} and is_empty(engine)
    engine.cancel(gone)  # again, and after its end, is harmless
    waiting = ask(voice)
    engine.submit(waiting)
    engine.cancel(waiting)
    assert is_empty(engine)


@pytest.mark.slow
def test_a_freed_slot_does_not_remember(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=1)
    voices = [make_voice(engine, seed, frames=10 * (seed % 2)) for seed in range(3)]
    first = [hear_one(engine, ask(voice, "Say it.", seed=1)).all_pcm() for voice in voices]
    again = [hear_one(engine, ask(voice, "Say it.", seed=1)).all_pcm() for voice in voices[::-1]]
    assert all(map(np.array_equal, first, again[::-1]))


@pytest.mark.slow
def test_hundreds_of_joins_leaves_and_cancels_leak_nothing(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=6, positions=2048, queue_limit=500)
    generator = np.random.default_rng(0)
    voices = [make_voice(engine, seed, frames=8 * (seed % 3)) for seed in range(4)]
    waiting = [ask(voices[i % 4], "ab"[: 1 + i % 2], seed=i) for i in range(500)]
    expected = {len(waiting) - 1: hear_one(engine, waiting[-1]).all_codes()}
    threads, ended, alive = threading.active_count(), 0, []
    last: list[Any] = []
    while waiting or engine.busy:
        if waiting and generator.random() < 0.7:
            request = waiting.pop(0)
            alive.append(request)
            engine.submit(request)
            final = request
        if alive and generator.random() < 0.1:
            request = alive.pop(int(generator.integers(len(alive))))
            if request is not final or waiting:
                engine.cancel(request)
        for output in engine.step():
            ended += output.finished
            if output.finished and output.request in alive:
                alive.remove(output.request)
            if not waiting and output.request is final and len(output.codes):
                last.append(output.codes)
    assert is_empty(engine) and threading.active_count() == threads
    counters = engine.counters
    assert counters.submitted == 501 == counters.finished + counters.cancelled
    assert counters.finished == ended + 1 > 300 and counters.cancelled > 50
    assert np.array_equal(np.concatenate(last), expected[499])


@pytest.mark.slow
def test_a_dropped_engine_is_collected(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=2)
    hear_one(engine, ask(make_voice(engine)))
    gone = weakref.ref(engine._generator)
    del engine
    gc.collect()
    assert gone() is None


def test_a_cpu_computes_in_float32(engine: Engine) -> None:
    assert default_dtype(torch.device("cpu")) == "float32"
    assert (engine.setup.device.type, engine.setup.dtype) == ("cpu", torch.float32)


def test_half_precision_speaks_on_a_cpu_too(checkpoint: Path) -> None:
    engine = load(checkpoint, slots=2, dtype="bfloat16")
    assert hear_one(engine, ask(make_voice(engine, frames=6), "Hello.")).finished


@pytest.mark.parametrize("options", [("cpu", "int8"), ("no-such-device", None), ("cuda:99", None)])
def test_a_wrong_device_or_dtype_is_one_sentence(
    checkpoint: Path, options: tuple[str, str | None]
) -> None:
    with pytest.raises(errors.ModelUnavailable, match="did not load"):
        Engine.load(checkpoint, EngineConfig(*options))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vocab.json", "speech_tokenizer/config.json"]
)
def test_damaged_weights_or_configs_are_one_sentence(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "damaged")
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(errors.ModelUnavailable):
        load(copy)


@pytest.mark.slow
def test_speaking_prints_nothing_and_imports_neither_qwen_tts_nor_transformers(
    checkpoint: Path,
) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from inference.engine import Engine, EngineConfig, Request
engine = Engine.load(Path(sys.argv[1]), EngineConfig(device="cpu", threads=1))
engine.submit(Request(engine.prepare(np.zeros(64, np.float32)), "Hi."))
assert sum(len(output.codes) for output in engine.run()) == 4
unwanted = {"qwen_tts", "transformers", "librosa", "torchaudio", "sox", "onnxruntime"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
