"""Prove on an account what docs/deploy.md lists as not run: `python benchmarks/modal_smoke.py`.

Deploys a registry of its own, `voices-smoke`, with the settings of VOICES_DEPLOY_…, checks it,
and removes it again. Wants an account of Modal's, and a proxy token in VOICES_TOKEN_ID and
VOICES_TOKEN_SECRET. With --url it only asks a registry that is there, as much as needs no account.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from cli import data
from cli.api.client import Registry, connect, voice_path
from cli.api.refusals import RequestRefused
from cli.destination import Login
from cli.modal import account as modal_account
from cli.modal import deploying
from cli.modal.plan import DeployOptions, model_name
from registry.modal.plan import Deployment, deployment, variable

NAME = "voices-smoke"
TEXT = "Enrol a voice once, speak with it by name."
LONG_TEXT = "What is spoken is heard before it has been thought to its end. " * 4
TEXTS = 8  # at once
LOOK_S = 5.0
IDLE_S = 120.0  # after its window, by which a container should be gone
STDERR = 2

clock = time.monotonic


class Failed(click.ClickException):
    """A check, for this reason."""


@dataclass
class Site:
    """The registry to check; `plan` is None for one that somebody else deployed."""

    plan: Deployment | None
    login: Login
    voice: str = field(default_factory=lambda: f"smoke {token_hex(4)}")
    clip: bytes = (Path(data.__path__[0]) / "alice.wav").read_bytes()

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with connect(self.login.url, self.login.headers(self.login.url)) as voices:
            yield voices

    def request(self, text: str = TEXT) -> dict[str, Any]:
        return {"voice": self.voice, "text": text, "seed": 7, "format": "pcm"}

    def modal(self, *command: str) -> None:
        """A command of Modal's, which talks on stderr."""
        if code := modal_account.run_modal(self.deployed, *command, stdout=STDERR):
            raise Failed(f"`modal {' '.join(command)}` exited with {code} and says why above.")

    @property
    def deployed(self) -> Deployment:
        assert self.plan is not None, "only asked where it was deployed"
        return self.plan

    def gpus(self) -> int:
        """Containers with a GPU now; asking starts none."""
        return modal_account.states(self.deployed)[1].containers


@dataclass(frozen=True)
class Heard:
    """One streamed speech, by the clock of who listens."""

    begun_s: float
    arrived_s: list[float]  # each part
    size: int
    cache: str

    @property
    def first_s(self) -> float:
        return self.arrived_s[0] - self.begun_s

    @property
    def whole_s(self) -> float:
        return self.arrived_s[-1] - self.begun_s


def listen(site: Site, text: str) -> Heard:
    begun_s, arrived_s, size = clock(), [], 0
    request = site.request(text) | {"stream": True}
    with site.registry() as voices, voices.speech(request) as (spoken, sound):
        for part in sound:
            arrived_s.append(clock())
            size += len(part)
    if not size:
        raise Failed("Nothing was heard.")
    return Heard(begun_s, arrived_s, size, spoken.cache)


# Each check returns what it saw, in words, or raises ClickException.


def model_download(site: Site) -> str:
    """The Volumes are made, and the model comes to its own."""
    workspace = modal_account.workspace()
    modal_account.create(site.deployed)
    deploying.fetch(site.deployed)
    return f"{model_name(site.deployed)}, in workspace {workspace}"


def deploy_both(site: Site) -> str:
    """Modal takes the two Apps as they are sent."""
    deploying.put(DeployOptions.of(None, name=site.deployed.name), yes=True)
    url = modal_account.web_url(site.deployed)
    site.login = Login(url, site.login.token_id, site.login.token_secret)
    return url


def strangers(site: Site) -> str:
    """Who has no token is refused at the edge."""
    with connect(site.login.url, {}) as voices:
        try:
            voices.request("GET", "/voices")
        except RequestRefused as refused:
            if refused.status in (401, 403):
                return f"refused with {refused.status}"
            raise
    if site.deployed.proxy_auth:
        raise Failed("The voices were listed for somebody without a token.")
    return "let in, as the settings say"


