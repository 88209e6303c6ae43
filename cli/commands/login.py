"""`voices login`, `logout`, `where`: which registry the commands talk to from now on."""

import sys
from dataclasses import replace

import click

from cli.destination import (
    KEY_VARIABLE,
    DestinationOptions,
    Login,
    config_file,
    forget,
    is_token,
    keep,
    key_of_environment,
    parsed,
    refuse_plain,
    stored,
)
from cli.input import WORDS, json_option
from cli.output import print_json, print_path, say


@click.command()
@click.argument("url", type=WORDS)
@click.option(
    "--key",
    envvar=KEY_VARIABLE,
    help="It begins with vr_. Others on this machine can see it here: better pipe it, or be asked.",
)
@click.option("--token-id", envvar="VOICES_TOKEN_ID", help="Of Modal; it begins with wk-.")
@click.option(
    "--token-secret", envvar="VOICES_TOKEN_SECRET", help="It begins with ws-; as visible as a key."
)
@click.option("--no-token", is_flag=True, help="The registry asks nobody for a token or a key.")
@click.pass_context
def login(
    context: click.Context,
    url: str,
    key: str | None,
    token_id: str | None,
    token_secret: str | None,
    no_token: bool,
) -> None:
    """Send the commands to a registry from now on, with a key or a token that it accepts.

    Asks for what is missing, or reads it from a pipe: a line for the key (vr_…), or for a Modal
    proxy token a line for its id (wk-…) and a line for its secret; and then, if the registry
    behind it asks for one, a line for the key. Checks all with the registry, then stores it in a
    file that only you can read. It goes to the scheme, host and port of URL and nowhere else.

    \b
    Examples:
      voices login https://voices.example.org
      pass show voices | voices login https://voices.example.org
    """
    address = registry_address(url)
    found = Login(address)
    if not no_token:
        refuse_plain(address)
        found = credentials(found, key, token_id, token_secret)
    found = checked(found, may_ask=not no_token)
    path = keep(found)
    say(f"Logged in: the commands go to {address}, as {path} says, until `voices logout`.")
    if context.find_root().obj.url:
        say("Note: VOICES_URL is set and goes before it.")


def registry_address(url: str) -> str:
    found = parsed(url)
    if found.userinfo or found.query or found.fragment:
        raise click.UsageError("The URL of a registry has no user, no ? and no # in it.")
    return str(found).rstrip("/")


def credentials(
    found: Login, key: str | None, token_id: str | None, token_secret: str | None
) -> Login:
    """Return what was given, or ask for it; it is never shown."""
    if key is None and token_id is None:
        first = ask("Key (vr_…), or id of a Modal token (wk-…)")
        key, token_id = (None, first) if first.startswith(("wk-", "ak-")) else (first, None)
    if key is not None:
        found = replace(found, key=checked_key(key))
    if token_id is None:
        return found
    refuse_other_kinds(token_id, "wk-", "ak-")
    token_secret = token_secret or ask("Token secret (ws-…)")
    refuse_other_kinds(token_secret, "ws-", "as-")
    return replace(found, token_id=token_id, token_secret=token_secret)


def ask(what: str) -> str:
    """Ask on the terminal, which does not show it; where there is none, read a line of stdin."""
    if sys.stdin.isatty():
        answer: str = click.prompt(what, hide_input=True, err=True)
        return answer.strip()
    if line := sys.stdin.readline().strip():
        return line
    raise click.UsageError(
        "There is no terminal to ask, and stdin has no line for it. Pipe the key, or a token's id "
        f"and secret; set {KEY_VARIABLE}, or VOICES_TOKEN_ID and VOICES_TOKEN_SECRET; or give "
        "--no-token."
    )


def checked_key(key: str) -> str:
    """Return a key if it is one at all, which its check tells without a server."""
    from registry.keys.secret import presented

    if presented(key) is None:
        raise click.UsageError(
            "That is no whole key: it begins with vr_, and a character is wrong or missing."
        )
    return key


def refuse_other_kinds(part: str, wanted: str, other: str) -> None:
    """Refuse an account's token, which can do everything, and what is no token."""
    if part.startswith(other):
        raise click.UsageError(
            f"That is a token of the Modal account ({other}…). A registry wants a proxy token, "
            f"{wanted}…: `modal workspace proxy-tokens create` makes one."
        )
    if not is_token(part):
        raise click.UsageError("That is no token: it has blanks or strange characters in it.")


def checked(found: Login, *, may_ask: bool) -> Login:
    """Add the key that the registry asks for, if it does behind a token that it takes."""
    from cli.api.refusals import RequestRefused

    try:
        check(found)
    except RequestRefused as refused:
        if not may_ask or refused.code != "key-missing":
            raise
        found = replace(found, key=checked_key(ask("Key (vr_…)")))
        check(found)
    return found


def check(login: Login) -> None:
    """Raise ClickException unless a registry answers there, and lets this token or key in."""
    from cli.api.client import connect
    from cli.api.refusals import RequestRefused
    from cli.session import progress

    headers = login.headers(login.url)
    with connect(login.url, headers) as voices, progress(f"Asking {login.url} …"):
        try:
            answered = voices.is_registry()
        except RequestRefused as refused:
            if refused.status != 404 and refused.code != "scope-missing":
                raise
            answered = refused.status != 404  # a key that may only speak is taken, too
    if not answered:
        raise click.ClickException(
            f"{login.url} is no voice registry, or one that is stopped: it answers as none does."
        )


@click.command()
def logout() -> None:
    """Forget the registry of `voices login`, with its token and key.

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
    """Return the registry's URL or the data directory, the ids of token and key, and why."""
    login = None if asked.local else stored()
    url = asked.url or (login.url if login else None)
    ids: dict[str, str | None] = {"token_id": None, "key_id": None}
    if url is None:
        from cli import compose

        because = "--local says so" if asked.local else "Nobody is logged in: it is this machine"
        home = str(compose.home_of(compose.load_settings()))
        return {"url": None, "home": home, **ids, "because": because}
    sent = (login.headers(url) if login else {}) | key_of_environment(url)
    ids = {"token_id": sent.get("Modal-Key"), "key_id": key_id_of(sent.get("Authorization"))}
    told = [f"the token {ids['token_id']}"] if ids["token_id"] else []
    told += [f"the key {ids['key_id']}"] if ids["key_id"] else []
    because = "--url or VOICES_URL says so" if asked.url else f"{config_file()} says so"
    with_what = f"with {' and '.join(told)}" if told else "without a token or key"
    return {"url": url, "home": None, **ids, "because": f"{because}, {with_what}"}


def key_id_of(authorization: str | None) -> str | None:
    """Return the part of a key that is no secret."""
    parts = (authorization or "").split("_")
    return parts[1] if len(parts) == 4 else None
