"""Prompt features of a clip through qwen_tts' own encoders, in float32 whatever the engine serves.

Loads the speaker encoder and the codec's encoder alone, straight from the checkpoint's files.
qwen_tts is first imported by `Extractor.load`. One call at a time; beside an engine is fine.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.engine.checkpoint.qwen import import_qwen_tts
from inference.engine.checkpoint.tensor_file import TensorFile
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.checkpoint.transfer import Piece, transfer
from inference.engine.model_config import FRAME_SAMPLES, SAMPLE_RATE, ModelConfig
from inference.engine.room import room_beside
from inference.engine.text import TextTokenizer
from registry.errors import ExtractionFailed, ModelUnavailable, Overloaded

MEL = {  # as in qwen_tts' extract_speaker_embedding
    "n_fft": 1024,
    "num_mels": 128,
    "sampling_rate": SAMPLE_RATE,
    "hop_size": 256,
    "win_size": 1024,
    "fmin": 0,
    "fmax": 12_000,
}
WINDOW = 100  # columns, of 40 ms in the released codec
ATTENTION = "sdpa"  # torch's own, which stock qwen_tts comes to as well
RETRY_S = 10.0  # after which memory may be free again: the length of a speech
BUILD_ERRORS = (
    ImportError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,  # torch without cuda, asked for cuda
)


@dataclass(frozen=True)
class ExtractedFeatures:
    """The features that qwen_tts' create_voice_clone_prompt finds, under its names."""

    ref_code: NDArray[np.int16] | None  # (T, 16); None without a transcript
    ref_spk_embedding: NDArray[np.float32]  # (D,)
    ref_text: str | None
    room: int | None  # tokens of a text that fit into one request in icl


