"""Damaged clips of every kind, through the spool and the real decoder: decoded, or refused."""

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from conftest import PYTHON, ROOT

from registry.audio.report import Code

ENDS = {*get_args(Code), "decoded", "crashed"}
LONGEST_S = 120.0  # where the decoder has 40 s


def hold(folder: Path, seed: int, clips: int) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/support"))),
        "TMPDIR": str(temporary),
    }
    command = [
        PYTHON,
        ROOT / "tests/support/damaged_clips.py",
        folder / "home",
        str(seed),
        str(clips),
    ]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)
    print(found)
    assert sum(found["ends"].values()) == clips and found["ends"].keys() <= ENDS
    assert found["ends"]["decoded"] > clips / 20 < found["ends"]["audio-undecodable"]
    assert found["left"] == [] and list(temporary.iterdir()) == []
    assert found["slowest_s"] < LONGEST_S


@pytest.mark.slow
def test_a_few_damaged_clips_are_decoded_or_refused_and_leave_nothing(tmp_path: Path) -> None:
    hold(tmp_path, seed=1, clips=24)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_two_thousand_damaged_clips_are_decoded_or_refused_and_leave_nothing(
    tmp_path: Path,
) -> None:
    hold(tmp_path, seed=2, clips=2000)
