"""The data directory: where each file lives, how it is written, how it is named by its content.

Standard library only, so that inference may share it. It knows nothing of the database or HTTP.
docs/storage.md is the specification of everything written here.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PROMPT_FORMAT = "1"
PREPROCESSING = "2"
TMP_PREFIX = ".tmp-"
GRACE_S = 3600.0
BALLAST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ModelRef:
    """A model as prompt features know it; `revision` is a hub commit, or a hash of a directory."""

    id: str
    revision: str


@dataclass(frozen=True)
class PromptSource:
    """What prompt features are computed from; all of it but `voice_id` is in the fingerprint."""

    voice_id: str
    clip_sha256: str
    transcript: str | None  # None: the speaker embedding only, mode xvec
    preprocessing: str = PREPROCESSING


@dataclass(frozen=True)
class PromptRef:
    """The address of one prompt file, and the sha256 its bytes must have."""

    voice_id: str
    fingerprint: str
    sha256: str


def fingerprint(source: PromptSource, model: ModelRef) -> str:
    """The key of prompt features: sha256 over the canonical JSON of all that they depend on."""
    parts = {k: v for k, v in asdict(source).items() if k != "voice_id"}
    parts |= {"model_id": model.id, "model_revision": model.revision, "format": PROMPT_FORMAT}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class DataDir:
    """The layout under one root. Paths are made of ids and hashes, never of what a user typed."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "registry.db"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    def clip(self, sha256: str) -> Path:
        return self.root / "clips" / sha256

    def conditioned(self, source: PromptSource) -> Path:
        return self.root / "conditioned" / f"{source.clip_sha256}-{source.preprocessing}.wav"

    def prompts(self, voice_id: str) -> Path:
        return self.root / "prompts" / voice_id

    def prompt(self, ref: PromptRef) -> Path:
        return self.prompts(ref.voice_id) / f"{ref.fingerprint}.safetensors"

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    def create(self) -> None:
        for name in ("clips", "conditioned", "prompts"):
            make_folder(self.root / name)
        if not self.ballast.exists():
            with suppress(OSError):  # a full disk has no room for it, and may still be read
                write_atomically(self.ballast, bytes(BALLAST_BYTES))

    def drop_ballast(self) -> bool:
        """Give a full disk the room that a deletion needs; True if there was any to give."""
        if not self.ballast.exists():
            return False
        self.ballast.unlink()
        return True

    def content_files(self) -> Iterator[Path]:
        """Every file that some row should refer to."""
        for pattern in ("clips/*", "conditioned/*", "prompts/*/*"):
            yield from (p for p in self.root.glob(pattern) if not p.name.startswith(TMP_PREFIX))

    def empty_folders(self) -> Iterator[Path]:
        """Prompt folders of enrolments that were killed before their first file."""
        yield from (p for p in self.root.glob("prompts/*") if p.is_dir() and not any(p.iterdir()))

    def leftovers(self) -> Iterator[Path]:
        """Temporary files that a killed writer left behind."""
        for pattern in (".", "clips", "conditioned", "prompts", "prompts/*"):
            yield from self.root.glob(f"{pattern}/{TMP_PREFIX}*")


def make_folder(path: Path) -> None:
    """Create `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data` or leave it as it was: temp file, fsync, rename, fsync of the folder.

    The order is the promise: a reader sees the old file or the whole new one, power cut or not.
    """
    make_folder(path.parent)
    temporary = path.parent / f"{TMP_PREFIX}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Store `data` under a name made of its hash: a sound file is kept, and made young again.

    False if it was there.

    A crash can leave wrong content under a right name, so a file is read before it is trusted.
    """
    with suppress(FileNotFoundError):  # it is new, or a clean-up takes it at this moment
        if path.read_bytes() == data:
            os.utime(path)
            return False
    write_atomically(path, data)
    return True


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_settled(path: Path, now: float | None = None) -> bool:
    """True if `path` is older than any write that could still be under way."""
    try:
        return (time.time() if now is None else now) - path.stat().st_mtime > GRACE_S
    except FileNotFoundError:
        return False
