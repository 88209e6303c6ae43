"""The configs of a Qwen3-TTS 12 Hz Base checkpoint, as plain dictionaries.

0.6b and 1.7b are the released values; the others keep the format and shrink the widths, and
tiny-0.6b has no projection between talker and predictor. The special ids keep the released offsets
from the number of codes. Knows nothing of torch or weights.
"""

from typing import Any

from inference.testing.text import bpe

JsonDict = dict[str, Any]

SHRUNK = ("tiny", "tiny-0.6b", "deep")
SIZES = (*SHRUNK, "0.6b", "1.7b")
CODEC_SPECIALS = 1024  # the talker's vocabulary is the codes, then these
CODEC_IDS = {
    "codec_pad_id": 100,
    "codec_bos_id": 101,
    "codec_eos_token_id": 102,
    "codec_think_id": 106,
    "codec_nothink_id": 107,
    "codec_think_bos_id": 108,
    "codec_think_eos_id": 109,
}
LANGUAGE_IDS = {
    "chinese": 7,
    "english": 2,
    "german": 5,
    "italian": 22,
    "portuguese": 23,
    "spanish": 6,
    "japanese": 10,
    "korean": 16,
    "french": 13,
    "russian": 21,
}
GENERATION: JsonDict = {
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.9,
    "top_p": 1.0,
    "top_k": 50,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_p": 1.0,
    "subtalker_top_k": 50,
    "max_new_tokens": 8192,
}
AUDIO_FEATURES: JsonDict = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}

_ATTENTION = {"attention_bias": False, "attention_dropout": 0, "hidden_act": "silu"}
_WINDOW = {"use_sliding_window": False, "sliding_window": None}


def main_config(size: str) -> JsonDict:
    """Make config.json of `size`: talker, code predictor, speaker encoder, text ids."""
    if size not in SIZES:
        raise ValueError(f"No size named {size!r}; there are {', '.join(SIZES)}.")
    config = _released_main(hidden=1024 if size == "0.6b" else 2048)
    config["tts_model_size"] = {"0.6b": "0b6", "1.7b": "1b7"}.get(size, size)
    return _shrink_main(config, size) if size in SHRUNK else config


def speech_config(size: str) -> JsonDict:
    """Make speech_tokenizer/config.json of `size`: Mimi's encoder and the decoder."""
    config = _released_speech()
    return _shrink_speech(config, size) if size in SHRUNK else config


def _released_main(hidden: int) -> JsonDict:
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_type": "base",
        "assistant_token_id": 77091,
        "im_start_token_id": 151644,
        "im_end_token_id": 151645,
        "tts_pad_token_id": 151671,
        "tts_bos_token_id": 151672,
        "tts_eos_token_id": 151673,
        "speaker_encoder_config": {"enc_dim": hidden, "sample_rate": 24000},
        "talker_config": _released_talker(hidden),
        "transformers_version": "4.57.3",
    }


def _released_talker(hidden: int) -> JsonDict:
    return {
        "model_type": "qwen3_tts_talker",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
            "type": "default",
        },
        "text_vocab_size": 151936,
        "text_hidden_size": 2048,
        "num_code_groups": 16,
        "spk_id": {},
        "spk_is_dialect": {},
        "code_predictor_config": _released_predictor(),
        "use_cache": True,
        "position_id_per_seconds": 13,
        "initializer_range": 0.02,
        **_codec_ids(codes=2048),
        **_ATTENTION,
        **_WINDOW,
    }


def _codec_ids(codes: int) -> JsonDict:
    return {
        "vocab_size": codes + CODEC_SPECIALS,
        **{name: codes + offset for name, offset in CODEC_IDS.items()},
        "codec_language_id": {name: codes + offset for name, offset in LANGUAGE_IDS.items()},
    }


def _released_predictor() -> JsonDict:
    return {
        "model_type": "qwen3_tts_talker_code_predictor",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 5,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "vocab_size": 2048,
        "num_code_groups": 16,
        "initializer_range": 0.02,
        **_ATTENTION,
        **_WINDOW,
    }


