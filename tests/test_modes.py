"""What holds voices is its owner's alone, whatever the umask; the doctor closes what is older."""

import asyncio
import json
import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import FakeInference
from faults import QuickEnroller, add, noise, quick_app, quick_clip
from modal_volume import Cloud
from serving import serving
from test_cli import CLIP
from unprivileged import set_modes, unprivileged
from uploading import clip_of, enrol_bytes
from volume_faults import Site

from cli.commands.serve import tell_if_open
from cli.main import cli
from registry.contract import PromptSource
from registry.settings import Settings
from registry.storage import private
from registry.storage.blobs import write_atomically
from registry.storage.data_dir import DataDir
from registry.storage.database import _back_up
from registry.storage.store import VoiceStore
from registry.upkeep.backup import save_backup
from registry.upkeep.exposure import examine_modes
from registry.upkeep.restore import restore_backup, unpack_backup

UMASKS = (0o000, 0o002, 0o022, 0o027, 0o077)
SPEAK = {"voice": "alice", "text": "Hello"}


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(*roots: Path) -> dict[str, str]:
    """Of everything, links too; no name is left out."""
    paths = [path for root in roots for path in (root, *root.rglob("*"))]
    return {str(path): stat.filemode(path.lstat().st_mode) for path in paths}


def assert_private(*roots: Path) -> None:
    found = modes(*roots)
    assert len(found) > len(roots)
    assert {mode for mode in found.values()} <= {"drwx------", "-rw-------"}, found


def enrol(store: VoiceStore, name: str, seed: int = 1) -> None:
    clip = noise(random.Random(seed))
    enroller = QuickEnroller(store, FakeInference(store.data))
    asyncio.run(enrol_bytes(enroller, name, clip))


def keep_transient(store: VoiceStore) -> PromptSource:
    clip = quick_clip(noise(random.Random(9)))
    source = PromptSource("transient_" + "0" * 32, clip.sha256, "hi")
    store.keep_transient(source, clip)
    return source


# Made right


@pytest.mark.usefixtures("umask")
def test_a_directory_is_private_through_the_life_of_its_voices(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "not" / "yet" / "data")
    store = VoiceStore(data)
    assert_private(tmp_path / "not")
    with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
        for change in (
            lambda: add(http, "alice", noise(random.Random(1)), labels='{"a": "b"}'),
            lambda: http.post("/voices/alice/rebuild"),
            lambda: http.post("/speak", json=SPEAK),
            lambda: http.patch("/voices/alice", json={"transcript": "hello there"}),
            lambda: add(http, "bob", noise(random.Random(2))),
            lambda: http.delete("/voices/alice"),
        ):
            assert change().is_success
            assert_private(tmp_path / "not")
    store = VoiceStore(data)
    keep_transient(store)
    assert (data.root / "transient").is_dir()
    store.close()
    assert_private(tmp_path / "not")


