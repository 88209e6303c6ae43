"""The configuration of the service. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceConfig:
    """The settings of the service; None leaves one to the engine, and torch's threads alone."""

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    slots: int | None = None  # speeches at once
    queue_limit: int = 32  # waiting for a slot, or for the model to load
    queue_timeout_s: float = 30.0
    prompt_cache_bytes: int = 512 * 1024 * 1024  # on the device: a voice takes 3 to 15 MB
