"""How often a word or two comes out silent: through qwen-tts, our engine, or a registry.

    python -m training.demo_model.short_texts --engine qwen --out qwen.json
    python -m training.demo_model.short_texts --url http://127.0.0.1:8000 --out registry.json

111 short texts with one clip and its transcript, greedily and with each seed. Silent is a speech
without one audible 10 ms, a click one with less than 60 ms between its audible ends. A registry
must have a voice alice, and is asked for streams and for whole answers in turn.
"""

import json
from collections import Counter
from pathlib import Path

import click
import httpx
import numpy as np
import soundfile
import torch

from training.demo_model.evaluate import audible_s
from training.demo_model.sentences import read_lines
from training.demo_model.speaking import ENGINES, MODES, Spoken

CLICK_S = 0.06


@click.command()
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, exists=True), default="inference/demo"
)
@click.option("--url", help="A registry, which is asked in place of an engine.")
@click.option("--engine", type=click.Choice(tuple(ENGINES)), default="qwen")
@click.option("--clip", type=click.Path(path_type=Path, exists=True), default="cli/data/alice.wav")
@click.option("--seeds", default=3, help="Seeds from 0 on; greedy comes first in any case.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(
    checkpoint: Path, url: str | None, engine: str, clip: Path, seeds: int, out: Path | None
) -> None:
    """Speak the 111 texts, an engine in both modes, and count what came of them."""
    found = by_registry(url, seeds) if url else by_engine(checkpoint, engine, clip, seeds)
    if out is not None:
        out.write_text(json.dumps(found, indent=1), "utf-8")


def by_registry(url: str, seeds: int) -> dict[str, dict[str, str]]:
    """In the default mode."""
    found: dict[str, dict[str, str]] = {}
    with httpx.Client(base_url=url, timeout=600) as registry:
        for seed in range(seeds):
            found[f"seed {seed}"] = {
                text: answered(registry, text, seed, stream=bool((number + seed) % 2))
                for number, text in enumerate(read_lines("short"))
            }
            click.echo(f"seed {seed}: {dict(Counter(found[f'seed {seed}'].values()))}")
    return found


def answered(registry: httpx.Client, text: str, seed: int, stream: bool) -> str:
    """What came, in which mode, after how many retries; or the code of the error."""
    asked = {"voice": "alice", "text": text, "seed": seed, "format": "pcm", "stream": stream}
    answer = registry.post("/speak", json=asked)
    if answer.is_error:
        return str(answer.json()["code"])
    sound = np.frombuffer(answer.content, "<i2").astype(np.float32) / np.float32(32768)
    mode, retries = answer.headers["X-Mode"], answer.headers["X-Retries"]
    return f"{kind(Spoken(sound, stopped=True))} in {mode} after {retries} retries"


def by_engine(checkpoint: Path, engine: str, clip: Path, seeds: int) -> dict[str, dict[str, str]]:
    torch.set_num_threads(1)
    speaker = ENGINES[engine](checkpoint, "float32", "cpu")
    sound, _ = soundfile.read(clip, dtype="float32")  # mono, 24 kHz
    voice = speaker.clone(sound, clip.with_suffix(".txt").read_text("utf-8").strip())
    found: dict[str, dict[str, str]] = {}
    for mode in MODES:
        for seed in (None, *range(seeds)):
            run = f"{mode} {'greedy' if seed is None else f'seed {seed}'}"
            found[run] = {
                text: kind(speaker.speak(voice, mode, text, "Auto", seed))
                for text in read_lines("short")
            }
            click.echo(f"{engine} {run}: {dict(Counter(found[run].values()))}")
    return found


def kind(spoken: Spoken) -> str:
    """endless, silent, click or heard."""
    if not spoken.stopped:
        return "endless"
    heard_s = audible_s(spoken.sound)
    return "silent" if heard_s == 0 else "click" if heard_s < CLICK_S else "heard"


if __name__ == "__main__":
    main()
