"""Prompt features and speech through qwen_tts' own code, one call at a time.

Not safe to call from several threads at once: the model keeps state, and sampling uses torch's
global generator. Knows no files but the checkpoint folder, and no names, voices or HTTP.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from inference.engine.extract import Features
from inference.engine.params import FRAME_SAMPLES, MAX_FRAMES, Mode, SpeechParams, frame_budget
from inference.engine.qwen import import_qwen_tts
from inference.engine.text import PlainText
from inference.errors import (
    ExtractionFailed,
    LanguageUnsupported,
    ModelUnavailable,
    ModeUnavailable,
    SpeechFailed,
    SpeechUnfinished,
)

SAMPLE_RATE = 24_000
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AssertionError,  # torch without cuda, asked for cuda
    SafetensorError,
)


@dataclass(frozen=True)
class Prompt:
    """Features on the device, ready to speak with."""

    ref_code: torch.Tensor | None  # (T, 16) int64
    ref_spk_embedding: torch.Tensor  # (D,)
    ref_text: str | None
    overhang: int  # transcript tokens that outlast the codes and are read while frames are made

    @property
    def nbytes(self) -> int:
        tensors = [t for t in (self.ref_code, self.ref_spk_embedding) if t is not None]
        return sum(t.nbytes for t in tensors) + len((self.ref_text or "").encode())

    def mode(self, asked: Mode) -> Mode:
        """icl or xvec; ModeUnavailable if icl is asked and there are no codes."""
        if asked == "auto":
            return "xvec" if self.ref_code is None else "icl"
        if asked == "icl" and self.ref_code is None:
            raise ModeUnavailable(
                "This voice has no transcript, so it can't speak in mode icl."
                " Use mode xvec, or enrol the voice again with a transcript."
            )
        return asked


class StockEngine:
    """A loaded model. Every method runs to its end on the calling thread."""

    def __init__(self, model: Any) -> None:
        """`model`: a qwen_tts.Qwen3TTSModel of the Base kind."""
        self._model = model
        self._text = PlainText(model.processor.tokenizer.backend_tokenizer)
        self._replace_templates()
        talker = model.model.config.talker_config
        self.code_groups = int(talker.num_code_groups)
        self.codebook_size = int(talker.code_predictor_config.vocab_size)
        self.embedding_width = int(talker.hidden_size)
        self.languages = tuple(n for n in model.model.supported_languages if n != "auto")
        self.device = str(model.device)
        self.dtype = str(model.model.dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls, path: Path, device: str | None, dtype: str | None, threads: int | None = None
    ) -> "StockEngine":
        """Load the checkpoint in folder `path`; None for device or dtype chooses one.

        cuda before cpu; bfloat16 from compute capability 8.0 on, float16 below, float32 on a cpu.
        `threads` is for torch on the calling thread. ModelUnavailable says why it did not load.
        """
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            return cls(_load(path, chosen, dtype or default_dtype(chosen)))
        except LOAD_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelUnavailable(f"The model in {path} did not load. {reason}") from error

    def extract(self, samples: NDArray[np.float32], transcript: str | None) -> Features:
        """Features of a clip: mono float32 (N,) at 24 kHz within [-1, 1]; no transcript, no codes.

        ExtractionFailed if the clip or what comes out of it is not finite, or too short to encode.
        """
        if not np.isfinite(samples).all():
            raise ExtractionFailed("The clip contains samples that are not finite numbers.")
        try:
            [item] = self._model.create_voice_clone_prompt(
                (samples, SAMPLE_RATE), transcript, x_vector_only_mode=transcript is None
            )
        except RuntimeError as error:
            raise ExtractionFailed(f"The model can't encode this clip: {error}") from error
        return self._checked(item)

    def prepare(self, features: Features) -> Prompt:
        """Put features on the device. They must have this model's shapes and ranges."""
        codes, text = features.ref_code, features.ref_text
        return Prompt(
            None if codes is None else self._to_device(codes.astype(np.int64)),
            self._to_device(features.ref_spk_embedding).to(self._model.model.dtype),
            text,
            0 if codes is None else max(0, len(self._text.ids(text or "")) - len(codes)),
        )

    def speak(self, prompt: Prompt, text: str, params: SpeechParams) -> NDArray[np.float32]:
        """Mono PCM at 24 kHz, (frames * 1920,), that ended by itself; `params.seed` must be set.

        Raises LanguageUnsupported, ModeUnavailable, TextTooLong before any work, then
        SpeechUnfinished or SpeechFailed. The same seed, device and threads give the same samples.
        """
        assert params.seed is not None
        language = self._language(params.language)
        icl = prompt.mode(params.mode) == "icl"
        budget = self._budget(text, prompt.overhang if icl else 0)
        item = _item(prompt, icl)
        torch.manual_seed(params.seed)
        pcm = self._generate(item, text, language, budget, params)
        if not np.isfinite(pcm).all():
            raise SpeechFailed("The model made sound that is not finite. Try another seed.")
        return pcm

    def _generate(
        self, item: Any, text: str, language: str, budget: int, params: SpeechParams
    ) -> NDArray[np.float32]:
        try:
            # max_new_tokens=N decodes N - 1 frames, so a frame past the budget is a speech past it.
            [wav], _ = self._model.generate_voice_clone(
                text,
                language=language,
                voice_clone_prompt=[item],
                max_new_tokens=budget + 2,
                **params.generation(),
            )
        except RuntimeError as error:
            raise SpeechFailed(f"The model failed while speaking: {error}") from error
        frames = len(wav) // FRAME_SAMPLES
        if frames > budget:
            raise SpeechUnfinished(
                f"The speech did not end within {budget} frames ({budget * 0.08:.0f} s), far more"
                " than this text needs. Try another seed, or a lower temperature."
            )
        # qwen_tts cuts the reference off by a rounded ratio and may leave its last sample.
        return np.ascontiguousarray(wav[len(wav) - frames * FRAME_SAMPLES :], dtype=np.float32)

    def _budget(self, text: str, overhang: int) -> int:
        tokens = len(self._text.ids(text))
        if not tokens:
            raise SpeechFailed("There is no text to speak.")
        return min(MAX_FRAMES, frame_budget(tokens) + overhang)

    def _language(self, name: str | None) -> str:
        if name is None or name.lower() == "auto":
            return "Auto"
        if name.lower() not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise LanguageUnsupported(f"The model doesn't speak {name!r}. It speaks {known}.")
        return name

    def _checked(self, item: Any) -> Features:
        embedding = item.ref_spk_embedding.float().cpu().numpy()
        if not np.isfinite(embedding).all():
            raise ExtractionFailed("The clip's speaker embedding is not finite.")
        if item.ref_code is None:
            return Features(None, embedding, None)
        codes = item.ref_code.cpu().numpy()
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ExtractionFailed("The clip's codes are outside of the model's codebook.")
        return Features(codes.astype(np.int16), embedding, item.ref_text)

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(array, device=self._model.device)

    def _replace_templates(self) -> None:
        """Have qwen_tts take its ids from PlainText, not from whole templates."""
        self._model._build_assistant_text = self._text.target
        self._model._build_ref_text = self._text.reference
        self._model._tokenize_texts = self._batch_ids

    def _batch_ids(self, turns: list[list[int]]) -> list[torch.Tensor]:
        return [torch.tensor([ids], device=self._model.device) for ids in turns]  # (1, L) each