def health(site: Site) -> str:
    """Health, readiness and the list are answered, and no GPU is started for them."""
    with site.registry() as voices:
        voices.request("GET", "/healthz")
        known = voices.request("GET", "/voices").json()["data"]
        ready = voices.request("GET", "/readyz").json()
    if site.plan is not None and (gpus := site.gpus()):
        raise Failed(f"{gpus} containers with a GPU run, though nobody has asked for speech.")
    return f"{ready['status']} with {ready['model']}, {len(known)} voices on the first page"


def enrol(site: Site) -> str:
    """A voice is enrolled, by a GPU that may have to start first."""
    text = (Path(data.__path__[0]) / "alice.txt").read_text(encoding="utf-8").strip()
    with site.registry() as voices:
        voice = voices.add({"name": site.voice, "transcript": text}, site.clip)
    return f"{voice['id']}, modes {', '.join(voice['modes'])}"


def first_audio(site: Site) -> str:
    """How soon a GPU that is warm and knows the voice is heard."""
    listen(site, TEXT)
    heard = listen(site, TEXT)
    if heard.cache != "memory":
        raise Failed(f"The voice was spoken before, and its prompt came from {heard.cache}.")
    return f"first audio after {1000 * heard.first_s:.0f} ms"


def streaming(site: Site) -> str:
    """Sound arrives while it is made: its first part in the first half of the time."""
    heard = listen(site, LONG_TEXT)
    said = f"{len(heard.arrived_s)} parts, first after {heard.first_s:.2f} of {heard.whole_s:.2f} s"
    if heard.first_s > heard.whole_s / 2:
        raise Failed(f"It was held back: {said}.")
    return said


def plain_stream(site: Site) -> str:
    """The same without events, which the edge may hold back: what it does is only told."""
    begun_s, request = clock(), site.request(LONG_TEXT) | {"stream": True}
    with site.registry() as voices, voices.stream("POST", "/speak", json=request) as answer:
        arrived_s = [clock() - begun_s for part in answer.iter_raw() if part]
    if not arrived_s:
        raise Failed("Nothing was heard.")
    return f"{len(arrived_s)} parts, first after {arrived_s[0]:.2f} of {arrived_s[-1]:.2f} s"


def leaving(site: Site) -> str:
    """Who leaves stops what was spoken, and nothing else: the GPU's container goes on."""
    request = site.request(LONG_TEXT) | {"stream": True}
    with site.registry() as voices, voices.speech(request) as (_, sound):
        next(sound)
    heard = listen(site, TEXT)
    if heard.cache != "memory":
        raise Failed(f"Another container spoke: the prompt came from its {heard.cache}.")
    return f"somebody else was heard {1000 * heard.first_s:.0f} ms after asking"


def at_once(site: Site) -> str:
    """Several texts share a batch: all are heard before the first of them ends."""
    alone = listen(site, TEXT)
    with ThreadPoolExecutor(TEXTS) as threads:
        heard = list(threads.map(lambda n: listen(site, f"{n}. {TEXT}"), range(TEXTS)))
    last_s = max(one.arrived_s[-1] for one in heard) - min(one.begun_s for one in heard)
    said = f"{TEXTS} texts in {last_s:.2f} s, one in {alone.whole_s:.2f} s"
    if not overlapped(heard):
        raise Failed(f"They were spoken one after another: {said}.")
    return said


def overlapped(heard: Sequence[Heard]) -> bool:
    return max(one.arrived_s[0] for one in heard) <= min(one.arrived_s[-1] for one in heard)


def edit(site: Site) -> str:
    """A change is stored when it is answered; what that takes is a claim, a commit, a reload."""
    with site.registry() as voices:
        voice = voices.voice(site.voice)
        began_s = clock()
        voices.patch(voice, {"description": "edited"})
        took_s = clock() - began_s
        if voices.voice(site.voice)["description"] != "edited":
            raise Failed("The description is that of before.")
    return f"stored after {1000 * took_s:.0f} ms"


def restart(site: Site) -> str:
    """Another container of the registry has the voices."""
    site.modal("deploy", "--strategy", "recreate", "-m", "registry.modal.app")
    return is_there(site)


def doctor(site: Site) -> str:
    """Rows and files name each other, as a container of its own sees them."""
    modal = modal_account.client()
    examine = modal.Function.from_name(site.deployed.registry_app, "doctor")
    with modal_account.modal_errors():
        if found := examine.remote(read_data=True):
            raise Failed("; ".join(found))
    return "all is sound"


