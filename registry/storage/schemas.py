"""The models of what the API shows; a row that does not fit into them is damaged."""

from typing import Literal

from pydantic import BaseModel, Field

from registry.storage.tables import (
    MAX_WARNINGS,
    STORED,
    ClipType,
    Count,
    Counter,
    Decibels,
    Instant,
    Labels,
    Seconds,
    Sha256,
    SpeakDefaults,
    StoredName,
    Transcript,
    VoiceDescription,
    VoiceId,
    Warned,
)


class ClipPublic(BaseModel):
    """The reference clip of a voice, as the API shows it."""

    model_config = STORED

    sha256: Sha256
    media_type: ClipType
    bytes: Count
    duration_s: Seconds
    sample_rate: Count
    channels: Count
    peak_dbfs: Decibels
    rms_dbfs: Decibels
    speech_s: Seconds | None = Field(
        None, description="Without silent edges; null in a voice of an older version."
    )
    gain_db: Decibels | None = Field(None, description="What brought it to the usual level.")


class PromptPublic(BaseModel):
    """The prompt features of a voice for the model in use."""

    model_config = STORED

    state: Literal["ready", "stale"] = Field(
        description="`stale`: not made for the model in use yet; made from the clip at first use."
    )
    fingerprint: Sha256 | None = None
    frames: Count | None = Field(None, description="Reference frames of 80 ms; 0 in xvec.")


class VoicePublic(BaseModel):
    """A voice as the API shows it."""

    model_config = STORED

    id: VoiceId
    name: StoredName
    description: VoiceDescription
    labels: Labels
    defaults: SpeakDefaults
    version: Counter
    row_version: Counter = Field(description="The edit counter; also the ETag.")
    modes: list[str]
    transcript: Transcript | None
    clip: ClipPublic
    prompt: PromptPublic
    warnings: list[Warned] = Field(max_length=MAX_WARNINGS)
    created_at: Instant
    updated_at: Instant


class VoicePage(BaseModel):
    """One page of the list of voices."""

    data: list[VoicePublic]
    damaged: list[str] = Field(
        description="Ids of voices of this page that can't be shown: `voices doctor` says why."
    )
    next: str | None = Field(description="Pass it as `after` for the page that follows.")
