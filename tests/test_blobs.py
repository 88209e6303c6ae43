"""Blobs by key: the same laws for files below a folder and for a store that has no files at all."""

import asyncio
import io
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeInference
from faults import QuickEnroller, noise
from uploading import clip_of, enrol_bytes

from registry.contract import Deadline, PromptRef, PromptSource
from registry.storage.blobs import MOST_BYTES, TMP_PREFIX, BlobStore, FolderBlobs
from registry.storage.data_dir import clip_key, conditioned_key, prompt_key, sha256_of
from registry.storage.store import VoiceStore

KEY = f"clips/{sha256_of(b'content')}"


class MemoryBlobs:
    def __init__(self) -> None:
        self.blobs: dict[str, tuple[bytes, float]] = {}

    def put(self, key: str, content: bytes) -> bool:
        is_new = self.read(key) != content
        self.replace(key, content)
        return is_new

    def replace(self, key: str, content: bytes) -> None:
        self.blobs[key] = content, time.time()

    def take(self, key: str, file: FileIO, *, move: bool) -> None:
        file.seek(0)
        self.replace(key, file.read())

    def read(self, key: str, most_bytes: int = MOST_BYTES) -> bytes:
        content, _ = self.blobs.get(key, (b"", 0.0))
        return content if len(content) <= most_bytes else b""

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return self.read(key)[start:end]

    def digest(self, key: str) -> tuple[str, int]:
        return sha256_of(self.read(key)), len(self.read(key))

    def open(self, key: str) -> AbstractContextManager[Any]:
        return nullcontext(io.BytesIO(self.read(key)) if self.exists(key) else None)

    def exists(self, key: str) -> bool:
        return any(self.list(key)) if key.endswith("/") else key in self.blobs

    def written_s(self, key: str) -> float | None:
        return self.blobs[key][1] if key in self.blobs else None

    def renew(self, key: str) -> None:
        self.replace(key, self.read(key))

    def list(self, prefix: str) -> Iterator[str]:
        below = (key for key in sorted(self.blobs) if key.startswith(prefix))
        yield from [key for key in below if "/" not in key.removeprefix(prefix)]

    def delete(self, key: str) -> None:
        self.blobs.pop(key, None)

    def delete_all(self, prefix: str) -> None:
        for key in [key for key in self.blobs if key.startswith(prefix)]:
            del self.blobs[key]


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FolderBlobs(tmp_path) if request.param == "folder" else MemoryBlobs()


def test_what_was_put_is_there_whole_and_once(blobs: BlobStore) -> None:
    assert not blobs.exists(KEY) and blobs.read(KEY) == b"" and blobs.written_s(KEY) is None
    assert blobs.put(KEY, b"content") and not blobs.put(KEY, b"content")
    assert blobs.exists(KEY) and blobs.read(KEY) == b"content"
    assert blobs.read_part(KEY, 3, 5) == b"te" and blobs.digest(KEY) == (KEY[6:], 7)
    assert blobs.read(KEY, most_bytes=6) == b""
    with blobs.open(KEY) as file:
        assert file is not None and file.read() == b"content"


def test_what_is_damaged_is_stored_anew(blobs: BlobStore) -> None:
    blobs.replace(KEY, b"damage")
    assert blobs.put(KEY, b"content") and blobs.read(KEY) == b"content"


@pytest.mark.parametrize("move", [True, False])
def test_a_file_is_taken_as_it_is(blobs: BlobStore, tmp_path: Path, move: bool) -> None:
    (tmp_path / "spool").write_bytes(b"content")
    with FileIO(tmp_path / "spool", "r+") as file:
        blobs.take(KEY, file, move=move)
        blobs.delete(KEY)
        blobs.take(KEY, file, move=move)  # it has moved before
    assert blobs.read(KEY) == b"content"


def test_keys_are_listed_below_a_prefix_in_order(blobs: BlobStore) -> None:
    for key in ("prompts/b/2", "prompts/b/1", "prompts/a/1", "clips/1"):
        blobs.put(key, key.encode())
    assert [*blobs.list("prompts/b/")] == ["prompts/b/1", "prompts/b/2"]
    assert [*blobs.list("prompts/")] == [*blobs.list("nothing/")] == []
    assert blobs.exists("prompts/b/") and not blobs.exists("prompts/c/")


def test_what_is_deleted_is_gone_and_nothing_else(blobs: BlobStore) -> None:
    for key in ("prompts/b/2", "prompts/b/1", "prompts/a/1"):
        blobs.put(key, b"content")
    blobs.delete("prompts/a/1")
    blobs.delete("prompts/a/1")
    blobs.delete("prompts/a/")
    blobs.delete("prompts/b/")  # it is not empty
    assert not blobs.exists("prompts/a/") and len([*blobs.list("prompts/b/")]) == 2
    blobs.delete_all("prompts/b/")
    blobs.delete_all("prompts/b/")
    assert not blobs.exists("prompts/b/1") and not blobs.exists("prompts/b/")


def test_what_is_no_file_of_ours_is_no_blob(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(KEY, b"content")
    (tmp_path / "clips" / "link").symlink_to(tmp_path / KEY)
    (tmp_path / "clips" / "folder").mkdir()
    (tmp_path / "clips" / f"{TMP_PREFIX}0").write_bytes(b"half")
    assert [*blobs.list("clips/")] == [KEY]
    assert not blobs.exists("clips/link") and blobs.read("clips/link") == b""
    assert blobs.written_s("clips/link") is not None, "something is there"


class MemoryInference(FakeInference):
    def __init__(self, store: VoiceStore) -> None:
        super().__init__(store.data)
        self.blobs = store.blobs

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        """Reads and writes where the store has its blobs."""
        conditioned = self.data.conditioned(source)
        conditioned.write_bytes(self.blobs.read(conditioned_key(source)))
        made = await super().extract_prompt(source)
        ref = PromptRef(source.voice_id, made.fingerprint, made.sha256)
        self.blobs.replace(prompt_key(ref), self.data.prompt(ref).read_bytes())
        conditioned.unlink()
        self.data.prompt(ref).unlink()
        return made

    def _look_up(self, ref: PromptRef) -> str:
        assert sha256_of(self.blobs.read(prompt_key(ref))) == ref.sha256
        return "file"


def test_a_voice_lives_and_dies_where_no_blob_is_a_file(store: VoiceStore) -> None:
    """Other blobs are put in place of the folder, as an object store would be."""
    memory = MemoryBlobs()
    store.blobs = memory
    clip = noise(random.Random(7))
    enroller = QuickEnroller(store, MemoryInference(store))
    alice = asyncio.run(enrol_bytes(enroller, "alice", clip))
    assert clip_of(store, alice) == clip and memory.read(clip_key(sha256_of(clip))) == clip
    content = store.clip_content(alice)
    assert b"".join(content.parts(0, content.size)) == clip
    assert store.prompt_content(alice).size == 256
    assert not [*(store.data.root / "clips").iterdir()]
    memory.blobs = {key: (blob, 0.0) for key, (blob, _) in memory.blobs.items()}  # a week goes by
    store.delete("alice", None)
    assert store.purge_surplus(0) == 1 and memory.blobs == {}
