"""The data directory: where each file lives, how it is written, how it is named by its content.

Standard library only, so that inference may share it. It knows nothing of the database or HTTP.
docs/storage.md is the specification of everything written here.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedReader, FileIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from registry import private

PROMPT_FORMAT = "1"
PREPROCESSING = "2"
TMP_PREFIX = ".tmp-"
TRANSIENT_PREFIX = "transient_"  # begins the id of a voice that is not kept
GRACE_S = 3600.0
BALLAST_BYTES = 4 * 1024 * 1024
MOST_BYTES = 20 * 1024 * 1024  # of one file: the largest upload
PART_BYTES = 256 * 1024  # of a file that is read in parts
SHA256 = re.compile(r"[0-9a-f]{64}")
VOICE_ID = re.compile(r"voice_[0-9a-f]{32}")
TRANSIENT_ID = re.compile(TRANSIENT_PREFIX + r"[0-9a-f]{32}")
FILE_NAMES = {
    "clips": SHA256,
    "conditioned": re.compile(r"[0-9a-f]{64}-\w{1,16}\.wav"),
    "prompts": re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16})?\.safetensors"),
}
PLAIN = os.O_NONBLOCK | os.O_NOFOLLOW  # neither waits for a pipe nor goes where a link leads
NO_FILE: tuple[int, ...] = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
NO_FILE += (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)  # of sockets and devices


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


def is_transient(voice_id: str) -> bool:
    return voice_id.startswith(TRANSIENT_PREFIX)


@dataclass(frozen=True)
class StoredContent:
    """A file whose hash was looked at, to be read in parts.

    Nothing of it is open in between: who takes the parts slowly holds neither its bytes nor a
    descriptor, which would keep a Volume from being reloaded. A file never changes under its name.
    """

    size: int
    read: Callable[[int, int], bytes]  # from a byte to before another; less if the file is gone

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """Raises EOFError if the file is gone before its last part was read."""
        while start < end:
            part = self.read(start, min(end, start + PART_BYTES))
            if not part:
                raise EOFError(f"its last {end - start:,} bytes are no longer there")
            yield part
            start += len(part)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


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
        if is_transient(source.voice_id):
            return self.prompts(source.voice_id) / f"conditioned-{source.preprocessing}.wav"
        return self.root / "conditioned" / f"{source.clip_sha256}-{source.preprocessing}.wav"

    def prompts(self, voice_id: str) -> Path:
        """The folder of a voice's own files; those of a transient one are all in it."""
        return self.root / ("transient" if is_transient(voice_id) else "prompts") / voice_id

    def prompt(self, ref: PromptRef) -> Path:
        """Where the file is written: two that rebuild at once write two files."""
        return self.prompts(ref.voice_id) / f"{ref.fingerprint}-{ref.sha256[:16]}.safetensors"

    def former_prompt(self, ref: PromptRef) -> Path:
        """Where it lies if it was written before its own hash was in its name."""
        return self.prompts(ref.voice_id) / f"{ref.fingerprint}.safetensors"

    def stored_prompt(self, ref: PromptRef) -> Path:
        """Where it is read."""
        path, former = self.prompt(ref), self.former_prompt(ref)
        return former if not path.exists() and former.exists() else path

    @property
    def uploads(self) -> Path:
        """Of clips on their way in, on the disk that they stay on."""
        return self.root / "uploads"

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    def create(self) -> None:
        """What can't be made is left out: a full or read-only disk may still be read."""
        with suppress(OSError):
            for name in ("clips", "conditioned", "prompts"):
                make_folder(self.root / name)
            if not self.ballast.exists():
                write_atomically(self.ballast, bytes(BALLAST_BYTES))
            for dead in filter(is_settled, self.transients()):
                shutil.rmtree(dead)

    def drop_ballast(self) -> bool:
        """Give a full disk the room that a deletion needs; True if there was any to give."""
        if not self.ballast.exists():
            return False
        self.ballast.unlink()
        return True

    def content_files(self) -> Iterator[Path]:
        """Every file that some row should refer to."""
        yield from (path for path, is_ours in self._contents() if is_ours)

    def strangers(self) -> Iterator[Path]:
        """What lies among them, and no program of ours has put there: it is left alone."""
        yield from (path for path, is_ours in self._contents() if not is_ours)

    def _contents(self) -> Iterator[tuple[Path, bool]]:
        """What is in the folders, but for what is being written, and whether it looks like ours."""
        for name, pattern in FILE_NAMES.items():
            for entry in _settled_entries(self.root / name):
                if name == "prompts" and is_voice_folder(entry):
                    inner = _settled_entries(entry)
                    yield from ((Path(file), _is_ours(file, pattern)) for file in inner)
                else:
                    yield Path(entry), name != "prompts" and _is_ours(entry, pattern)

    def empty_folders(self) -> Iterator[Path]:
        """Prompt folders of enrolments that were killed before their first file."""
        folders = filter(is_voice_folder, _entries(self.root / "prompts"))
        yield from (Path(folder) for folder in folders if not _entries(folder))

    def transients(self) -> Iterator[Path]:
        """Folders of voices that are spoken with at this moment, or were when a server died."""
        for entry in _entries(self.root / "transient"):
            if TRANSIENT_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry)

    def leftovers(self) -> Iterator[Path]:
        """Temporary files that a killed writer left behind."""
        folders = [self.root / name for name in (".", "uploads", *FILE_NAMES)]
        folders += map(Path, filter(is_voice_folder, _entries(self.root / "prompts")))
        for entry in chain.from_iterable(map(_entries, folders)):
            if entry.name.startswith(TMP_PREFIX) and entry.is_file(follow_symlinks=False):
                yield Path(entry)


