"""HTTP to a registry: the server's sentence becomes the command's error. It opens no files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import click
import httpx

from cli.destination import is_loopback, parsed
from cli.output import say, write_wave

TIMEOUT = httpx.Timeout(30.0, read=600.0)
COLD_S = 300.0  # for a GPU that starts, all waiting together
T = TypeVar("T")
MEDIA_ENDINGS = {
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/webm": "webm",
}


class Refused(click.ClickException):
    """By the server, in its own words."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(sentence(response))
        self.status = response.status_code
        self.cold_s = cold_s(response)


class Registry:
    """One voice registry, wherever it runs."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer, whole; raises as `stream` does."""
        with self.stream(method, path, **options) as response:
            response.read()
        return response

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """An answer to be read as it comes.

        Raises Refused with the server's own sentence for every answer but success, and
        ClickException for one that breaks off while it is read. No redirect is followed.
        """
        url = str(self._http.base_url)
        with _reachable(url), self._http.stream(method, path, **options) as response:
            if not response.is_success:
                response.read()
                raise Refused(response)
            yield response

    @contextmanager
    def speech(self, request: dict[str, Any]) -> Iterator[httpx.Response]:
        """What /speak answers, to be read as it comes; a GPU that has to start is waited for."""
        with ExitStack() as answered:

            def ask(wait_s: float) -> httpx.Response:
                prefer = {"Prefer": f"wait={wait_s:.0f}"}
                answer = self.stream("POST", "/speak", json=request, headers=prefer)
                return answered.enter_context(answer)

            yield when_warm(ask)

    def speak(self, request: dict[str, Any], file: BinaryIO) -> str:
        """The audio into a file, which then tells its length; what came of it, in words.

        PCM is streamed, and gets its header here if it is to be wav. A flac's length comes whole.
        """
        format = request["format"]
        streamed = {} if format == "flac" else {"format": "pcm", "stream": True}
        with self.speech(request | streamed) as answer:
            if format == "wav":
                write_wave(file, answer.iter_bytes(), sample_rate(answer))
            else:
                file.writelines(answer.iter_bytes())
            return summary(answer)

    def voice(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.request("GET", voice_path(name)).json()
        return found

    def voices(self, search: str, label: str) -> Iterator[dict[str, Any]]:
        """Every voice, page by page."""
        query = {"limit": "200", "search": search, "label": label}
        while True:
            page = self.request("GET", "/voices", params=query).json()
            yield from page["data"]
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def patch(self, voice: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        """Edit what was read: a voice that changed meanwhile is refused, not overwritten."""
        headers = {"If-Match": etag(voice)}
        path = voice_path(voice["id"])
        edited: dict[str, Any] = self.request("PATCH", path, json=change, headers=headers).json()
        return edited


def when_warm(ask: Callable[[float], T]) -> T:
    """What `ask` brings, which is given the seconds that it may wait for a GPU.

    It is asked again while a GPU starts, for nothing has been done then; after COLD_S the last
    refusal stands.
    """
    until_s, told = time.monotonic() + COLD_S, False
    while True:
        try:
            return ask(until_s - time.monotonic())
        except Refused as refused:
            if refused.cold_s is None or time.monotonic() + refused.cold_s > until_s:
                raise
            if not told:
                say(f"The GPU is starting; waiting for it, {COLD_S:.0f} s at most.")
            told = True
            time.sleep(refused.cold_s)


def voice_path(reference: str, part: str = "") -> str:
    return f"/voices/{quote(reference, safe='')}{part}"


def etag(voice: dict[str, Any]) -> str:
    return f'"{voice["row_version"]}"'


def cold_s(response: httpx.Response) -> float | None:
    """In so many seconds to ask again, if a GPU is starting."""
    if is_problem(response) and response.json()["code"] == "gpu-cold":
        return float(response.headers["Retry-After"])
    return None


def is_problem(response: httpx.Response) -> bool:
    media_type: str = response.headers.get("content-type", "")
    return media_type.startswith("application/problem+json")


def sentence(response: httpx.Response) -> str:
    """The `detail` of a problem document, or what little another server's answer says."""
    if is_problem(response):
        return str(response.json()["detail"])
    if response.status_code in (401, 403):
        return _about_token(response)
    answered = f"{response.request.url} answered {response.status_code} {response.reason_phrase}"
    if leads_to := response.headers.get("location"):
        return f"{answered}, which leads to {leads_to}: no redirect is followed."
    return f"{answered}."


def _about_token(response: httpx.Response) -> str:
    base = str(response.request.url.join("/")).rstrip("/")
    if token_id := response.request.headers.get("Modal-Key"):
        return (
            f"{base} does not accept the token {token_id}. With a proxy token of its workspace, "
            f"`voices login {base}` stores another one."
        )
    return f"{base} asks for a token, which `voices login {base}` takes and stores."


def summary(speech: httpx.Response) -> str:
    """It is as long as its header says, or as the PCM was that came."""
    length = speech.headers.get("X-Audio-Seconds")
    length = length or f"{speech.num_bytes_downloaded / 2 / sample_rate(speech):.3f}"
    cache, seed = speech.headers["X-Prompt-Cache"], speech.headers["X-Seed"]
    return f"{length} s, prompt from {cache}, seed {seed}"


def sample_rate(pcm: httpx.Response) -> int:
    return int(pcm.headers["Content-Type"].partition("rate=")[2].partition(";")[0])


@contextmanager
def connect(url: str, headers: dict[str, str]) -> Iterator[Registry]:
    here = is_loopback(parsed(url).host)
    with httpx.Client(
        base_url=url,
        headers=headers,
        timeout=TIMEOUT,
        follow_redirects=False,
        trust_env=not here,  # a proxy would see what never leaves this machine
    ) as http:
        yield Registry(http)


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise click.ClickException(f"{url} did not answer in time.") from error
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise click.ClickException(f"The answer of {url} broke off before its end.") from error
    except httpx.TransportError as error:
        raise click.ClickException(f"Can't talk to {url}: {error}.") from error
