"""The data directory: where each file lives, and the keys of blobs, made of their content.

Standard library only, so that inference may share it. It knows nothing of the database or HTTP.
docs/storage.md is the specification of everything written here.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from registry.contract import TRANSIENT_PREFIX, PromptRef, PromptSource, is_transient
from registry.storage.blobs import (
    TMP_PREFIX,
    BlobStore,
    FolderBlobs,
    make_folder,
    write_atomically,
)

GRACE_S = 3600.0
BALLAST_BYTES = 4 * 1024 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")
VOICE_ID = re.compile(r"voice_[0-9a-f]{32}")
TRANSIENT_ID = re.compile(TRANSIENT_PREFIX + r"[0-9a-f]{32}")
FILE_NAMES = {
    "clips": SHA256,
    "conditioned": re.compile(r"[0-9a-f]{64}-\w{1,16}\.wav"),
    "prompts": re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16})?\.safetensors"),
}


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


# Keys are made of ids and hashes, never of what a user typed.


def clip_key(sha256: str) -> str:
    return f"clips/{sha256}"


def conditioned_key(source: PromptSource) -> str:
    if is_transient(source.voice_id):
        return f"{voice_prefix(source.voice_id)}conditioned-{source.preprocessing}.wav"
    return f"conditioned/{source.clip_sha256}-{source.preprocessing}.wav"


def voice_prefix(voice_id: str) -> str:
    """Return the key below which a voice's own files are: prompts, or all of a transient voice."""
    return f"{'transient' if is_transient(voice_id) else 'prompts'}/{voice_id}/"


def prompt_key(ref: PromptRef) -> str:
    """Return the key that a prompt file is written to: two concurrent rebuilds write two files."""
    return f"{voice_prefix(ref.voice_id)}{ref.fingerprint}-{ref.sha256[:16]}.safetensors"


def former_prompt_key(ref: PromptRef) -> str:
    """Return the key used by versions that did not put the file's own hash in its name."""
    return f"{voice_prefix(ref.voice_id)}{ref.fingerprint}.safetensors"


def stored_prompt_key(blobs: BlobStore, ref: PromptRef) -> str:
    """Return the key under which a prompt file is there now: the current or former one."""
    key, former = prompt_key(ref), former_prompt_key(ref)
    return former if not blobs.exists(key) and blobs.exists(former) else key


def keys_of(blobs: BlobStore, clips: Collection[str]) -> Iterator[str]:
    """Yield the keys of these clips and of what any version conditioned from them.

    The folder of conditioned clips is listed once, however many clips there are.
    """
    yield from filter(blobs.exists, map(clip_key, clips))
    for key in blobs.list("conditioned/") if clips else ():
        name = key.removeprefix("conditioned/")
        if FILE_NAMES["conditioned"].fullmatch(name) and name.partition("-")[0] in clips:
            yield key


@dataclass(frozen=True)
class DataDir:
    """The layout of a data directory: its blobs, and the files that only a folder can have."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "registry.db"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def blobs(self) -> FolderBlobs:
        return FolderBlobs(self.root)

    # Paths of blobs, for who looks at what a folder holds beside them, or at its modes

    def clip(self, sha256: str) -> Path:
        return self.root / clip_key(sha256)

    def conditioned(self, source: PromptSource) -> Path:
        return self.root / conditioned_key(source)

    def prompts(self, voice_id: str) -> Path:
        return self.root / voice_prefix(voice_id)

    def prompt(self, ref: PromptRef) -> Path:
        return self.root / prompt_key(ref)

    def former_prompt(self, ref: PromptRef) -> Path:
        return self.root / former_prompt_key(ref)

    def stored_prompt(self, ref: PromptRef) -> Path:
        return self.root / stored_prompt_key(self.blobs, ref)

    @property
    def uploads(self) -> Path:
        """The folder of clips being uploaded; they can move to the clips, on the same disk."""
        return self.root / "uploads"

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    def create(self) -> None:
        """Create the folders and the ballast; leave out what can't be made.

        A full or read-only disk may still be read.
        """
        with suppress(OSError):
            for name in ("clips", "conditioned", "prompts"):
                make_folder(self.root / name)
            if not self.ballast.exists():
                write_atomically(self.ballast, bytes(BALLAST_BYTES))
            self.drop_dead_transients()

    def drop_ballast(self) -> bool:
        """Delete the ballast to give a full disk the room of a deletion; False without one."""
        if not self.ballast.exists():
            return False
        self.ballast.unlink()
        return True

    def content_files(self) -> Iterator[Path]:
        """Yield every file that some row should refer to."""
        yield from (path for path, is_ours in self._contents() if is_ours)

    def strangers(self) -> Iterator[Path]:
        """Yield what lies among them and was not put there by this program: it is left alone."""
        yield from (path for path, is_ours in self._contents() if not is_ours)

    def _contents(self) -> Iterator[tuple[Path, bool]]:
        """Yield each finished entry of the folders, and whether its name is one that we give."""
        for name, pattern in FILE_NAMES.items():
            for entry in _settled_entries(self.root / name):
                if name == "prompts" and is_voice_folder(entry):
                    inner = _settled_entries(entry)
                    yield from ((Path(file), _is_ours(file, pattern)) for file in inner)
                else:
                    yield Path(entry), name != "prompts" and _is_ours(entry, pattern)

    def empty_folders(self) -> Iterator[Path]:
        """Yield prompt folders of enrolments that were killed before their first file."""
        folders = filter(is_voice_folder, _entries(self.root / "prompts"))
        yield from (Path(folder) for folder in folders if not _entries(folder))

    def transients(self) -> Iterator[Path]:
        """Yield folders of voices for one speech that are in use, or were when a server died."""
        for entry in _entries(self.root / "transient"):
            if TRANSIENT_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry)

    def drop_dead_transients(self) -> bool:
        """Remove the transient folders too old to be in use; True if there were any."""
        dead = [*filter(is_settled, self.transients())]
        for folder in dead:
            shutil.rmtree(folder)
        return bool(dead)

    def leftovers(self) -> Iterator[Path]:
        """Yield temporary files that a killed writer left behind."""
        folders = [self.root / name for name in (".", "uploads", *FILE_NAMES)]
        folders += map(Path, filter(is_voice_folder, _entries(self.root / "prompts")))
        for entry in chain.from_iterable(map(_entries, folders)):
            if entry.name.startswith(TMP_PREFIX) and entry.is_file(follow_symlinks=False):
                yield Path(entry)


def _entries(folder: "Path | os.DirEntry[str]") -> "list[os.DirEntry[str]]":
    """List a folder by name; nothing if it is not there, OSError if it can't be read."""
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


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def is_settled(path: Path) -> bool:
    """Tell whether there is something at `path`, and `is_old` is true of it."""
    try:
        return is_old(path.lstat().st_mtime)
    except FileNotFoundError:
        return False


def is_old(written_s: float | None) -> bool:
    """Tell whether it was written before any write that could still be under way.

    A time that far in the future counts as well: the clock was wrong when it was written.
    """
    return written_s is not None and abs(time.time() - written_s) > GRACE_S
