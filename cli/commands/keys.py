"""`voices keys …`: who may ask a server, and for what."""

import re
from typing import Any

import click

from cli.exits import if_interrupted
from cli.input import WORDS, agreed, json_option
from cli.output import one_paragraph, print_json, print_line, print_table, say
from cli.session import registry

SCOPES = ("voices:read", "voices:write", "speak", "admin")
USUAL = ("voices:read", "speak")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "y": 365 * 86_400}
HEADINGS = ("NAME", "ID", "SCOPES", "VOICES", "LAST USED", "ENDS")
WHOLE = re.compile(r"vr_([0-9a-z]{8})_\w+")


class TimeSpan(click.ParamType):  # type: ignore[type-arg]  # which is generic since click 8.4
    """Seconds, written as `90d`, `12h`, `30m` or `45s`."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhdy])", str(value), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is no time such as 90d, 12h, 30m or 45s.", param, context)
        return int(found[1]) * UNITS[found[2]]


TIME_SPAN = TimeSpan()


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke the keys by which a server knows who may ask.

    A server asks for one where it listens beyond this machine, and with VOICES_AUTH=on. Each has
    scopes: voices:read, voices:write, speak; and admin, which is all of them and these commands.
    """


@keys.command()
@click.argument("name", type=WORDS)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=USUAL,
    show_default=True,
    help="What it may do; may be repeated.",
)
@click.option(
    "--voice",
    "allowed",
    type=WORDS,
    multiple=True,
    help="A voice that it is for, by name or id; may be repeated. Default: all.",
)
@click.option("--expires", type=TIME_SPAN, help="When it ends: 90d, 12h. Default: never.")
@json_option
@click.pass_context
def create(
    context: click.Context,
    name: str,
    scopes: tuple[str, ...],
    allowed: tuple[str, ...],
    expires: int | None,
    as_json: bool,
) -> None:
    """Make a key, and print it: it is shown this once.

    NAME says for whom or what it is. A key that is for some voices sees no others, by whatever
    name, and can't enrol, rename or clone.

    \b
    Examples:
      voices keys create ann --scope admin
      voices keys create "web shop" --scope speak --voice alice --expires 90d
    """
    asked: dict[str, Any] = {"name": name, "scopes": list(scopes)}
    asked |= {"voices": list(allowed)} if allowed else {}
    asked |= {} if expires is None else {"expires_in_s": expires}
    outcome = "A key may have been made: `voices keys list` tells."
    with registry(context) as voices, if_interrupted(outcome):
        made = voices.create_key(asked)
    show(made, as_json, "Made the key")


@keys.command("list")
@click.option("--all", "revoked", is_flag=True, help="Also those that are revoked.")
@json_option
@click.pass_context
def list_keys(context: click.Context, revoked: bool, as_json: bool) -> None:
    """List the keys, the newest first; of none the secret is shown.

    \b
    Example:
      voices keys list --json
    """
    with registry(context) as voices:
        found = [key for key in voices.list_keys() if revoked or key["revoked_at"] is None]
    if as_json:
        print_json(found)
    elif found:
        print_table(HEADINGS, [_row(key) for key in found], ("SCOPES", "VOICES"))
    else:
        say("No keys yet; `voices keys create --help` says how.")


@keys.command()
@click.argument("key", type=WORDS)
@click.option(
    "--grace",
    type=TIME_SPAN,
    default="1d",
    show_default=True,
    help="How long the secret before is taken, too; 0s: not from now on.",
)
@json_option
@click.pass_context
def rotate(context: click.Context, key: str, grace: int, as_json: bool) -> None:
    """Give a key another secret, and print it; id, scopes and voices stay.

    KEY is an id, or a name that one key alone has. Until the grace is over both secrets are taken,
    so that whoever has the key can change to the other without a break.

    \b
    Example:
      voices keys rotate "web shop" --grace 7d
    """
    outcome = "It may have been rotated: rotate it again, for the secret is lost."
    with registry(context) as voices:
        chosen = _chosen(voices.list_keys(), key)
        with if_interrupted(outcome):
            made = voices.rotate_key(chosen["id"], grace)
    show(made, as_json, "Gave another secret to the key")


@keys.command()
@click.argument("key", type=WORDS)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def revoke(context: click.Context, key: str, yes: bool) -> None:
    """Revoke a key for good: within a second no server takes it any more.

    KEY is an id, or a name that one key alone has. What was asked for with it before goes on.

    \b
    Example:
      voices keys revoke o35pri7s --yes
    """
    with if_interrupted("Nothing was revoked."), registry(context) as voices:
        chosen = _chosen(voices.list_keys(), key)
        if not yes and not agreed(f"Revoke {chosen['name']} ({chosen['id']})?"):
            raise click.ClickException("Nothing was revoked.")
        with if_interrupted("It may have been revoked: `voices keys list` tells."):
            voices.revoke_key(chosen["id"])
    say(one_paragraph(f"Revoked {chosen['name']} ({chosen['id']})."))


def show(made: dict[str, Any], as_json: bool, what: str) -> None:
    if as_json:
        return print_json(made)
    say(one_paragraph(f"{what} {made['name']} ({made['id']}). It is shown this once:"))
    print_line(made["key"])


def _chosen(known: list[dict[str, Any]], given: str) -> dict[str, Any]:
    """Find a key by id, by name, or by its text, whose secret goes nowhere."""
    found = WHOLE.fullmatch(given)
    reference = found[1] if found else given
    live = [key for key in known if key["revoked_at"] is None]
    chosen = [key for key in live if key["id"] == reference]
    chosen = chosen or [key for key in live if key["name"] == reference]
    if not chosen:
        raise click.ClickException(f"No key has the id or name {reference!r}: `voices keys list`.")
    if len(chosen) > 1:
        ids = ", ".join(key["id"] for key in chosen)
        raise click.ClickException(f"{len(chosen)} keys are called {reference!r}: {ids}.")
    return chosen[0]


def _row(key: dict[str, Any]) -> list[str]:
    used, ends = key["last_used_at"], key["expires_at"]
    allowed = "all" if key["voices"] is None else " ".join(key["voices"])
    end = f"revoked {key['revoked_at'][:10]}" if key["revoked_at"] else (ends or "never")[:10]
    return [key["name"], key["id"], " ".join(key["scopes"]), allowed, (used or "never")[:16], end]