@pytest.mark.usefixtures("umask")
def test_files_are_private_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode that is set afterwards leaves a moment in which others open the file."""
    seen: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.filemode(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    with closing(VoiceStore(DataDir(tmp_path / "data"))) as store:
        enrol(store, "alice")
        save_backup(store, tmp_path / "voices.tar")
    with open(tmp_path / "voices.tar", "rb") as tar:
        restore_backup(tar, tmp_path / "other")
    assert len(seen) > 20 and {*seen} == {"drwx------", "-rw-------"}


@pytest.mark.usefixtures("umask")
def test_a_backup_and_what_is_restored_of_it_are_private(tmp_path: Path) -> None:
    tar, home, empty = (tmp_path / name for name in ("voices.tar", "home", "empty"))
    with closing(VoiceStore(DataDir(home))) as store:
        enrol(store, "alice")
        save_backup(store, tar)
        tar.chmod(0o644)
        save_backup(store, tar)  # replaces one that was open
    set_modes(home, 0o755, 0o644)
    for target in (home, empty):
        with tar.open("rb") as file:
            aside = restore_backup(file, target).before
        assert_private(target)
    assert_private(tar.parent / "empty")
    assert stat.filemode(tar.stat().st_mode) == "-rw-------"
    [aside] = tmp_path.glob("home.before-*")
    assert stat.filemode(aside.stat().st_mode) == "drwx------"
    with closing(VoiceStore(DataDir(home))) as store:
        assert clip_of(store, store.get("alice")) and store.prompt_content(store.get("alice"))
        assert_private(home)


@pytest.mark.slow
@pytest.mark.usefixtures("umask")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the stand-in needs /proc")
def test_a_volume_and_its_snapshots_are_private(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "cloud")
    cloud.reload_commits = lambda container: True
    before = os.umask(0o022)  # what the stand-in makes by itself
    site = Site.start(cloud)
    os.umask(before)
    site.enrol("alice", noise(random.Random(1)), "mark")
    source = keep_transient(site.store)
    mount = site.container.mount("state").path
    assert {path.name for path in mount.iterdir()} >= {"clips", "prompts", "snapshots", "transient"}
    for folder in (*mount.iterdir(), site.container.disk):
        closed = modes(folder)
        closed.pop(str(site.container.disk), None)  # the platform's own
        assert {*closed.values()} <= {"drwx------", "-rw-------"}, closed
    site.store.drop_transient(source.voice_id)
    save_backup(site.store, tmp_path / "voices.tar")
    unpacked = DataDir(tmp_path / "unpacked")
    with open(tmp_path / "voices.tar", "rb") as tar:
        unpack_backup(tar, unpacked.root)
    assert_private(unpacked.root)


@pytest.mark.usefixtures("umask")
def test_the_database_before_a_migration_is_private(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    VoiceStore(data).close()
    for _ in range(2):  # the second takes the place of the first
        _back_up(data, "0000")
        assert [path.stat().st_size > 4096 for path in data.backups.iterdir()] == [True]
        assert_private(data.root)


@pytest.mark.parametrize("taken", [0o177, 0o277, 0o377, 0o700, 0o777], ids=oct)
def test_an_umask_that_takes_from_the_owner_takes_nothing_of_ours(
    tmp_path: Path, taken: int
) -> None:
    before = os.umask(taken)
    try:
        write_atomically(tmp_path / "a" / "b" / "file", b"")
        private.touch(tmp_path / "a" / "touched")
    finally:
        os.umask(before)
    assert_private(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.usefixtures("open_umask")
def test_the_verbs_make_private_files_and_leave_speech_to_the_umask(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"MODEL": str(checkpoint), "THREADS": "1", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"VOICES_{name}", value)
    monkeypatch.setenv("VOICES_HOME", str(tmp_path / "home"))
    for name in ("ref.wav", "there.wav"):
        (tmp_path / name).write_bytes(CLIP)
    for line in (
        "add alice ref.wav hello",
        "speak alice Hello -o spoken.wav",
        "speak --reference ref.wav --transcript hello Hello -o cloned.wav",
        "rebuild alice",
        "clip alice -o clip.wav",
        "clip alice -o there.wav --force",
        "backup -o voices.tar",
        "rm alice --yes",
        "restore voices.tar --force",
        "add bob ref.wav hello",
        "doctor",
    ):
        done = voices(*line.split())
        assert done.exit_code == 0, (line, done.output)
        assert_private(tmp_path / "home")
    assert_private(*tmp_path.glob("home.before-*"))
    for voice in ("voices.tar", "clip.wav", "there.wav"):
        assert stat.filemode((tmp_path / voice).stat().st_mode) == "-rw-------"
    for theirs in ("spoken.wav", "cloned.wav"):
        assert stat.filemode((tmp_path / theirs).stat().st_mode) == "-rw-rw-rw-"


def voices(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


# Found open, and closed

EVERY = (
    *(".", "registry.db", "registry.db-journal", "ballast", "migrate.lock", "models"),
    *("models/hashes.json", "backups", "backups/registry-before-0001-from-0000.db", "clips"),
    *("conditioned", "prompts", "transient", f"transient/transient_{'0' * 32}"),
    *(f"clips/{'0' * 64}", f"conditioned/{'0' * 64}-2.wav", f"prompts/voice_{'0' * 32}"),
    *(f"prompts/voice_{'0' * 32}/{'0' * 64}-{'0' * 16}.safetensors", f".tmp-{'0' * 16}"),
    *(f"prompts/voice_{'0' * 32}/{'0' * 64}.safetensors", f"clips/.tmp-{'0' * 16}"),
    f"transient/transient_{'0' * 32}/conditioned-2.wav",
)


@pytest.fixture
def old(tmp_path: Path) -> DataDir:
    """As an older version would have left it, with one of everything."""
    data = DataDir(tmp_path / "data")
    VoiceStore(data).close()
    for name in EVERY:
        path = data.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch() if "." in path.name or len(path.name) == 64 else path.mkdir()
    set_modes(data.root, 0o755, 0o644)
    return data


def said(data: DataDir, repair: bool = False) -> dict[str, str]:
    found = examine_modes(data, repair=repair)
    return {finding.what.partition(" is open")[0]: finding.severity for finding in found}


def test_everything_that_is_open_is_told_and_closed_once(old: DataDir) -> None:
    names = {*EVERY[1:], "the data directory"}
    assert said(old) == dict.fromkeys(names, "repairable")
    assert said(old, repair=True) == dict.fromkeys(names, "repaired")
    assert said(old) == said(old, repair=True) == {}
    assert_private(old.root)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o601, 0o666, 0o777, 0o044])
@pytest.mark.parametrize("name", EVERY[:2])
def test_any_bit_for_others_is_told_with_the_mode(old: DataDir, name: str, mode: int) -> None:
    examine_modes(old, repair=True)
    (old.root / name).chmod(mode)
    [finding] = examine_modes(old, repair=False)
    assert finding.what.endswith(f"by its mode {mode:04o}")
    examine_modes(old, repair=True)
    assert_private(old.root)


def test_what_is_not_ours_and_what_a_link_leads_to_keep_their_modes(
    old: DataDir, tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_bytes(b"someone's")
    folder.mkdir(mode=0o755)
    (folder / ("f" * 64)).touch()
    shutil.rmtree(old.root / "conditioned")
    (old.root / "conditioned").symlink_to(folder)
    (old.root / "clips" / ("e" * 64)).symlink_to(outside)
    (old.root / "clips" / ("d" * 64)).symlink_to("nowhere")
    os.mkfifo(old.root / "clips" / ("c" * 64))
    (old.root / "notes.txt").touch()
    (old.root / "clips" / ".DS_Store").touch()
    theirs = [outside, folder, *folder.iterdir(), old.root / "notes.txt"]
    theirs += [old.root / "clips" / name for name in ("c" * 64, ".DS_Store")]
    before = [path.stat().st_mode for path in theirs]
    examine_modes(old, repair=True)
    assert [path.stat().st_mode for path in theirs] == before
    assert said(old) == {}


@pytest.mark.slow
def test_what_another_account_owns_is_told_and_hinders_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    data = DataDir(tmp_path / "data")
    VoiceStore(data).close()
    data.ballast.chmod(0o644)
    os.chown(data.ballast, 65534, 65534)
    data.database.chmod(0o644)
    found = unprivileged(examine_modes_repairing, data)
    assert [finding.severity for finding in found] == ["repairable", "repaired"]
    assert "can't be closed" in found[0].what


def examine_modes_repairing(data: DataDir) -> object:
    return examine_modes(data, repair=True)


def test_a_directory_that_is_not_there_is_open_to_nobody(tmp_path: Path) -> None:
    assert examine_modes(DataDir(tmp_path / "none"), repair=True) == []
    assert not (tmp_path / "none").exists()


def test_new_files_in_an_old_directory_are_private_at_once(old: DataDir) -> None:
    shutil.rmtree(old.root / "clips")
    shutil.rmtree(old.root / "prompts")
    before = {path for path in old.root.rglob("*")}
    with closing(VoiceStore(old)) as store:
        enrol(store, "alice")
    new = {path for path in old.root.rglob("*")} - before | {old.root / "clips"}
    assert len(new) > 4
    assert {stat.filemode(path.stat().st_mode) for path in new} == {"drwx------", "-rw-------"}


@pytest.mark.slow
def test_the_verb_names_each_and_closes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICES_HOME", str(tmp_path / "data"))
    with closing(VoiceStore(DataDir(tmp_path / "data"))) as store:
        enrol(store, "alice")
    assert voices("doctor").exit_code == 0
    set_modes(tmp_path / "data", 0o755, 0o644)
    told = voices("doctor", "--json")
    findings = json.loads(told.stdout)["findings"]
    assert told.exit_code == 1 and {finding["severity"] for finding in findings} == {"repairable"}
    assert len(findings) == len(modes(tmp_path / "data"))
    assert "registry.db is open to others, by its mode 0644" in voices("doctor").stdout
    assert voices("doctor", "--repair").exit_code == 0
    assert_private(tmp_path / "data")
    assert voices("doctor").exit_code == 0


@pytest.mark.parametrize(("root", "database", "told"), [(0o755, 0o644, 1), (0o755, 0o600, 0)])
def test_a_server_tells_that_others_can_read_its_voices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: int, database: int, told: int
) -> None:
    with closing(VoiceStore(DataDir(tmp_path / "data"))) as store:
        store.data.database.chmod(database)
        store.data.root.chmod(root)
        tell_if_open(store)
        assert capsys.readouterr().err.count("voices doctor --repair") == told
        assert store.data.root.stat().st_mode & 0o777 == root
