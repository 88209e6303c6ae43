"""Read a conditioned clip: mono float32 at 24 kHz, as registry.audio.clips writes it. No torch."""

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from registry.errors import ExtractionFailed
from registry.storage.blobs import BlobStore

SAMPLE_RATE = 24_000


def read_conditioned(blobs: BlobStore, key: str) -> NDArray[np.float32]:
    """Read samples (N,) within [-1, 1]; ExtractionFailed if that is not what is there."""
    try:
        samples, rate = soundfile.read(io.BytesIO(blobs.read(key)), dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise ExtractionFailed(f"The conditioned clip can't be read: {error}") from error
    if samples.ndim != 1 or rate != SAMPLE_RATE:
        raise ExtractionFailed(f"The conditioned clip is not mono at 24 kHz: {key}")
    if not np.isfinite(samples).all():
        raise ExtractionFailed("The conditioned clip contains samples that are not finite numbers.")
    return np.asarray(np.clip(samples, -1.0, 1.0), dtype=np.float32)
