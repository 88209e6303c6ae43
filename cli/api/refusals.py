"""Turns a server's refusal into the sentence of a command.

A registry's own sentence is taken as it is. What stands before it, a proxy or Modal's edge, says a
line of plain text, or nothing that helps: the sentence then says what the status means here.
"""

import json
import re
import time
from email.utils import parsedate_to_datetime

import click
import httpx

from cli.api.answers import PROBLEM, media_type, misfit
from cli.output import visible

LONGEST = 2000
MEANINGS = {
    404: "There is no registry at this address. On Modal it is stopped, or was never deployed: "
    "`voices deploy` puts it there.",
    408: "What stands before the registry waited no longer: ask again.",
    429: "It takes no more requests at the moment: ask again later.",
    502: "The registry behind it did not answer. On Modal, `voices deploy logs` says why.",
    503: "The registry is not ready: ask again later.",
    504: "What stands before the registry waited no longer: ask again.",
}
EDGE_WAITS = "Modal's edge waits 150 s for an answer, and this one took longer: ask again."


class RequestRefused(click.ClickException):
    """Raised when the server refuses a request; carries the server's sentence."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(sentence(answer))
        self.status = answer.status_code
        self.code = _problem(answer).get("code")
        self.is_cold = self.code == "gpu-cold"
        self.retry_s = retry_s(answer)


def retry_s(answer: httpx.Response) -> float | None:
    """Return after how many seconds to ask again, for nothing was done; None if not told."""
    if answer.status_code not in (429, 503):
        return None
    after = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", after, re.ASCII):
        return float(after)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _problem(answer: httpx.Response) -> dict[str, str]:
    """Return the problem document of a registry, or nothing."""
    if media_type(answer) != "application/problem+json":
        return {}
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return {} if misfit(found, PROBLEM) else {key: found[key] for key in ("detail", "code")}


def sentence(answer: httpx.Response) -> str:
    """Return the registry's own sentence, or explain the status."""
    if problem := _problem(answer):
        return one_line(problem["detail"]) + _about_key(answer, problem["code"])
    if answer.status_code in (401, 403):
        return _about_token(answer)
    place = answer.request.url.copy_with(query=None, userinfo=b"")
    answered = f"{place} answered {answer.status_code} {answer.reason_phrase}".rstrip()
    if leads_to := answer.headers.get("location"):
        return f"{answered}, {_redirect(answer, leads_to)}"
    return " ".join(
        [f"{answered}{_line(answer)}.", *filter(None, [MEANINGS.get(answer.status_code)])]
    )


def _redirect(answer: httpx.Response, leads_to: str) -> str:
    target = _joined(answer.request.url, leads_to)
    if answer.status_code == 303 and target and target.path == answer.request.url.path:
        return f"and has not done it yet. {EDGE_WAITS}"
    return f"which leads to {one_line(leads_to)}: no redirect is followed."


def _joined(base: httpx.URL, text: str) -> httpx.URL | None:
    """Join a base and a redirect's target; None if that gives no URL."""
    try:
        return base.join(text)
    except (httpx.InvalidURL, ValueError):  # the latter of urllib, which joins them
        return None


def _about_key(answer: httpx.Response, code: str) -> str:
    if code not in ("key-missing", "key-invalid"):
        return ""
    return f" `voices login {_base(answer)}` takes one and stores it."


def _base(answer: httpx.Response) -> str:
    return str(answer.request.url.copy_with(path="/", query=None, userinfo=b"")).rstrip("/")


def _about_token(answer: httpx.Response) -> str:
    base = _base(answer)
    if token_id := answer.request.headers.get("Modal-Key"):
        return (
            f"{base} does not accept the token {token_id}{_line(answer)}. With a proxy token of "
            f"its workspace, `voices login {base}` stores another one."
        )
    if answer.status_code == 403:
        return f"{base} lets nobody in from here{_line(answer)}. It may ask for a token."
    return f"{base} asks for a token, which `voices login {base}` takes and stores."


def _line(answer: httpx.Response) -> str:
    """Quote the beginning of a body of plain text, as the edge sends it."""
    if media_type(answer) != "text/plain":
        return ""
    line = one_line(answer.content[: 4 * LONGEST].decode(errors="replace"))[:200].rstrip(". ")
    return f" ({line})" if line else ""


def one_line(text: str) -> str:
    return visible(" ".join(text.split()))[:LONGEST]
