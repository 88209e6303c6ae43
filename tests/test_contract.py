"""schemathesis asks the server for everything that its own OpenAPI document promises or forbids.

All phases and all checks; `contract_hooks.py` and `contract.toml` say what it can't know of us.
"""

import os
import subprocess
from pathlib import Path

import httpx
import pytest
from api import add
from conftest import PYTHON, ROOT

HERE = Path(__file__).parent / "support"
PHASES = "examples,coverage,fuzzing,stateful"
SEEDS = (11, 22, 33)


def hold_the_contract(client: httpx.Client, folder: Path, seed: int, examples: int) -> None:
    pytest.importorskip("schemathesis")
    assert add(client, "alice").status_code == 201
    command = (
        *(
            PYTHON,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(HERE / "contract.toml"),
            "run",
        ),
        *("--phases", PHASES, "--checks", "all", "--mode", "all", "--warnings", "off"),
        *("--seed", str(seed), "--max-examples", str(examples), "--continue-on-failure"),
        *("--no-color", str(client.base_url.join("/openapi.json"))),
    )
    path = os.pathsep.join((str(HERE), str(ROOT)))
    environ = os.environ | {"PYTHONPATH": path, "SCHEMATHESIS_HOOKS": "contract_hooks"}
    asked = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stdout[-20_000:] + asked.stderr[-2_000:]
    for phase in PHASES.split(","):
        assert f"✅  {phase.capitalize()} (in" in asked.stdout  # it was not skipped
    assert "Tested: 26" in asked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_server_keeps_what_its_description_says(
    client: httpx.Client, tmp_path: Path, seed: int
) -> None:
    hold_the_contract(client, tmp_path, seed, examples=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_server_keeps_it_for_many_more_requests(
    client: httpx.Client, tmp_path: Path, seed: int
) -> None:
    hold_the_contract(client, tmp_path, 1000 + seed, examples=200)
