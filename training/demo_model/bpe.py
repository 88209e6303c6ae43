"""The text vocabulary: 1,024 byte-level BPE tokens, learnt once from the training sentences.

    python -m training.demo_model.bpe

writes text/bpe.json; everything else only reads it. The role words are merged first, for the model
takes the role apart by counting tokens.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.testing import text as released
from training.demo_model.sentences import TEXT, Lexicon, sentence

FILE = TEXT / "bpe.json"
TOKENS = 1024
SENTENCES = 60_000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TextTokens:
    """The vocabulary, and the ids that a prompt is made with."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]

    @classmethod
    def read(cls) -> "TextTokens":
        stored = json.loads(FILE.read_text("utf-8"))
        merges = [(left, right) for left, right in stored["merges"]]
        return cls(stored["vocabulary"], merges, stored["added"])

    @property
    def ids(self) -> dict[str, int]:
        """By the names of config.json, without `_token_id`."""
        return {
            "assistant": self.vocabulary["assistant"],
            "im_start": self.added["<|im_start|>"],
            "im_end": self.added["<|im_end|>"],
            "tts_pad": self.added["<tts_pad>"],
            "tts_bos": self.added["<tts_text_bos>"],
            "tts_eos": self.added["<tts_text_eod>"],
        }

    @property
    def role(self) -> list[int]:
        """What every prompt starts with: <|im_start|>assistant and a line break."""
        return [self.added["<|im_start|>"], self.vocabulary["assistant"], self.vocabulary["Ċ"]]

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` of text without control tokens."""
        from tokenizers import Tokenizer, models

        tokenizer = Tokenizer(models.BPE(vocab=self.vocabulary, merges=self.merges))
        tokenizer.pre_tokenizer = _splitter()
        return tokenizer


def learn(seed: int = 99) -> TextTokens:
    """Merges of the training sentences after those of the role words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    chance, lexicon = random.Random(seed), Lexicon.read()
    lines = [sentence(chance, lexicon) for _ in range(SENTENCES)]
    vocabulary, merges, _ = released.bpe()
    room = TOKENS - len(released.ADDED_TOKENS) - (len(vocabulary) - 256)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(lines, trainer)
    learnt = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    for left, right in learnt:
        if (left, right) not in merges:
            merges.append((left, right))
            vocabulary.setdefault(left + right, len(vocabulary))
    added = {token: len(vocabulary) + k for k, token in enumerate(released.ADDED_TOKENS)}
    return TextTokens(vocabulary, merges, added)


def _splitter() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def main(path: Path = FILE) -> None:
    tokens = learn()
    stored = {"vocabulary": tokens.vocabulary, "merges": tokens.merges, "added": tokens.added}
    path.write_text(json.dumps(stored, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main()
