"""The engine's benchmarks, seconds long: they run, keep what they find, and draw it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT

from cli.main import cli
from inference.engine.checkpoint.loading import load_weights
from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.config import EngineConfig
from inference.engine.engine import Engine
from inference.engine.model_config import read_model_config
from inference.engine.request import Request
from inference.serving.bench import Arrival, Caller, Session, random_voice, text_of
from inference.testing.config import speech_config

pytestmark = pytest.mark.served

QUICK = (
    *("--size", "tiny", "--device", "cpu", "--commit", "none", "--reference", "6"),
    *("--streams", "1", "2", "--frames", "9", "--repeat", "2", "--peer-frames", "3"),
    *("--rates", "20", "40", "--seconds", "0.1", "--utterance", "4"),
)
STAGES = ("single", "batch", "poisson", "memory", "peer-stock", "peer-faster")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """Benchmarks are scripts in a folder: their modules are found while these tests run."""
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path[:] = path


@pytest.fixture(scope="module")
def measured(modules: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of one quick run of every stage, with its table's charts beside it."""
    import engine

    out = tmp_path_factory.mktemp("results") / "engine.json"
    engine.main([*QUICK, "--stage", *STAGES, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def found(measured: Path) -> dict[str, Any]:
    runs = json.loads(measured.read_text())
    return {run["arguments"]["stage"]: run["found"] for run in runs}


@pytest.fixture(scope="module")
def endless() -> Engine:
    """An engine with random weights that never end their speech."""
    return random_engine(end_gain=0.0)


def random_engine(end_gain: float) -> Engine:
    from random_weights import described, random_weights

    config, text = described("tiny")
    weights = random_weights(config, torch.float32, CPU, end_gain=end_gain)
    return Engine(config, weights, text, EngineConfig(device="cpu", slots=4))


@pytest.mark.slow
def test_a_run_says_what_it_measured(measured: Path) -> None:
    for run in json.loads(measured.read_text()):
        asked = run["arguments"]
        assert asked["size"] == "tiny" and asked["dtype"] == "fp32" and not asked["as_on_t4"]
        assert asked["commit"] == "none" and run["versions"]["torch"] and run["machine"]["cpus"]


def test_one_stream_is_measured_in_both_modes(found: dict[str, Any]) -> None:
    xvec, icl = found["single"]["rows"]
    assert (xvec["mode"], icl["mode"]) == ("xvec", "icl")
    for row in (xvec, icl):
        assert 0 < row["ms_per_frame"] <= row["p95_ms"] and row["first_ms"] > 0
        assert row["of_floor"] >= 0
    assert found["single"]["t4"]["estimate"]


def test_batches_are_as_large_as_they_are_called(found: dict[str, Any]) -> None:
    for row in found["batch"]["rows"]:
        assert 0.5 * row["streams"] < row["mean_batch"] <= row["streams"]
        assert row["ms_per_step"] > 0 and row["real_time"] > 0


def test_every_arrival_is_heard(found: dict[str, Any]) -> None:
    for row in found["poisson"]["rows"]:
        assert row["requests"] == round(row["rate"] * 0.1)
        assert row["first_p50_ms"] <= row["first_p95_ms"] <= row["first_p99_ms"]


def test_stock_qwen_tts_is_measured_beside(found: dict[str, Any]) -> None:
    assert [row["streams"] for row in found["peer-stock"]["rows"]] == [1, 8]


def test_what_cannot_run_here_says_so_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import engine

    out = tmp_path / "engine.json"
    engine.main([*QUICK, "--stage", "memory", "peer-faster", "--out", str(out)])
    said = capsys.readouterr().out
    assert "memory: skipped. The stage memory measures a GPU" in said
    assert "peer-faster: skipped. faster-qwen3-tts 0.3.2" in said
    assert not out.exists()


def test_the_table_has_a_column_for_each_and_the_charts_a_line(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import engine

    asked = ["--stage", "table", "--size", "tiny", "--plot", str(tmp_path)]
    engine.main([*asked, "--out", str(measured)])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == "| figure | must | aim | fp32 | qwen-tts 0.1.1, fp32 |"
    assert lines[1].startswith("| one stream, ms per frame | ≤ 6 | ≤ 3 | ")
    for name in ("engine-batch.svg", "engine-load.svg"):
        chart = ElementTree.fromstring((tmp_path / name).read_text("utf-8"))
        words = [element.text for element in chart.iter() if element.tag.endswith("text")]
        assert any("fp32" in (word or "") for word in words) and "qwen-tts 0.1.1, fp32" in words
        assert not any(
            "nan" in value for element in chart.iter() for value in element.attrib.values()
        )


def test_a_missed_must_is_bold() -> None:
    from engine_table import Figure

    slow = Figure("ms", "≤ 6", "", "single", lambda found: found["ms"], 6)
    few = Figure("streams", "≥ 250", "", "single", lambda found: found["ms"], 250, at_least=True)
    cells = [figure.cell({"single": {"ms": ms}}) for figure in (slow, few) for ms in (6, 7, 250)]
    assert cells == ["6", "**7**", "**250**", "**6**", "**7**", "250"]
    assert slow.cell({}) == ""


@pytest.mark.slow
def test_the_check_of_a_device_holds_here(tmp_path: Path) -> None:
    import engine_gpu_check

    out = tmp_path / "checks.json"
    quick = ["--size", "tiny", "--device", "cpu", "--frames", "6", "--requests", "12"]
    with pytest.raises(SystemExit) as end:
        engine_gpu_check.main([*quick, "--commit", "none", "--out", str(out)])
    [run] = json.loads(out.read_text())
    rows = {row["check"]: row for row in run["found"]["rows"]}
    assert not end.value.code and {row["holds"] for row in rows.values()} == {"yes", "reported"}
    assert rows["alone = one of 8, equal codes"]["found"] == "1"
    assert rows["soak: requests"]["found"] == "12"


def test_random_weights_are_laid_out_as_loaded_ones(checkpoint: Path) -> None:
    from engine_stages import _tensors
    from random_weights import random_weights

    config = read_model_config(checkpoint)
    made, loaded = (
        make(torch.float16)
        for make in (
            lambda dtype: random_weights(config, dtype, CPU),
            lambda dtype: load_weights(checkpoint, config, dtype, CPU),
        )
    )
    assert made.decoder.keys() == loaded.decoder.keys()
    made.decoder.update({name: made.decoder[name] for name in loaded.decoder})
    layouts = [sorted((tuple(t.shape), str(t.dtype)) for t in _tensors(w)) for w in (made, loaded)]
    assert layouts[0] == layouts[1]


def test_the_decoder_of_the_true_size_is_qwen_tts_own() -> None:
    from random_weights import decoder_sizes

    import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model

    config = speech_config("1.7b")
    with torch.device("meta"):
        model = Qwen3TTSTokenizerV2Model._from_config(Qwen3TTSTokenizerV2Config(**config))
    expected = {name: tuple(t.shape) for name, t in model.decoder.state_dict().items()}
    assert decoder_sizes(config["decoder_config"]) == expected


def test_random_weights_are_the_same_numbers_in_every_dtype() -> None:
    from random_weights import described, random_weights

    config, _ = described("tiny")
    single, half = (random_weights(config, d, CPU) for d in (torch.float32, torch.bfloat16))
    assert torch.equal(single.talker.rest, half.talker.rest.float())
    assert torch.equal(
        single.talker.transformer.layers[0].qkv, half.talker.transformer.layers[0].qkv.float()
    )


def test_a_frame_reads_what_the_design_counts() -> None:
    from engine_floor import Frame
    from random_weights import described

    frame = Frame.of(described("1.7b")[0])
    assert 2 * frame.language_parameters / 1e9 == pytest.approx(5.26, abs=0.02)
    assert frame.flop / 1e9 == pytest.approx(5.26 + 4.96, abs=0.02)


@pytest.mark.slow
def test_random_speech_ends_never_or_sometimes(endless: Engine) -> None:
    request = Request(random_voice(endless, 0, ""), text_of(3))
    session = Session(endless, 10_000).run([Arrival(0.0, request)])
    assert "did not end" in (session.callers[0].error or "")
    sometimes = random_engine(end_gain=1.5)
    request = Request(random_voice(sometimes, 0, ""), text_of(3))
    Session(sometimes, 10_000).run([Arrival(0.0, request)])
    assert sometimes.counters.finished == 1


def test_callers_leave_once_they_have_heard_enough(endless: Engine) -> None:
    from engine_stages import mean_batch

    voice = random_voice(endless, 4, text_of(4))
    arrivals = [Arrival(0.0, Request(voice, text_of(20))) for _ in range(3)]
    session = Session(endless, 6).run(arrivals)
    assert [caller.frames for caller in session.callers] == [7, 7, 7]
    assert not endless.busy and endless.running == 0
    assert mean_batch(session) <= 3 and session.real_time() > 0 and session.step_s() > 0


def test_a_chunk_is_late_when_playback_needed_it_before() -> None:
    from engine_stages import latenesses_s, paces_s

    caller = Caller(SimpleNamespace(), 1.0)  # type: ignore[arg-type]
    caller.heard_s, caller.chunks = [1.5, 1.57, 1.75, 1.9], [1, 2, 4, 8]
    assert caller.first_s == 0.5 and caller.frames == 15
    assert latenesses_s(caller) == [pytest.approx(0.01)]
    assert paces_s(caller) == pytest.approx([0.035, 0.045, 0.01875])


@pytest.mark.slow
def test_voices_bench_prints_figures_of_the_model_in_use(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(checkpoint)
    for name, value in {"HOME": str(tmp_path), "MODEL": model, "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"VOICES_{name}", value)
    quick = ["--streams", "1", "--streams", "2", "--seconds", "0.4"]
    done = CliRunner().invoke(cli, ["bench", *quick, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert (printed["model"], printed["device"], printed["dtype"]) == (
        "local/tiny",
        "cpu",
        "float32",
    )
    assert [line["streams"] for line in printed["together"]] == [1, 2]
    assert all(line["real_time"] > 0 for line in printed["together"])
    shown = CliRunner().invoke(cli, ["bench", *quick]).stdout
    assert shown.startswith("local/tiny on cpu in float32\n") and "x real time" in shown
