"""A checkpoint that speaks, through the unmodified qwen-tts or through our engine.

Both clone a voice from a clip with its transcript and answer with 24 kHz sound.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from training.demo_model.codec import Codec
from training.demo_model.shape import CodecShape

Sound = NDArray[np.float32]
LONGEST = 160  # frames that a sentence may take
MODES = ("xvec", "icl")


@dataclass(frozen=True)
class Spoken:
    sound: Sound  # (n,)
    stopped: bool  # by itself


class Speaker(Protocol):
    """`voice` is what `clone` gave."""

    def clone(self, clip: Sound, transcript: str) -> Any: ...

    def embedding(self, clip: Sound) -> Sound: ...

    def speak(self, voice: Any, mode: str, text: str, language: str, seed: int | None) -> Spoken:
        """Sampled as the model came; greedy without a seed."""


class QwenSpeaker:
    """qwen-tts as it comes."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        from inference.engine.checkpoint.qwen import import_qwen_tts

        package = import_qwen_tts()
        kind = getattr(torch, dtype)
        self._model = package.Qwen3TTSModel.from_pretrained(
            str(folder), dtype=kind, device_map=device
        )

    def clone(self, clip: Sound, transcript: str) -> Any:
        make = self._model.create_voice_clone_prompt
        return {
            "xvec": make((clip, 24_000), x_vector_only_mode=True),
            "icl": make((clip, 24_000), ref_text=transcript),
        }

    def embedding(self, clip: Sound) -> Sound:
        item = self._model.create_voice_clone_prompt((clip, 24_000), x_vector_only_mode=True)[0]
        found: Sound = item.ref_spk_embedding.float().numpy()
        return found

    def speak(self, voice: Any, mode: str, text: str, language: str, seed: int | None) -> Spoken:
        torch.manual_seed(seed or 0)
        greedy = {"do_sample": False, "subtalker_dosample": False} if seed is None else {}
        sounds, _ = self._model.generate_voice_clone(
            text=text,
            language=language,
            voice_clone_prompt=voice[mode],
            max_new_tokens=LONGEST,
            **greedy,
        )
        sound = np.asarray(sounds[0], np.float32)
        return Spoken(sound, len(sound) < (LONGEST - 1) * 1920)


class OurSpeaker:
    """Our engine, one slot."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        from inference.engine import Engine, EngineConfig
        from inference.engine.extract import Extractor

        config = EngineConfig(device=device, dtype=dtype, slots=1, threads=1)
        self._engine = Engine.load(folder, config)
        self._extractor = Extractor.load(folder, self._engine.model_config, device)

    def clone(self, clip: Sound, transcript: str) -> Any:
        found = self._extractor.extract(clip, transcript)
        return self._engine.prepare(found.ref_spk_embedding, found.ref_code, found.ref_text)

    def embedding(self, clip: Sound) -> Sound:
        return self._extractor.extract(clip, None).ref_spk_embedding

    def speak(self, voice: Any, mode: str, text: str, language: str, seed: int | None) -> Spoken:
        from inference.engine import Request, SamplingParams

        sampling = SamplingParams(temperature=0) if seed is None else SamplingParams(seed=seed)
        asked = Request(voice, text, language.lower(), mode, sampling)  # type: ignore[arg-type]
        self._engine.submit(asked)
        outputs = list(self._engine.run())
        sound = np.concatenate([output.pcm for output in outputs])
        return Spoken(sound, all(output.error is None for output in outputs))


ENGINES: dict[str, type[QwenSpeaker] | type[OurSpeaker]] = {"qwen": QwenSpeaker, "ours": OurSpeaker}


def read_codec(folder: Path) -> Codec:
    """The codec of a checkpoint folder that `export` wrote, in our modules."""
    speech = folder / "speech_tokenizer"
    config = json.loads((speech / "config.json").read_text("utf-8"))
    encoder, decoder = config["encoder_config"], config["decoder_config"]
    shape = CodecShape(
        groups=decoder["num_quantizers"],
        codes=decoder["codebook_size"],
        code_width=encoder["codebook_dim"],
        encoder_filters=encoder["num_filters"],
        encoder_width=encoder["hidden_size"],
        encoder_layers=encoder["num_hidden_layers"],
        encoder_hidden=encoder["intermediate_size"],
        latent_width=decoder["latent_dim"],
        decoder_layers=decoder["num_hidden_layers"],
        decoder_heads=decoder["num_attention_heads"],
        decoder_head_width=decoder["head_dim"],
        decoder_hidden=decoder["intermediate_size"],
        decoder_window=decoder["sliding_window"],
        wave_width=decoder["decoder_dim"],
        ratios=tuple(decoder["upsampling_ratios"]),
        wave_rates=tuple(decoder["upsample_rates"]),
    )
    codec = Codec(shape)
    codec.load_state({k: v.float() for k, v in load_file(speech / "model.safetensors").items()})
    return codec.eval()
