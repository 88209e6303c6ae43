"""Loading: the packed weights are the checkpoint's tensors, and faults are named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from speaking import run_python
from torch import Tensor
from torch.nn import functional as F

from inference.engine import EngineConfig
from inference.engine.checkpoint import transfer as transfer_module
from inference.engine.checkpoint.loading import FOLD, load_weights, load_with_report, move
from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.checkpoint.transfer import Memory, Piece, transfer
from inference.engine.model_config import read_model_config
from inference.engine.weights import GATE_INTERLEAVE, Weights
from inference.models.catalog import locate
from inference.serving.loaded_engine import load as load_engine
from registry.errors import ModelUnavailable
from registry.storage.data_dir import DataDir

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PREDICTOR = "talker.code_predictor"
SMALL = f"{PREDICTOR}.small_to_mtp_projection"
MAIN, SPEECH = "model.safetensors", "speech_tokenizer/model.safetensors"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(folder, read_model_config(folder), dtype, CPU)


def edited(source: Path, folder: Path, tensors: dict[str, Tensor], **talker: Any) -> Path:
    """A copy of a checkpoint with other main tensors, and other values in its talker_config."""
    shutil.copytree(source, folder)
    save_file(tensors, folder / MAIN)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["talker_config"] |= talker
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def widened(name: str, tensor: Tensor) -> Tensor:
    """A tensor of the predictor, twice as wide."""
    if not name.startswith(PREDICTOR) or "codec_embedding" in name:
        return tensor
    if name.endswith(
        ("layernorm.weight", "model.norm.weight", "o_proj.weight", "down_proj.weight")
    ):
        return torch.cat([tensor, tensor])
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return tensor
    return torch.cat([tensor, tensor], dim=1)


@pytest.fixture(scope="module")
def equal_widths(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the 0.6B layout: talker and predictor are equally wide."""
    stored = load_file(checkpoint / MAIN)
    tensors = {n: widened(n, t) for n, t in stored.items() if not n.startswith(SMALL)}
    predictor = json.loads((checkpoint / "config.json").read_text("utf-8"))["talker_config"]
    predictor = predictor["code_predictor_config"] | {"hidden_size": 64}
    folder = tmp_path_factory.mktemp("models") / "equal_widths"
    return edited(checkpoint, folder, tensors, code_predictor_config=predictor)


@pytest.fixture(scope="module", params=["narrow predictor", "equal widths"])
def either(request: pytest.FixtureRequest, checkpoint: Path, equal_widths: Path) -> Path:
    return equal_widths if request.param == "equal widths" else checkpoint


def layers(weights: Weights) -> Iterator[tuple[str, Any]]:
    for name, stack in (
        ("talker.model", weights.talker.transformer),
        (f"{PREDICTOR}.model", weights.predictor.transformer),
    ):
        for i, layer in enumerate(stack.layers):
            yield f"{name}.layers.{i}", layer


