"""Dockerfile, .dockerignore and compose.yaml against the program.

No image is built here: these are the facts that the files repeat.
"""

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import click
import httpx
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cli.commands.serve import GRACEFUL_STOP_S, asks_keys, serve
from cli.main import cli
from registry.api.host_and_origin import Hosts
from registry.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", DOCKERFILE, re.MULTILINE)


def variables() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in instructions("ENV"):
        for word in shlex.split(line):
            name, _, value = word.partition("=")
            found.setdefault(name, []).append(value)
    return found


def served() -> dict[str, object]:
    """The options of `voices serve` in the image."""
    (line,) = instructions("CMD")
    command = yaml.safe_load(line)
    assert yaml.safe_load(instructions("ENTRYPOINT")[0]) == ["voices"] and command[0] == "serve"
    parent = click.Context(cli, **cli.context_settings)
    return serve.make_context("serve", command[1:], parent=parent).params


def test_the_image_has_a_python_that_the_package_supports() -> None:
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert Version(python) in SpecifierSet(PROJECT["project"]["requires-python"])
    assert instructions("FROM")[:2] == [
        f"python:${{PYTHON}}-slim AS {n}" for n in ("wheel", "base")
    ]


def test_both_targets_install_the_wheel_with_the_model_and_the_tested_versions() -> None:
    stages = dict(re.findall(r"^FROM base AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.S | re.M))
    assert stages.keys() == {"cpu", "cuda"}
    for stage in stages.values():
        installs = [line for line in stage.splitlines() if "pip install" in line]
        assert len(installs) == 2
        assert all("--constraint /opt/voices/constraints.txt" in line for line in installs)
        (extra,) = re.findall(r"whl\)\[(\w+)\]", stage)
        assert extra in PROJECT["project"]["optional-dependencies"]
        assert stage.rstrip().endswith("USER 10001")
        assert "useradd --uid 10001 " in DOCKERFILE


def test_the_variables_of_the_image_are_settings() -> None:
    ours = {name: values for name, values in variables().items() if name.startswith("VOICES_")}
    assert ours.keys() == {"VOICES_HOME", "VOICES_DEVICE"}
    for name, values in ours.items():
        for value in values:
            Settings.model_validate({"home": "/data", name.removeprefix("VOICES_").lower(): value})


def test_what_the_image_keeps_is_on_the_volumes() -> None:
    kept = {variables()["VOICES_HOME"][0], variables()["HF_HOME"][0]}
    made = re.findall(
        r"install --directory --owner voices .* --mode 0700 (/\w+) (/\w+)", DOCKERFILE
    )
    for service in SERVICES.values():
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert mounted.keys() == COMPOSE["volumes"].keys()
        assert set(mounted.values()) == kept == set(made[0])


def test_the_image_serves_on_the_port_that_it_and_compose_name() -> None:
    options = served()
    assert not asks_keys(str(options["host"]), "auto", bool(options["insecure_no_auth"]))
    assert instructions("EXPOSE") == [str(options["port"])]
    for service in SERVICES.values():
        assert service["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]


def test_health_is_asked_at_a_route_that_answers(client: httpx.Client) -> None:
    (line,) = instructions("HEALTHCHECK")
    asked = yaml.safe_load(line.partition("CMD ")[2])
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)'", asked[-1])[0]
    assert int(port) == served()["port"]
    assert client.get(path).status_code == 200
    for service in SERVICES.values():
        assert service["healthcheck"]["test"] == ["CMD", *asked]


def test_a_server_is_given_the_time_that_it_takes_to_stop() -> None:
    for service in SERVICES.values():
        assert int(service["stop_grace_period"].rstrip("s")) > GRACEFUL_STOP_S


def test_other_services_may_call_it_by_its_name() -> None:
    for name, service in SERVICES.items():
        listed = service["environment"]["VOICES_ALLOWED_HOSTS"]
        assert Settings.model_validate({"home": "/data", "allowed_hosts": listed})
        assert Hosts.of((str(served()["host"]),), listed.split(",")).know(f"{name}:8000")


def test_services_build_the_target_that_they_are_called_after() -> None:
    for service in SERVICES.values():
        target = service["build"]["target"]
        assert f"FROM base AS {target}\n" in DOCKERFILE
        assert service["image"] == f"voice-registry:{target}"
        for name in service["build"].get("args", {}):
            assert f"\nARG {name}=" in DOCKERFILE


def test_the_image_is_built_of_all_that_the_wheel_is_built_of() -> None:
    taken = {line[1:] for line in IGNORED if line.startswith("!")}
    packages = {
        name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages | set(PROJECT["project"]["license-files"]) <= taken
    assert {"pyproject.toml", PROJECT["project"]["readme"], "constraints.txt"} <= taken
    assert all((ROOT / name).exists() for name in taken)
    assert not any(fnmatch(".git", name) for name in taken)
