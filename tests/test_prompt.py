"""Prompt files: deterministic, checked on the way out and in; and the cache of them in memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import PYTHON

from inference.prompts.features import HEADER_LIMIT_BYTES, MAX_FRAMES, FeatureShape, PromptFeatures
from inference.serving.prompt_cache import PromptCache
from registry.contract import ModelRef, PromptRef, PromptSource
from registry.errors import ExtractionFailed, PromptCorrupt
from registry.storage.data_dir import sha256_of

SHAPE = FeatureShape(code_groups=16, codebook_size=128, embedding_width=64)
LAX = FeatureShape(code_groups=16, codebook_size=2048, embedding_width=64)
MODEL = ModelRef("demo", "a" * 64)


def features(frames: int = 25, transcript: str | None = 'Grüße, 世界 "quoted"\n') -> PromptFeatures:
    random = np.random.default_rng(frames)
    codes = random.integers(0, 128, (frames, 16)).astype(np.int16)
    embedding = random.normal(size=64).astype(np.float32)
    source = PromptSource("voice_1", "c" * 64, transcript)
    return PromptFeatures(source, MODEL, None if transcript is None else codes, embedding)


def ref_of(found: PromptFeatures, data: bytes) -> PromptRef:
    return PromptRef(found.source.voice_id, found.fingerprint, sha256_of(data))


def reload(found: PromptFeatures, data: bytes, shape: FeatureShape = SHAPE) -> PromptFeatures:
    return PromptFeatures.load(data, ref_of(found, data), shape)


@pytest.mark.parametrize("transcript", ["Some words.", 'Grüße, 世界 "quoted"\n\x00', None])
@pytest.mark.parametrize("frames", [1, 25, MAX_FRAMES])
def test_what_is_loaded_is_what_was_saved(transcript: str | None, frames: int) -> None:
    saved = features(frames, transcript)
    loaded = reload(saved, saved.save(SHAPE))
    assert (loaded.source, loaded.model) == (saved.source, saved.model)
    assert (loaded.fingerprint, loaded.modes) == (saved.fingerprint, saved.modes)
    assert np.array_equal(loaded.ref_spk_embedding, saved.ref_spk_embedding)
    if transcript is None:
        assert loaded.ref_code is None and loaded.modes == ("xvec",) and loaded.frames == 0
    else:
        assert loaded.modes == ("icl", "xvec") and loaded.frames == frames
        assert np.array_equal(loaded.ref_code, saved.ref_code)


def test_the_file_is_plain_safetensors_with_a_small_header() -> None:
    data = features().save(SHAPE)
    tensors = safetensors.numpy.load(data)
    assert {name: (t.dtype.name, t.shape) for name, t in tensors.items()} == {
        "ref_code": ("int16", (25, 16)),
        "ref_spk_embedding": ("float32", (64,)),
    }
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert metadata == {
        "format": "1",
        "model_id": "demo",
        "model_revision": "a" * 64,
        "transcript": features().source.transcript,
        "clip_sha256": "c" * 64,
        "preprocessing": "2",
        "fingerprint": features().fingerprint,
        "modes": "icl,xvec",
    }
    assert length % 8 == 0 and len(data) < 1600


@pytest.mark.slow
def test_another_process_writes_the_same_bytes() -> None:
    done = subprocess.run(
        [PYTHON, "-c", "import test_prompt as t; t.sys.stdout.write(t.saved_sha256())"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == saved_sha256()


def saved_sha256() -> str:
    return sha256_of(features().save(SHAPE))


def test_a_flipped_bit_anywhere_is_found() -> None:
    saved = features()
    data = saved.save(SHAPE)
    ref = ref_of(saved, data)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(PromptCorrupt, match="damaged"):
            PromptFeatures.load(bytes(damaged), ref, SHAPE)


def test_a_truncated_or_longer_file_is_found() -> None:
    saved = features()
    data = saved.save(SHAPE)
    ref = ref_of(saved, data)
    for damaged in [*(data[:end] for end in range(len(data))), data + b"\0"]:
        with pytest.raises(PromptCorrupt, match="damaged"):
            PromptFeatures.load(damaged, ref, SHAPE)


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """`data` with an edited header, as a faulty or hostile writer would write it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "2"),
        ("fingerprint", "0" * 64),
        ("modes", "icl"),
        ("model_id", "other"),
        ("clip_sha256", "d" * 64),
        ("transcript", "Other words."),
        ("preprocessing", "0"),
        ("unheard_of", "x"),
    ],
)
def test_metadata_that_disagree_are_refused_even_with_a_right_hash(name: str, value: str) -> None:
    saved = features()
    data = with_header(saved.save(SHAPE), lambda h: h["__metadata__"].update({name: value}))
    with pytest.raises(PromptCorrupt, match="unreadable"):
        reload(saved, data)


@pytest.mark.parametrize("name", ["format", "fingerprint", "model_id", "transcript", "modes"])
def test_missing_metadata_are_refused(name: str) -> None:
    saved = features()
    data = with_header(saved.save(SHAPE), lambda h: h["__metadata__"].pop(name))
    with pytest.raises(PromptCorrupt, match=r"unreadable|unsound"):
        reload(saved, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"not a prompt at all",
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (3).to_bytes(8, "little") + b"\xff\xfe\xfd",
        HEADER_LIMIT_BYTES.to_bytes(8, "little") + b"[" * HEADER_LIMIT_BYTES,
        (HEADER_LIMIT_BYTES + 8).to_bytes(8, "little") + b" " * (HEADER_LIMIT_BYTES + 8),
    ],
)
def test_what_is_no_prompt_file_is_refused_even_with_a_right_hash(data: bytes) -> None:
    with pytest.raises(PromptCorrupt, match="unreadable"):
        reload(features(), data)


