"""The streaming decoder against the speech tokenizer's own decoder, which decodes a whole."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.codec.decoder import CodecState, StreamingDecoder
from inference.engine.model_config import FRAME_SAMPLES
from inference.testing.config import speech_config

CPU = torch.device("cpu")
CONFIG = speech_config("tiny")["decoder_config"] | {"num_hidden_layers": 2}
SLOTS = 4
LENGTH = 160  # frames: far past the window
TOLERANCE = 1e-12  # of float64


def build(config: dict[str, Any]) -> Any:
    """The stock decoder as its constructor leaves it."""
    import_qwen_tts()
    from qwen_tts.core.tokenizer_12hz import configuration_qwen3_tts_tokenizer_v2 as configuration
    from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as modeling

    config = configuration.Qwen3TTSTokenizerV2DecoderConfig(**config)
    return modeling.Qwen3TTSTokenizerV2Decoder(config).eval()


def fill(decoder: Any) -> Any:
    """Give every tensor, also what is a constant in a new module, values that can be heard."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in decoder.state_dict().items():
        if tensor.dim() > 1:
            gain = 1.0 if "embedding_sum" in name else 0.77 / tensor[0].numel() ** 0.5
            tensor.normal_(0, gain, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.02, generator=generator)
        elif name.endswith(("alpha", "beta")):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith(("scale", "gamma")):
            tensor.uniform_(0.2, 0.5, generator=generator)
        else:  # norms, cluster_usage
            tensor.uniform_(0.5, 1.5, generator=generator)
    return decoder


def in_float64(decoder: Any) -> Any:
    """A copy that computes in float64; the stock norms round to float32."""
    decoder = deepcopy(decoder).double()
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return decoder


class Case:
    """Stock weights in one dtype, two streams of codes, and the stock sound of them."""

    def __init__(self, reference: Any, dtype: torch.dtype) -> None:
        self.dtype, self.weights = dtype, reference.state_dict()
        generator = torch.Generator().manual_seed(1)
        shape = (2, LENGTH, CONFIG["num_quantizers"])
        self.codes = torch.randint(0, CONFIG["codebook_size"], shape, generator=generator)
        with torch.no_grad():
            self.whole = reference(self.codes.transpose(1, 2))[:, 0]

    def decoder(self, dtype: torch.dtype | None = None) -> StreamingDecoder:
        return StreamingDecoder(self.weights, CONFIG, SLOTS, CPU, dtype or self.dtype)

    def sound(self, frames: slice) -> Tensor:
        """Of both streams, (2, n * 1920)."""
        return self.whole[:, frames.start * FRAME_SAMPLES : frames.stop * FRAME_SAMPLES]

    def assert_sound(self, sound: Tensor, expected: Tensor) -> None:
        assert sound.shape == expected.shape
        assert (sound - expected).abs().max() < TOLERANCE * self.whole.std()


@pytest.fixture(scope="module")
def stock_decoder() -> Any:
    torch.set_num_threads(1)
    return fill(build(CONFIG))


@pytest.fixture(scope="module")
def case(stock_decoder: Any) -> Case:
    return Case(in_float64(stock_decoder), torch.float64)


@pytest.fixture(scope="module")
def single(stock_decoder: Any) -> Case:
    return Case(stock_decoder, torch.float32)


def slots(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def pieces(codes: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """codes (B, T, groups) cut into pieces of these sizes, again and again."""
    start, size = 0, cycle(sizes)
    while start < codes.shape[1]:
        piece = codes[:, start : start + next(size)]
        start += piece.shape[1]
        yield piece


def stream(decoder: StreamingDecoder, codes: Tensor, sizes: Sequence[int], *into: int) -> Tensor:
    parts = [decoder.decode(piece, slots(*into)) for piece in pieces(codes, sizes)]
    return torch.cat(parts, 1)


def snr_db(sound: Tensor, expected: Tensor) -> float:
    noise = (sound.double() - expected.double()).square().mean()
    return float(10 * torch.log10(expected.double().square().mean() / noise))


RANDOM = np.random.default_rng(0).integers(1, 31, 40).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1], [1, 2, 4, 8, 12], [25], [7, 3], [9, 10], [80, 81], RANDOM])
def test_any_chunking_is_the_whole(case: Case, sizes: list[int]) -> None:
    case.assert_sound(stream(case.decoder(), case.codes, sizes, 2, 0), case.whole)


