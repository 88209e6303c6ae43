"""The verbs that need a GPU, at a registry whose GPU is off: they wait, and do it once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from api import CLIP, add
from click.testing import CliRunner, Result
from deployments import client_of
from fakes import FakeInference, Pace

from cli.api import client
from cli.main import cli
from registry.contract import Deadline, PromptRef, PromptSource, Speech, SpeechRequest
from registry.errors import GpuCold, Overloaded, RegistryError, StreamBroken
from registry.storage.store import VoiceStore


@dataclass
class Cold(FakeInference):
    """Says so many times that it is not there yet."""

    refusals: list[RegistryError] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        self._refuse(asked.deadline)
        return await super().speak(ref, asked)

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> SimpleNamespace:
        assert deadline is not None
        self._refuse(deadline)
        return await super().extract_prompt(source, deadline)

    def _refuse(self, deadline: Deadline) -> None:
        self.asked_s.append(deadline.most_s)
        if self.refusals:
            raise self.refusals.pop(0)


@pytest.fixture
def gpu(store: VoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cold]:
    """Behind a registry that the commands talk to, with one voice."""
    cold = Cold(store.data)
    monkeypatch.chdir(tmp_path)
    with client_of("server", store, cold) as http:
        assert add(http, "alice").status_code == 201
        cold.asked_s.clear()
        monkeypatch.setenv("VOICES_URL", str(http.base_url))
        yield cold


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def speak(*options: str) -> Result:
    return run("speak", "alice", "Hello", *options)


def starting(times: int, retry_after_s: int = 0) -> list[RegistryError]:
    return [GpuCold("The GPU is not there yet.", retry_after_s) for _ in range(times)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--format", "flac"), ("-o", "-")])
def test_a_gpu_that_starts_is_waited_for(gpu: Cold, options: tuple[str, ...]) -> None:
    gpu.refusals = starting(3)
    said = speak(*options)
    assert said.exit_code == 0, said.output
    assert said.stderr.count("The GPU is starting; waiting for it, 300 s at most.\n") == 1
    assert gpu.started == ["Hello"], "spoken once"
    assert len(gpu.asked_s) == 4 and max(gpu.asked_s) <= 300.0


def test_what_waits_too_long_is_refused_in_the_servers_words(
    gpu: Cold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "COLD_S", 10.0)
    gpu.refusals = starting(2, retry_after_s=11)
    said = speak()
    assert (said.exit_code, said.stderr) == (1, "Error: The GPU is not there yet.\n")
    assert gpu.asked_s == [10.0] and not gpu.started
    assert not Path("alice.wav").exists()


def test_a_registry_that_is_busy_is_asked_again(gpu: Cold) -> None:
    gpu.refusals = [Overloaded("Too many wait.", 0)]
    said = speak()
    assert said.exit_code == 0, said.output
    assert said.stderr.startswith("The registry is busy; waiting for it, 60 s at most.\n")
    assert (len(gpu.asked_s), gpu.started) == (2, ["Hello"])


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["add", "rebuild"])
def test_every_verb_that_needs_the_gpu_waits_for_it(gpu: Cold, verb: str) -> None:
    Path("ref.wav").write_bytes(CLIP)
    gpu.refusals = starting(2)
    done = run("add", "bob", "ref.wav", "hello there") if verb == "add" else run("rebuild", "alice")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("The GPU is starting; waiting for it, 300 s at most.\n") == 1
    assert len(gpu.asked_s) == 3
    assert json.loads(run("list", "--json").stdout)[-1]["name"] == (
        "bob" if verb == "add" else "alice"
    )


def test_what_says_not_when_is_not_asked_again(gpu: Cold) -> None:
    gpu.refusals = [StreamBroken("It broke.")]
    assert speak().stderr == "Error: It broke.\n"
    assert len(gpu.asked_s) == 1


def test_a_speech_that_breaks_off_is_not_asked_again(gpu: Cold) -> None:
    """Even if it breaks with those words: some of it was heard."""
    gpu.pace = Pace(free=2)
    with ThreadPoolExecutor() as threads:
        threads.submit(gpu.pace.give, error=starting(1)[0])
        said = speak()
    assert said.stderr.endswith("broke off before its end.\n")
    assert (said.exit_code, len(gpu.asked_s)) == (1, 1)


def test_who_does_not_want_to_wait_can_leave(gpu: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        assert seconds == 200.0, "as long as Retry-After says"
        raise KeyboardInterrupt

    monkeypatch.setattr(client.time, "sleep", interrupted)
    gpu.refusals = starting(1, retry_after_s=200)
    said = speak()
    assert (said.exit_code, said.stderr.splitlines()[-1]) == (
        130,
        "Interrupted. Nothing was written.",
    )
    assert not Path("alice.wav").exists() and not gpu.started