def _entries(folder: "Path | os.DirEntry[str]") -> "list[os.DirEntry[str]]":
    """Nothing of a folder that is not there; OSError of one that can't be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _settled_entries(folder: "Path | os.DirEntry[str]") -> "list[os.DirEntry[str]]":
    return [entry for entry in _entries(folder) if not entry.name.startswith(TMP_PREFIX)]


def is_voice_folder(entry: "os.DirEntry[str]") -> bool:
    return VOICE_ID.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _is_ours(entry: "os.DirEntry[str]", pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def make_folder(path: Path) -> None:
    """Create `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    private.make(path, exist_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data` or leave it as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """What the block writes becomes `path`: temp file, fsync, rename, fsync of the folder.

    The order is the promise: a reader sees the old file or the whole new one, power cut or not.
    """
    private.refuse_link(path.parent)
    make_folder(path.parent)
    temporary = path.parent / f"{TMP_PREFIX}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb", opener=private.opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_stored(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """What is stored under a name; nothing if it is not there, or is no file of that size.

    A pipe in its place is not waited for, and a device is not read. OSError if it can't be read.
    """
    content = read_part(path, 0, most_bytes + 1)
    return content if len(content) <= most_bytes else b""


def read_part(path: Path, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end` of what is stored, or as many as there are."""
    with opened(path) as file:
        if file is None:
            return b""
        file.seek(start)
        with BufferedReader(file) as whole:
            return whole.read(end - start)


def hash_stored(path: Path, most_bytes: int = MOST_BYTES) -> tuple[str, int]:
    """The SHA-256 of what `read_stored` would give, and its size, without holding it."""
    hashed, size = hashlib.sha256(), 0
    with opened(path) as file:
        while file and (part := file.read(PART_BYTES)):
            hashed.update(part)
            if (size := size + len(part)) > most_bytes:
                return sha256_of(b""), 0
    return hashed.hexdigest(), size


@contextmanager
def opened(path: Path) -> Iterator[FileIO | None]:
    """None if there is no such file; OSError if it can't be read."""
    try:
        private.refuse_link(path.parent)
        descriptor = os.open(path, os.O_RDONLY | PLAIN)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        yield None
        return
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with FileIO(descriptor) as file:
            yield file
    else:
        os.close(descriptor)
        yield None


def write_once(path: Path, data: bytes) -> bool:
    """Store `data` under a name made of its hash: a sound file is kept, and made young again.

    False if it was there. A crash can leave wrong content under a right name, so it is read first.
    """
    with suppress(FileNotFoundError):  # a clean-up takes it at this moment
        if read_stored(path) == data:
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
    """True if `path` is older than any write that could still be under way.

    So is one from a future that is further away: the clock was wrong when it was written.
    """
    try:
        age_s = (time.time() if now is None else now) - path.lstat().st_mtime
    except FileNotFoundError:
        return False
    return abs(age_s) > GRACE_S
