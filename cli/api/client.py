"""Talks HTTP to a registry: its refusals become the command's errors. It opens no files."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import click
import httpx

from cli.api import answers, events
from cli.api.answers import (
    ALIAS,
    ALIASES,
    CLIP_LIMIT,
    HEALTH,
    JSON_LIMIT,
    KEYS,
    NEW_KEY,
    PAGE,
    VOICE,
    SpeechHeaders,
    Unexpected,
)
from cli.api.connection import http_client
from cli.api.refusals import RequestRefused, one_line
from cli.destination import shown
from cli.output import say, write_wave
from registry.audio.formats import format_named

COLD_S = 300.0  # for a GPU that starts, all waiting together
BUSY_S = 60.0  # for a registry that wants to be asked again
PAUSE_S = 0.1  # at least, and twice as long each time
MOST_BYTES = 128 << 20  # of all pages: 100,000 ordinary voices
MOST_VALUES = 4_000_000  # of all pages
REFUSAL_LIMIT = 1 << 20
WAV_HEADER = 44  # bytes
T = TypeVar("T")


class Registry:
    """One voice registry, wherever it runs."""

    def __init__(self, http: httpx.Client, name: str | None = None) -> None:
        self._http = http
        self._name = name or shown(str(http.base_url)).rstrip("/")

    def request(
        self, method: str, path: str, limit: int = JSON_LIMIT, **options: Any
    ) -> httpx.Response:
        """Return the whole answer of one attempt; raises as `stream` does."""
        with self.stream(method, path, **options) as answer:
            return _with(answer, answers.whole(answer, limit))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the whole answer, after as many attempts as `when_ready` makes."""
        given = options.pop("headers", {})

        def attempt(wait_s: float) -> httpx.Response:
            headers = {"Prefer": f"wait={wait_s:.0f}"} | given
            return self.request(method, path, headers=headers, **options)

        return when_ready(attempt)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Yield an answer to be read as it comes.

        Raises RequestRefused with the server's own sentence for every answer but success, and
        ClickException for one that breaks off while it is read. No redirect is followed.
        """
        with _reachable(self._name), self._http.stream(method, path, **options) as response:
            if not response.is_success:
                raise RequestRefused(_with(response, _refusal(response)))
            yield response

    @contextmanager
    def speech(
        self, request: dict[str, Any], clip: bytes | None = None
    ) -> Iterator[tuple[SpeechHeaders, Iterator[bytes]]]:
        """Yield what /speak answers, or with a clip /clone, to be read as it comes.

        A GPU that has to start is waited for.
        """
        path, sent = "/speak", {"json": request}
        if clip is not None:
            path, sent = "/clone", multipart(request, clip)
        with ExitStack() as answered:

            def attempt(wait_s: float) -> httpx.Response:
                headers = {"Prefer": f"wait={wait_s:.0f}"} | self._in_real_time(request)
                answer = self.stream("POST", path, headers=headers, **sent)
                return answered.enter_context(answer)

            answer = when_ready(attempt)
            yield answers.spoken(answer, format_named(request["format"])), answers.sound(answer)

    def _in_real_time(self, request: dict[str, Any]) -> dict[str, str]:
        """Ask for events through Modal, whose edge may hold back every other stream."""
        at_modal = self._http.base_url.host.endswith(".modal.run")
        through_modal = at_modal or "Modal-Key" in self._http.headers
        return {"Accept": events.MEDIA_TYPE} if through_modal and request.get("stream") else {}

    def speak(
        self, request: dict[str, Any], file: BinaryIO, clip: bytes | None = None
    ) -> tuple[SpeechHeaders, float]:
        """Write the audio into a file that tells its length; return its headers and seconds.

        PCM is streamed, and gets its header here if it is to be wav. Of other formats the length
        comes whole, and only of what is whole the loudness is known.
        """
        format = format_named(request["format"])
        streams = format.name in ("wav", "pcm") and "loudness" not in request
        if streams:
            request = request | {"format": str(replace(format, name="pcm")), "stream": True}
        with self.speech(request, clip) as (spoken, sound):
            if streams and format.name == "wav":
                write_wave(file, sound, spoken.rate)
            else:
                file.writelines(sound)
        if spoken.seconds is not None:
            return spoken, spoken.seconds
        header = WAV_HEADER if format.name == "wav" else 0
        return spoken, (file.tell() - header) / 2 / spoken.rate

    def add(self, form: dict[str, str], clip: bytes) -> dict[str, Any]:
        return _voice(self.ask("POST", "/voices", **multipart(form, clip)))

    def voice(self, name: str) -> dict[str, Any]:
        return _voice(self.ask("GET", voice_path(name)))

    def pages(self, search: str = "", labels: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Yield pages of all voices whose name has `search` in it and that bear all `labels`."""
        query: dict[str, Any] = {"limit": "200", "search": search, "label": list(labels)}
        seen = values = 0
        while True:
            answer = self.ask("GET", "/voices", params=query)
            page = answers.parsed_json(answer, PAGE)
            yield page
            seen += len(answer.content)
            if page["next"] is None:
                return
            values += answers.values_in(answer.content)
            if not page["data"] or page["next"] == query.get("after"):
                raise Unexpected(answer, "its pages of voices do not end")
            if seen > MOST_BYTES or values > MOST_VALUES:
                raise click.ClickException(
                    f"{self._name} has more voices than a command can list, of which {seen:,} bytes"
                    " were read. Ask for some of them, by `--search` or `--label`."
                )
            query["after"] = page["next"]

    def patch(self, voice: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        """Edit what was read: a voice that changed meanwhile is refused, not overwritten."""
        headers = {"If-Match": etag(voice), "Content-Type": "application/json"}
        content = json.dumps(change)  # in ASCII: what came of another server need not be Unicode
        return _voice(self.ask("PATCH", voice_path(voice["id"]), content=content, headers=headers))

    def delete(self, voice: dict[str, Any]) -> None:
        """Delete what was read; only 204 counts: a page that says "200 OK" is no deletion."""
        answer = self.ask("DELETE", voice_path(voice["id"]), headers={"If-Match": etag(voice)})
        if answer.status_code != 204:
            raise Unexpected(answer, f"it answers {answer.status_code} to a deletion, not 204")

    def rebuild(self, name: str) -> dict[str, Any]:
        return _voice(self.ask("POST", voice_path(name, "/rebuild")))

    def clip(self, name: str) -> tuple[bytes, str]:
        """Return the reference clip, and the ending of a file of its kind."""
        answer = self.ask("GET", voice_path(name, "/clip"), limit=CLIP_LIMIT)
        return answers.clip(answer)

    def list_keys(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = answers.parsed_json(self.ask("GET", "/keys"), KEYS)["data"]
        return found

    def create_key(self, asked: dict[str, Any]) -> dict[str, Any]:
        return _new_key(self.ask("POST", "/keys", json=asked))

    def rotate_key(self, key_id: str, grace_s: int) -> dict[str, Any]:
        path = f"/keys/{quote(key_id, safe='')}/rotate"
        return _new_key(self.ask("POST", path, json={"grace_s": grace_s}))

    def revoke_key(self, key_id: str) -> None:
        answer = self.ask("DELETE", f"/keys/{quote(key_id, safe='')}")
        if answer.status_code != 204:
            raise Unexpected(answer, f"it answers {answer.status_code} to a revocation, not 204")

    def list_aliases(self) -> list[dict[str, Any]]:
        answer = self.ask("GET", "/aliases")
        found: list[dict[str, Any]] = answers.parsed_json(answer, ALIASES)["data"]
        return found

    def put_alias(self, alias: str, voice: str) -> dict[str, Any]:
        answer = self.ask("PUT", alias_path(alias), json={"voice": voice})
        made: dict[str, Any] = answers.parsed_json(answer, ALIAS)
        return made

    def remove_alias(self, alias: str) -> None:
        answer = self.ask("DELETE", alias_path(alias))
        if answer.status_code != 204:
            raise Unexpected(answer, f"it answers {answer.status_code} to a removal, not 204")

    def is_registry(self) -> bool:
        """Tell whether what answers there answers as a registry does."""
        try:
            answers.parsed_json(self.ask("GET", "/healthz"), HEALTH)
            answers.parsed_json(self.ask("GET", "/voices", params={"limit": "1"}), PAGE)
        except Unexpected:
            return False
        return True


def when_ready(ask: Callable[[float], T]) -> T:
    """Return what `ask` brings, called with the seconds that it may wait for a GPU.

    It is called again where the refusal says when, for nothing has been done then: within COLD_S
    while a GPU starts, else within BUSY_S. After that the last refusal is raised.
    """
    since_s, asked = time.monotonic(), 0
    while True:
        try:
            return ask(since_s + COLD_S - time.monotonic())
        except RequestRefused as refused:
            if refused.retry_s is None:
                raise
            pause_s = max(refused.retry_s, PAUSE_S * 2**asked)
            most_s = COLD_S if refused.is_cold else BUSY_S
            if time.monotonic() + pause_s > since_s + most_s:
                raise
            if not asked:
                who = "The GPU is starting" if refused.is_cold else "The registry is busy"
                say(f"{who}; waiting for it, {most_s:.0f} s at most.")
            asked += 1
            time.sleep(pause_s)


def multipart(fields: dict[str, Any], clip: bytes) -> dict[str, Any]:
    return {"data": fields, "files": {"audio": ("clip", clip)}}


def voice_path(reference: str, part: str = "") -> str:
    return f"/voices/{quote(reference, safe='')}{part}"


def alias_path(alias: str) -> str:
    return f"/aliases/{quote(alias, safe='')}"


def etag(voice: dict[str, Any]) -> str:
    """Make the ETag as the server does; a voice in a page comes without the header."""
    return f'"{voice["row_version"]}-{voice["id"][-8:]}"'


def _voice(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answers.parsed_json(answer, VOICE)
    return found


def _new_key(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answers.parsed_json(answer, NEW_KEY)
    return found


def _refusal(answer: httpx.Response) -> bytes:
    """Return as much of a refusal as can be had: the status alone says that it is one."""
    try:
        return answers.whole(answer, REFUSAL_LIMIT)
    except Unexpected:
        return b""


def _with(answer: httpx.Response, content: bytes) -> httpx.Response:
    return httpx.Response(
        answer.status_code,
        headers=[(k, v) for k, v in answer.headers.raw if k.lower() != b"transfer-encoding"],
        content=content,
        request=answer.request,
        extensions=answer.extensions,
    )


@contextmanager
def connect(url: str, headers: dict[str, str], wait_s: float | None = None) -> Iterator[Registry]:
    """Connect to a registry; with `wait_s`, each step of an answer may take no longer."""
    with http_client(url, headers, wait_s) as http:
        yield Registry(http)


@contextmanager
def _reachable(name: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise click.ClickException(f"{name} did not answer in time.") from error
    except (httpx.ReadError, httpx.WriteError) as error:
        raise click.ClickException(f"The connection to {name} was cut.") from error
    except httpx.RemoteProtocolError as error:
        raise click.ClickException(_broken(name, str(error))) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = one_line(str(error)).rstrip(".") or type(error).__name__
        raise click.ClickException(f"Can't talk to {name}: {reason}.") from error


def _broken(name: str, reason: str) -> str:
    if "peer closed" in reason or "disconnected" in reason or not reason:
        return f"The answer of {name} broke off before its end."
    return f"{name} does not speak HTTP as a registry does: {one_line(reason)}."