@pytest.mark.slow
def test_float32_sounds_as_stock_float32(single: Case) -> None:
    sound = stream(single.decoder(), single.codes, [1, 2, 4, 8, 12], 0, 1)
    assert sound.dtype == torch.float32
    assert snr_db(sound, single.whole) > 100


def test_the_sound_depends_on_the_codes_and_is_rarely_clipped(case: Case) -> None:
    assert (case.whole[0] - case.whole[1]).std() > 0.5 * case.whole.std() > 0.02
    assert (case.whole.abs() == 1).float().mean() < 0.05


def test_chunk_borders_click_no_more_than_the_whole_does(case: Case) -> None:
    joined = stream(case.decoder(), case.codes, [5], 1, 3)
    border = torch.arange(5, LENGTH, 5) * FRAME_SAMPLES
    jump, allowed = joined.diff()[:, border - 1], case.whole.diff()[:, border - 1]
    assert (jump - allowed).abs().max() < TOLERANCE * case.whole.std() * 2


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.int64])
def test_codes_may_be_any_integers(case: Case, kind: torch.dtype) -> None:
    sound = case.decoder().decode(case.codes[:, :3].to(kind), slots(0, 1))
    case.assert_sound(sound, case.sound(slice(0, 3)))


def test_rows_of_any_age_and_slot_share_a_batch(case: Case) -> None:
    decoder, (old, new) = case.decoder(), case.codes
    stream(decoder, old[None, :90], [8], 3)
    for start, order in ((0, [0, 1]), (6, [1, 0]), (12, [1, 0])):
        old_frames, new_frames = slice(90 + start, 96 + start), slice(start, start + 6)
        rows = torch.stack([old[old_frames], new[new_frames]])
        sound = decoder.decode(rows[order], slots(3, 1)[order])
        expected = torch.stack([case.sound(old_frames)[0], case.sound(new_frames)[1]])
        case.assert_sound(sound, expected[order])


def test_padding_rows_harm_nobody(case: Case) -> None:
    decoder, codes = case.decoder(), case.codes[:, :40]
    for start in range(0, 40, 8):
        frames = slice(start, start + 8)
        padded = torch.cat([codes[:, frames], codes[:, :8].flip(2), codes[:, :8].flip(1)])
        sound = decoder.decode(padded, slots(1, 3, SLOTS, SLOTS, SLOTS, SLOTS))
        case.assert_sound(sound[:2], case.sound(frames))


def test_a_saved_stream_goes_on_in_any_slot(case: Case) -> None:
    decoder, codes = case.decoder(), case.codes[:1, :130]
    stream(decoder, codes[:, :100], [8], 0)
    saved = decoder.save(0)
    on = stream(decoder, codes[:, 100:], [8], 0)
    decoder.decode(codes[:, :20], slots(2))
    decoder.load(2, saved)
    assert torch.equal(stream(decoder, codes[:, 100:], [8], 2), on)
    case.assert_sound(on, case.sound(slice(100, 130))[:1])


def test_a_state_fits_another_decoder_and_counts_its_bytes(case: Case) -> None:
    first, second = case.decoder(), case.decoder()
    first.decode(case.codes[:1, :30], slots(0))
    saved = first.save(0)
    second.load(1, saved)
    sound = second.decode(case.codes[:1, 30:34], slots(1))
    case.assert_sound(sound, case.sound(slice(30, 34))[:1])
    assert saved.nbytes == sum(part.nbytes for part in vars(saved).values())


def test_clear_forgets(case: Case) -> None:
    decoder = case.decoder()
    stream(decoder, case.codes[:1, :90], [8], 2)
    decoder.clear(2)
    sound = stream(decoder, case.codes[1:, :20], [4], 2)
    case.assert_sound(sound, case.sound(slice(0, 20))[1:])


