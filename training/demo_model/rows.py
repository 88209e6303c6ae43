"""Rows that the talker reads, laid out as qwen_tts lays out its four kinds of prompts.

Position by position: a text id, a codec id ("tag"), a frame of speech, what is to be predicted.
NumPy alone; runs in the synthesising processes. A frame is numbered within its block.
"""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.demo_model.bpe import TextTokens
from training.demo_model.pool import Fill
from training.demo_model.shape import TalkerShape
from training.demo_model.utterances import (
    BLOCK,
    FIELDS,
    FRAMES,
    VARIANTS,
    Arrays,
    Fields,
    Utterance,
    Utterances,
    write_sound,
)

SINGLE, SEVERAL = 96, 232  # positions of a row
NONE = -1
END = -2  # as a target: the end of speech
TEXT_FIRST = 0.2  # of the rows: qwen_tts' non_streaming_mode
AUTO = 0.35  # of the rows: no language
SPACED = 0.5  # of the utterances after a first one: as if all were one text
MOST_UTTERANCES = 5

ROW_FIELDS: Fields = {
    f"{kind}_{name}": ((size,), np.int16)
    for kind, size in (("single", SINGLE), ("several", SEVERAL))
    for name in ("text", "tag", "frame", "target")
} | {f"{kind}_speaker": ((), np.int16) for kind in ("single", "several")}
TALKER_FIELDS: Fields = {
    **FIELDS,
    **ROW_FIELDS,
    "token": ((FRAMES,), np.int16),  # being spoken in each frame
    "variant": ((), np.int16),
}

Ids = NDArray[np.int16]


@dataclass(frozen=True)
class Row:
    """One sequence; every array (length,), NONE where there is nothing."""

    text: Ids
    tag: Ids
    frame: Ids
    target: Ids
    speaker: int  # the position of the voice


@dataclass(frozen=True)
class Layout:
    """How the package lays out prompts, with this vocabulary."""

    tokens: TextTokens
    shape: TalkerShape

    def row(self, text: Ids, frames: Ids, language: bool, text_first: bool) -> Row:
        """Speak `text` as `frames`, of one utterance or of a reference and what follows it."""
        ids, codec = self.tokens.ids, self.shape.special
        header = self._header(language)
        said = np.append(text, np.int16(ids["tts_eos"]))
        count = len(frames) + 1
        before = len(said) if text_first else 0
        length = len(header.text) + before + count
        row = _blank(length, header.speaker)
        start = len(header.text)
        row.text[:start], row.tag[:start] = header.text, header.tag
        row.text[start:] = ids["tts_pad"]
        row.text[start : start + len(said)] = said
        row.tag[start : start + before] = codec["codec_pad_id"]
        speech = start + before
        row.tag[speech] = codec["codec_bos_id"]
        row.frame[speech + 1 :] = frames
        row.target[speech:-1], row.target[-1] = frames, END
        return row

    def _header(self, language: bool) -> Row:
        ids, codec = self.tokens.ids, self.shape.special
        tags = self._tags(language)
        role = self.tokens.role
        row = _blank(len(role) + len(tags) + 2, len(role) + len(tags))
        row.text[: len(role)] = role
        row.text[len(role) : -1], row.text[-1] = ids["tts_pad"], ids["tts_bos"]
        row.tag[len(role) : -2], row.tag[-1] = tags, codec["codec_pad_id"]
        return row

    def _tags(self, language: bool) -> list[int]:
        codec = self.shape.special
        first, last = codec["codec_think_bos_id"], codec["codec_think_eos_id"]
        if not language:
            return [codec["codec_nothink_id"], first, last]
        return [codec["codec_think_id"], first, self.shape.english, last]


def _blank(length: int, speaker: int) -> Row:
    parts = [np.full(length, NONE, np.int16) for _ in range(4)]
    return Row(parts[0], parts[1], parts[2], parts[3], speaker)


class RowMaker:
    """Blocks of TALKER_FIELDS: utterances of one voice, and rows of one or several of them."""

    def __init__(self, seed: int, shape: TalkerShape) -> None:
        tokens = TextTokens.read()
        self._layout, self._tokenizer = Layout(tokens, shape), tokens.tokenizer()
        self._utterances, self._chance = Utterances(seed), random.Random(seed + 1)

    def fill(self, rows: Arrays) -> None:
        voice, spoken = self._utterances.block()
        write_sound(spoken, rows)
        rows["variant"][:] = VARIANTS.index(voice.variant)
        for index, utterance in enumerate(spoken):
            tokens = self._spoken_tokens(utterance)
            rows["token"][index, : len(tokens)] = tokens
            rows["token"][index, len(tokens) :] = tokens[-1]
            self._write(rows, "single", SINGLE, index, spoken, [index])
            self._write(rows, "several", SEVERAL, index, spoken, self._some(spoken))

    def _spoken_tokens(self, utterance: Utterance) -> Ids:
        encoded = self._tokenizer.encode(utterance.text)
        ends = np.array([end for _, end in encoded.offsets])
        index = np.searchsorted(ends, utterance.characters, side="right")
        spoken: Ids = np.array(encoded.ids, np.int16)[index.clip(0, len(ends) - 1)]
        return spoken

    def _some(self, spoken: list[Utterance]) -> list[int]:
        """Utterances that fit one row, in random order."""
        room = self._chance.randint(90, 214)
        some: list[int] = []
        for index in self._chance.sample(range(BLOCK), BLOCK):
            if spoken[index].frames <= room and len(some) < MOST_UTTERANCES:
                room -= spoken[index].frames
                some.append(index)
        return some

    def _write(
        self,
        rows: Arrays,
        kind: str,
        size: int,
        index: int,
        spoken: list[Utterance],
        chosen: list[int],
    ) -> None:
        """A row that does not fit is left empty: nothing of it is a target."""
        row = self._row(spoken, chosen, size)
        for name in ("text", "tag", "frame", "target"):
            whole = rows[f"{kind}_{name}"][index]
            whole[:] = NONE
            if row is not None:
                whole[: len(row.text)] = getattr(row, name)
        rows[f"{kind}_speaker"][index] = row.speaker if row is not None else 0

    def _row(self, spoken: list[Utterance], chosen: list[int], size: int) -> Row | None:
        texts = [self._ids(spoken[k].text, first=k == chosen[0]) for k in chosen]
        frames = [np.arange(spoken[k].frames, dtype=np.int16) + k * FRAMES for k in chosen]
        text, speech = np.concatenate(texts), np.concatenate(frames)
        language = self._chance.random() > AUTO
        text_first = self._chance.random() < TEXT_FIRST
        row = self._layout.row(text, speech, language, text_first)
        if len(row.text) > size:
            row = self._layout.row(text, speech, language, text_first=False)
        fits = len(row.text) <= size and len(text) <= len(speech)
        return row if fits else None

    def _ids(self, text: str, first: bool) -> Ids:
        spaced = not first and self._chance.random() < SPACED
        return np.array(self._tokenizer.encode(f" {text}" if spaced else text).ids, np.int16)


def start_worker(shape: TalkerShape, seed: int) -> Fill:
    return RowMaker(seed, shape).fill
