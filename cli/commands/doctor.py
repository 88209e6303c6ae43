"""`voices doctor` and `voices version`: what is on this machine, and whether it is sound."""

import sys

import click

from cli import compose
from cli.input import json_option
from cli.output import print_json, print_line


@click.command()
@click.option("--read-data", is_flag=True, help="Read every file and compare its sha256.")
@click.option(
    "--repair",
    is_flag=True,
    help="Mend what can be mended without loss, and close what is open to others.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, read_data: bool, repair: bool, as_json: bool) -> None:
    """Examine this machine's data directory and what the model needs.

    Exits with 1 if anything is left that is not sound.

    \b
    Example:
      voices doctor --read-data
    """
    from dataclasses import asdict

    from inference.models.check import examine as model_faults
    from registry.audio.clips import ClipLimits, fence_of_decoder
    from registry.storage.data_dir import DataDir
    from registry.upkeep.doctor import Finding, examine, model_in_use, summary
    from registry.upkeep.exposure import examine_modes

    compose.refuse_remote(context)
    settings = compose.load_settings()
    data = DataDir(compose.home_of(settings))
    with compose.sentences():
        findings = examine(data, read_data=read_data, repair=repair)
        if all(finding.severity != "loss" for finding in findings) and (used := model_in_use(data)):
            faults = model_faults(*used, data, read_data=read_data)
            findings += [Finding("model", fault) for fault in faults]
        findings += examine_modes(data, repair=repair)
    about = summary(data) | machine() | {"decoder": fence_of_decoder(ClipLimits())}
    if as_json:
        print_json(about | {"findings": [asdict(finding) for finding in findings]})
    else:
        for name, value in about.items():
            print_line(f"{name:<15} {value}")
        for finding in findings:
            whose = ", ".join(f"{voice.name} ({voice.id})" for voice in finding.voices)
            print_line(f"{finding.severity:<10} {finding.what}{whose and f': {whose}'}")
        if not findings:
            print_line(
                f"{'sound':<15} {'all that was read' if read_data else 'all that was found'}"
            )
    if any(finding.severity not in ("repaired", "foreign") for finding in findings):
        raise SystemExit(1)


def machine() -> dict[str, str]:
    """Return which packages are here; nothing is imported, for torch takes seconds."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("voice-registry", "qwen-tts", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {"python": sys.version.split()[0], **found}


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions of this program and of what it stands on.

    \b
    Example:
      voices version --json
    """
    found = machine()
    if as_json:
        return print_json(found)
    for name, value in found.items():
        print_line(f"{name:<15} {value}")
