"""The benchmarks run, and the hot queries read an index: what keeps the figures true over time."""

import json
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT
from fakes import MODEL
from sqlalchemy import Engine, event

from registry.errors import VoiceNotFound
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

QUICK = {
    "cli_start": ("voices list", ["--repeat", "1"]),
    "cold_start": ("first audio", ["--size", "tiny", "--repeat", "1"]),
    "registry_scale": (
        "404, unlike any",
        ["--sizes", "100", "150", "--repeat", "1", "--adds", "1", "--whole-adds", "1"],
    ),
    "speak_cached": ("uncached ms", ["--repeat", "1", "--seconds", "2", "--text", "Hi."]),
    "volume_restart": ("restart ms", ["--voices", "100", "--repeat", "1"]),
    "formats": ("mp3_44100_128", ["--seconds", "1", "--repeat", "1"]),
    "speak_overhead": ("requests/s", ["--callers", "2", "--requests", "4"]),
}
CURSOR = "YWxpY2U"  # alice
HOT: dict[str, Callable[[VoiceStore, Any], Any]] = {
    "get by id": lambda store, voice: store.get(voice.id),
    "get by name": lambda store, voice: store.get(voice.name),
    "near names": lambda store, voice: store.get(voice.name + "x"),
    "is a name taken": lambda store, voice: store.refuse_taken("alice"),
    "first page": lambda store, voice: store.page(20, None, "", ()),
    "page after a cursor": lambda store, voice: store.page(20, CURSOR, "", ()),
    "search": lambda store, voice: store.page(20, None, voice.name[:2], ()),
    "search after a cursor": lambda store, voice: store.page(20, CURSOR, "narrator", ()),
}


@pytest.fixture
def voice(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of a hundred, so that every read of a voice happens."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from population import populate

    return populate(store, 100, MODEL)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_benchmark_prints_its_table_and_keeps_a_record(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    shown, tiny = QUICK[name]
    model = ["--model", str(checkpoint)] if name == "speak_cached" else []
    command = [PYTHON, f"benchmarks/{name}.py", *tiny, *model, "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    [run] = json.loads((tmp_path / f"{name}.json").read_text())
    assert run["found"] and run["machine"]["cpus"] and run["versions"]["sqlalchemy"]


def test_committed_records_name_no_paths() -> None:
    records = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert records
    for path in records:
        assert not re.search(r'"[~/]|"\w:\\', path.read_text())


@pytest.mark.parametrize("operation", HOT)
def test_hot_query_reads_an_index(
    operation: str, data: DataDir, store: VoiceStore, voice: Any
) -> None:
    with recorded() as statements, suppress(VoiceNotFound):
        HOT[operation](store, voice)
    plans = list(plans_of(statements, data))
    assert plans
    assert not [plan for plan in plans if reads_too_much(plan)]


def test_page_asks_the_same_few_questions_for_any_number_of_voices(
    store: VoiceStore, voice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for each block of them, of which a page of large voices needs but one."""
    monkeypatch.setattr("registry.storage.queries.BLOCK", 30)
    counts = []
    for limit in (1, 30, 60, 90):
        with recorded() as statements:
            store.page(limit, None, "", ())
        counts.append(len(statements))
    one, block, two, three = counts
    assert one == block and two - block == three - two <= 4


def reads_too_much(plan: list[str]) -> bool:
    """A list of voices may go along the index of names, in its order, up to the page's end."""
    scans = [step for step in plan if step.startswith("SCAN")]
    sorts = any("TEMP B-TREE" in step for step in plan) and any(" voice " in s for s in plan)
    return bool(sorts or scans not in ([], ["SCAN voice USING INDEX voice_live_name"]))


def plans_of(statements: list[tuple[str, Any]], data: DataDir) -> Iterator[list[str]]:
    """What SQLite would do for each SELECT, in steps."""
    with closing(sqlite3.connect(data.database)) as database:
        for statement, parameters in statements:
            if statement.startswith("SELECT"):
                rows = database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                yield [str(row[3]) for row in rows]


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def keep(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", keep)