def default_dtype(device: torch.device) -> str:
    """The dtype that `device` computes natively; before 8.0 cuda only emulates bfloat16."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def _load(path: Path, device: torch.device, dtype: str) -> Any:
    """A qwen_tts.Qwen3TTSModel with the tokenizer that a hub id would get.

    qwen_tts' own loader may give a local folder Mistral's pre-tokenizer (fix_mistral_regex).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {', '.join(DTYPES)}, not {dtype!r}.")
    qwen_tts = import_qwen_tts()
    from qwen_tts.core.models import Qwen3TTSForConditionalGeneration, Qwen3TTSProcessor
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast.from_pretrained(path, local_files_only=True)
    model = Qwen3TTSForConditionalGeneration.from_pretrained(
        str(path), dtype=DTYPES[dtype], device_map=str(device), local_files_only=True
    )
    processor = Qwen3TTSProcessor(tokenizer=tokenizer)
    return qwen_tts.Qwen3TTSModel(model, processor, model.generate_config)


def _item(prompt: Prompt, icl: bool) -> Any:
    from qwen_tts import VoiceClonePromptItem

    used = prompt if icl else replace(prompt, ref_code=None, ref_text=None)
    return VoiceClonePromptItem(
        ref_code=used.ref_code,
        ref_spk_embedding=used.ref_spk_embedding,
        x_vector_only_mode=not icl,
        icl_mode=icl,
        ref_text=used.ref_text,
    )
