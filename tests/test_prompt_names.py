"""Two who make the features of a voice anew at once: each row names bytes that are there."""

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeInference
from faults import FORKS, QuickEnroller, finish, noise, process
from modal_volume import Cloud
from uploading import enrol_bytes
from volume_faults import Gpu, Site

from inference.serving.voice_files import VoiceFiles
from registry.contract import Deadline, PromptRef, PromptSource
from registry.errors import ExtractionFailed, PromptMissing
from registry.storage.blobs import write_atomically
from registry.storage.data_dir import DataDir, sha256_of
from registry.storage.store import VoiceStore
from registry.upkeep.backup import save_backup
from registry.upkeep.doctor import examine
from registry.upkeep.restore import restore_backup

CLIP = noise(random.Random(1))
ROUNDS = 30


class OtherBits(FakeInference):
    """A GPU need not compute the same bits twice: each of these computes its own."""

    bits = b""

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        found = await super().extract_prompt(source)
        ref = PromptRef(source.voice_id, found.fingerprint, found.sha256)
        content = self.data.prompt(ref).read_bytes() + self.bits
        found.sha256 = sha256_of(content)
        ref = PromptRef(source.voice_id, found.fingerprint, found.sha256)
        write_atomically(self.data.prompt(ref), content)
        return found


class OtherGpu(Gpu, OtherBits):
    pass


def enrol(store: VoiceStore, inference: Any) -> None:
    enroller = QuickEnroller(store, inference)
    asyncio.run(enrol_bytes(enroller, "alice", CLIP))


def rebuild_for_a_while(home: Path, bits: bytes, together: Any) -> None:
    store = VoiceStore(DataDir(home))
    inference = OtherBits(store.data)
    inference.bits = bits
    enroller = QuickEnroller(store, inference)
    for _ in range(ROUNDS):
        together.wait(60)
        rebuilt = asyncio.run(enroller.refresh(store.get("alice"), "", Deadline()))
        ref = rebuilt.prompt_ref()
        assert ref is not None and sha256_of(store.data.prompt(ref).read_bytes()) == ref.sha256
    store.close()


@pytest.mark.slow
def test_two_processes_that_rebuild_at_once_leave_no_row_without_its_bytes(tmp_path: Path) -> None:
    with closing(VoiceStore(DataDir(tmp_path / "home"))) as store:
        enrol(store, FakeInference(store.data))
    together = FORKS.Barrier(2)
    rebuild = rebuild_for_a_while, tmp_path / "home"
    with process(*rebuild, b"one", together) as one, process(*rebuild, b"other", together) as other:
        assert finish([one, other]) == [0, 0]
    assert examine(store.data, read_data=True, repair=False) == []
    [folder] = (store.data.root / "prompts").iterdir()
    assert len(list(folder.iterdir())) == 3


def test_two_containers_that_rebuild_at_once_leave_no_row_without_its_bytes(
    tmp_path: Path,
) -> None:
    """On the stand-in for a Volume, where the last write to a name wins."""
    cloud = Cloud(tmp_path)
    sites = [Site.start(cloud) for _ in range(2)]
    sites[0].enrol("alice", CLIP, "")
    voices = [site.store.get("alice") for site in sites]
    made = []
    for voice, bits in zip(voices, (b"one", b"other"), strict=True):
        gpu = OtherGpu(cloud.container("gpu"))
        gpu.bits = bits
        made.append(asyncio.run(gpu.extract_prompt(voice.source)))
    for site, voice, prompt in reversed([*zip(sites, voices, made, strict=True)]):
        site.store.record_features(voice, prompt, [])  # whose files were written first comes last
    found = Site.start(cloud).store
    assert found.get("alice").features.sha256 == made[0].sha256
    assert found.prompt_content(found.get("alice")).size


# Files of an earlier program


@pytest.fixture
def former(tmp_path: Path) -> tuple[DataDir, PromptRef]:
    """A directory whose prompt file has the name that it had before."""
    with closing(VoiceStore(DataDir(tmp_path / "data"))) as store:
        enrol(store, FakeInference(store.data))
        ref = store.get("alice").prompt_ref()
    assert ref is not None
    store.data.prompt(ref).rename(store.data.former_prompt(ref))
    return store.data, ref


def test_a_file_of_the_former_name_is_read(former: tuple[DataDir, PromptRef]) -> None:
    data, ref = former
    assert sha256_of(VoiceFiles(data).prompt(ref)) == ref.sha256
    assert examine(data, read_data=True, repair=True) == []
    with closing(VoiceStore(data)) as store:
        assert store.prompt_content(store.get("alice")).size


def test_a_backup_has_it_under_its_new_name(
    former: tuple[DataDir, PromptRef], tmp_path: Path
) -> None:
    data, ref = former
    with closing(VoiceStore(data)) as store:
        manifest = save_backup(store, tmp_path / "voices.tar")
    assert data.prompt(ref).relative_to(data.root).as_posix() in manifest.files
    with open(tmp_path / "voices.tar", "rb") as tar:
        restore_backup(tar, tmp_path / "new")
    assert VoiceFiles(DataDir(tmp_path / "new")).prompt(ref) == VoiceFiles(data).prompt(ref)


def test_what_another_wrote_under_the_former_name_is_not_taken(
    former: tuple[DataDir, PromptRef],
) -> None:
    data, ref = former
    data.former_prompt(ref).write_bytes(b"of another rebuilder")
    [found] = examine(data, read_data=True, repair=False)
    assert found.severity == "repairable"
    with closing(VoiceStore(data)) as store:
        enroller = QuickEnroller(store, FakeInference(data))
        asyncio.run(enroller.refresh(store.get("alice"), "", Deadline()))
    assert sha256_of(VoiceFiles(data).prompt(ref)) == ref.sha256


def test_what_is_there_and_no_file_is_told_from_what_is_missing(
    former: tuple[DataDir, PromptRef],
) -> None:
    data, ref = former
    data.former_prompt(ref).unlink()
    with pytest.raises(PromptMissing):
        VoiceFiles(data).prompt(ref)
    os.mkfifo(data.prompt(ref))
    assert VoiceFiles(data).prompt(ref) == b""
    data.prompt(ref).unlink()
    data.prompt(ref).symlink_to(data.prompt(ref))
    assert VoiceFiles(data).prompt(ref) == b""


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_conditioned_clip_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    source = PromptSource("voice_" + "0" * 32, "0" * 64, None)
    data = DataDir(tmp_path)
    data.conditioned(source).parent.mkdir()
    make(data.conditioned(source))
    with pytest.raises(ExtractionFailed):
        VoiceFiles(data).clip(source)
