"""Build the wheel, install it where nothing else is, and use it from there.

Not a pytest test: it needs minutes and the package index. `make wheel` and CI run it. It warns of
distributions in its own environment that have packages of the names of ours.
"""

import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = {"inference/demo/model.safetensors", "inference/demo/speech_tokenizer/model.safetensors"}
TESTING = "inference/testing/"
PACKAGES = {"registry", "inference", "cli", "migrations"}
OWNERS = """
import importlib, importlib.metadata, importlib.util, sys
owners = importlib.metadata.packages_distributions()
for name in sys.argv[1:]:
    assert owners[name] == ["voice-registry"], (name, owners[name])
    file = importlib.import_module(name).__file__
    assert file.startswith(sys.prefix), file
assert importlib.util.find_spec("torch") is None
"""
TRY_OUT = ("--help", "version", "list", "doctor")


def main() -> None:
    for warning in collisions(packages_distributions()):
        print(warning, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        assert set(contents(wheel)) >= DEMO, DEMO
        assert not [name for name in contents(wheel) if name.startswith(TESTING)]
        top_level = {name.split("/")[0] for name in contents(wheel)}
        assert {n for n in top_level if not n.endswith(".dist-info")} == PACKAGES, top_level
        python = install(wheel, Path(folder))
        run(python, "-I", "-c", OWNERS, *sorted(PACKAGES))
        environ = {"VOICES_HOME": f"{folder}/home", "PATH": "/usr/bin:/bin"}
        for verb in TRY_OUT:
            run(str(Path(python).with_name("voices")), verb, env=environ, cwd=folder)
    print(f"{wheel.name}: {', '.join(sorted(PACKAGES))} are ours, and it works without torch")


def collisions(owners: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A sentence for each of our packages that another distribution has too.

    Whichever is installed last overwrites files of the other, and pip says nothing of it.
    """
    for name in sorted(PACKAGES):
        if others := sorted(set(owners.get(name, ())) - {"voice-registry"}):
            yield (
                f"Warning: {', '.join(others)} has a package {name!r} too, and files of one would "
                "overwrite those of the other. Install voice-registry in an environment of its own."
            )


def build(folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def contents(wheel: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def install(wheel: Path, folder: Path) -> str:
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel))
    return python


def run(*command: str, env: dict[str, str] | None = None, cwd: str | None = None) -> None:
    subprocess.run(command, check=True, env=env, cwd=cwd, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
