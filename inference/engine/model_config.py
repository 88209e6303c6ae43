"""The sizes and special tokens of a Qwen3-TTS 12 Hz Base checkpoint, read from its configs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

JsonObject = Mapping[str, Any]
FRAME_SAMPLES = 1920  # 80 ms at 24 kHz
SAMPLE_RATE = 24_000
# What a config that is damaged, or not a checkpoint's, leads to where it is used.
CONFIG_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@dataclass(frozen=True)
class TransformerConfig:
    """A transformer, the talker or the code predictor, in the words of its config.json."""

    hidden_size: int  # D
    intermediate_size: int  # F, of the feed-forward part
    num_hidden_layers: int
    num_attention_heads: int  # of the queries
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def q_size(self) -> int:
        """The width of all queries together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """The width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def read(cls, config: JsonObject) -> "TransformerConfig":
        """Read the fields out of `config`; KeyError names one that it lacks."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})


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
class GenerationConfig:
    """The released defaults of generation_config.json, for the talker and the code predictor."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float  # of the talker alone


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the engine needs to know of a checkpoint but its weights."""

    talker: TransformerConfig
    code_predictor: TransformerConfig
    num_code_groups: int  # codes in a frame
    vocab_size: int  # of codebook 0: the codes, then 1,024 special tokens
    codebook_size: int  # of codebooks 1 to 15
    text_vocab_size: int
    text_hidden_size: int
    text_tokens: TextTokens
    codec_tokens: CodecTokens
    generation: GenerationConfig
    decoder_config: JsonObject  # in speech_tokenizer/config.json


def read_model_config(folder: Path) -> ModelConfig:
    """Read the config of the checkpoint in `folder`; KeyError names what its files lack."""
    main = _json(folder / "config.json")
    speech = _json(folder / "speech_tokenizer" / "config.json")
    defaults = _json(folder / "generation_config.json")
    talker = main["talker_config"]
    predictor = talker["code_predictor_config"]
    return ModelConfig(
        talker=TransformerConfig.read(talker),
        code_predictor=TransformerConfig.read(predictor),
        num_code_groups=talker["num_code_groups"],
        vocab_size=talker["vocab_size"],
        codebook_size=predictor["vocab_size"],
        text_vocab_size=talker["text_vocab_size"],
        text_hidden_size=talker["text_hidden_size"],
        text_tokens=TextTokens(*(main[f"tts_{name}_token_id"] for name in ("pad", "bos", "eos"))),
        codec_tokens=_codec_tokens(talker),
        generation=GenerationConfig(*(defaults[field.name] for field in fields(GenerationConfig))),
        decoder_config=_decoder_config(speech),
    )


def _decoder_config(speech: JsonObject) -> JsonObject:
    """Return the codec's config, whose steps must make a frame of FRAME_SAMPLES."""
    config: JsonObject = speech["decoder_config"]
    steps = [*config["upsampling_ratios"], *config["upsample_rates"]]
    if not all(type(step) is int and step > 0 for step in steps) or prod(steps) != FRAME_SAMPLES:
        raise ValueError(f"its decoder's steps do not make {FRAME_SAMPLES} samples of a frame")
    return config


def _codec_tokens(talker: JsonObject) -> CodecTokens:
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
