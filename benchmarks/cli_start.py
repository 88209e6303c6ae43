"""What a command of the CLI costs from start to end, as a whole process, against `python -c pass`.

`voices list` without a URL runs the whole app on a private socket; with one, it is only a client.
The commands take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from fakes import MODEL
from population import populate
from server import served

from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

VOICES = str(Path(sys.executable).with_name("voices"))
LISTED = 10


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--repeat", type=int, default=12, help="runs of each command")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        home = Path(folder)
        filled(home)
        with served(home) as url:
            found = measured(commands(url), home, asked)
    report(found)
    measure.record(asked.results, "cli_start", vars(asked), found)


def filled(home: Path) -> None:
    store = VoiceStore(DataDir(home))
    populate(store, LISTED, MODEL)
    store.close()


def commands(url: str) -> dict[str, list[str]]:
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "voices --help": [VOICES, "--help"],
        "voices version": [VOICES, "version"],
        "voices --url … list": [VOICES, "--url", url, "list"],
        "voices list": [VOICES, "list"],
    }


def measured(
    commands: dict[str, list[str]], home: Path, asked: argparse.Namespace
) -> dict[str, dict[str, object]]:
    times_s: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(-1, asked.repeat):  # one to warm the disk's cache
        for name, command in commands.items():
            taken_s = measure.seconds(lambda c=command: run(c, home))
            if turn >= 0:
                times_s[name].append(taken_s)
    bare = times_s["python -c pass"]
    return {
        name: {
            "median_ms": measure.ms(statistics.median(values)),
            "min_ms": measure.ms(min(values)),
            "to_python": measure.ratios(values, bare),
        }
        for name, values in times_s.items()
    }


def run(command: list[str], home: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VOICES_")}
    environment["VOICES_HOME"] = str(home)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def report(found: dict[str, dict[str, object]]) -> None:
    rows = [
        [name, f["median_ms"], f["min_ms"], *f["to_python"].values()] for name, f in found.items()
    ]
    measure.table(["command", "median ms", "min ms", "to python", "least", "most"], rows)


if __name__ == "__main__":
    main()
