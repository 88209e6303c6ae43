"""Every stage at toy size on a CPU. Needs espeakng-loader; without it nothing here runs.

python -m pytest training/demo_model/tests -p no:cacheprovider
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.demo_model import train_codec, train_talker
from training.demo_model.codec import Codec
from training.demo_model.export import export
from training.demo_model.matching import distance, mfcc
from training.demo_model.pitch import SAMPLE_RATE, track
from training.demo_model.plot import spectrogram, stacked, write_png
from training.demo_model.pool import Pool, Store
from training.demo_model.probe import edit_distance, spelled
from training.demo_model.rows import END, TALKER_FIELDS, start_worker
from training.demo_model.sentences import Lexicon, read_lines
from training.demo_model.shape import CodecShape
from training.demo_model.speaking import read_codec
from training.demo_model.utterances import BLOCK, FIELDS, Arrays

pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside torch's threads


def tone(hz: float, seconds: float = 1.0) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.cos(2 * np.pi * hz * k * time) / k for k in range(1, 9))
    return np.asarray(0.1 * voice, np.float32)


@pytest.mark.parametrize("hz", [75.0, 110.0, 165.0, 240.0])
def test_the_tracker_finds_a_pitch_within_one_percent(hz: float) -> None:
    found = track(tone(hz))
    assert found.voiced.mean() > 0.9
    assert abs(found.median_hz / hz - 1) < 0.01


def test_the_tracker_finds_the_phase_of_the_fundamental() -> None:
    found = track(tone(100.0))
    middle = (np.arange(len(found.phase)) + 0.5) * 0.01
    off = np.angle(np.exp(1j * (found.phase - 2 * np.pi * 100.0 * middle)))
    assert np.abs(off[5:-5]).max() < 0.2


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    assert track(noise).voiced.mean() < 0.1


def test_no_heldout_sentence_is_a_training_sentence() -> None:
    assert not set(read_lines("heldout")) & set(Lexicon.read().sentences)


def test_warping_prefers_the_slower_same_sound() -> None:
    rising = np.concatenate([tone(hz, 0.2) for hz in (90.0, 140.0, 220.0)])
    slower = np.concatenate([tone(hz, 0.3) for hz in (90.0, 140.0, 220.0)])
    falling = np.concatenate([tone(hz, 0.2) for hz in (220.0, 140.0, 90.0)])
    near, far = (distance(mfcc(rising), mfcc(other)) for other in (slower, falling))
    assert near < far


def test_what_was_said_is_spelled_without_silence_and_compared() -> None:
    said = spelled(np.array([0, 0, 5, 5, 5, 0, 0, 7, 7, 3]))
    assert said == [5, 7]
    assert edit_distance(said, [5, 6, 7]) == 0.5


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", stacked([spectrogram(tone(100.0), SAMPLE_RATE)] * 2))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a few steps of the codec's training leave."""
    out = tmp_path_factory.mktemp("codec")
    run = train_codec.Run(seconds=8, batch=2, crop=4, store=2, wave_width=16)
    pool = Pool(train_codec.start_worker, FIELDS, BLOCK, 1, seed=1)
    try:
        train_codec.train(run, pool, out, graph=False, log_s=1.0)
    finally:
        pool.close()
    return out


@pytest.fixture(scope="module")
def talker_folder(codec_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("talker")
    run = train_talker.Run(seconds=20, single=2, several=2, picked=16, store=2, fresh=0)
    start = partial(start_worker, run.shape)
    pool = Pool(start, TALKER_FIELDS, BLOCK, 1, seed=1)
    try:
        train_talker.train(run, codec_folder / "codec.safetensors", pool, out, graph=False)
    finally:
        pool.close()
    return out


def test_a_run_leaves_weights_their_shape_and_curves(codec_folder: Path) -> None:
    lines = (codec_folder / "curves.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1])["saved"] is True
    assert json.loads((codec_folder / "run.json").read_text("utf-8"))["shape"]["wave_width"] == 16
    assert all(
        torch.isfinite(v).all() for v in load_file(codec_folder / "codec.safetensors").values()
    )


def test_an_exported_checkpoint_is_loaded_by_the_package(
    codec_folder: Path, talker_folder: Path, tmp_path: Path
) -> None:
    from inference.engine.checkpoint.qwen import import_qwen_tts

    codec, talker = codec_folder / "codec.safetensors", talker_folder / "model.safetensors"
    assert export(codec, talker, tmp_path) < 16 * 2**20
    with pytest.MonkeyPatch.context():
        model = import_qwen_tts().Qwen3TTSModel.from_pretrained(str(tmp_path), dtype=torch.float32)
    sound = tone(120.0, 2.0)
    ours = read_codec(tmp_path)
    codes = ours.encode(torch.from_numpy(sound)[None])
    theirs = model.model.speech_tokenizer.encode(sound, sr=SAMPLE_RATE).audio_codes[0]
    assert torch.equal(codes[0], theirs)
    copies, _ = model.model.speech_tokenizer.decode({"audio_codes": [theirs]})
    assert np.abs(np.asarray(copies[0]) - ours.decode(codes)[0].numpy()).max() < 1e-4


def test_a_codec_reads_back_what_it_wrote() -> None:
    codec, other = Codec(CodecShape(wave_width=16)), Codec(CodecShape(wave_width=16))
    other.load_state(codec.state())
    sound = torch.from_numpy(tone(150.0, 0.5))[None]
    assert torch.equal(codec.encode(sound), other.encode(sound))


def test_every_row_ends_once_after_all_its_frames() -> None:
    fill = start_worker(train_talker.Run(seconds=1).shape, 3)
    rows: Arrays = {name: np.zeros((BLOCK, *s), kind) for name, (s, kind) in TALKER_FIELDS.items()}
    fill(rows)
    for kind in ("single", "several"):
        target, frame = (
            np.asarray(rows[f"{kind}_{name}"], np.int64) for name in ("target", "frame")
        )
        used = (target != -1).any(1)
        assert used.sum() > BLOCK // 2
        assert ((target == END).sum(1) == used).all()
        assert ((target >= 0).sum(1) == (frame >= 0).sum(1)).all()


def test_a_store_keeps_its_first_blocks() -> None:
    store = Store({"x": ((), np.int16)}, rows=2, blocks=3, device=torch.device("cpu"), kept=1)
    for value in range(6):
        store.add({"x": np.full(2, value, np.int16)})
    assert store.tensors["x"].tolist() == [0, 0, 5, 5, 4, 4]
    assert int(store.random_rows(50).min()) >= 2
