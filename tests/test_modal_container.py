"""Both sides through Modal's own code: its client here, its container's entrypoint over there.

What lies between them is the fake control plane, so what Modal's servers do is not proved.
"""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import modal
import numpy as np
import pytest
import soundfile
from conftest import PYTHON, ROOT, Enrol
from local_remote import PATIENCE_S, deployed, put_model, until
from modal_container import HostingServer, start
from modal_proto import api_pb2 as pb
from speaking import run

from inference.models.catalog import LocatedModel, locate
from registry.contract import Deadline, PromptRef, PromptSource, SpeechRequest
from registry.errors import GpuCold, StreamBroken
from registry.speech.modal import ModalClass, ModalInference
from registry.storage.data_dir import DataDir

LONG = "And so it goes on. " * 17
FAILURES = (modal.exception.Error, OSError)
TERMINATED = pb.GenericResult.GENERIC_STATUS_TERMINATED


@dataclass
class Site:
    server: HostingServer
    inference: ModalInference
    folder: Path
    data: DataDir
    container: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        places = {"STATE": str(self.data.root), "WEIGHTS": str(self.folder / "weights")}
        self.container = start(self.server, self.folder, **places)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def runs(self) -> bool:
        return self.container is not None and self.container.poll() is None

    def end(self) -> int:
        """As Modal ends one that nobody needs; its exit status."""
        assert self.container is not None
        self.server.ending = True
        return self.container.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def server() -> Iterator[HostingServer]:
    with deployed(HostingServer) as server:
        yield server


@pytest.fixture
def site(
    server: HostingServer, endless_checkpoint: Path, data: DataDir, tmp_path: Path
) -> Iterator[Site]:
    """The App is deployed, and no container runs; its model's speech never ends."""
    put_model(tmp_path / "weights", locate(str(endless_checkpoint), DataDir(tmp_path / "hashes")))
    server.hosted.clear()
    server.failures.clear()
    server.ending = False
    voices = ModalClass(
        modal.Cls.from_name("voices-inference", "Voices")(), modal.FunctionCall.from_id
    )
    inference = ModalInference(voices, tmp_path, failures=FAILURES, limit_s=120.0, slots=32)
    site = Site(server, inference, tmp_path, data)
    yield site
    if site.runs() and site.container is not None:
        site.container.kill()
        site.container.wait()


async def enrolled(site: Site, source: PromptSource) -> PromptRef:
    found = await site.inference.extract_prompt(source)
    return PromptRef(source.voice_id, found.fingerprint, found.sha256)


@pytest.mark.slow
def test_one_cancelled_call_stops_nobody_else(site: Site, enrol: Enrol) -> None:
    """And neither do those that did not wait for the container to come up."""

    async def impatiently() -> None:
        now = Deadline(0.0)
        with pytest.raises(GpuCold):
            await site.inference.extract_prompt(enrol(2), now)
        with pytest.raises(GpuCold):
            await site.inference.speak(PromptRef("v", "f", "s"), SpeechRequest(LONG, deadline=now))

    async def listen() -> None:
        await asyncio.create_task(impatiently())
        while len(site.server.hosted) < 2:
            await asyncio.sleep(0.01)
        site.start()
        ref = await enrolled(site, enrol(1))
        stays = await site.inference.speak(ref, SpeechRequest(LONG))
        leaves = await site.inference.speak(ref, SpeechRequest(LONG))
        await anext(leaves.chunks)
        await leaves.chunks.aclose()
        await asyncio.gather(*site.inference._left)
        *_, kept, left = site.server.hosted.values()
        while left.output is None:
            await anext(stays.chunks)
        assert kept.output is None and site.runs(), site.log
        await stays.chunks.aclose()
        await asyncio.gather(*site.inference._left)
        while kept.output is None:
            await asyncio.sleep(0.01)
        assert {call.output.result.status for call in (kept, left) if call.output} == {TERMINATED}
        await enrolled(site, enrol(3))

    run(listen())
    assert site.end() == 0, site.log
    assert not site.server.failures
    assert "Traceback" not in site.log


@pytest.mark.slow
def test_a_container_that_is_taken_away_breaks_what_it_spoke(site: Site, enrol: Enrol) -> None:
    async def listen() -> None:
        site.start()
        ref = await enrolled(site, enrol(1))
        speech = await site.inference.speak(ref, SpeechRequest(LONG))
        await anext(speech.chunks)
        assert site.container is not None
        site.container.send_signal(signal.SIGINT)
        with pytest.raises(StreamBroken):
            async for _ in speech.chunks:
                pass

    run(listen())
    assert site.container is not None
    until(lambda: not site.runs())
    assert site.container.returncode == 0, site.log


def trial(*options: str) -> "subprocess.CompletedProcess[str]":
    line = [PYTHON, "-m", "modal", "run", "-m", "inference.modal.app", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=5 * PATIENCE_S)


@pytest.mark.slow
def test_a_sentence_is_tried_without_a_registry(
    site: Site, located: LocatedModel, tmp_path: Path
) -> None:
    (site.folder / "weights" / "model").unlink()
    put_model(site.folder / "weights", located)
    site.server.mounts["voices-state"] = site.data.root
    output = str(tmp_path / "output.wav")
    with ThreadPoolExecutor() as threads:
        running = threads.submit(trial, "--text", "A short text.", "--output", output)
        until(lambda: bool(site.server.hosted) or running.done())
        site.start()
        done = running.result()
    assert done.returncode == 0, done.stdout + done.stderr + site.log
    samples, rate = soundfile.read(output)
    assert rate == 24_000 and len(samples) > 1920 and np.abs(samples).max() > 0
    assert f"Wrote {output}: {len(samples) / rate:.3f} s." in done.stdout
    assert not site.server.volumes["voices-state"].files, "nothing is kept"
    assert site.end() == 0, site.log
    refused = trial("--clip", str(tmp_path / "none.wav"))
    assert refused.returncode == 1 and "none.wav can't be read" in refused.stdout + refused.stderr
