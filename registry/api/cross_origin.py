"""CORS: off, unless origins are named in the settings; then they may read our headers too."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
SENT = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Prefer",
    "Range",
    "xi-api-key",
)
READ = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Location",
    "Retry-After",
    "Server-Timing",
    "X-Audio-Seconds",
    "X-Audio-Type",
    "X-Fallback",
    "X-Ignored-Fields",
    "X-Loudness",
    "X-Mode",
    "X-Prompt-Cache",
    "X-Request-Id",
    "X-Retries",
    "X-Seed",
    "X-Voice-Id",
    "X-Voice-Version",
    "X-Warnings",
)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call the app and read its headers."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=SENT,
        expose_headers=READ,
    )
