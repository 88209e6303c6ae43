"""The sizes and special tokens of a Qwen3-TTS 12 Hz Base checkpoint, read from its configs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]
FRAME_SAMPLES = 1920  # 80 ms at 24 kHz
SAMPLE_RATE = 24_000


@dataclass(frozen=True)
class StackShape:
    """A stack of transformer layers: the talker's, or the code predictor's."""

    width: int  # D
    hidden: int  # F, of the feed-forward part
    layers: int
    heads: int  # of the queries
    kv_heads: int
    head_width: int
    rope_base: float
    epsilon: float

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @classmethod
    def read(cls, config: Config) -> "StackShape":
        return cls(
            width=config["hidden_size"],
            hidden=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_width=config["head_dim"],
            rope_base=config["rope_theta"],
            epsilon=config["rms_norm_eps"],
        )


@dataclass(frozen=True)
class TextTokens:
    """Ids of the text vocabulary that the prompt is laid out with."""

    pad: int
    bos: int
    eos: int


@dataclass(frozen=True)
class CodecTokens:
    """Ids of the talker's vocabulary above the codes."""

    pad: int
    bos: int
    eos: int
    think: int
    nothink: int
    think_bos: int
    think_eos: int
    languages: Mapping[str, int]


@dataclass(frozen=True)
class Sampling:
    """The released defaults of generation_config.json, for the talker and the predictor."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float  # of the talker alone


@dataclass(frozen=True)
class ModelShape:
    """Everything that the engine needs to know of a checkpoint but its weights."""

    talker: StackShape
    predictor: StackShape
    groups: int  # codes in a frame
    vocabulary: int  # of codebook 0: the codes, then 1,024 special tokens
    codes: int  # of codebooks 1 to 15
    text_vocabulary: int
    text_width: int
    text: TextTokens
    codec: CodecTokens
    sampling: Sampling
    decoder: Config  # speech_tokenizer/config.json: decoder_config


def read_shape(folder: Path) -> ModelShape:
    """The shape of the checkpoint in `folder`; KeyError names what its configs lack."""
    main = _json(folder / "config.json")
    speech = _json(folder / "speech_tokenizer" / "config.json")
    defaults = _json(folder / "generation_config.json")
    talker = main["talker_config"]
    predictor = talker["code_predictor_config"]
    return ModelShape(
        talker=StackShape.read(talker),
        predictor=StackShape.read(predictor),
        groups=talker["num_code_groups"],
        vocabulary=talker["vocab_size"],
        codes=predictor["vocab_size"],
        text_vocabulary=talker["text_vocab_size"],
        text_width=talker["text_hidden_size"],
        text=TextTokens(*(main[f"tts_{name}_token_id"] for name in ("pad", "bos", "eos"))),
        codec=_codec_tokens(talker),
        sampling=Sampling(
            *(defaults[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty"))
        ),
        decoder=speech["decoder_config"],
    )


def _codec_tokens(talker: Config) -> CodecTokens:
    return CodecTokens(
        pad=talker["codec_pad_id"],
        bos=talker["codec_bos_id"],
        eos=talker["codec_eos_token_id"],
        think=talker["codec_think_id"],
        nothink=talker["codec_nothink_id"],
        think_bos=talker["codec_think_bos_id"],
        think_eos=talker["codec_think_eos_id"],
        languages=dict(talker["codec_language_id"]),
    )


def _json(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return config
