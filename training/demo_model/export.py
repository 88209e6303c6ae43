"""Put a codec and a talker together as a checkpoint folder of the Qwen3-TTS Base format, in fp16.

    python -m training.demo_model.export --codec a/codec.safetensors --talker b/model.safetensors \
        --out demo
"""

import json
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

from inference.testing import config as released
from inference.testing.text import TEXT_FEATURES, write_json
from training.demo_model.bpe import TextTokens
from training.demo_model.shape import (
    CodecShape,
    TalkerShape,
    generation_config,
    main_config,
    speech_config,
)

MOST_BYTES = 16 * 2**20
HELPERS = "heads."  # of the codec's training, not of the format


def export(codec: Path, talker: Path, out: Path, gain: float = 1.0) -> int:
    """Write the checkpoint; its bytes. ValueError if it is too large to bundle.

    `gain` multiplies the decoder's sound.
    """
    speech = out / "speech_tokenizer"
    speech.mkdir(parents=True, exist_ok=True)
    codec_shape = CodecShape.read(read_shape(codec))
    talker_shape = TalkerShape(**read_shape(talker))
    _write_talker(talker, out)
    _write_codec(codec, speech, f"decoder.decoder.{len(codec_shape.wave_rates) + 2}.conv", gain)
    write_json(out / "config.json", main_config(talker_shape, TextTokens.read().ids))
    write_json(out / "generation_config.json", generation_config())
    write_json(speech / "config.json", speech_config(codec_shape))
    write_json(speech / "preprocessor_config.json", released.AUDIO_FEATURES, end="\n")
    write_tokenizer(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes are more than the {MOST_BYTES} that may be bundled.")
    return size


def read_shape(weights: Path) -> dict[str, Any]:
    shape: dict[str, Any] = json.loads((weights.parent / "run.json").read_text("utf-8"))["shape"]
    return shape


def _write_talker(weights: Path, out: Path) -> None:
    tensors = {k: v.half().contiguous() for k, v in load_file(weights).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _write_codec(weights: Path, out: Path, last: str, gain: float) -> None:
    state = {k: v for k, v in load_file(weights).items() if not k.startswith(HELPERS)}
    for part in ("weight", "bias"):
        state[f"{last}.{part}"] = state[f"{last}.{part}"].float() * gain
    tensors = {k: v.to(torch.float16).contiguous() for k, v in state.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(out: Path) -> None:
    """vocab.json, merges.txt, tokenizer_config.json and preprocessor_config.json."""
    from inference.testing.text import _tokenizer_config

    tokens = TextTokens.read()
    vocabulary = json.dumps(tokens.vocabulary, ensure_ascii=False)
    (out / "vocab.json").write_text(vocabulary, "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in tokens.merges), ""]
    (out / "merges.txt").write_text("\n".join(lines), "utf-8")
    write_json(out / "tokenizer_config.json", _tokenizer_config(tokens.added))
    write_json(out / "preprocessor_config.json", TEXT_FEATURES)


@click.command()
@click.option("--codec", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--talker", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--gain", type=float, default=1.0, show_default=True, help="of the sound")
def main(codec: Path, talker: Path, out: Path, gain: float) -> None:
    """Write a checkpoint that qwen-tts and our engine load."""
    size = export(codec, talker, out, gain)
    click.echo(f"{out}: {size} bytes, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