def _shrink_main(config: JsonDict, size: str) -> JsonDict:
    vocabulary, _, added = bpe()
    config["assistant_token_id"] = vocabulary["assistant"]
    for name, token in (
        ("im_start", "<|im_start|>"),
        ("im_end", "<|im_end|>"),
        ("tts_pad", "<tts_pad>"),
        ("tts_bos", "<tts_text_bos>"),
        ("tts_eos", "<tts_text_eod>"),
    ):
        config[f"{name}_token_id"] = added[token]
    config["speaker_encoder_config"] |= {
        "enc_dim": 64,
        "enc_channels": [32, 32, 32, 32, 96],
        "enc_attention_channels": 16,
        "enc_se_channels": 16,
    }
    _shrink_talker(config["talker_config"], size, len(vocabulary) + len(added))
    return config


def _shrink_talker(talker: JsonDict, size: str, text_tokens: int) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    talker |= {"hidden_size": 64, "intermediate_size": 128, **heads}
    talker |= {"text_hidden_size": 64, "text_vocab_size": -(-text_tokens // 64) * 64}
    talker |= _codec_ids(codes=128)
    talker["rope_scaling"]["mrope_section"] = [4, 2, 2]
    predictor = talker["code_predictor_config"]
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    predictor |= {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 128, **heads}
    if size == "tiny-0.6b":
        predictor["hidden_size"] = talker["hidden_size"]
    if size != "deep":
        talker["num_hidden_layers"], predictor["num_hidden_layers"] = 2, 1


def _released_speech() -> JsonDict:
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000,
        "output_sample_rate": 24000,
        "decode_upsample_rate": 1920,
        "encode_downsample_rate": 1920,
        "encoder_config": _released_encoder(),
        "decoder_config": _released_decoder(),
    }


def _released_encoder() -> JsonDict:
    return {
        "audio_channels": 1,
        "num_filters": 64,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "num_residual_layers": 1,
        "compress": 2,
        "upsampling_ratios": [8, 6, 5, 4],
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2048,
        "hidden_act": "gelu",
        "norm_eps": 1e-05,
        "layer_scale_initial_scale": 0.01,
        "rope_theta": 10000,
        "max_position_embeddings": 8000,
        "sliding_window": 250,
        "num_quantizers": 32,
        "num_semantic_quantizers": 1,
        "codebook_size": 2048,
        "codebook_dim": 256,
        "vector_quantization_hidden_dimension": 256,
        "pad_mode": "constant",
        "use_causal_conv": True,
        "_frame_rate": 12.5,
        "sampling_rate": 24000,
    }


def _released_decoder() -> JsonDict:
    return {
        "latent_dim": 1024,
        "codebook_dim": 512,
        "codebook_size": 2048,
        "decoder_dim": 1536,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "hidden_act": "silu",
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "rms_norm_eps": 1e-05,
        "layer_scale_initial_scale": 0.01,
        "rope_theta": 10000,
        "max_position_embeddings": 8000,
        "sliding_window": 72,
        "num_quantizers": 16,
        "num_semantic_quantizers": 1,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
        "vector_quantization_hidden_dimension": 512,
        "semantic_codebook_size": 4096,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _shrink_speech(config: JsonDict, size: str) -> JsonDict:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    both: JsonDict = {"hidden_size": 32, "intermediate_size": 64, "codebook_size": 128, **heads}
    both["layer_scale_initial_scale"] = 0.3  # at 0.01 the transformer would not be heard
    if size != "deep":
        both["num_hidden_layers"] = 1
    quantizer = {"codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 16}
    config["encoder_config"] |= {**both, **quantizer, "num_filters": 4, "upsample_groups": 32}
    quantizer = {"codebook_dim": 16, "vector_quantization_hidden_dimension": 16}
    widths = {"latent_dim": 32, "decoder_dim": 64, "semantic_codebook_size": 256}
    config["decoder_config"] |= {**both, **quantizer, **widths}
    return config
