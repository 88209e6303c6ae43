"""The fake control plane, held against the real client: its command line and its Python API."""

import asyncio
import gc
import importlib
import io
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest
from modal_apps import WORKSPACE
from modal_files import identify
from modal_proto import api_pb2 as pb
from modal_server import ModalServer

SPEAKER = """
import modal

weights = modal.Volume.from_name("sample-weights", create_if_missing=True)
state = modal.Volume.from_name("sample-state", create_if_missing=True, version=1)
token = modal.Secret.from_name("huggingface-token", required_keys=["HF_TOKEN"])
image = (
    modal.Image.debian_slim("3.12")
    .pip_install("numpy==2.2.6", "soundfile==0.13.1")
    .env({"HF_HUB_OFFLINE": "1"})
    .add_local_python_source("sample")
)
app = modal.App("sample-speaker", image=image, include_source=False)


@app.cls(
    gpu="T4",
    cpu=2,
    memory=8192,
    min_containers=0,
    max_containers=1,
    scaledown_window=60,
    timeout=300,
    startup_timeout=600,
    retries=0,
    enable_memory_snapshot=True,
    volumes={"/weights": weights.read_only(), "/state": state},
    secrets=[token],
)
@modal.concurrent(max_inputs=8, target_inputs=4)
class Speaker:
    @modal.enter(snap=True)
    def load(self): ...

    @modal.enter(snap=False)
    def move(self): ...

    @modal.method()
    def status(self): ...

    @modal.method()
    def speak(self, text):
        yield text

    @modal.exit()
    def leave(self): ...


@app.function(volumes={"/weights": weights}, secrets=[modal.Secret.from_dict({"QUIET": "1"})])
def download(revision): ...
"""

WEB = """
import modal

app = modal.App("sample-web", image=modal.Image.debian_slim("3.12"))


@app.function(max_containers=1)
@modal.concurrent(max_inputs=100)
@modal.asgi_app(requires_proxy_auth=True)
def api(): ...


@app.function(schedule=modal.Cron("0 3 * * *"))
def backup(): ...
"""

Modal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    files = {"__init__.py": "", "speaker.py": SPEAKER, "web.py": WEB, "notes.txt": "Not code."}
    (folder / "sample").mkdir()
    for name, text in files.items():
        (folder / "sample" / name).write_text(text)
    return folder


