"""A backup's manifest is believed in nothing: each lie is a sentence, and none is printed."""

import json
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_backup import CLIPS, Forged, forged, full, made, refusal, restored, tar

from cli.main import cli
from registry.errors import BackupRefused
from registry.storage.data_dir import sha256_of
from registry.storage.store import VoiceStore
from registry.upkeep import restore
from registry.upkeep.backup import MOST_FILES, read_manifest, save_backup

__all__ = ["forged", "full", "made", "tar"]  # fixtures

CLIP = f"clips/{sha256_of(CLIPS[0])}"
NOBODYS = f"clips/{'0' * 64}"
SENTENCE = "manifest.json in the backup is damaged, or not ours."
EVIL = "2026-01-01T00:00:00.000Z\nError: all is lost. Run: curl evil | sh"


def entry(sha256: str = "0" * 64, bytes: Any = 1, **more: Any) -> dict[str, Any]:
    return {"sha256": sha256, "bytes": bytes} | more


NO_COUNTS: list[Any] = [True, 2.0, 2.5, -1, 2**53 + 1, 10**400, "2", None, [2], {}, float("inf")]
NO_TEXTS: list[Any] = [None, 1, True, [], {}, "", EVIL, "x" * 10**6, "\ud800"]
LIES: dict[str, list[Any]] = {
    "voices": [0, 1, 3, 99999, *NO_COUNTS],
    "deleted": [0, 2, 12345, *NO_COUNTS],
    "created_at": [*NO_TEXTS, "2026", "yesterday", "2026-11-28T05:55:51Z"],
    "schema_revision": [*NO_TEXTS, "0000", "9999", "0001\n", "../0001"],
    "missing": [
        *(None, 1, "", NOBODYS, {}, {NOBODYS: 1}, [1], [None], [[]]),
        *([NOBODYS], [CLIP], [CLIP, CLIP], ["registry.db"], ["manifest.json"], [""], ["\ud800"]),
        *(["../evil"], [NOBODYS + "\nX"], ["x" * 10**6], [NOBODYS] * 1000),
        [f"clips/{number:064x}" for number in range(200_000)],
    ],
    "files": [None, 1, "", [], {}, {"": entry()}, {"../evil": entry()}, {"\ud800": entry()}],
    "more": [None, 1, "x", [], {}],
}
FLAT = [(field, value) for field, values in LIES.items() for value in values]


@pytest.mark.parametrize(
    ("field", "value"), FLAT, ids=[f"{f}-{n}-{str(v)[:20]!a}" for n, (f, v) in enumerate(FLAT)]
)
def test_each_field_that_lies_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, field: str, value: Any
) -> None:
    forged.seal(forged.manifest | {field: value})
    one_sentence(refusal(forged.write(tar), tmp_path / "there" / "home"))


@pytest.mark.parametrize("field", ["voices", "deleted", "created_at", "schema_revision", "files"])
def test_each_field_that_is_lacking_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, field: str
) -> None:
    manifest = forged.manifest
    del manifest[field]
    forged.seal(manifest)
    assert refusal(forged.write(tar), tmp_path / "there" / "home") == SENTENCE


def one_sentence(said: str) -> None:
    assert "\n" not in said and len(said) < 400 and said.endswith("."), said
    assert said.isprintable(), ascii(said)


ENTRIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another size": lambda true: true | {"bytes": true["bytes"] + 1},
    "capitals": lambda true: true | {"sha256": true["sha256"].upper()},
    "a line end": lambda true: true | {"sha256": true["sha256"] + "\n"},
    "another hash": lambda true: true | {"sha256": "0" * 64},
    "a field more": lambda true: true | {"mode": 0o777},
    "no size": lambda true: {"sha256": true["sha256"]},
    "no hash": lambda true: {"bytes": true["bytes"]},
    "a list": lambda true: [true],
    "nothing": lambda true: None,
    "text": lambda true: true["sha256"],
    "a float": lambda true: true | {"bytes": float(true["bytes"])},
    "a text for a size": lambda true: true | {"bytes": str(true["bytes"])},
    "infinite": lambda true: true | {"bytes": float("inf")},
    "no number": lambda true: true | {"bytes": float("nan")},
    "true": lambda true: true | {"bytes": True},
    "negative": lambda true: true | {"bytes": -true["bytes"]},
    "huge": lambda true: true | {"bytes": true["bytes"] + 2**64},
}


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("name", ["registry.db", CLIP])
def test_each_entry_that_lies_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, name: str, kind: str
) -> None:
    files = forged.manifest["files"]
    forged.seal(forged.manifest | {"files": files | {name: ENTRIES[kind](files[name])}})
    one_sentence(refusal(forged.write(tar), tmp_path / "there" / "home"))


# The text of it


def sealed(manifest: str = "{}", **other: str) -> bytes:
    """JSON whose values are texts that no `json.dumps` writes."""
    with suppress(ValueError, RecursionError):
        canonical = json.dumps(json.loads(manifest), sort_keys=True, separators=(",", ":"))
        other = {"sha256": f'"{sha256_of(canonical.encode())}"'} | other
    whole = {"format": '"voices-backup"', "version": "1", "sha256": f'"{"0" * 64}"'}
    pairs = whole | {"manifest": manifest} | other
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in pairs.items()) + "}").encode()


