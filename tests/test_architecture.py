"""Who may import whom, asserted in fresh processes; and those figures of style that count."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("registry", "inference", "cli", "migrations")
SHARED = ("inference.engine", "registry.contract", "registry.errors")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "qwen_tts", "transformers"}

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if name not in sys.argv[2].split(","):
        importlib.import_module(name)
ours = {name for name in sys.modules if name.startswith("registry.")}
print(*sorted({name.partition(".")[0] for name in sys.modules} | ours))
"""


def imported(package: str, but: str = "") -> set[str]:
    """Top-level modules, and those of the registry, once every submodule was imported."""
    command = [sys.executable, "-c", IMPORT_ALL, package, but]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_registry_imports_neither_a_model_nor_our_other_packages() -> None:
    assert not imported("registry") & (HEAVY | {"inference", "cli"})
    assert "modal" not in imported("registry", but="registry.modal.app")


@pytest.mark.slow
def test_inference_imports_neither_web_nor_database_nor_command_line() -> None:
    assert not imported("inference") & {"fastapi", "starlette", "sqlmodel", "click", "cli"}


def test_inference_takes_contract_errors_files_and_a_plan_from_the_registry() -> None:
    for path in SOURCES:
        if path.is_relative_to(ROOT / "inference"):
            ours = {name for name in imports_of(path) if name.startswith("registry")}
            plan = {"registry.modal.plan"} if path.parts[-2:] == ("modal", "app.py") else set()
            files = {"registry.storage.blobs", "registry.storage.data_dir"}
            assert ours <= {"registry.contract", "registry.errors"} | files | plan, path


SQLITES_OWN = r"sqlite3|dialects\.sqlite|sqlite_\w|sqlite://|PRAGMA|pragma_|BEGIN IMMEDIATE|VACUUM"


def test_one_module_knows_how_sqlite_does_what_the_storage_wants() -> None:
    for path in SOURCES:
        if path.name == "sqlite.py":
            assert re.search(SQLITES_OWN, path.read_text(encoding="utf-8"))
        elif not path.is_relative_to(ROOT / "migrations"):
            found = re.search(SQLITES_OWN, path.read_text(encoding="utf-8"))
            assert not found, (path, found)


LAYERS = (  # of the registry: each imports of itself and of those before it
    ("contract", "errors", "key_errors", "invisible", "threads"),
    ("names", "text", "settings"),
    ("audio",),
    ("storage",),
    ("keys",),
    ("speech",),
    ("upkeep",),
    ("storage.volume",),
    ("voices",),
    ("api",),
    ("api.native",),
    ("api.openai",),
    ("app",),
    ("modal",),
)


def test_no_room_of_the_registry_imports_one_above_it() -> None:
    below = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
    for path in (ROOT / "registry").rglob("*.py"):
        inside = path.relative_to(ROOT / "registry").with_suffix("").as_posix().replace("/", ".")
        if inside == "__init__":
            continue
        for name in imports_of(path):
            if name.startswith("registry."):
                imported = name.removeprefix("registry.")
                assert below[room_of(imported)] <= below[room_of(inside)], (path, name)


def room_of(module: str) -> str:
    rooms = (room for rooms in LAYERS for room in rooms)
    return max((r for r in rooms if f"{module}.".startswith(f"{r}.")), key=len)


def test_the_engine_knows_only_torch_qwen_tts_and_the_contract() -> None:
    for path in (ROOT / "inference" / "engine").rglob("*.py"):
        ours = {name for name in imports_of(path) if name.startswith(("registry", "inference"))}
        assert all(n.startswith(SHARED) for n in ours), path


def test_the_command_line_imports_of_ours_only_the_table_of_formats_at_start() -> None:
    found = imported("cli")
    assert not found & (HEAVY | {"inference", "fastapi", "sqlmodel", "modal"})
    of_registry = {name for name in found if name.startswith("registry.")}
    assert of_registry == {"registry.audio", "registry.audio.formats"}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["--help", "list", "show --help", "doctor", "version"])
def test_verbs_that_need_no_model_import_no_torch(verb: str, tmp_path: Path) -> None:
    script = "import sys; from cli.main import cli; cli(sys.argv[1:], standalone_mode=False)"
    script += "; print(*sys.modules, file=sys.stderr)"
    environ = {"VOICES_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", script, *verb.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stderr.split()) & HEAVY


def test_modules_are_short_and_functions_shorter() -> None:
    lengths = []
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 350, path
        lengths += [lines(node) for node in ast.walk(ast.parse(source)) if is_function(node)]
    assert median(lengths) <= 10


def test_no_name_of_a_class_or_a_type_stands_twice() -> None:
    where: dict[str, Path] = {}
    for path in SOURCES:
        for name in types_in(ast.parse(path.read_text(encoding="utf-8"))):
            assert name not in where, (name, where[name], path)
            where[name] = path


def types_in(module: ast.Module) -> Iterator[str]:
    """Names of classes, and of what a module calls a type by assigning it; no TypeVar."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][a-z]\w*", target.id):
                yield target.id


def test_each_public_class_says_what_it_is() -> None:
    """An error may be told of in the tree of errors that its module begins with."""
    for path in SOURCES:
        module = ast.parse(path.read_text(encoding="utf-8"))
        told = ast.get_docstring(module) or ""
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                in_tree = path.name.endswith("errors.py") and re.search(rf"\b{node.name}\b", told)
                assert ast.get_docstring(node) or in_tree, (path, node.name)


FRAGMENT = r"(Of|By|As|For|With|What|Whether|Those|The same|None|Nobody|True when|Past)\b"


def test_no_docstring_is_a_fragment_that_only_its_code_explains() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            told = ast.get_docstring(node) if isinstance(node, kinds) else None
            assert not re.match(FRAGMENT, told or ""), (path, told)


EDGES = (  # of threads and of calls: whatever is raised goes to a caller, and the next is served
    "inference/modal/calls.py",
    "inference/serving/service.py",
    "inference/serving/worker.py",
)


def test_no_except_is_broad_but_at_an_edge_where_it_says_why() -> None:
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                named = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if named & {"Exception", "BaseException"}:
                    assert path.relative_to(ROOT).as_posix() in EDGES, (path, node.lineno)
                    line = source.splitlines()[node.lineno - 1]
                    assert re.search(r"Exception as error:  # \w", line), (path, line)


def test_all_that_a_command_prints_goes_through_one_module() -> None:
    """Which lets nothing of a server, a model or a file command the terminal."""
    for path in (ROOT / "cli").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        said = [
            word for word in ("click.echo(", "secho(", " print(", "stdout.write(") if word in source
        ]
        assert not said or path.name == "output.py", (path, said)


def test_nothing_is_mocked() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not {"unittest.mock", "mock"} & imports_of(path), path


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def lines(node: ast.AST) -> int:
    """Lines of the body, without the signature and the docstring."""
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1
