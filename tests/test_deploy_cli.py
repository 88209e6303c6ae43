"""`voices deploy` as a person uses it, against the fake control plane and Modal's real client."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from grpclib import GRPCError, Status
from modal_apps import WORKSPACE
from modal_proto import api_pb2 as pb
from modal_server import ModalServer

from cli.commands.deploy import in_words
from cli.main import cli
from cli.modal.account import AppState
from cli.modal.deployed import sources
from registry.modal.app import BACKUPS
from registry.modal.plan import deployment

pytestmark = pytest.mark.served

ROOT = Path(__file__).parent.parent
URL = f"https://{WORKSPACE}--voices-registry-api.modal.run"
REVISION = "fd4b254389122332181a7c3db7f27e918eec64e3"
MODEL = {"model_id": "Qwen/Qwen3-TTS-12Hz-1.7B-Base", "revision": REVISION}
Done = subprocess.CompletedProcess[str]
Voices = Callable[..., Done]
Typed = Callable[..., Result]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of somebody who has no account and no settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "VOICES_"))}
    own = {"HOME": str(tmp_path), "VOICES_CONFIG_HOME": str(tmp_path), "COLUMNS": "200"}
    return kept | own | {"MODAL_CONFIG_PATH": os.devnull, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def voices(environ: dict[str, str], tmp_path: Path) -> Voices:
    """The command as a child, in a folder that has nothing to do with us."""

    def run(*arguments: str, code: int = 0, answer: str = "", **more: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "deploy", *arguments],
            env=environ | more,
            cwd=tmp_path,
            input=answer,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """The same without a child, for what ends before Modal's client is needed."""
    for name in [name for name in os.environ if name.startswith("VOICES_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, code: int = 0, **variables: str) -> Result:
        result = CliRunner(env=variables).invoke(cli, ["deploy", *arguments])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def server() -> Iterator[ModalServer]:
    with ModalServer() as server:
        server.answers["download_model"] = lambda: put_model(server)
        yield server


@pytest.fixture(scope="module")
def first() -> Iterator[tuple[ModalServer, Done]]:
    """A server with both Apps and the model, and what the `voices deploy` that did it printed."""
    with ModalServer() as server:
        server.answers["download_model"] = lambda: put_model(server)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICES_")}
        line = [sys.executable, "-m", "cli.main", "deploy", "--yes"]
        options = {"cwd": ROOT, "env": environ | server.environ, "text": True}
        yield server, subprocess.run(line, capture_output=True, **options)


@pytest.fixture
def deployed(first: tuple[ModalServer, Done]) -> ModalServer:
    return first[0]


def put_model(server: ModalServer, name: str = "voices", **fields: str) -> None:
    """As `download_model` leaves the weights Volume."""
    found = MODEL | fields
    found["source"] = f"{found['model_id']}@{found['revision']}"
    server.volumes[f"{name}-weights"].files["model.json"] = json.dumps(found).encode()


def test_a_dry_run_prints_every_part_and_sends_nothing(typed: Typed) -> None:
    printed = typed("--dry-run").stdout
    plan = deployment({})
    for name in (plan.inference_app, plan.registry_app):
        assert f"App {name} " in printed
    for name in (plan.state_volume, plan.weights_volume, plan.backup_volume):
        assert f"Volume {name} " in printed
    assert f"Dict {plan.claims_dict} " in printed
    for part in ("T4", "0 to 1 container", "60 idle seconds", "32 speeches", "last seven backups"):
        assert part in printed
    assert "a proxy token" in printed


def test_a_dry_run_says_the_cost_and_how_it_was_computed(typed: Typed) -> None:
    said = typed("--dry-run").stderr
    assert "nothing while nobody speaks; about $0.75 an hour" in said
    assert "$0.0125 for the 60 s" in said
    assert "by estimate $0.0027 per minute of speech" in said
    assert "third-party prices of 2026-08" in said and "not a measurement" in said
    assert "$0.02 for one request to a GPU that was off" in said and "$30 a month" in said
    kept = typed("--dry-run", "--min-containers", "1", "--region", "eu").stderr
    assert "$27 to $31 a day all the time" in kept and "multiplies by 1.5 to 1.75" in kept
    assert "by estimate" not in typed("--dry-run", "--gpu", "L4").stderr
    small = typed("--dry-run", "--model", "Qwen/Qwen3-TTS-12Hz-0.6B-Base").stderr
    assert "by estimate $0.0017 per minute" in small and "11.0 ms" in small
    assert "by estimate" not in typed("--dry-run", "--model", "demo").stderr
    assert "about $0.75 to $0.96 an hour" in typed("--dry-run", "--gpu", "T4,L4").stderr


def test_options_go_over_variables(typed: Typed) -> None:
    given = {"VOICES_DEPLOY_GPU": "L4", "VOICES_DEPLOY_NAME": "team"}
    printed = typed("--gpu", "A10", "--no-proxy-auth", "--dry-run", **given).stdout
    assert "A10" in printed and "L4" not in printed
    assert "App team-registry" in printed
    assert "anyone may enrol and delete voices" in printed


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("--gpu", "T5"), {}, "--gpu 'T5': it must be one of T4"),
        (("--gpu", "t4,T5"), {}, "--gpu 'T4,T5': it must be one of T4"),
        (("--gpu", "T4:2"), {}, "--gpu 'T4:2': it must be one of T4"),
        (("--gpu", "T4,"), {}, "--gpu 'T4,': it must be one of T4"),
        (("--model", "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice"), {}, "can't clone one, as Qwen/"),
        (("--model", "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice"), {}, "can't clone one, as Qwen/"),
        (("--model", f"Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign@{REVISION}"), {}, "can't clone one"),
        (("--model", f"somebody/qwen3-tts-customvoice@{REVISION}"), {}, "can't clone one"),
        (("--slots", "many"), {}, "--slots 'many': it must be a whole number"),
        (("--speak-limit", "150"), {}, "--speak-limit 150: it must be 10 to 140"),
        (("--scaledown", "1"), {}, "--scaledown 1: it must be 2 to 1200"),
        (("--min-containers", "2"), {}, "--min-containers 2: it must be 0 to 1"),
        (("--snapshot", "yes"), {}, "--snapshot 'yes': it must be one of cpu"),
        (("--region", "E U"), {}, "--region 'E U': it must be a region"),
        (("--name", "My_Voices"), {}, "--name 'My_Voices': it must be lower case"),
        (("--model", "somebody/unknown"), {}, "somebody/unknown"),
        (("--hf-secret", "hf_abc"), {}, "--hf-secret 'hf_abc': it must be the name of a secret"),
        (("--hf-secret", "a b"), {}, "it must be the name of a secret at Modal, not a token"),
        (("--model", "/etc"), {}, "--model '/etc': it must be a hub id"),
        ((), {"VOICES_DEPLOY_GPU": "T5"}, "VOICES_DEPLOY_GPU='T5': it must be one of"),
        ((), {"VOICES_DEPLOY_GPUS": "T4"}, "VOICES_DEPLOY_GPUS is not a setting"),
        (("--dry-run", "stop"), {}, "--dry-run are for `voices deploy` alone"),
        (("--only", "inference", "status"), {}, "--only, --again and --dry-run are for"),
        (("--only", "gpu"), {}, "'gpu' is not one of 'registry', 'inference'"),
        (("stpo",), {}, "No such command 'stpo'"),
        (("logs", "-f", "--tail", "3"), {}, "--follow begins now"),
        (("logs", "gpu"), {}, "'gpu' is not one of 'registry', 'inference'"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_sent(
    typed: Typed, arguments: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    assert said in typed(*arguments, code=2, **variables).stderr


@pytest.mark.parametrize("verb", [(), ("status",), ("logs",), ("settings",)])
def test_without_an_account_it_says_how_to_log_in(voices: Voices, verb: tuple[str, ...]) -> None:
    refused = voices(*verb, code=1).stderr
    assert "Error: Modal lets nobody in from here (Token missing)." in refused
    assert refused.count("`modal token new`") == 1 and "logs you in." in refused


def test_a_refused_account_creates_nothing(voices: Voices, server: ModalServer) -> None:
    server.refuse_token()
    refused = voices(code=1, **server.environ).stderr
    assert "Error: Modal lets nobody in from here (Token validation failed)." in refused
    assert {call.name for call in server.requests} <= {"ClientHello", "WorkspaceNameLookup"}


def test_without_the_client_it_says_what_to_install(voices: Voices, tmp_path: Path) -> None:
    (tmp_path / "modal.py").write_text("raise ModuleNotFoundError('modal')")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    for verb in ((), ("status",)):
        refused = voices(*verb, code=1, PYTHONPATH=path).stderr
        assert refused == (
            "Error: This needs Modal's client: pip install 'voice-registry[modal]'\n"
        )
    voices("--dry-run", PYTHONPATH=path)


@pytest.mark.slow
def test_where_nothing_is_deployed_that_is_said(voices: Voices, server: ModalServer) -> None:
    told = voices("status", **server.environ).stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in told] == ["not deployed"] * 2 + ["no model"]
    assert "Nothing of voices is deployed." in voices("stop", **server.environ).stderr
    assert "is not deployed" in voices("warm", code=1, **server.environ).stderr
    refused = voices("logs", "inference", code=1, **server.environ).stderr
    assert refused.endswith("Error: voices-inference is not deployed. `voices deploy` does that.\n")
    assert "No settings of voices are kept" in voices("settings", code=1, **server.environ).stderr
    assert not server.sent("VolumeGetOrCreate")[0].object_creation_type


@pytest.mark.slow
def test_one_command_deploys_all_of_it(first: tuple[ModalServer, Done]) -> None:
    server, done = first
    assert (done.returncode, done.stdout) == (0, f"{URL}\n"), done.stderr
    plan = deployment({})
    volumes = {plan.state_volume, plan.weights_volume, plan.backup_volume}
    asked = server.sent("VolumeGetOrCreate")[:3]
    assert {ask.deployment_name for ask in asked} == volumes == server.volumes.keys()
    assert {ask.version for ask in asked} == {pb.VOLUME_FS_VERSION_V1}
    assert plan.claims_dict in server.dicts
    assert server.apps[plan.inference_app].deployed and server.apps[plan.registry_app].deployed
    assert {f.resources.gpu_config.gpu_type for f in server.functions.values()} == {"", "T4"}
    assert server.functions["api"].webhook_config.requires_proxy_auth
    names = [call.name for call in server.requests]
    assert names.index("FunctionMap") < names.index("AppGetByDeploymentName")  # the model first
    for said in (
        f"Workspace {WORKSPACE}: ",
        f"voices-weights holds {MODEL['model_id']}@{REVISION}.",
        f"  voices login {URL}\n",
        "modal workspace proxy-tokens create",
        "https://modal.com/settings/proxy-auth-tokens",
        "Cost: nothing while nobody speaks",
    ):
        assert said in done.stderr


OTHERS = (
    *("--gpu", "L4", "--region", "eu", "--min-containers", "1", "--scaledown", "120"),
    *("--slots", "8", "--snapshot", "off", "--no-proxy-auth", "--hf-secret", "huggingface-token"),
    "--keys",
)


@pytest.mark.slow
def test_what_is_sent_is_what_a_dry_run_says(
    first: tuple[ModalServer, Done], voices: Voices, typed: Typed, server: ModalServer
) -> None:
    compare(first[0], typed("--dry-run").stdout)
    voices(*OTHERS, "--yes", **server.environ)
    compare(server, typed(*OTHERS, "--dry-run").stdout)


def compare(server: ModalServer, printed: str) -> None:
    said = functions_in(printed)
    assert said.keys() == {tag.removesuffix(".*") for tag in server.functions}
    for tag, sent in server.functions.items():
        text = said[tag.removesuffix(".*")]
        cores, gib = sent.resources.milli_cpu / 1000, sent.resources.memory_mb // 1024
        assert re.search(rf"\b{cores:g} cores?, {gib} GiB", text)
        assert text.startswith(sent.resources.gpu_config.gpu_type)
        assert mounts_in(text) == mounted(server, sent)
        assert ("HF_TOKEN" in text) == bool(sent.secret_ids)
        assert times_in(text) == sent.schedule.cron.cron_string
        assert "FROM python:3.12" in server.commands(sent.image_id)[0]
    for tag in ("Voices.*", "api"):
        sent, text = server.functions[tag], said[tag.removesuffix(".*")]
        scaling, [*regions] = sent.autoscaler_settings, sent.scheduler_placement.regions
        assert scaling.max_containers == 1
        assert ("1 container, always" in text) == (scaling.min_containers == 1)
        assert scaling.min_containers or f"after {scaling.scaledown_window} idle s" in text
        assert f"in {regions[0] if regions else 'any region'}" in text
    voices, api = server.functions["Voices.*"], server.functions["api"]
    assert ("memory snapshot: off" in said["Voices"]) != voices.checkpointing_enabled
    assert ("asks for a proxy token" in said["api"]) == api.webhook_config.requires_proxy_auth
    assert f"Volume {deployment({}).backup_volume}" in printed and BACKUPS == 7
    for kind, made in (("Volume", server.volumes), ("Dict", server.dicts)):
        assert set(re.findall(rf"^{kind} (\S+)", printed, re.MULTILINE)) == made.keys()
    assert set(re.findall(r"^Secret (\S+)", printed, re.MULTILINE)) == server.secrets.keys()


def functions_in(printed: str) -> dict[str, str]:
    """What a dry run says of each function."""
    found: dict[str, str] = {}
    for line in printed.splitlines():
        name, text = line[:24], line[25:]
        if name.startswith("  ") and name.strip():
            found[name.strip()] = text
        elif found and not name.strip():
            found[[*found][-1]] += f"\n{text}"
    return found


def mounts_in(text: str) -> set[tuple[str, ...]]:
    return set(re.findall(r"(\S+) at (/\w+)( \(read-only\))?", text))


def mounted(server: ModalServer, function: pb.Function) -> set[tuple[str, ...]]:
    names = {volume.id: name for name, volume in server.volumes.items()}
    mounts = function.volume_mounts
    modes = {True: " (read-only)", False: ""}
    return {(names[m.volume_id], m.mount_path, modes[m.read_only]) for m in mounts}


def times_in(text: str) -> str:
    """As cron has them."""
    found = re.search(r"every day at (\d\d):(\d\d) UTC", text)
    return f"{int(found[2])} {int(found[1])} * * *" if found else ""


@pytest.mark.slow
def test_a_second_time_keeps_what_is_there(voices: Voices, deployed: ModalServer) -> None:
    deployed.volumes["voices-state"].files["mine"] = b"kept"
    downloads = len(deployed.sent("FunctionMap"))
    done = voices("--no-proxy-auth", "--gpu", "L4", answer="y\n", **deployed.environ)
    assert "  gpu: T4 → L4\n  proxy-auth: yes → no\nChange voices like that? " in done.stderr
    assert f"voices-weights holds {MODEL['model_id']}@{REVISION}." in done.stderr
    assert f"voices login --no-token {URL}" in done.stderr
    assert not deployed.functions["api"].webhook_config.requires_proxy_auth
    assert deployed.functions["Voices.*"].resources.gpu_config.gpu_type == "L4"
    assert deployed.volumes["voices-state"].files["mine"] == b"kept"
    assert len(deployed.sent("FunctionMap")) == downloads


@pytest.mark.slow
def test_the_model_is_offered_and_may_wait(voices: Voices, server: ModalServer) -> None:
    done = voices(answer="n\n", **server.environ)
    assert "holds no model yet; Qwen/" in done.stderr and "wanted, 4.5 GB" in done.stderr
    assert "before `voices deploy model` has done that" in done.stderr
    assert server.apps["voices-registry"].deployed and not server.sent("FunctionMap")
    assert f"holds {MODEL['model_id']}@{REVISION}." in voices("model", **server.environ).stderr


@pytest.mark.slow
def test_a_token_for_the_hub_reaches_the_download_and_nothing_else(
    voices: Voices, typed: Typed, server: ModalServer
) -> None:
    named = ("--hf-secret", "huggingface-token")
    assert "Secret huggingface-token " in typed(*named, "--dry-run").stdout
    voices(*named, "--yes", **server.environ)
    secret = server.secrets["huggingface-token"]
    holders = [tag for tag, function in server.functions.items() if function.secret_ids]
    assert secret.required_keys == ["HF_TOKEN"] and holders == ["download_model"]
    assert list(server.functions["download_model"].secret_ids) == [secret.id]
    assert server.secrets.keys() == {"huggingface-token"}


@pytest.mark.slow
def test_a_secret_that_is_not_there_is_said_by_name(voices: Voices, server: ModalServer) -> None:
    server.forget_secret("huggingface-token")
    named = {"VOICES_DEPLOY_HF_SECRET": "huggingface-token"}
    refused = voices("model", code=1, **server.environ, **named).stderr
    assert "huggingface-token" in refused and "The model did not come" in refused
    assert "voices-inference" not in server.apps


@pytest.mark.slow
def test_a_model_that_does_not_come_is_said(voices: Voices, server: ModalServer) -> None:
    server.answers["download_model"] = lambda: put_model(server, revision="0" * 40)
    said = voices("--yes", code=1, **server.environ).stderr
    assert "The model did not come: the download ended well, but voices-weights holds" in said
    assert f"@{'0' * 40}, not {MODEL['model_id']}@{REVISION}." in said
    assert "voices-registry" not in server.apps


@pytest.mark.slow
def test_a_step_that_fails_says_what_is_there(voices: Voices, server: ModalServer) -> None:
    create = server.AppCreate

    def refuse(request: pb.AppCreateRequest) -> object:
        if request.description == "voices-registry":
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "There are too many Apps.")
        return create(request)

    server.AppCreate = refuse  # type: ignore[assignment, method-assign]
    refused = voices(code=1, answer="n\n", **server.environ)
    assert "There are too many Apps." in refused.stderr
    assert refused.stderr.endswith(
        "Error: voices-registry was not deployed: `modal deploy --strategy recreate -m "
        "registry.modal.app` exited with 1 and says why above. The Volumes are there, and so is "
        "voices-inference; run `voices deploy` again when that is mended.\n"
    )
    assert refused.stdout == ""


# What is deployed is remembered


def deployments(server: ModalServer) -> list[str]:
    """Of Apps that stay: `modal run` publishes one without a name."""
    return [publish.name for publish in server.sent("AppPublish") if publish.name]


def speaker(server: ModalServer) -> pb.Function:
    """The class as it is deployed; `modal run` makes others of the same name."""
    return server._functions[server.apps["voices-inference"].function_ids["Voices.*"]][1]


def gpu(server: ModalServer) -> str:
    return speaker(server).resources.gpu_config.gpu_type


SMALL = "Qwen/Qwen3-TTS-12Hz-0.6B-Base"
SMALL_REVISION = "5d83992436eae1d760afd27aff78a71d676296fc"


@pytest.fixture
def small(voices: Voices, server: ModalServer) -> ModalServer:
    """The small model on an L4, deployed with options that are not given again."""

    def download() -> None:
        spec = server.commands(server.functions["download_model"].image_id)
        revision = SMALL_REVISION if any(SMALL in line for line in spec) else REVISION
        put_model(
            server, model_id=SMALL if revision != REVISION else MODEL["model_id"], revision=revision
        )

    server.answers["download_model"] = download
    voices("--model", SMALL, "--gpu", "l4", "--slots", "8", "--yes", **server.environ)
    return server


@pytest.mark.slow
def test_settings_that_are_not_given_stay(voices: Voices, small: ModalServer) -> None:
    again = voices("--yes", **small.environ).stderr
    assert "Its settings stay as they are." in again
    assert again.count("is there as it would be deployed, and goes on.") == 2
    assert deployments(small) == ["voices-inference", "voices-registry"]
    assert (
        f"voices-weights holds {SMALL}@{SMALL_REVISION}." in voices("model", **small.environ).stderr
    )
    assert len(deployments(small)) == 2, "its snapshot has the model already"
    told = voices("status", **small.environ).stdout
    assert re.search(r"^gpu +L4$", told, re.MULTILINE)
    assert re.search(rf"^model +{SMALL}@{SMALL_REVISION}$", told, re.MULTILINE)
    printed = voices("settings", **small.environ).stdout
    assert "VOICES_DEPLOY_GPU=L4\n" in printed and "VOICES_DEPLOY_SLOTS=8\n" in printed
    said = voices("--slots", "16", "--yes", **small.environ).stderr
    assert "  slots: 8 → 16\n" in said and gpu(small) == "L4"
    assert speaker(small).max_concurrent_inputs == 16 + 64


@pytest.mark.slow
def test_what_changes_is_asked_about_first(voices: Voices, small: ModalServer) -> None:
    assert "give --yes" in voices("--gpu", "T4", code=2, **small.environ).stderr
    assert (
        "Nothing was changed."
        in voices("--gpu", "T4", code=1, answer="n\n", **small.environ).stderr
    )
    assert (gpu(small), len(deployments(small))) == ("L4", 2)
    variable = {"VOICES_DEPLOY_MODEL": MODEL["model_id"]}
    changed = voices("--yes", **small.environ, **variable).stderr
    assert f"  model: {SMALL}@{SMALL_REVISION} → {MODEL['model_id']}@{REVISION}\n" in changed
    assert "registry.modal.app::use_model" in changed and gpu(small) == "L4"


@pytest.mark.slow
def test_a_setting_can_be_taken_back(voices: Voices, server: ModalServer) -> None:
    given = ("--region", "eu", "--no-proxy-auth", "--keys", "--hf-secret", "mine")
    voices(*given, "--yes", **server.environ)
    back = ("--region", "any", "--proxy-auth", "--no-keys", "--hf-secret", "none")
    said = voices(*back, "--yes", **server.environ).stderr
    changed = ("region: eu → none", "proxy-auth: no → yes", "keys: yes → no")
    for line in (*changed, "hf-secret: mine → none"):
        assert f"  {line}\n" in said
    assert not server.functions["Voices.*"].scheduler_placement.regions
    assert server.functions["api"].webhook_config.requires_proxy_auth


@pytest.mark.slow
def test_another_model_than_the_deployed_one_is_not_downloaded_beside_it(
    voices: Voices, small: ModalServer
) -> None:
    refused = voices("--model", "demo", "model", code=2, **small.environ).stderr
    assert (
        f"voices is deployed for {SMALL}@{SMALL_REVISION}: `voices deploy --model demo`" in refused
    )
    assert json.loads(small.volumes["voices-weights"].files["model.json"])["model_id"] == SMALL


@pytest.mark.slow
def test_a_deployment_whose_settings_were_not_kept_is_not_guessed(
    voices: Voices, small: ModalServer
) -> None:
    """As an older version of this program left it."""
    del small.volumes["voices-weights"].files["deployment.json"]
    for options in ((), ("--gpu", "L4"), ("--model", SMALL)):
        refused = voices(*options, "--yes", code=2, **small.environ).stderr
        assert "its settings were not kept" in refused
    voices("--gpu", "L4", "--model", SMALL, "--yes", **small.environ)
    assert "Its settings stay as they are." in voices("--yes", **small.environ).stderr


DEEP = b"[" * 50_000


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"settings": 1, "apps": {}}', DEEP])
def test_damaged_settings_are_said(voices: Voices, small: ModalServer, content: bytes) -> None:
    small.volumes["voices-weights"].files["deployment.json"] = content
    assert "is damaged. `modal volume rm" in voices("--yes", code=1, **small.environ).stderr
    assert len(deployments(small)) == 2