DEEP = 100_000
TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "no UTF-8": b'{"format": "\xff"}',
    "UTF-16": sealed().decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + sealed(),
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a deep manifest": sealed('{"a":' * DEEP + "1" + "}" * DEEP),
    "a number beyond floats": sealed('{"voices": 1e999}'),
    "a number of a million digits": sealed('{"voices": ' + "1" * 10**6 + "}"),
    "NaN": sealed('{"voices": NaN}'),
    "another format": sealed(format='"voices"'),
    "a version that is true": sealed(version="true"),
    "a version that is a float": sealed(version="1.0"),
    "a version that is infinite": sealed(version="1e999"),
    "a version of many digits": sealed(version="1" * 4000),
    "a version of text": sealed(version='"1"'),
    "version 0": sealed(version="0"),
    "a seal in capitals": sealed(sha256=f'"{"A" * 64}"'),
    "a manifest of text": sealed('"{}"'),
    "many values": sealed("[" + "0," * (3 * MOST_FILES) + "0]"),
    "many lists": sealed('{"a": [' + "[]," * (3 * MOST_FILES) + "[]]}"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_manifest_is_refused(kind: str) -> None:
    with pytest.raises(BackupRefused) as refused:
        read_manifest(TEXTS[kind])
    assert refused.value.detail == SENTENCE


@pytest.mark.parametrize("name", ["voices", "files", CLIP, "sha256", "version", "manifest"])
def test_a_name_that_is_there_twice_is_refused(
    forged: Forged, tar: Path, tmp_path: Path, name: str
) -> None:
    """Programs differ in which of the two they take."""
    text = forged.members["manifest.json"].decode()
    at = text.index(f'"{name}"')
    forged.members["manifest.json"] = f'{text[:at]}"{name}": 1, {text[at:]}'.encode()
    assert refusal(forged.write(tar), tmp_path / "there" / "home") == SENTENCE


def test_a_field_that_is_not_sealed_is_refused(forged: Forged, tar: Path, tmp_path: Path) -> None:
    whole = json.loads(forged.members["manifest.json"])
    forged.members["manifest.json"] = json.dumps(whole | {"more": 1}).encode()
    assert "is damaged" in refusal(forged.write(tar), tmp_path / "there" / "home")


@pytest.mark.slow
def test_the_values_of_a_manifest_are_counted_before_they_are_made() -> None:
    text = sealed("[" + "[]," * 20_000_000 + "[]]")  # gigabytes, if it is read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BackupRefused):
        read_manifest(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100 * 1024


# What is missing


def test_what_is_missing_may_be_as_many_as_the_rows_name(
    full: VoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more files in all than a backup may hold."""
    for path in full.data.root.glob("prompts/*/*"):
        path.unlink()
    full.data.clip(sha256_of(CLIPS[0])).unlink()
    made = save_backup(full, tmp_path / "voices.tar")
    assert (len(made.missing), made.lost) == (5, [CLIP])
    assert restored(tmp_path / "voices.tar", tmp_path / "one").manifest == made
    monkeypatch.setattr(restore, "MOST_FILES", 5)
    assert "more than 5" in refusal(tmp_path / "voices.tar", tmp_path / "other")


@pytest.mark.parametrize("other", ["there too", "twice", "nobody's"])
def test_what_is_missing_is_told_once_and_is_not_there(
    full: VoiceStore, tmp_path: Path, other: str
) -> None:
    full.data.clip(sha256_of(CLIPS[0])).unlink()
    save_backup(full, tmp_path / "voices.tar")
    forged = Forged.of(tmp_path / "voices.tar")
    there = next(name for name in forged.members if name.startswith("prompts/"))
    more = {"there too": there, "twice": CLIP, "nobody's": NOBODYS}[other]
    forged.seal(forged.manifest | {"missing": [CLIP, more]})
    one_sentence(refusal(forged.write(tmp_path / "voices.tar"), tmp_path / "there" / "home"))


# What is printed


def run(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env={"VOICES_HOME": str(home)})


def test_a_restore_prints_lines_of_its_own_alone(forged: Forged, tar: Path, tmp_path: Path) -> None:
    """Whatever a backup holds, and whatever folders beside the home are called."""
    (tmp_path / "home.restoring-1\nError: all is lost").mkdir()
    forged.run('CREATE TABLE "x\nError: all is lost" (x)')
    done = run(tmp_path / "home", "restore", str(forged.write(tar)))
    assert done.exit_code == 1
    note, error = done.stderr.splitlines()
    assert note.startswith("Note: ") and "1\\nError: all is lost is left" in note
    assert error.startswith("Error: registry.db in the backup is no registry's: ")


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE TABLE {'x' * 100_000} (x)",
        f"CREATE VIEW {'x' * 100_000} AS SELECT 1",
        f"UPDATE voice SET name = '{'x' * 60_000}'",
    ],
)
def test_a_refusal_quotes_no_more_than_a_person_reads(
    forged: Forged, tar: Path, tmp_path: Path, statement: str
) -> None:
    forged.run(statement)
    one_sentence(refusal(forged.write(tar), tmp_path / "there" / "home"))


def test_what_a_restore_tells_is_counted_in_the_rows(
    full: VoiceStore, tar: Path, tmp_path: Path
) -> None:
    full.data.clip(sha256_of(CLIPS[1])).unlink()
    save_backup(full, tar)
    restored, missing = run(tmp_path / "home", "restore", str(tar)).stderr.splitlines()
    assert restored.startswith("Restored 2 voices and 1 deleted, 0.")
    assert missing.startswith(f"Note: clips/{sha256_of(CLIPS[1])} was missing or damaged")
