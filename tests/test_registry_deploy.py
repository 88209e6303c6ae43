"""What `modal run` does with the voices on a Volume, over the stand-in for Volume and Dict."""

import json
from pathlib import Path
from random import Random

import pytest
from faults import noise
from local_remote import FakeVolume
from modal_volume import Cloud, Dict
from serving import serving
from volume_faults import Site

from registry.contract import ModelRef
from registry.modal import app
from registry.modal.plan import Deployment
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.volume.store import VolumeStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:The \\w+ function:UserWarning"),
    pytest.mark.skipif(
        not Path("/proc/self/fd").is_dir(), reason="the stand-in sees open files through /proc"
    ),
]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """With one container, which the functions of the App are run in."""
    cloud = Cloud(tmp_path / "cloud")
    container = cloud.container("by-hand")
    mount = container.mount("state")
    mount.object_id = "vo-1"
    for name in ("BACKUP", "WEIGHTS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(app, name, str(tmp_path / name))
    monkeypatch.setattr(app, "STATE", str(mount.path))
    monkeypatch.setattr(app, "LOCAL", container.disk)
    monkeypatch.setattr(app, "FAILURES", (RuntimeError, OSError))
    monkeypatch.setattr(app, "state", mount)
    monkeypatch.setattr(app, "claims", Dict(container, "claims"))
    for name in ("backups", "weights"):
        monkeypatch.setattr(app, name, FakeVolume())
    return cloud


def test_a_backup_is_made_kept_and_put_back(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site.start(cloud)
    site.enrol("alice", noise(Random(1)), "mark")
    for day in range(10, 19):
        (tmp_path / "BACKUP" / f"voices-2020-01-{day}.tar").touch()
    said = app.back_up.local()
    name, _, what = said.partition(": ")
    assert what.startswith("1 voice, ") and app.backups.commits == 1
    assert len(list((tmp_path / "BACKUP").iterdir())) == app.BACKUPS
    site.store.delete("alice", None)
    site.enrol("bob", noise(Random(2)), "mark")
    assert app.restore.local(name) == f"The voices are those of {name}: 1."
    assert isinstance(site.store, VolumeStore) and site.store._db.look_around()
    assert [voice.row.name for voice in site.store.page(9, None, "", ()).voices] == ["alice"]
    assert app.doctor.local(read_data=True) == []
    assert "All is sound." in capsys.readouterr().out


def test_the_model_is_changed_on_purpose(cloud: Cloud, tmp_path: Path) -> None:
    site = Site.start(cloud)
    site.store.choose_model("demo", ModelRef("demo", "r0"))
    marker = {"source": "a/b@r1", "model_id": "a/b", "revision": "r1"}
    marker |= {"languages": [], "sample_rate": 24_000}
    (tmp_path / "WEIGHTS" / "model.json").write_text(json.dumps(marker))
    assert app.use_model.local() == "The voices here now use a/b@r1."
    used = app.open_store().model_in_use()
    assert used is not None and (used.source, used.revision) == ("a/b@r1", "r1")


@pytest.mark.filterwarnings("ignore:The api function:UserWarning")
@pytest.mark.parametrize("keys", [True, False])
def test_a_deployed_registry_asks_for_a_key_if_its_plan_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: bool
) -> None:
    store = VoiceStore(DataDir(tmp_path))
    monkeypatch.setattr(app, "open_store", lambda: store)
    monkeypatch.setattr(app, "plan", Deployment(keys=keys))
    with serving(app.api.local()) as client:
        assert client.get("/voices").status_code == (401 if keys else 200)
