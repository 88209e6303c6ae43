"""What the tests of the HTTP API share: enrolling a voice, and reading a problem document."""

import httpx
from clips import file, tone

CLIP = file(tone(), 24_000)


def add(client: httpx.Client, name: str, **fields: str) -> httpx.Response:
    form = {"name": name, "transcript": "hello there"} | fields
    form = {key: value for key, value in form.items() if value != "<absent>"}
    return client.post("/voices", data=form, files={"audio": ("ref", CLIP)})


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["type"].endswith(body["code"])
    assert body["detail"].endswith((".", "?"))
    return response.status_code, body["code"]