@pytest.mark.parametrize("length", [1, 9, 10, 11, 64, 130])
def test_absorbing_a_reference_is_decoding_it(case: Case, length: int) -> None:
    decoder, reference = case.decoder(), case.codes[0, :length]
    stream(decoder, reference[None], [7], 1)
    assert_same_state(decoder.prefill(reference), decoder.save(1), TOLERANCE * 10)


def test_speech_after_an_absorbed_reference_is_the_end_of_the_whole(case: Case) -> None:
    decoder = case.decoder()
    neighbour = decoder.decode(case.codes[1:, :10], slots(0))
    decoder.load(1, decoder.prefill(case.codes[0, :100].to(torch.int16)))
    sound = stream(decoder, case.codes[:1, 100:], [1, 2, 4, 8], 1)
    case.assert_sound(sound, case.sound(slice(100, LENGTH))[:1])
    neighbour = torch.cat([neighbour, decoder.decode(case.codes[1:, 10:14], slots(0))], 1)
    case.assert_sound(neighbour, case.sound(slice(0, 14))[1:])


def assert_same_state(state: CodecState, other: CodecState, tolerance: float) -> None:
    assert torch.equal(state.position, other.position)
    assert (state.window - other.window).abs().max() < tolerance
    assert (state.histories - other.histories).abs().max() < tolerance


def test_the_released_format_is_read(checkpoint: Path, stock: Any) -> None:
    file = load_file(checkpoint / "speech_tokenizer" / "model.safetensors")
    mine = {k.removeprefix("decoder."): v for k, v in file.items() if k.startswith("decoder.")}
    config = speech_config("tiny")["decoder_config"]
    codes = torch.randint(0, 128, (1, 30, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = stock.model.speech_tokenizer.model.decoder(codes.transpose(1, 2))[:, 0]
    sound = stream(StreamingDecoder(mine, config, 1, CPU, torch.float32), codes, [4], 0)
    assert snr_db(sound, whole) > 100


@pytest.mark.slow
def test_half_precision_is_close(single: Case) -> None:
    sound = stream(single.decoder(torch.float16), single.codes[:, :100], [1, 2, 4, 8], 0, 1)
    assert sound.dtype == torch.float32
    assert sound.isfinite().all()
    assert snr_db(sound, single.sound(slice(0, 100))) > 40


def test_the_state_stays_where_it_is(case: Case) -> None:
    decoder = case.decoder()
    places = [states.data_ptr() for states in decoder._states]
    stream(decoder, case.codes[:, :40], [1, 8, 12], 0, 1)
    decoder.clear(0)
    decoder.load(0, decoder.prefill(case.codes[0, :20]))
    assert [states.data_ptr() for states in decoder._states] == places


@pytest.fixture(scope="module")
def on_meta() -> StreamingDecoder:
    """The released size on a device that has no values: whoever asks for one gets an error."""
    config = speech_config("1.7b")["decoder_config"]
    meta = torch.device("meta")
    with meta:
        weights = build(config).state_dict()
    return StreamingDecoder(weights, config, 64, meta, torch.float16)


@pytest.mark.parametrize("frames", [1, 8, 12])
def test_decode_never_asks_the_device_for_a_value(on_meta: StreamingDecoder, frames: int) -> None:
    codes = torch.empty(8, frames, 16, dtype=torch.int64, device="meta")
    rows = torch.empty(8, dtype=torch.int64, device="meta")
    assert on_meta.decode(codes, rows).shape == (8, frames * FRAME_SAMPLES)


def test_clear_save_load_and_absorb_never_ask_either(on_meta: StreamingDecoder) -> None:
    on_meta.clear(3)
    on_meta.load(4, on_meta.prefill(torch.empty(100, 16, dtype=torch.int16, device="meta")))


def test_a_slot_of_the_released_size_takes_three_megabytes(on_meta: StreamingDecoder) -> None:
    assert 2.5e6 < on_meta.save(0).nbytes < 3e6