def backup_restore(site: Site) -> str:
    """A voice that was removed after a backup comes back by it."""
    site.modal("run", "-m", "registry.modal.app::back_up")
    name = f"voices-{datetime.now(UTC):%Y-%m-%d}.tar"
    remove(site)
    site.modal("run", "-m", "registry.modal.app::restore", "--name", name)
    return f"{name}: {is_there(site)}"


def scale_to_zero(site: Site) -> str:
    """Who is not asked is gone, and costs nothing."""
    began_s = clock()
    while clock() - began_s < site.deployed.scaledown_s + IDLE_S:
        if site.gpus() == 0:
            return f"no GPU after {clock() - began_s:.0f} s"
        time.sleep(LOOK_S)
    raise Failed(f"A GPU still runs after {clock() - began_s:.0f} s without a request.")


def cold_speak(site: Site) -> str:
    """A GPU that is off is not waited for by who does not want to, and speaks when it is there."""
    began_s = clock()
    with site.registry() as voices:
        try:
            voices.request("POST", "/speak", json=site.request(), headers={"Prefer": "wait=1"})
        except RequestRefused as refused:
            if not refused.is_cold:
                raise
            said = f"gpu-cold, come back in {refused.retry_s:.0f} s"
        else:
            raise Failed("It spoke within a second: the GPU was not off.")
        spoken = voices.speak(site.request(), BytesIO())
    return f"{said}; then after {clock() - began_s:.0f} s in all: {spoken}"


def clean_up(site: Site) -> str:
    """Nothing of it is left."""
    if site.plan is None:
        remove(site)
        return f"{site.voice} is removed"
    for app in modal_account.states(site.plan):
        if app.deployed:
            site.modal("app", "stop", app.name, "--yes")
    plan = site.plan
    for volume in (plan.state_volume, plan.weights_volume, plan.backup_volume):
        site.modal("volume", "delete", volume, "--allow-missing", "--yes")
    site.modal("dict", "delete", plan.claims_dict, "--allow-missing", "--yes")
    return f"Apps, Volumes and Dict of {plan.name} are gone"


def is_there(site: Site) -> str:
    with site.registry() as voices:
        voice = voices.voice(site.voice)
        clip = voices.request("GET", voice_path(voice["id"], "/clip")).content
    if clip != site.clip:
        raise Failed(f"The clip of {site.voice} is another one.")
    return f"{site.voice} is there, and its clip"


def remove(site: Site) -> None:
    with site.registry() as voices:
        voices.request("DELETE", voice_path(site.voice))


Check = Callable[[Site], str]
DEPLOYING: tuple[Check, ...] = (model_download, deploy_both, strangers)
ASKING: tuple[Check, ...] = (
    health,
    enrol,
    first_audio,
    streaming,
    plain_stream,
    leaving,
    at_once,
    edit,
)
LATER: tuple[Check, ...] = (restart, doctor, backup_restore, scale_to_zero, cold_speak)


def passes(check: Check, site: Site) -> bool:
    began_s = clock()
    try:
        verdict, said = "pass", check(site)
    except click.ClickException as error:
        verdict, said = "FAIL", error.message
    click.echo(f"{verdict}  {clock() - began_s:6.1f} s  {check.__name__:<15} {said}")
    return verdict == "pass"


@click.command(help=__doc__)
@click.option("--url", help="A registry that is there, and stays as it is.")
def main(url: str | None) -> None:
    token = os.environ.get("VOICES_TOKEN_ID"), os.environ.get("VOICES_TOKEN_SECRET")
    plan = None if url else deployment({**os.environ, variable("name"): NAME})
    if plan and plan.proxy_auth and not all(token):
        raise click.UsageError("VOICES_TOKEN_ID and VOICES_TOKEN_SECRET are not set.")
    site = Site(plan, Login(url or "", *token))
    try:
        passed = [passes(check, site) for check in (ASKING if url else DEPLOYING + ASKING + LATER)]
    finally:
        cleaned = passes(clean_up, site)
    raise SystemExit(not (all(passed) and cleaned))


if __name__ == "__main__":
    main()