def command(
    server: ModalServer, project: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The real command line, as a child that knows no other server and no other account."""
    environ = os.environ | server.environ | {"HOME": str(project), "COLUMNS": "200"}
    line = [sys.executable, "-m", "modal", *arguments]
    return subprocess.run(line, env=environ, cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="module")
def deployed(project: Path) -> Iterator[ModalServer]:
    """A server that has taken both Apps from `modal deploy`, for tests that only look."""
    with ModalServer() as server:
        for module in ("sample.speaker", "sample.web"):
            done = command(server, project, "deploy", "-m", module)
            assert done.returncode == 0, done.stdout + done.stderr
        yield server


@pytest.fixture
def server() -> Iterator[ModalServer]:
    with ModalServer() as server:
        yield server


@pytest.fixture
def client(server: ModalServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[modal.Client]:
    """The Python API finds the server by itself, as it would in a program of ours."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    with modal.Client.from_env() as client:
        yield client


@pytest.fixture
def apps(project: Path, client: modal.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both Apps, deployed by the Python API; one process asks for a Volume or Secret only once."""
    monkeypatch.syspath_prepend(project)
    monkeypatch.chdir(project)  # from a clone, the commit and its author are sent as well
    for name in ("sample.speaker", "sample.web"):
        importlib.import_module(name).app.deploy()


@pytest.mark.slow
def test_apps_are_published_with_their_functions_and_classes(deployed: ModalServer) -> None:
    speaker, web = deployed.sent("AppPublish")
    assert (speaker.name, speaker.app_state) == ("sample-speaker", pb.APP_STATE_DEPLOYED)
    assert speaker.function_ids.keys() == {"Speaker.*", "download"}
    assert speaker.class_ids.keys() == {"Speaker"}
    assert web.function_ids.keys() == {"api", "backup"}
    assert deployed.apps["sample-web"].deployed


def test_the_class_is_sent_as_it_was_written(deployed: ModalServer) -> None:
    sent = deployed.functions["Speaker.*"]
    assert (sent.resources.gpu_config.gpu_type, sent.resources.gpu_config.count) == ("T4", 1)
    assert (sent.resources.milli_cpu, sent.resources.memory_mb) == (2000, 8192)
    assert (sent.timeout_secs, sent.startup_timeout_secs) == (300, 600)
    assert (sent.max_concurrent_inputs, sent.target_concurrent_inputs) == (8, 4)
    assert sent.HasField("retry_policy") and sent.retry_policy.retries == 0
    assert sent.checkpointing_enabled and not sent.enable_gpu_snapshot
    methods = {name: method.function_type for name, method in sent.method_definitions.items()}
    kinds = pb.Function
    assert methods == {
        "status": kinds.FUNCTION_TYPE_FUNCTION,
        "speak": kinds.FUNCTION_TYPE_GENERATOR,
    }


def test_container_counts_are_told_from_counts_left_out(deployed: ModalServer) -> None:
    sent = deployed.functions["Speaker.*"].autoscaler_settings
    assert sent.HasField("min_containers") and sent.min_containers == 0
    assert (sent.max_containers, sent.scaledown_window) == (1, 60)
    assert not deployed.functions["download"].autoscaler_settings.HasField("min_containers")


def test_volumes_are_sent_with_path_and_mode(deployed: ModalServer) -> None:
    weights, state = (deployed.volumes[name] for name in ("sample-weights", "sample-state"))
    sent = {
        mount.mount_path: (mount.volume_id, mount.read_only)
        for mount in deployed.functions["Speaker.*"].volume_mounts
    }
    assert sent == {"/weights": (weights.id, True), "/state": (state.id, False)}
    [mount] = deployed.functions["download"].volume_mounts
    assert (mount.volume_id, mount.read_only) == (weights.id, False)
    asked = {ask.deployment_name: ask.version for ask in deployed.sent("VolumeGetOrCreate")}
    assert asked == {
        "sample-weights": pb.VOLUME_FS_VERSION_UNSPECIFIED,
        "sample-state": pb.VOLUME_FS_VERSION_V1,
    }


def test_secrets_are_sent_with_the_keys_they_must_have(deployed: ModalServer) -> None:
    secret = deployed.secrets["huggingface-token"]
    assert deployed.functions["Speaker.*"].secret_ids == [secret.id]
    assert secret.required_keys == ["HF_TOKEN"]
    [written] = deployed.functions["download"].secret_ids
    assert deployed.secrets.by_id(written).values == {"QUIET": "1"}


def test_the_web_function_is_behind_proxy_auth(deployed: ModalServer) -> None:
    sent = deployed.functions["api"]
    assert sent.webhook_config.type == pb.WEBHOOK_TYPE_ASGI_APP
    assert sent.webhook_config.requires_proxy_auth
    assert (sent.autoscaler_settings.max_containers, sent.max_concurrent_inputs) == (1, 100)
    assert deployed.functions["backup"].schedule.cron.cron_string == "0 3 * * *"


def test_image_commands_are_kept_in_the_order_of_the_layers(deployed: ModalServer) -> None:
    layers = deployed.images[deployed.functions["Speaker.*"].image_id]
    assert [list(layer.dockerfile_commands) for layer in layers[1:]] == [
        ["FROM base", "RUN python -m pip install numpy==2.2.6 soundfile==0.13.1"],
        ["FROM base", "ENV HF_HUB_OFFLINE=1"],
    ]
    commands = deployed.commands(deployed.functions["Speaker.*"].image_id)
    assert commands[0].startswith("FROM python:3.12")
    assert commands[-1] == "ENV HF_HUB_OFFLINE=1"


def test_exactly_the_python_source_is_uploaded(deployed: ModalServer) -> None:
    sent = deployed.uploaded(*deployed.functions["Speaker.*"].mount_ids)
    assert sent == {
        "/root/sample/__init__.py": b"",
        "/root/sample/speaker.py": SPEAKER.encode(),
        "/root/sample/web.py": WEB.encode(),
    }


def test_the_command_prints_the_url_of_the_web_function(server: ModalServer, project: Path) -> None:
    done = command(server, project, "deploy", "-m", "sample.web")
    assert done.returncode == 0, done.stderr
    assert f"https://{WORKSPACE}--sample-web-api.modal.run" in done.stdout
    assert "unauthenticated" not in done.stdout


@pytest.mark.slow
def test_recreate_stops_what_runs_and_rolling_does_not(
    server: ModalServer, project: Path, apps: None
) -> None:
    server.apps["sample-web"].containers.append("ta-1")
    importlib.import_module("sample.web").app.deploy(strategy="rolling")
    assert not server.sent("TaskList")
    done = command(server, project, "deploy", "--strategy", "recreate", "-m", "sample.web")
    assert done.returncode == 0, done.stderr
    assert [stop.task_id for stop in server.sent("ContainerStop")] == ["ta-1"]
    assert server.apps["sample-web"].containers == []


def test_a_second_deployment_keeps_the_ids(server: ModalServer, apps: None) -> None:
    importlib.import_module("sample.speaker").app.deploy()
    first, _, second = server.sent("AppPublish")
    assert first.app_id == second.app_id
    assert (first.function_ids, first.class_ids) == (second.function_ids, second.class_ids)
    assert server.apps["sample-speaker"].versions == 2


def test_deployed_things_are_found_by_name(server: ModalServer, apps: None) -> None:
    assert modal.App.lookup("sample-web").app_id == server.apps["sample-web"].id
    api = modal.Function.from_name("sample-web", "api")
    assert api.get_web_url() == f"https://{WORKSPACE}--sample-web-api.modal.run"
    server.stats["Speaker.*"] = pb.FunctionStats(backlog=3, num_total_tasks=1)
    speaker = modal.Cls.from_name("sample-speaker", "Speaker")()
    stats = speaker.speak.get_current_stats()
    assert (stats.backlog, stats.num_total_runners) == (3, 1)
    with pytest.raises(modal.exception.NotFoundError):
        modal.Function.from_name("sample-web", "apy").hydrate()
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sample-wep")


def test_the_autoscaler_can_be_changed(server: ModalServer, apps: None) -> None:
    speaker = modal.Cls.from_name("sample-speaker", "Speaker")()
    assert speaker.speak.autoscaler.update(min_containers=1).min_containers == 1
    settings = server.functions["Speaker.*"].autoscaler_settings
    assert (settings.min_containers, settings.max_containers) == (1, 1)


def test_apps_are_listed_logged_and_stopped(server: ModalServer, apps: None) -> None:
    server.apps["sample-web"].logs.append("Started.")
    app = modal.App.lookup("sample-web")
    assert [entry.message for entry in app.logs.tail(1)] == ["Started.\n"]
    app.stop()
    listed = modal.Environment.from_context().apps.list()
    assert [app.name for app in listed] == ["sample-speaker"]
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sample-web")


def test_calls_are_answered_by_the_test(server: ModalServer, apps: None) -> None:
    server.answers["Speaker.status"] = lambda: "warm"
    server.answers["Speaker.speak"] = lambda text: [text, text[::-1]]
    server.answers["download"] = lambda revision: {"revision": revision}
    speaker = modal.Cls.from_name("sample-speaker", "Speaker")()
    assert speaker.status.remote() == "warm"
    assert list(speaker.speak.remote_gen("abc")) == ["abc", "cba"]
    call = modal.Function.from_name("sample-speaker", "download").spawn("r1")
    assert call.get() == {"revision": "r1"}


def test_a_call_can_fail_at_once_or_in_the_middle(server: ModalServer, apps: None) -> None:
    server.answers["Speaker.status"] = lambda: ValueError("too cold")
    server.answers["Speaker.speak"] = lambda text: [text, RuntimeError("container died")]
    speaker = modal.Cls.from_name("sample-speaker", "Speaker")()
    with pytest.raises(ValueError, match="too cold"):
        speaker.status.remote()
    spoken = speaker.speak.remote_gen("abc")
    assert next(spoken) == "abc"
    with pytest.raises(RuntimeError, match="container died"):
        next(spoken)


@pytest.mark.parametrize("version", [1, 2])
def test_a_volume_keeps_its_files(server: ModalServer, client: modal.Client, version: int) -> None:
    volume = modal.Volume.from_name("prompts", create_if_missing=True, version=version)
    large = os.urandom(5 * 1024 * 1024)  # more than goes through gRPC
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"one"), "/a/one.txt")
        batch.put_file(io.BytesIO(large), "/a/b/large.bin", mode=0o600)
    assert server.volumes["prompts"].files == {"a/one.txt": b"one", "a/b/large.bin": large}
    assert server.volumes["prompts"].modes["a/b/large.bin"] == 0o600
    assert b"".join(volume.read_file("a/b/large.bin")) == large
    assert [entry.path for entry in volume.listdir("/")] == ["a"]
    recursive = [entry.path for entry in volume.listdir("/a", recursive=True)]
    assert recursive == ["a/b", "a/b/large.bin", "a/one.txt"]
    with pytest.raises(FileNotFoundError):
        list(volume.read_file("a/two.txt"))


def test_a_volume_overwrites_only_when_told(server: ModalServer, client: modal.Client) -> None:
    volume = modal.Volume.from_name("prompts", create_if_missing=True)
    for force in (False, True):
        with volume.batch_upload(force=force) as batch:
            batch.put_file(io.BytesIO(str(force).encode()), "one")
    with pytest.raises(FileExistsError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"again"), "one")
    assert server.volumes["prompts"].files == {"one": b"True"}
    volume.remove_file("one")
    assert server.volumes["prompts"].files == {}


def test_a_volume_that_nobody_made_is_not_found(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError):
        modal.Volume.from_name("prompts").hydrate()
    modal.Volume.objects.create("prompts")
    assert modal.Volume.from_name("prompts").hydrate().object_id == identify("vo", "prompts")
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Volume.objects.create("prompts")


def test_a_dict_puts_only_if_absent(client: modal.Client) -> None:
    claims = modal.Dict.from_name("claims", create_if_missing=True)
    assert claims.put(7, "ann", skip_if_exists=True)
    assert not claims.put(7, "bob", skip_if_exists=True)
    assert claims.get(7) == "ann" and claims.contains(7) and not claims.contains(8)
    claims["x"] = "y"
    assert claims.len() == 2 and dict(claims.items()) == {7: "ann", "x": "y"}
    assert claims.pop(7) == "ann" and claims.get(7) is None


def test_a_forgotten_secret_stops_the_deployment(server: ModalServer, project: Path) -> None:
    server.forget_secret("huggingface-token")
    done = command(server, project, "deploy", "-m", "sample.speaker")
    assert done.returncode == 1
    assert "huggingface-token" in done.stderr
    assert not server.sent("AppPublish")


def test_a_secret_is_forgotten_until_it_is_created(
    server: ModalServer, client: modal.Client
) -> None:
    server.forget_secret("huggingface-token")
    with pytest.raises(modal.exception.NotFoundError):
        modal.Secret.from_name("huggingface-token").hydrate()
    modal.Secret.objects.create("huggingface-token", {"HF_TOKEN": "hf_x"})
    modal.Secret.from_name("huggingface-token").hydrate()
    assert server.secrets["huggingface-token"].values == {"HF_TOKEN": "hf_x"}


def test_a_good_token_names_its_workspace(server: ModalServer, client: modal.Client) -> None:
    client.hello()
    assert modal.Workspace.from_context().hydrate().name == WORKSPACE
    assert [call.name for call in server.requests] == ["ClientHello", "WorkspaceNameLookup"]


def test_a_refused_token_is_an_auth_error(server: ModalServer, client: modal.Client) -> None:
    server.refuse_token()
    with pytest.raises(modal.exception.AuthError):
        client.hello()


def test_a_strange_token_is_refused(server: ModalServer, client: modal.Client) -> None:
    with (
        modal.Client.from_credentials("ak-strange", "as-strange") as stranger,
        pytest.raises(modal.exception.AuthError),
    ):
        stranger.hello()


def test_the_command_fails_with_a_refused_token(server: ModalServer, project: Path) -> None:
    server.refuse_token()
    done = command(server, project, "token", "info")
    assert done.returncode == 1
    assert "Token validation failed" in done.stderr


def test_an_unknown_environment_is_not_found(server: ModalServer, client: modal.Client) -> None:
    assert modal.Environment.from_name("main").hydrate().name == "main"
    with pytest.raises(modal.exception.NotFoundError):
        modal.Environment.from_name("test").hydrate()


def test_what_the_fake_lacks_fails_by_name(server: ModalServer, client: modal.Client) -> None:
    with pytest.raises(modal.exception.UnimplementedError, match="QueueGetOrCreate"):
        modal.Queue.from_name("jobs", create_if_missing=True).hydrate()
    assert server.requests[-1].name == "QueueGetOrCreate"
    assert server.requests[-1].message.deployment_name == "jobs"


async def call_again_and_again(
    addresses: list[object], callers: list[socket.socket], leave: Callable[[], None]
) -> None:
    """On the server's own loop: one caller at each of its steps, of which one asks it to leave."""
    for number in range(100):
        for address in addresses:
            callers.append(socket.socket())
            callers[-1].setblocking(False)
            callers[-1].connect_ex(address)
        if number == 50:
            leave()
        await asyncio.sleep(0)


def test_whoever_calls_while_it_leaves_is_shown_out() -> None:
    callers: list[socket.socket] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with ModalServer() as server:
            addresses = [listener.getsockname() for listener in (server._grpc, server._http)]
            calling = call_again_and_again(addresses, callers, server._reception.close)
            asyncio.run_coroutine_threadsafe(calling, server._loop)
            server._thread.join()
        gc.collect()
    for caller in callers:
        caller.settimeout(60)
        assert is_over(caller), "its connection is still open"
        caller.close()
    assert [str(warning.message) for warning in warned] == []


def is_over(caller: socket.socket) -> bool:
    try:
        while caller.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:  # reset, or never connected
        return True
    return True
