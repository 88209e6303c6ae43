"""`voices demo`: the whole path once, in a data directory of its own, over HTTP."""

import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import host
from cli.output import print_table, say, write_file
from cli.session import progress

if TYPE_CHECKING:
    import httpx

    from cli.client import Registry

MARKER = "made-by-voices-demo"
SEED = 7
SENTENCES = (
    "A voice is enrolled once, and from then on it speaks by name.",
    "The second sentence needs no file at all.",
)
NOISE = """
The demo model has the true format but random weights, so what you hear is noise, not speech.
For real voices, fetch the real model (4.5 GB) and enrol your own clip:
  voices model download
  voices add alice ref.wav "the words of the clip"
  voices speak alice "Hello"
"""


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=".demo", show_default=True, help="Its data."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="demo.wav",
    show_default=True,
    help="The file for the first sentence; it is replaced.",
)
def demo(home: Path, output: Path) -> None:
    """Enrol a bundled clip as alice with the tiny demo model, and speak two sentences.

    Uses a data directory of its own, which each run empties first, and nothing else.

    \b
    Example:
      voices demo
    """
    empty(home)
    settings = host.load_settings(home=home, model="demo", inference="on")
    with host.private_registry(settings) as voices:
        enrol(voices)
        print_table(list(voices.voices("", "")))
        first = speak(voices, SENTENCES[0])
        speak(voices, SENTENCES[1])
    write_file(output, first, force=True)
    say(f"\nWrote {output}.{NOISE.rstrip()}")


def empty(home: Path) -> None:
    """Start afresh, but only in a folder that a demo made."""
    import shutil

    if home.exists() and any(home.iterdir()) and not (home / MARKER).exists():
        raise click.ClickException(
            f"{home} holds something that is not a demo's. Name another folder with --home."
        )
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    (home / MARKER).touch()


def enrol(voices: "Registry") -> None:
    data = resources.files("cli.data")
    transcript = data.joinpath("alice.txt").read_text(encoding="utf-8").strip()
    form = {"name": "alice", "transcript": transcript, "description": "LJ Speech, public domain"}
    started = time.perf_counter()
    with progress("Loading the demo model and enrolling alice …"):
        clip = data.joinpath("alice.wav").read_bytes()
        voice = voices.request("POST", "/voices", data=form, files={"audio": clip}).json()
    took_s = time.perf_counter() - started
    length_s = voice["clip"]["duration_s"]
    say(f"Enrolled alice from a clip of {length_s:.1f} s in {took_s:.2f} s, loading included.")


def speak(voices: "Registry", text: str) -> bytes:
    request = {"voice": "alice", "text": text, "seed": SEED}
    started = time.perf_counter()
    with progress("alice speaks …"):
        reply = voices.request("POST", "/speak", json=request)
    say(f"Spoke {text!r}: {report(reply, time.perf_counter() - started)}.")
    return reply.content


def report(reply: "httpx.Response", took_s: float) -> str:
    length, cache = reply.headers["X-Audio-Seconds"], reply.headers["X-Prompt-Cache"]
    return f"{length} s at 24000 Hz in {took_s:.2f} s, prompt from {cache}"
