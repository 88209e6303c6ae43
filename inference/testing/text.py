"""The text tokenizer of the checkpoints that we make: a byte-level BPE in Qwen2's file format.

It knows every byte and the three role words, and all of the tokens that Qwen3-TTS adds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT_FEATURES: dict[str, Any] = {
    "padding_side": "left",
    "padding_value": 0.0,
    "processor_class": "Qwen3TTSProcessor",
    "return_attention_mask": True,
}

# In the order of their ids, after the byte-level tokens. Those of PLAIN_ADDED are not "special".
ADDED_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)
PLAIN_ADDED = set(ADDED_TOKENS[14:26])
ROLE_WORDS = ("assistant", "user", "system")  # a token each: the model slices the role by count


def bpe() -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Make a byte-level BPE of role words alone: (vocabulary, merges, added tokens)."""
    vocabulary = {symbol: i for i, symbol in enumerate(_byte_symbols())}
    merges: list[tuple[str, str]] = []
    for word in ROLE_WORDS:
        for end in range(2, len(word) + 1):
            merged = word[:end]
            if merged not in vocabulary:
                vocabulary[merged] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    added = {token: len(vocabulary) + i for i, token in enumerate(ADDED_TOKENS)}
    return vocabulary, merges, added


def write_text_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and the tokenizer's other files into `folder`."""
    vocabulary, merges, added = bpe()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    write_json(folder / "tokenizer_config.json", _tokenizer_config(added))
    write_json(folder / "preprocessor_config.json", TEXT_FEATURES)


def write_json(path: Path, value: Mapping[str, object], end: str = "") -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + end, "utf-8")


def _tokenizer_config(added: Mapping[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(i): {"content": t, **flags, "special": t not in PLAIN_ADDED} for t, i in added.items()
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [t for t in ADDED_TOKENS[1:] if t not in PLAIN_ADDED],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _byte_symbols() -> list[str]:
    """List GPT-2's stand-ins for the 256 bytes: the printable ones first, as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
