"""All sizes of the demo checkpoint, and the config files that say them in the package's words."""

from dataclasses import dataclass, field
from typing import Any

from inference.testing import config as released

Config = dict[str, Any]


@dataclass(frozen=True)
class CodecShape:
    """The 12.5 Hz codec. What it names "width" are channels."""

    groups: int = 8
    codes: int = 256
    code_width: int = 40
    encoder_filters: int = 16
    encoder_width: int = 128
    encoder_layers: int = 0  # the package's attention there has no window, and crops are short
    encoder_heads: int = 2
    encoder_hidden: int = 384
    latent_width: int = 128
    decoder_layers: int = 2
    decoder_heads: int = 2
    decoder_head_width: int = 64
    decoder_hidden: int = 256
    decoder_window: int = 12  # frames
    wave_width: int = 192  # halves at each of wave_rates
    ratios: tuple[int, ...] = (2, 2, 2)  # 12.5 Hz to 100 Hz
    wave_rates: tuple[int, ...] = (4, 15, 4)  # 100 Hz to 24 kHz

    @classmethod
    def read(cls, written: Config) -> "CodecShape":
        """Of its own fields as JSON has them."""
        fields: Config = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
        return cls(**fields)


@dataclass(frozen=True)
class TalkerShape:
    """The talker with its code predictor and speaker encoder."""

    groups: int = 8
    codes: int = 256
    width: int = 256
    hidden: int = 384
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 64
    text_width: int = 128
    text_tokens: int = 1024
    predictor_width: int = 128
    predictor_hidden: int = 384
    predictor_layers: int = 2
    predictor_heads: int = 2
    speaker_channels: int = 48
    speaker_narrow: int = 32
    rope_base: float = 10_000.0

    @property
    def vocabulary(self) -> int:
        return self.codes + released.CODEC_SPECIALS

    @property
    def special(self) -> dict[str, int]:
        """codec_bos_id and its like."""
        return {name: self.codes + offset for name, offset in released.CODEC_IDS.items()}

    @property
    def english(self) -> int:
        return self.codes + released.LANGUAGE_IDS["english"]

    @property
    def speaker_widths(self) -> list[int]:
        return [self.speaker_channels] * 4 + [3 * self.speaker_channels]


@dataclass(frozen=True)
class Shape:
    codec: CodecShape = field(default_factory=CodecShape)
    talker: TalkerShape = field(default_factory=TalkerShape)


def speech_config(shape: CodecShape) -> Config:
    """speech_tokenizer/config.json."""
    config = released.speech_config("1.7b")
    config["encoder_valid_num_quantizers"] = shape.groups
    config["encoder_config"] |= _encoder(shape)
    config["decoder_config"] |= _decoder(shape)
    return config


def _encoder(shape: CodecShape) -> Config:
    return {
        "num_filters": shape.encoder_filters,
        "hidden_size": shape.encoder_width,
        "upsample_groups": shape.encoder_width,
        "num_hidden_layers": shape.encoder_layers,
        "num_attention_heads": shape.encoder_heads,
        "num_key_value_heads": shape.encoder_heads,
        "head_dim": shape.encoder_width // shape.encoder_heads,
        "intermediate_size": shape.encoder_hidden,
        "num_quantizers": shape.groups,
        "codebook_size": shape.codes,
        "codebook_dim": shape.code_width,
        "vector_quantization_hidden_dimension": shape.code_width,
        "layer_scale_initial_scale": 0.1,
    }


def _decoder(shape: CodecShape) -> Config:
    return {
        "latent_dim": shape.latent_width,
        "codebook_dim": 2 * shape.code_width,
        "vector_quantization_hidden_dimension": 2 * shape.code_width,
        "codebook_size": shape.codes,
        "semantic_codebook_size": shape.codes,
        "num_quantizers": shape.groups,
        "decoder_dim": shape.wave_width,
        "hidden_size": shape.latent_width,
        "intermediate_size": shape.decoder_hidden,
        "num_hidden_layers": shape.decoder_layers,
        "num_attention_heads": shape.decoder_heads,
        "num_key_value_heads": shape.decoder_heads,
        "head_dim": shape.decoder_head_width,
        "sliding_window": shape.decoder_window,
        "upsample_rates": list(shape.wave_rates),
        "upsampling_ratios": list(shape.ratios),
        "layer_scale_initial_scale": 0.1,
    }


def main_config(shape: TalkerShape, text: dict[str, int]) -> Config:
    """config.json; `text` has the ids of assistant, im_start, im_end, tts_pad, tts_bos, tts_eos."""
    config = released.main_config("0.6b")
    config["tts_model_size"] = "demo"
    config |= {f"{name}_token_id": token for name, token in text.items()}
    config["speaker_encoder_config"] |= {
        "enc_dim": shape.width,
        "enc_channels": shape.speaker_widths,
        "enc_attention_channels": shape.speaker_narrow,
        "enc_se_channels": shape.speaker_narrow,
    }
    config["talker_config"] |= _talker(shape)
    config["talker_config"]["code_predictor_config"] |= _predictor(shape)
    return config


def _talker(shape: TalkerShape) -> Config:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "num_code_groups": shape.groups,
        "rope_theta": int(shape.rope_base),
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": [12, 10, 10],
            "rope_type": "default",
            "type": "default",
        },
        "text_hidden_size": shape.text_width,
        "text_vocab_size": shape.text_tokens,
        "vocab_size": shape.vocabulary,
        **shape.special,
        "codec_language_id": {"english": shape.english},
    }


def _predictor(shape: TalkerShape) -> Config:
    return {
        "hidden_size": shape.predictor_width,
        "intermediate_size": shape.predictor_hidden,
        "num_hidden_layers": shape.predictor_layers,
        "num_attention_heads": shape.predictor_heads,
        "num_key_value_heads": shape.predictor_heads,
        "head_dim": shape.head_width,
        "num_code_groups": shape.groups,
        "rope_theta": int(shape.rope_base),
        "vocab_size": shape.codes,
        "layer_types": ["full_attention"] * shape.predictor_layers,
        "max_window_layers": 28,
    }


def generation_config() -> Config:
    """generation_config.json: colder than the released one, for this model is less sure."""
    return released.GENERATION | {
        "repetition_penalty": 1.0,
        "temperature": 0.3,
        "top_k": 5,
        "subtalker_temperature": 0.3,
        "subtalker_top_k": 5,
        "max_new_tokens": 512,
    }