@pytest.mark.slow
def test_settings_of_a_newer_program_are_not_dropped(voices: Voices, small: ModalServer) -> None:
    files = small.volumes["voices-weights"].files
    kept = json.loads(files["deployment.json"])
    kept["settings"]["VOICES_DEPLOY_TOMORROW"] = "1"
    files["deployment.json"] = json.dumps(kept).encode()
    refused = voices("--yes", code=1, **small.environ).stderr
    assert "VOICES_DEPLOY_TOMORROW is not a setting" in refused and "newer version" in refused


@pytest.mark.slow
def test_only_what_changed_is_deployed(voices: Voices, server: ModalServer) -> None:
    assert "--only is for a deployment that is there" in (
        voices("--only", "registry", "--yes", code=2, **server.environ).stderr
    )
    voices(answer="n\n", **server.environ)
    assert deployments(server) == ["voices-inference", "voices-registry"]
    voices("model", **server.environ)
    assert deployments(server)[2:] == ["voices-inference"], "its snapshot was without a model"
    voices(**server.environ)
    assert len(deployments(server)) == 3
    voices("--only", "registry", "--again", **server.environ)
    assert deployments(server)[3:] == ["voices-registry"]
    refused = voices("--only", "registry", "--slots", "4", "--yes", code=2, **server.environ).stderr
    assert "--only deploys an App as it is; slots is for both." in refused
    server.apps["voices-registry"].versions += 1  # a rollback, or a `modal deploy` by hand
    voices(**server.environ)
    assert deployments(server)[4:] == ["voices-registry"]


