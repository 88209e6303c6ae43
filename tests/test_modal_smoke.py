"""The checks of benchmarks/modal_smoke.py: those that need only a URL, against a server here."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from conftest import ROOT
from deployments import client_of
from test_cold_speak import Cold, starting

from registry.modal.plan import Deployment
from registry.storage.store import VoiceStore

PAGE = ROOT / "docs" / "deploy.md"


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, on a clock that only counts how often it is read."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import modal_smoke

    ticks = count()
    monkeypatch.setattr(modal_smoke, "clock", lambda: float(next(ticks)))
    return modal_smoke


@pytest.fixture
def gpu(store: VoiceStore) -> Cold:
    return Cold(store.data)


@pytest.fixture
def client(store: VoiceStore, gpu: Cold) -> Iterator[httpx.Client]:
    with client_of("server", store, gpu) as client:
        yield client


@pytest.fixture
def site(smoke: Any, client: httpx.Client) -> Any:
    site = smoke.Site(None, smoke.Login(str(client.base_url)))
    smoke.enrol(site)
    return site


def test_with_a_url_it_checks_what_is_there_and_leaves_nothing(
    smoke: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "TEXTS", 1)  # on a clock that counts, many never overlap
    done = CliRunner().invoke(smoke.main, ["--url", str(client.base_url)])
    lines = done.stdout.splitlines()
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in lines] == ["pass"] * len(lines)
    names = [check.__name__ for check in (*smoke.ASKING, smoke.clean_up)]
    assert [line.split()[3] for line in lines] == names
    assert client.get("/voices").json()["data"] == []


def test_what_fails_is_said_and_the_rest_is_checked(smoke: Any) -> None:
    done = CliRunner().invoke(smoke.main, ["--url", "http://127.0.0.1:9"])
    lines = done.stdout.splitlines()
    assert done.exit_code == 1
    assert len(lines) == len(smoke.ASKING) + 1
    assert all(line.startswith("FAIL") and "Can't talk to" in line for line in lines)


def test_a_cold_gpu_is_refused_first_and_then_heard(smoke: Any, site: Any, gpu: Cold) -> None:
    with pytest.raises(smoke.Failed, match="the GPU was not off"):
        smoke.cold_speak(site)
    gpu.refusals = starting(2)
    assert "gpu-cold, come back in 1 s; then" in smoke.cold_speak(site)
    assert gpu.asked_s[1] == 1.0


def test_a_voice_that_is_there_is_found_whole(smoke: Any, site: Any) -> None:
    assert site.voice in smoke.is_there(site)
    site.clip = b"another"
    with pytest.raises(smoke.Failed, match="clip"):
        smoke.is_there(site)
    smoke.remove(site)
    with pytest.raises(smoke.RequestRefused):
        smoke.is_there(site)


def test_strangers_are_let_in_only_if_the_settings_say_so(smoke: Any, site: Any) -> None:
    site.plan = Deployment(proxy_auth=False)
    assert smoke.strangers(site).startswith("let in")
    site.plan = Deployment()
    with pytest.raises(smoke.Failed, match="without a token"):
        smoke.strangers(site)


@pytest.mark.parametrize(
    ("second", "shared"), [([2.0, 5.0], True), ([4.0, 9.0], True), ([4.5, 9.0], False)]
)
def test_texts_share_a_batch_if_all_are_heard_before_one_ends(
    smoke: Any, second: list[float], shared: bool
) -> None:
    first = smoke.Heard(0.0, [1.0, 4.0], 1, "memory")
    assert smoke.overlapped([first, smoke.Heard(0.0, second, 1, "memory")]) is shared


def test_what_is_held_back_is_no_stream(
    smoke: Any, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = smoke.Heard(0.0, [3.0, 4.0], 1, "memory")
    monkeypatch.setattr(smoke, "listen", lambda *_: late)
    with pytest.raises(smoke.Failed, match=r"2 parts, first after 3\.00 of 4\.00 s"):
        smoke.streaming(site)


def test_the_page_names_the_check_that_proves_each_line(smoke: Any) -> None:
    not_run = PAGE.read_text(encoding="utf-8").partition("## Not run here")[2]
    for check in smoke.DEPLOYING + smoke.ASKING + smoke.LATER:
        assert f"`{check.__name__}`" in not_run
