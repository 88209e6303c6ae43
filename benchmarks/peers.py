"""What others make of the same shapes: stock qwen-tts, and faster-qwen3-tts 0.3.2.

Both get random weights from our own maker, and a prompt that is computed already: codes of ten
seconds, as our engine's voices have. Without their packages a stage is skipped.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Generator
from itertools import pairwise
from statistics import median
from typing import Any

import measure
import torch
from engine_stages import DTYPES, TEXT, TRANSCRIPT, Found, Skipped

from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.config import default_dtype
from inference.serving.bench import FRAME_S
from inference.testing.checkpoint import Recipe, build_random_model

FASTER = "faster-qwen3-tts 0.3.2"
CHUNKS = (1, 8)
POSITIONS = 2048  # faster-qwen3-tts' own default
FIRST_AUDIO = 10  # times that the first chunk is waited for


def stock(asked: argparse.Namespace) -> Found:
    """generate_voice_clone as it comes: one text, then eight at once."""
    model = _model(asked)
    rows = []
    for streams in (1, 8):
        _stock_seconds(model, asked, streams, 4)
        taken_s = _stock_seconds(model, asked, streams, asked.peer_frames)
        rows.append(_row(streams, taken_s / asked.peer_frames, taken_s) | {"chunk": "all"})
    return {"rows": rows}


def _stock_seconds(model: Any, asked: argparse.Namespace, streams: int, frames: int) -> float:
    items = [_prompt(model, asked.reference)] * streams
    _settle(model.device)
    started_s = time.perf_counter()
    waves, _ = model.generate_voice_clone(
        [TEXT] * streams,
        language=["Auto"] * streams,
        voice_clone_prompt=items,
        max_new_tokens=frames + 1,  # it decodes one less
    )
    taken_s = time.perf_counter() - started_s
    assert len(waves) == streams and abs(len(waves[0]) / 1920 - frames) < 1
    return taken_s


def faster(asked: argparse.Namespace) -> Found:
    """faster-qwen3-tts' stream, in chunks of 1 and of 8 frames."""
    wrapper, graphs = _faster()
    if _device(asked).type != "cuda":
        raise Skipped(f"{FASTER} needs CUDA.")
    model = _model(asked)
    with contextlib.redirect_stdout(io.StringIO()):
        wrapped = _wrapped(model, wrapper, *graphs)
        return {"rows": [_streamed(wrapped, asked, chunk) for chunk in CHUNKS]}


def _faster() -> tuple[Any, tuple[Any, Any]]:
    """Its wrapper, and the classes of its two graphs."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import_qwen_tts()
            from faster_qwen3_tts.model import FasterQwen3TTS
            from faster_qwen3_tts.predictor_graph import PredictorGraph
            from faster_qwen3_tts.talker_graph import TalkerGraph
    except ImportError as error:
        raise Skipped(f"{FASTER} can't be imported here: {error}.") from error
    return FasterQwen3TTS, (PredictorGraph, TalkerGraph)


def _wrapped(model: Any, wrapper: Any, predictor_graph: Any, talker_graph: Any) -> Any:
    """What its from_pretrained does after loading."""
    talker, config = model.model.talker, model.model.config.talker_config
    shared = {"device": str(model.device), "dtype": model.model.dtype}
    inner = talker.code_predictor.model.config
    predictor = predictor_graph(talker.code_predictor, inner, config.hidden_size, **shared)
    graph = talker_graph(talker.model, config, max_seq_len=POSITIONS, **shared)
    return wrapper(model, predictor, graph, max_seq_len=POSITIONS, **shared)


def _streamed(model: Any, asked: argparse.Namespace, chunk: int) -> Found:
    list(_chunks(model, asked, chunk, 4 * chunk))  # captures its graphs
    first_s = []
    for _ in range(FIRST_AUDIO):
        chunks = _chunks(model, asked, chunk, 4 * chunk)
        first_s.append(next(chunks)[0])
        chunks.close()
    heard = list(_chunks(model, asked, chunk, asked.frames))
    paces_s = [(late - early) / frames for (early, _), (late, frames) in pairwise(heard)]
    return _row(1, median(paces_s), median(first_s)) | {"chunk": chunk}


def _chunks(
    model: Any, asked: argparse.Namespace, chunk: int, frames: int
) -> Generator[tuple[float, int], None, None]:
    """Seconds since the question, and frames, of each chunk."""
    item = _prompt(model.model, asked.reference)
    _settle(model.model.device)
    started_s = time.perf_counter()
    stream = model.generate_voice_clone_streaming(
        TEXT,
        "Auto",
        voice_clone_prompt=[item],
        ref_text=TRANSCRIPT,
        chunk_size=chunk,
        max_new_tokens=frames,
    )
    for samples, _, _ in stream:
        yield time.perf_counter() - started_s, round(len(samples) / 1920)


def _model(asked: argparse.Namespace) -> Any:
    device = _device(asked)
    dtype = DTYPES.get(asked.dtype) or default_dtype(device)
    if asked.model is not None:
        raise Skipped("The peers are measured on random weights: give --size, not --model.")
    try:
        return build_random_model(Recipe(asked.size, eos="never"), str(device), dtype)
    except ImportError as error:
        raise Skipped(f"qwen-tts can't be imported here: {error}.") from error


def _device(asked: argparse.Namespace) -> torch.device:
    return torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _prompt(model: Any, frames: int) -> Any:
    from qwen_tts import VoiceClonePromptItem

    talker = model.model.config.talker_config
    generator = torch.Generator().manual_seed(0)
    size, codes = (frames, talker.num_code_groups), talker.code_predictor_config.vocab_size
    embedding = torch.randn(talker.hidden_size, generator=generator) / 10
    return VoiceClonePromptItem(
        ref_code=torch.randint(codes, size, generator=generator).to(model.device),
        ref_spk_embedding=embedding.to(model.device, model.model.dtype),
        x_vector_only_mode=False,
        icl_mode=True,
        ref_text=TRANSCRIPT,
    )


def _row(streams: int, pace_s: float, first_s: float) -> Found:
    return {
        "streams": streams,
        "ms_per_frame": measure.ms(pace_s),
        "real_time": round(streams * FRAME_S / pace_s, 2),
        "first_ms": measure.ms(first_s),
    }


def _settle(device: torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
