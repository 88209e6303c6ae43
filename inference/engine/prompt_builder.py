"""Lay out a request as qwen_tts does: the positions to prefill, the text to read while speaking.

Source: qwen_tts' Qwen3TTSForConditionalGeneration.generate and generate_icl_prompt. Knows neither
slots nor caches. Everything is float32; D is the talker's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.device import on_device
from inference.engine.model_config import ModelConfig
from inference.engine.weights import Weights


@dataclass(frozen=True)
class PromptEmbeds:
    """One request as embeddings, in the words of transformers: its inputs_embeds."""

    prefill: Tensor  # (P, D)
    trailing: Tensor  # (L, D): one a frame; after them, and if L is 0, padding


@dataclass(frozen=True)
class ReferenceEmbeds:
    """Embeddings of a clip with a transcript that depend on the voice alone."""

    codes: Tensor  # (T + 1, D): codec_bos, then each frame's summed embeddings
    text: Tensor  # (R, D)


@dataclass(frozen=True)
class TokenizedPrompt:
    """One request as ids: a few bytes, where its PromptEmbeds has megabytes."""

    speaker: Tensor  # (D,)
    reference: ReferenceEmbeds | None  # speak in context, if there is one
    ids: Sequence[int]  # of the text
    language: str | None = None


class PromptBuilder:
    """Makes prompts of embeddings with a model's embeddings."""

    def __init__(self, config: ModelConfig, weights: Weights, role: Sequence[int]) -> None:
        """`role`: the ids that open the assistant's turn."""
        self._text = weights.text
        self._talker = weights.talker
        tokens = config.codec_tokens
        self._codec_pad, self._codec_bos = self._codec(tokens.pad), self._codec(tokens.bos)
        self._tags = {
            name: self._codec(tokens.think, tokens.think_bos, language, tokens.think_eos)
            for name, language in tokens.languages.items()
        }
        self._no_tags = self._codec(tokens.nothink, tokens.think_bos, tokens.think_eos)
        names = [config.text_tokens.pad, config.text_tokens.bos, config.text_tokens.eos]
        self.pad, self._bos, self._eos = self.text(names).unbind()
        self._role = self.text(role)

    def text(self, ids: Sequence[int]) -> Tensor:
        """Embed text: (len(ids), D)."""
        w = self._text
        index = on_device(ids, torch.int64, w.embedding.device)
        middle = F.silu(F.linear(w.embedding[index], w.fc1, w.fc1_bias))
        return F.linear(middle, w.fc2, w.fc2_bias).float()

    def reference(self, codes: Tensor, ids: Sequence[int]) -> ReferenceEmbeds:
        """Embed a reference: its codes (T, groups) and the transcript's ids."""
        group = torch.arange(codes.shape[1] - 1, device=codes.device)
        frames = self._talker.first[codes[:, 0]].float()
        frames = frames + self._talker.rest[group, codes[:, 1:]].float().sum(1)
        return ReferenceEmbeds(torch.cat([self._codec_bos, frames]), self.text(ids))

    def build(self, prompt: TokenizedPrompt) -> PromptEmbeds:
        header, reference = self._header(prompt.speaker, prompt.language), prompt.reference
        target = torch.cat([self.text(prompt.ids), self._eos[None]])
        if reference is not None:
            target = torch.cat([reference.text, target])
        codes = self._codec_bos if reference is None else reference.codes
        body, trailing = self._side_by_side(target, codes)
        return PromptEmbeds(torch.cat([header, body]), trailing)

    def lengths(self, prompt: TokenizedPrompt) -> tuple[int, int]:
        """Count what `build` makes: positions to prefill, positions of trailing text."""
        reference, tags = prompt.reference, self._tags_of(prompt.language)
        header = len(self._role) + len(tags) + 2  # the speaker and codec_pad
        text, codes = len(prompt.ids) + 1, 1
        if reference is not None:
            text, codes = text + len(reference.text), len(reference.codes)
        return header + codes, max(0, text - codes)

    def _header(self, speaker: Tensor, language: str | None) -> Tensor:
        """Lay out (H, D): the role, then tags, speaker and codec_pad over tts_pad … tts_bos."""
        codec = torch.cat([self._tags_of(language), speaker.float()[None], self._codec_pad])
        text = torch.cat([self.pad.expand(len(codec) - 1, -1), self._bos[None]])
        return torch.cat([self._role, text + codec])

    def _tags_of(self, language: str | None) -> Tensor:
        return self._no_tags if language is None else self._tags[language]

    def _side_by_side(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Add text to codes, position by position; what is left of the text is read later."""
        count = len(codes)
        over = torch.cat([text[:count], self.pad.expand(max(0, count - len(text)), -1)])
        return over + codes, text[count:]

    def _codec(self, *ids: int) -> Tensor:
        table = self._talker.first
        return table[on_device(ids, torch.int64, table.device)].float()
