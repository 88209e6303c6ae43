"""How often a word or two comes out silent, through qwen-tts or through our engine: JSON, a table.

    python -m training.demo_model.short_texts CHECKPOINT --engine qwen --out qwen.json

111 short texts with one clip and its transcript, greedily and with each seed. Silent is a speech
without one audible 10 ms, a click one with less than 60 ms between its audible ends.
"""

import json
from collections import Counter
from pathlib import Path

import click
import soundfile
import torch

from training.demo_model.evaluate import audible_s
from training.demo_model.sentences import read_lines
from training.demo_model.speaking import ENGINES, MODES, Spoken

CLICK_S = 0.06


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--engine", type=click.Choice(tuple(ENGINES)), default="qwen")
@click.option("--clip", type=click.Path(path_type=Path, exists=True), default="cli/data/alice.wav")
@click.option("--seeds", default=3, help="Seeds from 0 on; greedy comes first in any case.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(checkpoint: Path, engine: str, clip: Path, seeds: int, out: Path | None) -> None:
    """Speak the 111 texts in both modes and count what came of them."""
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
    if out is not None:
        out.write_text(json.dumps(found, indent=1), "utf-8")


def kind(spoken: Spoken) -> str:
    """endless, silent, click or heard."""
    if not spoken.stopped:
        return "endless"
    heard_s = audible_s(spoken.sound)
    return "silent" if heard_s == 0 else "click" if heard_s < CLICK_S else "heard"


if __name__ == "__main__":
    main()