def test_what_decides_whether_an_app_changed_is_what_is_uploaded_for_it(
    first: tuple[ModalServer, Done],
) -> None:
    for tag, inference in (("Voices.*", True), ("api", False)):
        mounts = first[0].functions[tag].mount_ids
        uploaded = {
            name.removeprefix("/root/"): content
            for name, content in first[0].uploaded(*mounts).items()
        }
        assert dict(sources(inference=inference)) == uploaded


@pytest.mark.slow
def test_several_gpus_are_sent_in_their_order(voices: Voices, server: ModalServer) -> None:
    voices("--gpu", "l4, t4,L4", "--yes", **server.environ)
    assert server.choices["Voices.*"] == ["L4", "T4"]
    voices("--gpu", "rtx-pro-6000", "--yes", **server.environ)
    assert server.choices["Voices.*"] == ["RTX-PRO-6000"]


def test_status_counts_without_starting_anything(voices: Voices, deployed: ModalServer) -> None:
    deployed.stats["Voices.*"] = pb.FunctionStats(backlog=2, num_total_tasks=1)
    deployed.requests.clear()
    told = json.loads(voices("status", "--json", **deployed.environ).stdout)
    assert told["url"] == URL
    assert told["model"]["revision"] == REVISION
    assert told["apps"] == [
        {"name": "voices-registry", "deployed": True, "containers": 0, "waiting": 0},
        {"name": "voices-inference", "deployed": True, "containers": 1, "waiting": 2},
    ]
    assert told["settings"].items() >= {"slots": "32", "region": "none"}.items()
    assert told["settings"]["gpu"] in ("T4", "L4")  # as another test may have changed it
    assert in_words(AppState("a", True, 1, 2)) == "deployed, 1 container, 2 waiting"
    assert in_words(AppState("a", True)) == "deployed, no container, 0 waiting"
    assert not deployed.sent("FunctionMap")


