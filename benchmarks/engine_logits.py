"""How far a dtype's logits and sound are from float32's, with the same codes fed to both.

Teacher-forced: every choice is replaced by a given code, so that one early difference does not
make all that follows incomparable.
"""

from collections.abc import Iterator
from typing import Any

import torch
from engine_stages import TEXT, TRANSCRIPT
from random_weights import described, random_weights
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inference.engine.codec.decoder import StreamingDecoder
from inference.engine.config import Setup
from inference.engine.generator import Generator
from inference.engine.model_config import ModelConfig
from inference.engine.ops import TorchOps
from inference.engine.prompt_builder import PromptBuilder, PromptEmbeds, TokenizedPrompt
from inference.engine.state import EngineLimits, State
from inference.engine.text import TextTokenizer
from registry.contract import SamplingParams

ROWS, FRAMES, REFERENCE = 4, 16, 24
POSITIONS = 256  # of a row
LIMITS = EngineLimits(ROWS, ROWS * POSITIONS, POSITIONS, FRAMES + 1, POSITIONS)
SAMPLING = SamplingParams(seed=0, temperature=0.9, top_k=50, top_p=1.0, repetition_penalty=1.0)
# Root mean square of the difference, as a share of the logits' own; the sound in decibels.
LOGITS = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-4}
SOUND_DB = {torch.float16: 30.0, torch.float32: 90.0}


class Teacher:
    """Operations that choose what they are told, and keep the logits they would choose from."""

    def __init__(self, ops: TorchOps, codes: Tensor) -> None:
        """`codes`: (frames, rows, groups)"""
        self._ops, self._codes, self._made = ops, codes, 0
        self.logits: list[Tensor] = []  # (rows, codes) float32, codebook by codebook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def sample(self, logits: Tensor, *_: object, **__: object) -> Tensor:
        self.logits.append(logits.float())
        frame, group = divmod(self._made, self._codes.shape[2])
        self._made += 1
        return self._codes[frame, :, group]


def compared(setup: Setup, size: str) -> Iterator[tuple[str, float, float | None, bool]]:
    """(what, found, limit, whether that is the least)"""
    model_config, text = described(size)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(
        model_config.codebook_size,
        (FRAMES, ROWS, model_config.num_code_groups),
        generator=generator,
    )
    codes = codes.to(setup.device)
    reference = logits(model_config, text, TorchOps(), codes, torch.float32)
    found = logits(model_config, text, setup.ops, codes, setup.dtype)
    for stage in reference:
        apart = (found[stage] - reference[stage]).pow(2).mean().sqrt()
        share = float(apart / reference[stage].pow(2).mean().sqrt())
        yield f"{stage}, apart from fp32", share, LOGITS[setup.dtype], False
        same = found[stage].argmax(-1) == reference[stage].argmax(-1)
        yield f"{stage}, same best code", float(same.float().mean()), None, True
    loudness = sound_db(model_config, codes, setup)
    yield "codec, dB above the difference", loudness, SOUND_DB[setup.codec_dtype], True


def logits(
    model_config: ModelConfig, text: TextTokenizer, ops: TorchOps, codes: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Of every frame: (frames, rows, codes) of the talker, and of all the predictor's heads."""
    weights = random_weights(model_config, dtype, codes.device)
    teacher = Teacher(ops, codes)
    prompt_builder = PromptBuilder(model_config, weights, text.target("")[:3])
    state = State(model_config, LIMITS, prompt_builder.pad, dtype)
    generator = Generator(model_config, weights, LIMITS, state, teacher)  # type: ignore[arg-type]
    all_embeds = [_embeds(model_config, text, prompt_builder, row) for row in range(ROWS)]
    for row, embeds in enumerate(all_embeds):
        entries = range(1 + row * POSITIONS, 1 + (row + 1) * POSITIONS - 1)
        state.begin(row, embeds, entries, SAMPLING)
    prompts = pad_sequence([embeds.prefill for embeds in all_embeds], batch_first=True)
    lengths = torch.tensor([len(embeds.prefill) for embeds in all_embeds], dtype=torch.int32)
    slots = torch.arange(ROWS, dtype=torch.int32, device=codes.device)
    generator.prefill(slots, prompts, lengths.to(codes.device))
    for _ in range(FRAMES):
        generator.sample_frame(slots)
        generator.advance(slots, POSITIONS)
    groups = model_config.num_code_groups
    first, rest = teacher.logits[::groups], teacher.logits
    rest = [made for index, made in enumerate(rest) if index % groups]
    return {"talker's logits": torch.stack(first), "predictor's logits": torch.stack(rest)}


def _embeds(
    model_config: ModelConfig, text: TextTokenizer, prompt_builder: PromptBuilder, row: int
) -> PromptEmbeds:
    """In context, each row with a clip of another length."""
    device, generator = prompt_builder.pad.device, torch.Generator().manual_seed(row)
    size = (REFERENCE + row, model_config.num_code_groups)
    codes = torch.randint(model_config.codebook_size, size, generator=generator).to(device)
    speaker = (torch.randn(model_config.talker.hidden_size, generator=generator) / 10).to(device)
    reference = prompt_builder.reference(codes, text.ids(TRANSCRIPT[:REFERENCE]))
    return prompt_builder.build(TokenizedPrompt(speaker, reference, text.ids(TEXT)))


def sound_db(model_config: ModelConfig, codes: Tensor, setup: Setup) -> float:
    """Power of float32's sound over that of the difference."""
    weights = random_weights(model_config, torch.float32, codes.device).decoder
    expected = _sound(model_config, weights, codes, torch.float32, TorchOps())
    found = _sound(model_config, weights, codes, setup.codec_dtype, setup.codec_ops)
    difference = found - expected
    power = expected.pow(2).mean() / difference.pow(2).mean().clamp(min=1e-30)
    return float(10 * power.log10())


def _sound(
    model_config: ModelConfig,
    weights: dict[str, Tensor],
    codes: Tensor,
    dtype: torch.dtype,
    ops: TorchOps,
) -> Tensor:
    decoder = StreamingDecoder(weights, model_config.decoder_config, ROWS, codes.device, dtype, ops)
    slots = torch.arange(ROWS, device=codes.device)
    chunks = codes.transpose(0, 1).split(8, dim=1)
    return torch.cat([decoder.decode(chunk, slots) for chunk in chunks], dim=1).float()
