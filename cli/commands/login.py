"""`voices login`, `logout`, `where`: which registry the commands talk to from now on."""

import sys

import click

from cli.destination import (
    DestinationOptions,
    Login,
    config_file,
    forget,
    is_token,
    keep,
    parsed,
    refuse_plain,
    stored,
)
from cli.input import WORDS, json_option
from cli.output import print_json, print_path, say


@click.command()
@click.argument("url", type=WORDS)
@click.option("--token-id", envvar="VOICES_TOKEN_ID", help="It begins with wk-.")
@click.option(
    "--token-secret",
    envvar="VOICES_TOKEN_SECRET",
    help="It begins with ws-. Others on this machine can see it here: better pipe it, or be asked.",
)
@click.option("--no-token", is_flag=True, help="The registry asks nobody for a token.")
@click.pass_context
def login(
    context: click.Context,
    url: str,
    token_id: str | None,
    token_secret: str | None,
    no_token: bool,
) -> None:
    """Send the commands to a registry from now on, with a token that it accepts.

    Asks for what is missing of a Modal proxy token, or reads it from a pipe, a line for the id and
    a line for the secret. Checks it with the registry, then stores both in a file that only you
    can read. The token goes to the scheme, host and port of URL and nowhere else.

    \b
    Examples:
      voices login https://ann--voices-registry-api.modal.run
      pass show modal | voices login https://ann--voices-registry-api.modal.run
    """
    address = registry_address(url)
    if no_token:
        found = Login(address)
    else:
        refuse_plain(address)
        found = Login(address, *token(token_id, token_secret))
    check(found)
    path = keep(found)
    say(f"Logged in: the commands go to {address}, as {path} says, until `voices logout`.")
    if context.find_root().obj.url:
        say("Note: VOICES_URL is set and goes before it.")


def registry_address(url: str) -> str:
    found = parsed(url)
    if found.userinfo or found.query or found.fragment:
        raise click.UsageError("The URL of a registry has no user, no ? and no # in it.")
    return str(found).rstrip("/")


def token(token_id: str | None, token_secret: str | None) -> tuple[str, str]:
    """Both parts, asked for as far as they are not given; neither is ever shown."""
    token_id = token_id or ask("Token id (wk-…)", hidden=False)
    refuse_other_kinds(token_id, "wk-", "ak-")
    token_secret = token_secret or ask("Token secret (ws-…)", hidden=True)
    refuse_other_kinds(token_secret, "ws-", "as-")
    return token_id, token_secret


def ask(what: str, hidden: bool) -> str:
    """From the terminal; where there is none, the next line of stdin."""
    if sys.stdin.isatty():
        answer: str = click.prompt(what, hide_input=hidden, err=True)
        return answer.strip()
    if line := sys.stdin.readline().strip():
        return line
    raise click.UsageError(
        "There is no terminal to ask for the token, and stdin has no line for it. Pipe the id and "
        "the secret, set VOICES_TOKEN_ID and VOICES_TOKEN_SECRET, or give --no-token."
    )


def refuse_other_kinds(part: str, wanted: str, other: str) -> None:
    """A token of the account can do everything, so it must not reach a web server."""
    if part.startswith(other):
        raise click.UsageError(
            f"That is a token of the Modal account ({other}…). A registry wants a proxy token, "
            f"{wanted}…: `modal workspace proxy-tokens create` makes one."
        )
    if not is_token(part):
        raise click.UsageError("That is no token: it has blanks or strange characters in it.")


def check(login: Login) -> None:
    """Raises unless a voice registry answers there, and lets this token in."""
    from cli.client import connect
    from cli.refusals import RequestRefused
    from cli.session import progress

    headers = login.headers(login.url)
    with connect(login.url, headers) as voices, progress(f"Asking {login.url} …"):
        try:
            answered = voices.is_registry()
        except RequestRefused as refused:
            if refused.status != 404:
                raise
            answered = False
    if not answered:
        raise click.ClickException(
            f"{login.url} is no voice registry, or one that is stopped: it answers as none does."
        )


@click.command()
def logout() -> None:
    """Forget the registry and the token of `voices login`.

    \b
    Example:
      voices logout
    """
    if forget():
        say("Logged out: the voices are those of this machine again.")
    else:
        say("You were not logged in.")


@click.command()
@json_option
@click.pass_context
def where(context: click.Context, as_json: bool) -> None:
    """Tell where the commands go, and why; nothing is sent.

    \b
    Example:
      voices where
    """
    found = whereabouts(context.find_root().obj)
    if as_json:
        return print_json(found)
    print_path(found["url"] or found["home"])
    say(f"{found['because']}.")


def whereabouts(asked: DestinationOptions) -> dict[str, str | None]:
    """The registry's URL or this machine's data directory, the token's id, and the reason."""
    login = None if asked.local else stored()
    url = asked.url or (login.url if login else None)
    if url is None:
        from cli import compose

        because = "--local says so" if asked.local else "Nobody is logged in: it is this machine"
        home = str(compose.home_of(compose.load_settings()))
        return {"url": None, "home": home, "token_id": None, "because": because}
    sent = login.headers(url).get("Modal-Key") if login else None
    token = f"with the token {sent}" if sent else "without a token"
    because = "--url or VOICES_URL says so" if asked.url else f"{config_file()} says so"
    return {"url": url, "home": None, "token_id": sent, "because": f"{because}, {token}"}
