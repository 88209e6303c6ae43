"""Clips that are bytes, for what takes a file: uploads, enrolments, the decoder."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryFile
from typing import BinaryIO

from starlette.types import Message

from registry.api.pace import Exchange
from registry.api.uploads import Uploads
from registry.audio import clips
from registry.audio.clips import Answer, ClipLimits, ReferenceClip
from registry.storage.data_dir import DataDir, sha256_of
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.uploads import Upload
from registry.voices.enrolment import Enroller, Enrolment


def coming() -> Exchange:
    """A body that nobody has waited for yet."""

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        raise AssertionError("nothing answers it")

    return Exchange(receive, send, grace_s=60)


def uploaded(data: DataDir, clip: bytes) -> Upload:
    """As it is once the body was read; whoever calls closes it."""
    upload = Uploads(data.uploads).begin("", coming())
    upload.write(clip)
    return upload


async def enrol_bytes(
    enroller: Enroller,
    name: str,
    clip: bytes,
    transcript: str | None = "hi",
    description: str = "",
    labels: dict[str, str] | None = None,
    language: str | None = None,
) -> StoredVoice:
    with closing(uploaded(enroller._store.data, clip)) as upload:
        asked = Enrolment(name, upload, transcript, description, labels or {}, language)
        return await enroller.enrol(asked)


def read_clip(clip: bytes, limits: ClipLimits) -> ReferenceClip:
    with file_of(clip) as file:
        return clips.read_clip(file, sha256_of(clip), limits)


def converse(command: list[str], clip: bytes, limits: ClipLimits, most: int) -> Answer:
    with file_of(clip) as file:
        return clips.converse(command, file, limits, most)


def clip_of(store: VoiceStore, voice: StoredVoice) -> bytes:
    with store.open_clip(voice) as file:
        return file.read()


@contextmanager
def file_of(clip: bytes) -> Iterator[BinaryIO]:
    with TemporaryFile() as file:
        file.write(clip)
        file.seek(0)
        yield file
