"""The text tokenizer of a checkpoint, from vocab.json, merges.txt and tokenizer_config.json.

It is what transformers' Qwen2Converter and Qwen2TokenizerFast build from these files, made without
importing transformers. A tokenizer.json is not looked at.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import add, itemgetter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from inference.engine.text import TextTokenizer
from registry.errors import ModelUnavailable

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VERSION = "#version:"  # what the first line of merges.txt may begin with

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of the checkpoint in `folder`, for users' text; ModelUnavailable."""
    return TextTokenizer(read_tokenizer(folder))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer with its control tokens; ModelUnavailable says which file is at fault."""
    vocabulary: Vocabulary = _json(folder / "vocab.json")
    tokenizer = Tokenizer(_model(folder, vocabulary, _merges(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _add_tokens(tokenizer, folder / "tokenizer_config.json")
    return tokenizer


def _model(folder: Path, vocabulary: Vocabulary, merges: Merges) -> BPE:
    # tokenizers' own error for this could not be caught by its type
    if not all(map(vocabulary.__contains__, _parts(merges))):
        raise ModelUnavailable(f"vocab.json and merges.txt in {folder} do not belong together.")
    try:
        return BPE(vocabulary, merges)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelUnavailable(f"{folder / 'vocab.json'} is damaged: {error}.") from error


def _parts(merges: Merges) -> Iterator[str]:
    """Everything that must be in the vocabulary: left and right parts, and what they make."""
    left, right = (map(itemgetter(side), merges) for side in (0, 1))
    return chain(chain.from_iterable(merges), map(add, left, right))


def _merges(path: Path) -> Merges:
    """A pair a line. No part holds a space: all of them are GPT-2's stand-ins for bytes."""
    first, _, rest = _read(path).partition("\n")
    parts = (rest if first.startswith(VERSION) else f"{first}\n{rest}").split()
    if len(parts) % 2:
        raise ModelUnavailable(f"{path} is damaged: it does not consist of pairs.")
    return list(zip(parts[::2], parts[1::2], strict=True))


def _add_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Add the tokens in the order of their ids, which must be those that they get."""
    try:
        listed = {int(i): AddedToken(**t) for i, t in _json(path)["added_tokens_decoder"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelUnavailable(f"{path} has no valid added_tokens_decoder.") from error
    tokenizer.add_tokens([listed[i] for i in sorted(listed)])
    for i, token in listed.items():
        if (given := tokenizer.token_to_id(token.content)) != i:
            raise ModelUnavailable(f"{path} says that {token.content} is {i}, but it is {given}.")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path} is damaged: {error}.") from error
    if not isinstance(found, Mapping):
        raise ModelUnavailable(f"{path} is damaged: it is not an object.")
    return dict(found)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}.") from error