class Extractor:
    """Runs the two encoders on a device: bit for bit what qwen_tts gives in float32 on a CPU."""

    def __init__(
        self, speaker: Any, codec: Any, mel: Any, config: ModelConfig, text: TextTokenizer
    ) -> None:
        """`speaker`, `codec` and `mel` are qwen_tts' own: two modules and mel_spectrogram."""
        self._speaker, self._codec, self._mel = speaker, codec, mel
        self._config, self._text = config, text
        self._device = next(speaker.parameters()).device

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, device: str | torch.device | None = None
    ) -> "Extractor":
        """Load the encoders of the checkpoint in `folder`; None for the device is cuda before cpu.

        ModelUnavailable says why they did not load.
        """
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            place = torch.device(chosen)
            speaker, codec, mel = _modules(folder, place)
        except BUILD_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelUnavailable(f"The encoders in {folder} did not load. {reason}") from error
        main = TensorFile(folder / "model.safetensors")
        speech = TensorFile(folder / "speech_tokenizer" / "model.safetensors")
        pieces = [*_pieces(speaker, main, "speaker_encoder."), *_pieces(codec, speech, "encoder.")]
        transfer(pieces, place)
        if codec.config.use_causal_conv:
            codec.encoder = WindowedEncoder(codec.encoder)
        return cls(speaker, codec, mel, config, load_tokenizer(folder))

    def extract(self, samples: NDArray[np.float32], transcript: str | None) -> ExtractedFeatures:
        """Extract the features of a clip, mono float32 (N,) at 24 kHz within [-1, 1].

        Without a transcript there are no codes.

        ExtractionFailed if the clip or what comes out of it is not finite, too short to encode, or
        if the encoders break; Overloaded if the device has no memory left for it.
        """
        _check(samples)
        try:
            with torch.inference_mode(), _exact_float32():
                codes = None if transcript is None else self._codes(samples)
                embedding = self._embedding(samples)
        except torch.OutOfMemoryError as error:
            reason = "The device has too little memory left to encode a clip. Try again later."
            raise Overloaded(reason, RETRY_S) from error
        except RuntimeError as error:
            raise ExtractionFailed(f"The encoders failed: {error}") from error
        if not np.isfinite(embedding).all():
            raise ExtractionFailed("The clip's speaker embedding is not finite.")
        room = None
        if codes is not None:
            room = room_beside(len(codes), len(self._text.ids(transcript or "")))
        return ExtractedFeatures(self._checked(codes), embedding, transcript, room)

    def _embedding(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The speaker embedding (D,). As in qwen_tts the mel spectrogram is made on the CPU."""
        mel = self._mel(torch.from_numpy(samples)[None], **MEL).transpose(1, 2)
        found: NDArray[np.float32] = self._speaker(mel.to(self._device))[0].cpu().numpy()
        return found

    def _codes(self, samples: NDArray[np.float32]) -> NDArray[np.int64]:
        """The codes (T, groups): a frame for each 80 ms that have begun."""
        sound = torch.from_numpy(samples).to(self._device)[None, None]
        encoded = self._codec.encode(
            sound, num_quantizers=self._config.num_code_groups, return_dict=True
        )
        frames = -(-len(samples) // FRAME_SAMPLES)
        found: NDArray[np.int64] = encoded.audio_codes[0, :, :frames].T.cpu().numpy()
        return found

    def _checked(self, codes: NDArray[np.int64] | None) -> NDArray[np.int16] | None:
        if codes is None:
            return None
        if codes.min() < 0 or codes.max() >= self._config.codebook_size:
            raise ExtractionFailed("The clip's codes are outside of the model's codebook.")
        return codes.astype(np.int16)


class WindowedEncoder(torch.nn.Module):
    """Runs the convolutions of qwen_tts' codec encoder a few seconds at a time, to the same output.

    They are causal, so a column of the output is made of what the kernels reach to the left of it.
    Each window begins so much earlier, and its first columns are left out. The last one is as long
    as the others: torch adds up a short sound in another order.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._encoder = encoder
        self._step, self._reach = 1, 0  # samples: of a column, and to the left of it
        for layer in encoder.modules():
            if hasattr(layer, "padding_total"):  # a MimiConv1d
                self._reach += int(layer.padding_total) * self._step
                self._step *= int(layer.stride)

    def forward(self, sound: Tensor, padding_cache: None = None) -> Tensor:
        """Encode sound (1, 1, N) to (1, width, columns)."""
        assert padding_cache is None, "a cache is for streams"
        left = -(-self._reach // self._step)
        columns = -(-sound.shape[-1] // self._step)
        made = []
        for first in range(0, columns, WINDOW):
            begin = max(0, min(first, columns - WINDOW) - left)
            part = sound[..., begin * self._step : (first + WINDOW) * self._step]
            made.append(self._encoder(part)[..., first - begin :])
        return torch.cat(made, dim=-1)


def _check(samples: NDArray[np.float32]) -> None:
    if not np.isfinite(samples).all():
        raise ExtractionFailed("The clip contains samples that are not finite numbers.")
    if len(samples) < FRAME_SAMPLES:
        duration_s = len(samples) / SAMPLE_RATE
        raise ExtractionFailed(
            f"The model can't encode this clip: it lasts {duration_s:.3f} s, less than one frame"
            f" of {FRAME_SAMPLES / SAMPLE_RATE:.2f} s."
        )


def _exact_float32() -> Any:
    """Keep cuDNN from TF32, which it uses for float32 convolutions if nothing is said."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.flags(enabled=True, deterministic=True, allow_tf32=False, fp32_precision="ieee")


def _modules(folder: Path, device: torch.device) -> tuple[Any, Any, Any]:
    """Build (speaker encoder, codec encoder, mel_spectrogram), without their weights."""
    import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config
    from qwen_tts.core.models import modeling_qwen3_tts as talker
    from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as codec
    from transformers.modeling_utils import no_init_weights

    heard = talker.Qwen3TTSSpeakerEncoderConfig(**_config(folder)["speaker_encoder_config"])
    encoded = Qwen3TTSTokenizerV2Config(**_config(folder / "speech_tokenizer")).encoder_config
    with no_init_weights():
        speaker = talker.Qwen3TTSSpeakerEncoder(heard)
        encoder = codec.Qwen3TTSTokenizerV2Encoder._from_config(
            encoded, dtype=torch.float32, attn_implementation=ATTENTION
        )
    return speaker.eval().to(device), encoder.eval().to(device), talker.mel_spectrogram


def _config(folder: Path) -> dict[str, Any]:
    """Read config.json, but nothing at any depth that would choose code.

    transformers takes the name of an attention implementation for a repository of kernels, which
    it fetches and runs (CVE-2026-4372); `auto_map` names classes in the same way.
    """
    text = (folder / "config.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text, object_pairs_hook=_without_code)
    return found


def _without_code(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: v for k, v in pairs if not (k.startswith(("_", "attn_")) or k == "auto_map")}


def _pieces(module: Any, file: TensorFile, prefix: str) -> Iterator[Piece]:
    """Yield what fills every parameter and stored buffer of a module."""
    targets: dict[str, Tensor] = module.state_dict()
    for name, target in targets.items():
        stored = file.find(prefix + name, target.shape)
        yield Piece(file, stored.offset, stored.dtype, target)
