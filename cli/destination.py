"""Finds where commands go: to the URL that was given, to the login's registry, or nowhere.

It knows one file and URLs, and no HTTP. Token and key are meant for the stored origin and no other.
"""

import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.folders import NoHome, config_folder, expanded

if TYPE_CHECKING:
    import httpx

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WAYS_OUT = "`voices login` writes it anew, `voices logout` removes it."
LONGEST = 65_536  # characters of the file; it has some 200
CONFIG_HOME = "VOICES_CONFIG_HOME"
KEY_VARIABLE = "VOICES_KEY"
TOKEN = re.compile(r"[\x21-\x7e]{1,500}")


@dataclass(frozen=True)
class DestinationOptions:
    """The registry that the command line or VOICES_URL names."""

    url: str | None = None
    local: bool = False


@dataclass(frozen=True)
class Login:
    """The registry of `voices login`, and the token and the key for it."""

    url: str
    token_id: str | None = None
    token_secret: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    def headers(self, url: str) -> dict[str, str]:
        """Return token and key for a request to `url`; nothing if that is of another origin.

        Raises ClickException rather than send them where others on the way can read them.
        """
        if not same_origin(url, self.url):
            return {}
        sent = {} if self.key is None else of_key(self.key)
        if self.token_id is not None and self.token_secret is not None:
            sent |= {"Modal-Key": self.token_id, "Modal-Secret": self.token_secret}
        if sent:
            refuse_plain(url)
        return sent


def of_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def parsed(url: str) -> "httpx.URL":
    """Parse a URL as the client does, so that what is compared is where a request would go."""
    try:
        return url_of(url, ("http", "https"))
    except ValueError as error:
        raise click.UsageError(f"{shown(url)!r} is not the URL of a registry: {error}.") from error


def url_of(url: str, schemes: tuple[str, ...]) -> "httpx.URL":
    """Parse a URL; raise ValueError for one that would fail later, as it is looked up."""
    import httpx

    try:
        found = httpx.URL(url)
        found.raw_host.decode().encode("idna")
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    except UnicodeError as error:
        raise ValueError("its host is no name that can be looked up") from error
    if found.scheme not in schemes or not found.host:
        raise ValueError(f"it is not an {' or '.join(f'{s}://' for s in schemes)} URL")
    if found.port is not None and not 0 < found.port < 65536:
        raise ValueError("a port is 1 to 65535")
    return found


def shown(url: str) -> str:
    """Return a URL without the user and password that it may hold."""
    scheme, slashes, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def same_origin(url: str, other: str) -> bool:
    """Tell whether scheme, host and port are equal; a port left out is the scheme's own."""
    a, b = parsed(url), parsed(other)
    return (a.scheme, a.host, a.port) == (b.scheme, b.host, b.port)


def refuse_plain(url: str) -> None:
    found = parsed(url)
    if found.scheme == "http" and not is_loopback(found.host):
        raise click.ClickException(
            f"No token or key is sent to {url}: over http:// all on the way can read it. "
            "Use https://."
        )


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def destination(asked: DestinationOptions) -> tuple[str, dict[str, str]] | None:
    """Return the URL and headers for a command, or None for this machine."""
    if asked.local:
        return None
    login = stored()
    url = asked.url or (login.url if login else None)
    if url is None:
        return None
    if parsed(url).query or parsed(url).fragment:
        raise click.UsageError("The URL of a registry has no ? and no # in it.")
    return url, (login.headers(url) if login else {}) | key_of_environment(url)


def key_of_environment(url: str) -> dict[str, str]:
    """Return the header with VOICES_KEY's key, which is meant for any registry asked."""
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return {}
    if not is_token(key):
        raise click.UsageError(f"{KEY_VARIABLE} holds no key: it has blanks or strange characters.")
    refuse_plain(url)
    return of_key(key)


def config_file() -> Path:
    given = os.environ.get(CONFIG_HOME)
    folder = expanded(Path(given), CONFIG_HOME) if given else config_folder(CONFIG_HOME)
    return folder / "login.json"


def stored() -> Login | None:
    """Return what `voices login` wrote; raise ClickException if damaged, or open to others."""
    try:
        path = config_file()
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(LONGEST)
    except (FileNotFoundError, NoHome):
        return None
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is damaged. {WAYS_OUT}") from error
    except OSError as error:
        raise click.ClickException(f"Can't read {path}: {error.strerror}. {WAYS_OUT}") from error
    if mode & OTHERS:
        raise click.ClickException(
            f"Others on this machine can read {path}, which has a token or a key: "
            f"`chmod 600 {path}` closes it. If they may have read it, log in with a new one."
        )
    return _parse(text, path)


def _parse(text: str, path: Path) -> Login:
    damaged = click.ClickException(f"{path} is damaged. {WAYS_OUT}")
    try:
        login = Login(**json.loads(text))
        parsed(login.url)
    except (ValueError, TypeError, RecursionError, click.UsageError) as error:
        raise damaged from error
    token = (login.token_id, login.token_secret)
    if token != (None, None) and not all(map(is_token, token)):
        raise damaged
    if login.key is not None and not is_token(login.key):
        raise damaged
    return login


def is_token(value: object) -> bool:
    return isinstance(value, str) and bool(TOKEN.fullmatch(value))


def keep(login: Login) -> Path:
    """Write the login whole or not at all, for its owner alone; return the file's path."""
    import tempfile

    path = config_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".login-", dir=path.parent)  # its mode is 0600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({k: v for k, v in asdict(login).items() if v is not None}, file, indent=2)
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
    except OSError as error:
        raise click.ClickException(f"Can't write {path}: {error.strerror}.") from error
    return path


def forget() -> bool:
    """Remove the login; return whether there was one."""
    try:
        path = config_file()
        path.unlink()
    except (FileNotFoundError, NoHome):
        return False
    except OSError as error:
        raise click.ClickException(f"Can't remove {path}: {error.strerror}.") from error
    return True