@pytest.mark.slow
def test_logs_are_those_of_the_app_that_was_asked_for(
    voices: Voices, deployed: ModalServer
) -> None:
    deployed.apps["voices-registry"].logs[:] = ["from the registry"]
    deployed.apps["voices-inference"].logs[:] = ["from the inference"]
    assert voices("logs", **deployed.environ).stdout == "from the registry\n"
    asked = voices("logs", "inference", "--tail", "5", **deployed.environ)
    assert asked.stdout == "from the inference\n"


@pytest.mark.slow
def test_warm_calls_the_gpu_and_waits(voices: Voices, deployed: ModalServer) -> None:
    calls: list[str] = []
    deployed.answers["Voices.status"] = lambda: calls.append("status") or {"error": None}
    said = voices("warm", **deployed.environ).stderr
    assert calls == ["status"]
    assert "about $0.96 an hour until it has been idle for 60 s" in said, "it is an L4 by now"
    deployed.answers["Voices.status"] = lambda: {"state": "failed", "error": "It does not fit."}
    failed = voices("warm", code=1, **deployed.environ).stderr
    assert "It does not fit. `voices deploy logs inference` says more." in failed


@pytest.mark.slow
def test_stop_asks_and_keeps_the_volumes(voices: Voices, deployed: ModalServer) -> None:
    asked = voices("stop", answer="n\n", **deployed.environ).stderr
    assert "Stop voices-registry and voices-inference?" in asked and "Nothing was stopped." in asked
    assert "give --yes" in voices("stop", code=2, **deployed.environ).stderr
    assert not deployed.sent("AppStop")
    assert "so do the voices" in voices("stop", "--yes", **deployed.environ).stderr
    assert not any(app.deployed for app in deployed.apps.values())
    assert {"voices-state", "voices-weights", "voices-backup"} == deployed.volumes.keys()