def same(found: Tensor, stored: Tensor) -> bool:
    """Equal once the stored tensor is converted, as a packed copy of it must be."""
    return found.is_contiguous() and torch.equal(found, stored.to(found.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_layers_are_the_stored_ones(either: Path, dtype: torch.dtype) -> None:
    stored, weights = load_file(either / MAIN), load(either, dtype)
    for name, layer in layers(weights):
        parts = [stored[f"{name}.self_attn.{p}_proj.weight"] for p in "qkv"]
        assert same(layer.qkv, torch.cat(parts)) and layer.qkv.dtype == dtype
        assert same(layer.o, stored[f"{name}.self_attn.o_proj.weight"])
        for norm in ("q_norm", "k_norm"):
            assert same(getattr(layer, norm), stored[f"{name}.self_attn.{norm}.weight"])
        assert same(layer.input_norm, stored[f"{name}.input_layernorm.weight"])
        assert same(layer.post_norm, stored[f"{name}.post_attention_layernorm.weight"])
        assert layer.q_norm.dtype == layer.post_norm.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_and_up_take_turns_and_are_folded_in_half_precision(
    either: Path, dtype: torch.dtype
) -> None:
    stored, weights = load_file(either / MAIN), load(either, dtype)
    fold = 2.0**FOLD if dtype == torch.float16 else 1.0
    for name, layer in layers(weights):
        gate, up, down = (stored[f"{name}.mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        found = layer.gate_up.view(-1, 2, GATE_INTERLEAVE, gate.shape[1])
        assert torch.equal(found[:, 0].flatten(0, 1), gate.to(dtype))
        assert torch.equal(found[:, 1].flatten(0, 1), (up.double() / fold).to(dtype))
        assert torch.equal(layer.down, (down.double() * fold).to(dtype))
        large = up.abs() > 2.0**-13  # bfloat16's eight bits fit into a half from there on
        assert torch.equal(found[:, 1].flatten(0, 1)[large].double() * fold, up[large].double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_embeddings_and_heads_are_the_stored_ones(either: Path, dtype: torch.dtype) -> None:
    stored, weights = load_file(either / MAIN), load(either, dtype)
    text, talker, predictor = weights.text, weights.talker, weights.predictor
    assert same(text.embedding, stored["talker.model.text_embedding.weight"])
    for part in ("fc1", "fc2"):
        name = f"talker.text_projection.linear_{part}"
        assert same(getattr(text, part), stored[f"{name}.weight"])
        assert same(getattr(text, f"{part}_bias"), stored[f"{name}.bias"])
    assert same(talker.first, stored["talker.model.codec_embedding.weight"])
    tables = [stored[f"{PREDICTOR}.model.codec_embedding.{i}.weight"] for i in range(15)]
    assert same(talker.rest, torch.stack(tables))
    heads = [stored[f"{PREDICTOR}.lm_head.{i}.weight"] for i in range(15)]
    assert same(predictor.heads, torch.stack(heads))
    assert same(talker.transformer.norm, stored["talker.model.norm.weight"])
    assert same(predictor.transformer.norm, stored[f"{PREDICTOR}.model.norm.weight"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_predictor_reads_projected_embeddings(checkpoint: Path, dtype: torch.dtype) -> None:
    stored, weights = load_file(checkpoint / MAIN), load(checkpoint, dtype)
    weight, bias = stored[f"{SMALL}.weight"], stored[f"{SMALL}.bias"]
    talker, predictor = weights.talker, weights.predictor
    assert same(talker.head, torch.cat([stored["talker.codec_head.weight"], weight]))
    assert same(talker.head_bias, bias) and talker.head_bias.dtype == torch.float32

    def projected(table: Tensor) -> Tensor:
        return F.linear(table.float(), weight.to(dtype).float(), bias.float()).to(dtype)

    assert torch.equal(predictor.first, projected(talker.first))
    assert predictor.rest.shape == (14, 128, 32)
    for i, table in enumerate(predictor.rest):
        assert torch.equal(table, projected(talker.rest[i]))


def test_between_equal_widths_the_projection_is_an_identity(equal_widths: Path) -> None:
    stored, weights = load_file(equal_widths / MAIN), load(equal_widths)
    talker, predictor = weights.talker, weights.predictor
    head = torch.cat([stored["talker.codec_head.weight"].float(), torch.eye(64)])
    assert torch.equal(talker.head, head) and not talker.head_bias.any()
    assert torch.equal(predictor.first, talker.first)
    assert torch.equal(predictor.rest, talker.rest[:14])


def test_qwen_tts_has_an_identity_there_too(equal_widths: Path) -> None:
    model = import_qwen_tts().Qwen3TTSModel.from_pretrained(str(equal_widths)).model
    assert isinstance(model.talker.code_predictor.small_to_mtp_projection, torch.nn.Identity)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_codecs_decoder_stays_float32(checkpoint: Path, dtype: torch.dtype) -> None:
    stored, found = load_file(checkpoint / SPEECH), load(checkpoint, dtype).decoder
    assert set(found) == {n.removeprefix("decoder.") for n in stored if n.startswith("decoder.")}
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and same(tensor, stored[f"decoder.{name}"])


@pytest.mark.parametrize("piece_bytes", [1, 200, 3000])
def test_the_size_of_the_pieces_changes_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    whole = load(checkpoint, torch.float16)
    monkeypatch.setattr(transfer_module, "PIECE_BYTES", piece_bytes)
    pieces = load(checkpoint, torch.float16)
    for (name, a), (_, b) in zip(tensors_of(whole), tensors_of(pieces), strict=True):
        assert torch.equal(a, b), name


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{i}")
    else:
        for key, item in (value if isinstance(value, dict) else vars(value)).items():
            yield from tensors_of(item, f"{name}.{key}")


def test_a_transfer_takes_bytes_from_memory_as_well() -> None:
    source, target = torch.randn(100, 7), torch.empty(7, 100).T  # its rows are not contiguous
    moved = transfer([Piece(Memory(source), 0, torch.float32, target, 0.5)], CPU)
    assert torch.equal(target, source / 2) and moved.nbytes == 2800


def test_moving_to_where_weights_are_copies_nothing(checkpoint: Path) -> None:
    weights = load(checkpoint)
    for (name, a), (_, b) in zip(tensors_of(weights), tensors_of(move(weights, CPU)), strict=True):
        assert a is b, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_loading_and_moving_to_cuda_give_what_a_cpu_loads(either: Path, dtype: torch.dtype) -> None:
    cuda, on_cpu = torch.device("cuda"), load(either, dtype)
    loaded = load_weights(either, read_model_config(either), dtype, cuda)
    for found in (loaded, move(on_cpu, cuda)):
        for (name, a), (_, b) in zip(tensors_of(found), tensors_of(on_cpu), strict=True):
            assert a.is_cuda and a.dtype == b.dtype, name
            if not name.startswith((".predictor.first", ".predictor.rest")):
                assert torch.equal(a.cpu(), b), name
            torch.testing.assert_close(a.cpu(), b)


def test_conversions_are_logged_once(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "inference.engine.checkpoint.loading"):
        _, report = load_with_report(checkpoint, read_model_config(checkpoint), torch.float16, CPU)
    text = [record.getMessage() for record in caplog.records]
    assert sum("from torch.bfloat16 to torch.float16" in line for line in text) == 1
    stored = [*load_file(checkpoint / MAIN).items(), *load_file(checkpoint / SPEECH).items()]
    used = [t.nbytes for n, t in stored if n.startswith(("talker.", "decoder."))]
    assert report.transferred.nbytes == sum(used)
    assert report.seconds >= report.transferred.seconds >= report.transferred.reading_s > 0


def refusal(folder: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load(folder)
    return str(caught.value)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


WRONG: list[tuple[str, str, object]] = [
    ("", "codec_language_id", 5),
    ("", "codec_language_id", ["english"]),
    ("", "codec_language_id", "english"),
    ("", "codec_bos_id", 2**40),
    ("", "codec_bos_id", "x"),
    ("", "num_attention_heads", 0),
    ("speech_tokenizer/", "upsampling_ratios", [0, 2]),
    ("speech_tokenizer/", "upsampling_ratios", [10**30, 2]),
    ("speech_tokenizer/", "upsampling_ratios", "x"),
    ("speech_tokenizer/", "upsample_rates", []),
    ("speech_tokenizer/", "upsample_rates", {"a": 1}),
]


@pytest.mark.parametrize(("where", "name", "value"), WRONG)
def test_a_wrong_value_of_a_config_is_a_sentence(
    copy: Path, tmp_path: Path, where: str, name: str, value: object
) -> None:
    path = copy / where / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["decoder_config" if where else "talker_config"][name] = value
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelUnavailable):
        locate(str(copy), DataDir(tmp_path / "data"))
        load_engine(copy, None, EngineConfig(device="cpu"), 1)


@pytest.mark.parametrize("name", [MAIN, SPEECH])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert refusal(copy) == f"{copy / name} is missing."


def test_a_sharded_checkpoint_is_refused_as_such(copy: Path) -> None:
    (copy / MAIN).rename(copy / "model-00001-of-00002.safetensors")
    (copy / f"{MAIN}.index.json").write_text("{}")
    assert refusal(copy).startswith(f"{copy} is a sharded checkpoint; only a single {MAIN}")


def test_a_missing_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    tensors, name = load_file(checkpoint / MAIN), f"{PREDICTOR}.lm_head.14.weight"
    del tensors[name]
    folder = edited(checkpoint, tmp_path / "without", tensors)
    assert refusal(folder) == f"{folder / MAIN} has no tensor {name}."


def test_a_wrong_shape_names_the_tensor_and_both_shapes(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "other", load_file(checkpoint / MAIN), vocab_size=1153)
    assert "codec_head.weight" in refusal(folder) and "[1152, 64]" in refusal(folder)
    assert refusal(folder).endswith("but the config asks for [1153, 64].")


def test_rows_that_do_not_interleave_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / MAIN)
    folder = edited(checkpoint, tmp_path / "odd", tensors, intermediate_size=127)
    assert "127 rows, not a multiple of 8" in refusal(folder)


def test_a_tensor_of_integers_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors, name = load_file(checkpoint / MAIN), "talker.codec_head.weight"
    folder = edited(checkpoint, tmp_path / "int", tensors | {name: tensors[name].long()})
    assert f"Tensor {name} in" in refusal(folder) and "stored as I64" in refusal(folder)


@pytest.mark.parametrize("lost", [1, 10_000, 500_000])
def test_a_truncated_file_is_said_to_be_and_names_a_tensor(copy: Path, lost: int) -> None:
    path = copy / SPEECH
    path.write_bytes(path.read_bytes()[: -(lost + decoder_end(path))])
    assert refusal(copy).startswith(f"{path} is truncated: it ends before tensor decoder.")


def decoder_end(path: Path) -> int:
    """How many bytes there are after the last tensor of the decoder."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ends = [e["data_offsets"][1] for n, e in header.items() if n.startswith("decoder.")]
    return len(data) - 8 - length - max(ends)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{{{{",
        (50_000).to_bytes(8, "little") + b"[" * 50_000,
        (2).to_bytes(8, "little") + b"\xff\xfe",
        b"<!DOCTYPE html><html><body>Not found</body></html>",
    ],
)
def test_a_file_of_another_kind_is_refused(copy: Path, content: bytes) -> None:
    (copy / MAIN).write_bytes(content)
    assert refusal(copy).startswith(f"{copy / MAIN} is not a safetensors file: ")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [1152, 64]},
        {"dtype": "BF16", "shape": [1152, 64], "data_offsets": [0, 100]},
        {"dtype": "BF16", "shape": [1152, 64], "data_offsets": [-147456, 0]},
        {"dtype": "BF16", "shape": "ab", "data_offsets": [0, 100]},
        {"dtype": "BF16", "shape": [1152, 64], "data_offsets": [0, float("inf")]},
        [],
    ],
)
def test_a_wrong_header_names_the_tensor(copy: Path, entry: Any) -> None:
    name = "talker.codec_head.weight"
    data = (copy / MAIN).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]) | {name: entry}).encode()
    rest = data[8 + length :]
    (copy / MAIN).write_bytes(len(header).to_bytes(8, "little") + header + rest)
    assert refusal(copy) == f"The header of {copy / MAIN} is wrong at {name}."


def test_a_speech_tokenizer_without_a_decoder_is_refused(copy: Path) -> None:
    save_file({"encoder.x": torch.zeros(1)}, copy / SPEECH)
    assert refusal(copy) == f"{copy / SPEECH} has no tensors named decoder.*."


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux")
def test_loading_holds_no_second_copy(checkpoint: Path, tmp_path: Path) -> None:
    rows = 1_500_000  # 192 MB in bfloat16
    tensors = load_file(checkpoint / MAIN)
    tensors["talker.model.text_embedding.weight"] = torch.ones(rows, 64, dtype=torch.bfloat16)
    folder = edited(checkpoint, tmp_path / "large", tensors, text_vocab_size=rows)
    done = run_python(PEAK, str(folder))
    assert done.returncode == 0, done.stderr
    assert 0.9 < int(done.stdout) * 1024 / (rows * 64 * 2) < 1.4


PEAK = """
import sys
from pathlib import Path
import torch
from inference.engine.checkpoint.loading import load_weights
from inference.engine.model_config import read_model_config

def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1])

torch.ones(1000).bfloat16().float().sum()
folder, before = Path(sys.argv[1]), peak_kib()
weights = load_weights(folder, read_model_config(folder), torch.bfloat16, torch.device("cpu"))
print(peak_kib() - before)
"""


@pytest.mark.slow
def test_loading_imports_neither_qwen_tts_nor_transformers(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
import torch
from inference.engine.checkpoint.loading import load_weights
from inference.engine.model_config import read_model_config
folder = Path(sys.argv[1])
load_weights(folder, read_model_config(folder), torch.float16, torch.device("cpu"))
assert not {"transformers", "qwen_tts", "librosa"} & set(sys.modules)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
