"""Prompts laid out as qwen_tts lays them out: the same embeddings at every position."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from inference.engine.checkpoint.loading import load_weights
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.model_config import read_model_config
from inference.engine.prompt_builder import PromptBuilder, PromptEmbeds, TokenizedPrompt
from inference.engine.text import TextTokenizer

CPU = torch.device("cpu")
TRANSCRIPT = "What the clip says."
AHEAD = 100  # positions after the prompt that are compared
REFERENCES = (0, 1, 19, 60)  # frames: none; fewer than its text, about as many, more than all text


class Intercepted(Exception):
    """What qwen_tts would have generated from."""

    def __init__(self, prompt: Tensor, ahead: Tensor, pad: Tensor) -> None:
        self.prompt, self.trailing, self.pad = prompt[0], ahead[0], pad[0]


@dataclass(frozen=True)
class Maker:
    """Lays out the same request on both sides."""

    stock: Any
    prompt_builder: PromptBuilder
    text: TextTokenizer

    def ours(self, text: str, frames: int, language: str | None) -> PromptEmbeds:
        found = None
        if frames:
            found = self.prompt_builder.reference(codes_of(frames), self.text.ids(TRANSCRIPT))
        ids = self.text.ids(text)
        prompt = TokenizedPrompt(speaker(), found, ids, language)
        embeds = self.prompt_builder.build(prompt)
        assert self.prompt_builder.lengths(prompt) == (len(embeds.prefill), len(embeds.trailing))
        return embeds

    def theirs(self, text: str, frames: int, language: str | None) -> Intercepted:
        reference = torch.tensor([self.text.reference(TRANSCRIPT)]) if frames else None
        with pytest.raises(Intercepted) as caught:
            self.stock.model.generate(
                input_ids=[torch.tensor([self.text.target(text)])],
                ref_ids=[reference],
                voice_clone_prompt={
                    "ref_code": [codes_of(frames) if frames else None],
                    "ref_spk_embedding": [speaker()],
                    "x_vector_only_mode": [not frames],
                    "icl_mode": [bool(frames)],
                },
                languages=[language or "Auto"],
                non_streaming_mode=False,
            )
        return caught.value


def speaker() -> Tensor:
    return torch.linspace(-0.5, 0.5, 64)


def codes_of(frames: int) -> Tensor:
    return torch.randint(128, (frames, 16), generator=torch.Generator().manual_seed(frames))


@pytest.fixture
def maker(stock: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    def intercept(**given: Any) -> NoReturn:
        raise Intercepted(
            given["inputs_embeds"], given["trailing_text_hidden"], given["tts_pad_embed"]
        )

    monkeypatch.setattr(stock.model.talker, "generate", intercept)
    config, text = read_model_config(checkpoint), load_tokenizer(checkpoint)
    weights = load_weights(checkpoint, config, torch.float32, CPU)
    return Maker(stock, PromptBuilder(config, weights, text.target("")[:3]), text)


@pytest.mark.parametrize("frames", REFERENCES)
def test_every_position_is_qwen_tts_own(maker: Maker, frames: int) -> None:
    languages = [None, *maker.stock.model.config.talker_config.codec_language_id]
    assert len(languages) > 5
    for language, text in zip(languages, ["x", "Hello there, you.", "你好吗"] * 10, strict=False):
        ours = maker.ours(text, frames, language)
        theirs = maker.theirs(text, frames, language)
        torch.testing.assert_close(ours.prefill, theirs.prompt, rtol=0, atol=1e-5)
        torch.testing.assert_close(maker.prompt_builder.pad, theirs.pad[0], rtol=0, atol=1e-5)
        fed = padded(ours.trailing, maker.prompt_builder.pad)
        torch.testing.assert_close(fed, padded(theirs.trailing, theirs.pad[0]), rtol=0, atol=1e-5)


def padded(ahead: Tensor, pad: Tensor) -> Tensor:
    """What is fed frame by frame: the text that is left, then padding for ever."""
    assert len(ahead) < AHEAD
    return torch.cat([ahead, pad.expand(AHEAD - len(ahead), -1)])


def test_the_text_that_outlasts_the_codes_is_read_while_speaking(maker: Maker) -> None:
    lengths = [len(maker.ours("Hello.", frames, None).trailing) for frames in (0, 3, 60)]
    assert lengths == [6, len(TRANSCRIPT) + 7 - 4, 0]
