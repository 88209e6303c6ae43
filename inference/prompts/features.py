"""Prompt features as one self-contained safetensors file: checked, deterministic, never a pickle.

docs/storage.md specifies the file. Knows arrays and bytes, not where files live; needs only numpy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.contract import PROMPT_FORMAT, ModelRef, PromptRef, PromptSource, fingerprint
from registry.errors import ExtractionFailed, PromptCorrupt
from registry.storage.data_dir import sha256_of

HEADER_LIMIT_BYTES = 64 * 1024
FILE_LIMIT_BYTES = 1024 * 1024
MAX_FRAMES = 60 * 25 // 2 + 1  # of the longest clip, 60 s at 12.5 frames a second
PARSE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
DTYPES: dict[str, np.dtype[Any]] = {"I16": np.dtype("<i2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class FeatureShape:
    """The shape that a model's features must have."""

    code_groups: int  # 16
    codebook_size: int  # 2048
    embedding_width: int  # D


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """The features of one voice for one model, and everything that they were computed from."""

    source: PromptSource
    model: ModelRef
    ref_code: NDArray[np.int16] | None  # (T, 16); None if the source has no transcript
    ref_spk_embedding: NDArray[np.float32]  # (D,)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.source, self.model)

    @property
    def frames(self) -> int:
        return 0 if self.ref_code is None else len(self.ref_code)

    @property
    def modes(self) -> tuple[str, ...]:
        return ("xvec",) if self.ref_code is None else ("icl", "xvec")

    def save(self, shape: FeatureShape) -> bytes:
        """Make the file's bytes, always the same; ExtractionFailed for unsound features."""
        if fault := self._fault(shape):
            raise ExtractionFailed(f"The model made prompt features that can't be kept: {fault}.")
        tensors: dict[str, NDArray[Any]] = {"ref_spk_embedding": self.ref_spk_embedding}
        if self.ref_code is not None:
            tensors["ref_code"] = self.ref_code
        return _serialise(tensors, self._metadata())

    @classmethod
    def load(cls, data: bytes, ref: PromptRef, shape: FeatureShape) -> "PromptFeatures":
        """Read features; PromptCorrupt unless `data` is, bit for bit, what `ref` names."""
        if sha256_of(data) != ref.sha256:
            raise PromptCorrupt(f"The prompt file {ref.fingerprint} of {ref.voice_id} is damaged.")
        try:
            features = _parse(data, ref.voice_id)
        except PARSE_ERRORS as error:
            raise PromptCorrupt(
                f"The prompt file of {ref.voice_id} is unreadable: {error}"
            ) from error
        if fault := features._fault(shape):
            raise PromptCorrupt(f"The prompt file of {ref.voice_id} is unsound: {fault}.")
        if features.fingerprint != ref.fingerprint:
            raise PromptCorrupt(f"The prompt file of {ref.voice_id} belongs to something else.")
        return features

    def _metadata(self) -> dict[str, str]:
        optional = {} if self.source.transcript is None else {"transcript": self.source.transcript}
        return optional | {
            "format": PROMPT_FORMAT,
            "model_id": self.model.id,
            "model_revision": self.model.revision,
            "clip_sha256": self.source.clip_sha256,
            "preprocessing": self.source.preprocessing,
            "fingerprint": self.fingerprint,
            "modes": ",".join(self.modes),
        }

    def _fault(self, shape: FeatureShape) -> str | None:
        """Say what is wrong with the arrays; None if they fit the model."""
        if (self.ref_code is None) != (not self.source.transcript):
            return "there are codes if and only if there is a transcript"
        return _embedding_fault(self.ref_spk_embedding, shape) or _code_fault(self.ref_code, shape)


def _embedding_fault(embedding: NDArray[np.float32], shape: FeatureShape) -> str | None:
    if embedding.dtype != np.float32 or embedding.shape != (shape.embedding_width,):
        return f"the embedding is {embedding.dtype} {embedding.shape}"
    return None if np.isfinite(embedding).all() else "the embedding is not finite"


def _code_fault(codes: NDArray[np.int16] | None, shape: FeatureShape) -> str | None:
    if codes is None:
        return None
    if codes.dtype != np.int16 or codes.ndim != 2 or codes.shape[1] != shape.code_groups:
        return f"the codes are {codes.dtype} {codes.shape}"
    if not 1 <= len(codes) <= MAX_FRAMES:
        return f"{len(codes)} frames, and a clip has 1 to {MAX_FRAMES}"
    in_book = codes.min() >= 0 and codes.max() < shape.codebook_size
    return None if in_book else f"a code is outside of 0 to {shape.codebook_size - 1}"


def _serialise(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Write safetensors with sorted keys; the library's writer orders metadata by chance."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    body = b""
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = next(code for code, dtype in DTYPES.items() if dtype == array.dtype)
        data = np.ascontiguousarray(array, dtype=DTYPES[dtype]).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT_BYTES:
        raise ExtractionFailed("The transcript is too long to be kept with the prompt features.")
    return len(text).to_bytes(8, "little") + text + body


def _parse(data: bytes, voice_id: str) -> PromptFeatures:
    header, body = _split(data)
    metadata = header.pop("__metadata__")
    if metadata["format"] != PROMPT_FORMAT:
        raise ValueError(f"format {metadata['format']!r} is not {PROMPT_FORMAT!r}")
    tensors = _read_tensors(header, body)
    if unknown := set(tensors) - {"ref_code", "ref_spk_embedding"}:
        raise ValueError(f"unknown tensors {sorted(unknown)}")
    clip, transcript = metadata["clip_sha256"], metadata.get("transcript")
    features = PromptFeatures(
        PromptSource(voice_id, clip, transcript, metadata["preprocessing"]),
        ModelRef(metadata["model_id"], metadata["model_revision"]),
        tensors.get("ref_code"),
        tensors["ref_spk_embedding"],
    )
    if metadata != features._metadata():
        raise ValueError("the metadata contradict themselves")
    return features


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split the file into its header and the bytes of its tensors."""
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_LIMIT_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _read_tensors(header: Mapping[str, Any], body: bytes) -> dict[str, NDArray[Any]]:
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = np.frombuffer(body[start:end], DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors
