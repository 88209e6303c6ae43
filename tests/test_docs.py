"""The documentation against the program: what it lists exists, and what exists is listed."""

import asyncio
import importlib.util
import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import httpx
import numpy as np
import pytest
import soundfile
from api import add
from numpy.typing import NDArray
from speaking import run_python

from cli.main import cli
from inference import engine
from inference.engine import EngineConfig, frame_budget
from inference.models.catalog import LocatedModel
from inference.serving.service import InferenceService
from registry import errors, key_errors, names
from registry.api import problems, requests
from registry.api.native.speak import SpeakRequest
from registry.api.openai import errors as openai_errors
from registry.audio import clips as audio
from registry.audio.decoding import confinement
from registry.audio.formats import FORMATS, AudioFormat
from registry.contract import PromptRef
from registry.errors import ClipUnsupported, ClipUnusable
from registry.settings import Settings
from registry.storage import tables as models
from registry.storage.data_dir import DataDir, sha256_of
from registry.storage.schemas import VoicePublic

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
STORAGE = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
ENGINE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
ERRORS = (errors, key_errors, openai_errors)
ENGINE_SOURCES = ROOT / "inference" / "engine"


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order; of those without one for the empty string."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def code_block(page: str, language: str) -> str:
    return code_blocks(page, language)[0]


def section(page: str, heading: str) -> str:
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def generator():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_program_says() -> None:
    for path, text in generator().pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run python docs/generate.py ({path})"


def test_every_command_has_help_and_an_example() -> None:
    for context, command in generator().commands(cli, "voices"):
        assert command.help, context.command_path
        if not isinstance(command, click.Group):
            assert "Example" in command.help, context.command_path
            assert "  voices " in command.help or "$(voices" in command.help


def test_the_file_tree_is_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("not a git checkout")
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = set(tree(code_block(page.partition("\n## Files")[2], "")))
    opened = {"", *(path.rpartition("/")[0] + "/" for path in shown if "/" in path.rstrip("/"))}
    opened = {folder for folder in opened if folder == "" or is_opened(folder, shown)}
    assert shown == {entry for file in listed.stdout.split() for entry in entries(file, opened)}


def tree(block: str) -> Iterator[str]:
    """The paths of an indented tree: two spaces a level, folders end with a slash."""
    folders: list[str] = []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        yield "".join(folders[: depth + 1])


def is_opened(folder: str, shown: set[str]) -> bool:
    return any(path != folder and path.startswith(folder) for path in shown)


def entries(file: str, opened: set[str]) -> Iterator[str]:
    """What stands for `file` in a tree where only some folders are opened."""
    path = ""
    for part in re.findall(r"[^/]+/?", file):
        path += part
        yield path
        if path not in opened:
            return


def test_every_route_is_on_the_api_page_and_no_other(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, ops in paths.items() for method in ops}
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", API, re.MULTILINE)) == routes


def test_every_error_code_is_on_the_api_page_and_no_other() -> None:
    documented = set()
    for row in re.findall(r"^\| \d{3} \| ([^|]+) \|", API, re.MULTILINE):
        documented |= set(re.findall(r"`([a-z-]+)`", row))
    assert documented == raised_codes()


def test_every_error_code_has_the_status_that_the_api_page_says() -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", API, re.MULTILINE)
    documented = {code: int(s) for s, row in rows for code in re.findall(r"`([a-z-]+)`", row)}
    for error in [error for kinds in ERRORS for error in vars(kinds).values()]:
        if is_error(error) and error.code in documented and not issubclass(error, ClipUnusable):
            assert documented[error.code] == error.status, error.code
    for code in (code for code in documented if code.startswith("audio-")):
        kind = ClipUnsupported if code == "audio-unsupported" else ClipUnusable
        assert documented[code] == kind.status, code
    for status, code in problems.HTTP_CODES.items():
        assert documented[code] == status


def raised_codes() -> set[str]:
    own = {c.code for kinds in ERRORS for c in vars(kinds).values() if is_error(c)}
    own -= {
        "schema-too-new",
        "database-lost",
        "setting-invalid",
        "folder-in-use",
    }  # refused before anything is served
    sources = [path.read_text("utf-8") for path in (ROOT / "registry").rglob("*.py")]
    clips = set(re.findall(r'"(audio-[a-z-]+)"', "".join(sources)))
    return own | clips | set(problems.HTTP_CODES.values())


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception) and hasattr(value, "code")


def test_a_prompt_file_is_read_by_the_storage_page_alone(
    data: DataDir, service_factory, enrol
) -> None:
    service: InferenceService = service_factory()
    source = enrol(seed=3, transcript="Zoë said so.")
    made = asyncio.run(service.extract_prompt(source))
    path = data.prompt(PromptRef(source.voice_id, made.fingerprint, made.sha256))
    page: dict[str, object] = {}
    exec(code_block(STORAGE, "python"), page)
    metadata, arrays = page["read_prompt"](path)  # type: ignore[operator]
    assert sha256_of(path.read_bytes()) == made.sha256
    assert arrays["ref_code"].dtype == np.int16
    assert arrays["ref_code"].shape == (made.frames, 16)
    assert 0 <= arrays["ref_code"].min() <= arrays["ref_code"].max() < 128
    assert arrays["ref_spk_embedding"].shape == (64,)
    assert np.isfinite(arrays["ref_spk_embedding"]).all()
    assert metadata["transcript"] == "Zoë said so."
    assert metadata["modes"] == "icl,xvec"
    assert fingerprint_by_the_page(metadata) == metadata["fingerprint"] == made.fingerprint


def fingerprint_by_the_page(metadata: dict[str, str]) -> str:
    keys = ("clip_sha256", "format", "model_id", "model_revision", "preprocessing", "transcript")
    parts = {key: metadata.get(key) for key in keys}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_of(canonical.encode())


def test_the_worked_fingerprint_is_right() -> None:
    example = code_block(STORAGE, "json").strip()
    assert f"gives `{sha256_of(example.encode())}`" in STORAGE
    assert fingerprint_by_the_page(json.loads(example)) == sha256_of(example.encode())


def test_the_tables_on_the_storage_page_are_those_of_the_database(
    client: httpx.Client, data: DataDir
) -> None:
    add(client, "alice")
    with closing(sqlite3.connect(data.database)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
        for table in re.findall(r"^\| `([a-z_]+)` \| ", STORAGE, re.MULTILINE):
            if table in tables:
                tables.remove(table)
                rows = re.search(rf"^\| `{table}` \| (.*)$", STORAGE, re.MULTILINE)
                columns = [r[1] for r in database.execute(f"PRAGMA table_info({table})")]
                assert rows is not None
                assert all(f"`{column}`" in rows[1] for column in columns if column != "id"), table
    left = [t for t in tables if not re.match(r"sqlite_|ix_|label_value|voice_live", t)]
    assert left == ["alembic_version"]


def test_the_revision_of_a_folder_is_computed_as_the_storage_page_says(
    located: LocatedModel,
) -> None:
    names = code_block(STORAGE, "text").split()
    lines = [f"{sha256_of((located.path / name).read_bytes())}  {name}\n" for name in names]
    assert sha256_of("".join(sorted(lines, key=lambda line: line[66:])).encode()) == (
        located.ref.revision
    )


def test_the_examples_on_the_api_page_are_what_the_server_answers(client: httpx.Client) -> None:
    voice, ready, problem = (json.loads(block) for block in code_blocks(API, "json"))
    assert VoicePublic.model_validate(voice).model_dump() == voice
    add(client, "alice")
    assert client.get("/voices/alcie").json() == problem
    found = client.get("/readyz").json()
    assert found.keys() == ready.keys() and found["inference"].keys() == ready["inference"].keys()


def test_the_fields_and_headers_of_speak_are_on_the_api_page_and_no_others(
    client: httpx.Client,
) -> None:
    first = re.findall(r"^\| (`[^|]+) \|", section(API, "Speak"), re.MULTILINE)
    listed = set(re.findall(r"`([^`]+)`", " ".join(first)))
    add(client, "alice")
    asked = {"voice": "alice", "text": "Hi", "loudness": -23}
    headers = client.post("/speak", json=asked).headers
    ours = {name for name in headers if name.startswith("x-") or name == "server-timing"}
    ours.remove("x-request-id")  # which every answer has
    assert {n for n in listed if n.islower()} == set(SpeakRequest.model_fields)
    assert {n.lower() for n in listed if not n.islower()} == ours


def test_the_table_of_formats_on_the_api_page_is_that_of_the_code() -> None:
    """`mp3_44100_` and `mp3_48000_` 32, 64: each prefix goes with each number."""
    found = set[str]()
    rows = re.findall(r"^\| (\w+) \| `(audio/[^`]+)` \| ([^|]+) \|", API, re.MULTILINE)
    for name, content_type, cell in rows:
        format = AudioFormat(name)
        assert format.content_type(format.rates(24_000)[0]) == content_type
        for part in cell.split(";"):
            prefixes = re.findall(r"`(\w+_)`", part)
            numbers = re.findall(r"\d+", re.sub(r"`\w+`", "", part))
            found |= {prefix + number for prefix in prefixes for number in numbers}
    assert found | {name for name, *_ in rows} == set(FORMATS)


def test_the_limits_on_the_configuration_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ,]+) \| ([^|]+) \|$", page, re.MULTILINE))
    clip = audio.ClipLimits()
    expected = {
        "upload": f"{Settings.model_fields['max_clip_mib'].default} MiB",
        "JSON body": f"{requests.JSON_LIMIT // 1024} KiB",
        "reference clip": f"{clip.min_s:g} to {clip.max_s:g} s",
        "transcript": f"{models.MAX_TRANSCRIPT:,} characters",
        "text of one request": f"budget of {frame_budget.BASE_FRAMES} + "
        f"{frame_budget.FRAMES_PER_TOKEN} per token that must not exceed "
        f"{frame_budget.MAX_FRAMES:,} frames",
        "name": f"{names.MAX_LENGTH} characters",
        "description, labels": f"{models.MAX_LABELS} labels",
        "decoding a clip": f"{confinement.MEMORY_BYTES >> 30} GiB of memory, "
        f"{confinement.CPU_S} s of CPU, {clip.wall_s:g} s in all",
    }
    assert {name: text for name, text in expected.items() if text not in rows[name]} == {}


def test_the_engine_page_has_a_line_for_every_module_and_no_other() -> None:
    sources = (path for kind in ("*.py", "*.cu") for path in ENGINE_SOURCES.rglob(kind))
    modules = {path.relative_to(ENGINE_SOURCES).as_posix() for path in sources}
    modules -= {f"{room}/__init__.py" for room in ("checkpoint", "codec", "kernels")}
    listed = re.findall(r"^\| `(.+?)` \| \S", section(ENGINE, "The modules"), re.MULTILINE)
    assert set(listed) == modules and len(listed) == len(modules)


def test_the_engine_page_has_the_public_face() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", section(ENGINE, "As a library"), re.MULTILINE)
    assert set(listed) == set(engine.__all__)


def test_the_words_of_the_engine_page_are_those_of_the_code() -> None:
    lines = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", section(ENGINE, "Words"), re.MULTILINE)
    ours = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    files = [*(ROOT / "inference").rglob("*.py"), ROOT / "registry" / "contract.py"]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    defined = set(re.findall(r"^ *(?:class|def) (\w+)|^    (table): ", sources, re.MULTILINE))
    assert len(ours) > 30 and ours <= {name for pair in defined for name in pair}


def test_the_kernels_on_the_engine_page_are_those_of_the_source() -> None:
    source = (ENGINE_SOURCES / "kernels" / "kernels.cu").read_text(encoding="utf-8")
    made = re.findall(
        r"^extern .*void (\w+)\(|^ATTEND\((\w+)|^SKINNY\((\w+)_", source, re.MULTILINE
    )
    rows = re.findall(r"^\| (`[^|]+) \|", section(ENGINE, "The kernels"), re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert listed == {name for names in made for name in names if name}


def test_the_limits_on_the_engine_page_are_those_of_the_code() -> None:
    rows = re.findall(r"\| ([^|]+) \| `([a-z_]+)` \|$", section(ENGINE, "Limits"), re.MULTILINE)
    limits = {name: getattr(EngineConfig(), name) for _, name in rows}
    assert len(limits) == 6
    for text, name in rows:
        assert limits[name] is None or f"{limits[name]:,}" in text, name


@pytest.mark.slow
def test_the_example_on_the_engine_page_speaks(
    checkpoint: Path, clip: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = code_block(ENGINE, "python")
    assert len([line for line in example.splitlines() if line and "import" not in line]) == 10
    soundfile.write(tmp_path / "ref.wav", clip, 24_000, "FLOAT")
    monkeypatch.chdir(tmp_path)
    done = run_python(example.replace("Qwen3-TTS-12Hz-1.7B-Base", str(checkpoint)))
    assert done.returncode == 0, done.stderr
    sounds = [np.fromfile(f"{seed}.pcm", np.float32) for seed in (1, 2, 3)]
    assert all(len(sound) and len(sound) % 1920 == 0 for sound in sounds)
    assert len({sound.tobytes() for sound in sounds}) == 3


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    for path in ROOT.glob("docs/*.md"):
        assert f"](docs/{path.name})" in readme


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_name_no_package_registry_and_no_place_on_one_machine(path: Path) -> None:
    hosts = r"\b(pypi|pythonhosted|npmjs|anaconda|conda|download\.pytorch)\.(org|com|io)\b"
    places = r"(?<![\w.])/(work|tmp|root)/"
    assert not re.findall(f"{hosts}|{places}", path.read_text(encoding="utf-8"))


def test_contributors_are_led_to_files_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", page)
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name) if name else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
