"""`voices bench`: how fast the model speaks on this machine."""

from typing import TYPE_CHECKING

import click

from cli import compose
from cli.commands.model import opened
from cli.input import json_option
from cli.output import print_json, print_line
from cli.session import progress

if TYPE_CHECKING:
    from inference.serving.bench import BenchReport
    from registry.settings import Settings
    from registry.storage.store import VoiceStore

COLUMNS = ("streams", "ms per frame", "x real time", "first audio, ms")


@click.command()
@click.option(
    "--streams",
    multiple=True,
    type=click.IntRange(1, 128),
    default=(1, 8),
    show_default=True,
    help="Voices that speak at once; may be repeated.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    default=5.0,
    show_default=True,
    help="Of speech, from each.",
)
@json_option
@click.pass_context
def bench(context: click.Context, streams: tuple[int, ...], seconds: float, as_json: bool) -> None:
    """Measure how fast the model speaks on this machine.

    A frame is 80 ms of sound. First audio is of a voice that is known already. No voice is made.

    \b
    Example:
      voices bench --streams 1 --streams 16 --seconds 10
    """
    from dataclasses import asdict

    compose.refuse_remote(context)
    with opened() as (settings, store), progress("Measuring …"):
        name, report = measured(settings, store, streams, seconds)
    if as_json:
        return print_json({"model": name, **asdict(report)})
    print_line(f"{name} on {report.device} in {report.dtype}")
    print_line(f"first audio of a known voice, alone: {report.first_ms:g} ms\n")
    print_line("  ".join(COLUMNS))
    for line in report.together:
        cells = zip(asdict(line).values(), COLUMNS, strict=True)
        print_line("  ".join(f"{value:>{len(name)}}" for value, name in cells))


def measured(
    settings: "Settings", store: "VoiceStore", streams: tuple[int, ...], seconds: float
) -> tuple[str, "BenchReport"]:
    """Return the model's name, and what it did."""
    from inference.models.catalog import DEMO, locate, not_imported

    model = locate(compose.model_spec(settings, store), store.data)
    try:
        from inference.engine.config import EngineConfig
        from inference.serving.bench import bench
    except (ImportError, OSError) as error:
        raise not_imported(error) from error
    config = EngineConfig(
        device=None if settings.device == "auto" else settings.device,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        slots=max(streams),
        queue_limit=max(streams),
        threads=settings.threads or (1 if model.ref.id == DEMO else None),
    )
    return model.ref.id, bench(model.path, streams, seconds, config)
