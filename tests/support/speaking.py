"""Steps that the tests of inference share: enrol, speak, collect, qwen_tts called directly."""

import asyncio
import os
import subprocess
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import torch
from conftest import PYTHON, ROOT
from numpy.typing import NDArray

from inference.serving.service import InferenceService
from registry.contract import (
    ExtractedPrompt,
    PromptRef,
    PromptSource,
    SpeakParams,
    Speech,
    SpeechRequest,
)

T = TypeVar("T")
TEXT = "A short text to say."
LEFTOVER = "Enough words to go on."


def run(job: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(job, 60))


async def collect(speech: Speech) -> NDArray[np.float32]:
    return np.concatenate([chunk async for chunk in speech.chunks])


def ref_of(source: PromptSource, found: ExtractedPrompt) -> PromptRef:
    return PromptRef(source.voice_id, found.fingerprint, found.sha256)


async def enrolled(service: InferenceService, source: PromptSource) -> PromptRef:
    return ref_of(source, await service.extract_prompt(source))


async def say(service: InferenceService, ref: PromptRef, text: str = TEXT, **params: Any) -> Any:
    asked = SpeechRequest(text, SpeakParams(**{"seed": 7} | params))
    return await collect(await service.speak(ref, asked))


# The engine


def speak_directly(stock: Any, items: Any, text: str, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    [wav], _ = stock.generate_voice_clone(
        text, voice_clone_prompt=items, **{"max_new_tokens": 500} | options
    )
    return wav


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-W", "error", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