def test_tensors_of_another_dtype_or_place_are_refused() -> None:
    saved = features()
    for change in (
        lambda h: h["ref_code"].update(dtype="U16"),
        lambda h: h["ref_code"].update(shape=[16, 25]),
        lambda h: h["ref_code"].update(shape=[1 << 70, 16]),
        lambda h: h["ref_code"].update(data_offsets=[0, 1 << 40]),
        lambda h: h["ref_code"].update(data_offsets=[0, float("inf")]),
        lambda h: h.pop("ref_spk_embedding"),
        lambda h: h.update(other=h.pop("ref_code")),
    ):
        with pytest.raises(PromptCorrupt, match=r"unreadable|unsound"):
            reload(saved, with_header(saved.save(SHAPE), change))


def test_a_prompt_of_another_voice_or_source_is_refused() -> None:
    saved = features()
    data = saved.save(SHAPE)
    ref = replace(ref_of(saved, data), fingerprint="0" * 64)
    with pytest.raises(PromptCorrupt, match="belongs to something else"):
        PromptFeatures.load(data, ref, SHAPE)


UNSOUND = {
    "code above the codebook": {"ref_code": np.full((25, 16), 128, np.int16)},
    "negative code": {"ref_code": np.full((25, 16), -1, np.int16)},
    "wrong groups": {"ref_code": np.zeros((25, 8), np.int16)},
    "flat codes": {"ref_code": np.zeros(400, np.int16)},
    "no frames": {"ref_code": np.zeros((0, 16), np.int16)},
    "too many frames": {"ref_code": np.zeros((MAX_FRAMES + 1, 16), np.int16)},
    "codes of 64 bits": {"ref_code": np.zeros((25, 16), np.int64)},
    "no codes but a transcript": {"ref_code": None},
    "NaN": {"ref_spk_embedding": np.full(64, np.nan, np.float32)},
    "infinite": {"ref_spk_embedding": np.full(64, np.inf, np.float32)},
    "wrong width": {"ref_spk_embedding": np.zeros(32, np.float32)},
    "half precision": {"ref_spk_embedding": np.zeros(64, np.float16)},
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_features_are_never_saved(change: dict[str, Any]) -> None:
    with pytest.raises(ExtractionFailed, match="can't be kept"):
        replace(features(), **change).save(SHAPE)


def test_codes_without_a_transcript_are_never_saved() -> None:
    unsound = replace(features(), source=replace(features().source, transcript=None))
    with pytest.raises(ExtractionFailed, match="if and only if"):
        unsound.save(SHAPE)


def test_a_transcript_beyond_the_header_is_never_saved() -> None:
    with pytest.raises(ExtractionFailed, match="transcript is too long"):
        features(transcript="é" * HEADER_LIMIT_BYTES).save(SHAPE)


def test_features_of_a_larger_codebook_or_width_are_refused_by_a_smaller_model() -> None:
    large = replace(features(), ref_code=np.full((25, 16), 2000, np.int16))
    with pytest.raises(PromptCorrupt, match="outside of 0 to 127"):
        reload(large, large.save(LAX))
    with pytest.raises(PromptCorrupt, match="the embedding is"):
        reload(features(), features().save(SHAPE), replace(SHAPE, embedding_width=2048))


@dataclass(frozen=True)
class Item:
    nbytes: int


def item_ref(number: int) -> PromptRef:
    return PromptRef(f"voice_{number}", f"{number:064x}", "")


def test_a_hit_is_the_same_prompt() -> None:
    cache: PromptCache[Item] = PromptCache(100)
    assert cache.find(item_ref(1)) is None
    item = Item(10)
    cache.keep(item_ref(1), item)
    assert cache.find(item_ref(1)) is item


def test_the_least_recently_used_leave_when_the_bytes_are_full() -> None:
    cache: PromptCache[Item] = PromptCache(100)
    for number in (1, 2):
        cache.keep(item_ref(number), Item(40))
    cache.find(item_ref(1))
    cache.keep(item_ref(3), Item(40))
    assert cache.nbytes == 80 and len(cache) == 2
    assert [cache.find(item_ref(n)) is not None for n in (1, 2, 3)] == [True, False, True]


def test_the_bound_is_in_bytes_and_always_holds() -> None:
    random = np.random.default_rng(0)
    sizes = {number: int(random.integers(1, 60)) for number in range(50)}
    cache: PromptCache[Item] = PromptCache(100)
    for number in random.integers(0, 50, 2000).tolist():
        if cache.find(item_ref(number)) is None:
            cache.keep(item_ref(number), Item(sizes[number]))
        assert cache.find(item_ref(number)) == Item(sizes[number])
        assert 0 < cache.nbytes <= 100


def test_a_prompt_above_the_bound_is_not_kept() -> None:
    cache: PromptCache[Item] = PromptCache(100)
    cache.keep(item_ref(1), Item(40))
    cache.keep(item_ref(2), Item(101))
    assert cache.find(item_ref(2)) is None and cache.find(item_ref(1)) == Item(40)


def test_a_prompt_that_is_kept_twice_counts_once() -> None:
    cache: PromptCache[Item] = PromptCache(100)
    for _ in range(3):
        cache.keep(item_ref(1), Item(40))
    assert (cache.nbytes, len(cache)) == (40, 1)


def test_another_content_hash_is_another_prompt() -> None:
    cache: PromptCache[Item] = PromptCache(100)
    cache.keep(item_ref(1), Item(10))
    assert cache.find(replace(item_ref(1), sha256="new")) is None
