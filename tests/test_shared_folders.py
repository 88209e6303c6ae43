"""What another account puts into a folder that all may write keeps no model and no clip away."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from api import CLIP
from test_serve import served

from inference.models.catalog import not_imported
from registry import errors

LOADS = """
import os, stat
from inference.engine.checkpoint.qwen import import_qwen_tts
import_qwen_tts(), import_qwen_tts()
for name in ("TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
    folder = os.environ.get(name)
    print(folder and f"{folder} {stat.filemode(os.stat(folder).st_mode)}")
"""
KNOWN = f"torchinductor_{getpass.getuser()}"  # the name that torch would take
PUT: dict[str, Callable[[Path], object]] = {
    "a file": Path.touch,
    "a dangling link": lambda path: path.symlink_to("/nowhere"),
    "a folder": lambda path: path.mkdir(0o777),
}


def loads(folder: Path, **environ: str) -> list[str]:
    """Where each library may write in a process that has imported them, by its own word."""
    wanted = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", LOADS], capture_output=True, text=True, env=wanted | environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PUT)
def test_a_name_that_everybody_knows_keeps_no_model_from_loading(kind: str, tmp_path: Path) -> None:
    PUT[kind](tmp_path / KNOWN)
    (tmp_path / "home").mkdir(0o700)
    compiler, *others = loads(tmp_path)
    assert compiler.startswith(f"{tmp_path}/voices-cache-") and compiler.endswith("drwx------")
    assert others == ["None", "None"]
    assert sorted(os.listdir(tmp_path)) == ["home", KNOWN], "what is ours is gone, and no more"


@pytest.mark.slow
@pytest.mark.parametrize("kind", PUT)
def test_a_home_where_all_may_write_is_not_written_to(kind: str, tmp_path: Path) -> None:
    """As that of daemons, whose home is /tmp; numba would run what is in its cache there."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o1777)
    PUT[kind](home / ".cache")
    if kind == "a folder":
        (home / ".cache").chmod(0o1777)
    compiler, numba, every = loads(tmp_path)
    assert compiler == numba == every
    assert compiler.startswith(f"{tmp_path}/voices-cache-")
    assert os.listdir(tmp_path) == ["home"] and os.listdir(home) == [".cache"]


@pytest.mark.slow
def test_folders_that_the_environment_names_stay(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(0o700)
    named = {"TORCHINDUCTOR_CACHE_DIR": str(own), "NUMBA_CACHE_DIR": str(own)}
    compiler, numba, every = loads(tmp_path, HOME="/dev/null", **named)
    assert (compiler, numba) == (f"{own} drwx------",) * 2
    assert every.startswith(f"{tmp_path}/voices-cache-")
    empty, *_ = loads(tmp_path, TORCHINDUCTOR_CACHE_DIR="")
    assert empty.startswith(f"{tmp_path}/voices-cache-")


def making(folder: Path, last: str) -> "subprocess.Popen[str]":
    """A process that has made its folder in this one, and then does as it is told."""
    script = "from inference.engine.checkpoint.qwen import give_cache_folders\n"
    script += f"import os, signal\ngive_cache_folders()\nprint(flush=True)\n{last}"
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    return process


def test_the_folder_of_a_process_that_was_killed_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "voices-cache-link").symlink_to("/nowhere")
    with making(tmp_path, "input()") as living:
        [kept] = set(os.listdir(tmp_path)) - {"voices-cache-link"}
        with making(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") as killed:
            killed.wait(60)
        assert len(os.listdir(tmp_path)) == 3
        with making(tmp_path, "") as next_one:
            next_one.wait(60)
        assert set(os.listdir(tmp_path)) == {kept, "voices-cache-link"}
        living.communicate("\n", timeout=60)
    assert os.listdir(tmp_path) == ["voices-cache-link"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_a_signal_ends_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with served(tmp_path / "data", "--model", "demo", log_level="warning") as server:
        clip = {"audio": CLIP}
        done = httpx.post(f"{server.url}/voices", data={"name": "alice"}, files=clip, timeout=60)
        assert done.status_code == 201
        assert [name for name in os.listdir(shared) if name.startswith("voices-cache-")]
        server.process.send_signal(number)
        server.process.wait(60)
    assert os.listdir(shared) == []


@pytest.mark.slow
def test_a_voice_is_enrolled_and_speaks_beside_such_names(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / KNOWN).symlink_to("/nowhere")
    environ = os.environ | {"TMPDIR": str(shared)}
    environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-m", "cli.main", "demo", "--home", str(tmp_path / "home")]
    done = subprocess.run([*command, "-o", str(tmp_path / "demo.wav")], env=environ)
    assert done.returncode == 0
    assert os.listdir(shared) == [KNOWN]


def test_what_the_system_says_is_told_as_what_it_is() -> None:
    refused = not_imported(FileExistsError(17, "File exists", "folder"))
    assert isinstance(refused, errors.ModelUnavailable)
    said = "torch and qwen-tts can't be imported here: [Errno 17] File exists: 'folder'"
    assert str(refused) == said
    assert "pip install" in str(not_imported(ImportError("No module named 'torch'")))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a /tmp of its own")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.skipif(sys.prefix.startswith("/tmp/"), reason="would hide the packages")
def test_no_clip_waits_for_a_pipe_where_a_library_looks_for_settings() -> None:
    """PyAV's GnuTLS does, in the folder where it was built."""
    own_tmp = ["unshare", "--mount", "sh", "-ec"]
    if subprocess.run([*own_tmp, "mount -t tmpfs none /tmp"], capture_output=True).returncode:
        pytest.skip("mounting a /tmp needs root")
    act = """mount -t tmpfs none /tmp
mkdir -p /tmp/vendor/etc/gnutls
mkfifo /tmp/vendor/etc/gnutls/config
exec "$@" """
    starts = "import subprocess, sys; from registry.audio.clips import environment; "
    starts += "line = [sys.executable, '-c', 'import av']; "
    starts += "subprocess.run(line, env=environment(), timeout=60, check=True)"
    subprocess.run([*own_tmp, act, "sh", sys.executable, "-c", starts], check=True, timeout=120)
