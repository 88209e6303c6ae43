"""What the server says of itself: OpenAPI, and the page that shows it."""

import re
from pathlib import Path

import httpx
import pytest

from registry.audio.formats import FORMATS, SPEECH

API = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
FORMS = ("create_voice", "clone")
UNROUTED = {"method-not-allowed"}


def operations(schema: dict) -> dict[str, dict]:  # type: ignore[type-arg]
    return {
        operation["operationId"]: operation
        for operations in schema["paths"].values()
        for operation in operations.values()
    }


@pytest.fixture
def schema(client: httpx.Client) -> dict:  # type: ignore[type-arg]
    found: dict = client.get("/openapi.json").json()  # type: ignore[type-arg]
    return found


def test_the_description_is_openapi(schema: dict) -> None:  # type: ignore[type-arg]
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(schema)


def test_operations_have_names_that_can_be_called(schema: dict) -> None:  # type: ignore[type-arg]
    assert set(operations(schema)) == {
        "create_voice",
        "list_voices",
        "read_voice",
        "edit_voice",
        "delete_voice",
        "read_clip",
        "read_prompt",
        "rebuild_voice",
        "speak",
        "clone",
        "create_key",
        "list_keys",
        "rotate_key",
        "revoke_key",
        "healthz",
        "readyz",
        "openai_list_models",
        "openai_read_model",
        "openai_list_speech_models",
        "read_aliases",
        "set_alias",
        "delete_alias",
        "openai_speak",
        "openai_create_voice",
        "openai_list_voices",
        "openai_delete_voice",
    }


def test_every_code_is_with_some_operation_and_has_its_status(schema: dict) -> None:  # type: ignore[type-arg]
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", API, re.MULTILINE)
    documented = {(s, code) for s, row in rows for code in re.findall(r"`([a-z-]+)`", row)}
    by_openai = {(as_openai(s), code.replace("-", "_")): (s, code) for s, code in documented}
    described = set[tuple[str, str]]()
    for name, operation in operations(schema).items():
        told = {
            (status, code)
            for status, response in operation["responses"].items()
            for content in response.get("content", {}).values()
            for code in codes_in(content["schema"])
        }
        described |= {by_openai[one] for one in told} if name.startswith("openai_") else told
    assert described == {(s, code) for s, code in documented if code not in UNROUTED}


def codes_in(schema: dict) -> set[str]:  # type: ignore[type-arg]
    fields = schema.get("properties", {})
    fields = fields.get("error", {}).get("properties", fields)
    return set(fields.get("code", {}).get("enum", ()))


def as_openai(status: str) -> str:
    """Of our own, as its clients are told it."""
    return "400" if status in ("409", "422") else status


def test_headers_and_bytes_are_described(schema: dict) -> None:  # type: ignore[type-arg]
    found = operations(schema)
    assert {"ETag", "Location"} <= set(found["create_voice"]["responses"]["201"]["headers"])
    assert "ETag" in found["edit_voice"]["responses"]["200"]["headers"]
    assert "X-Prompt-Cache" in found["speak"]["responses"]["200"]["headers"]
    assert "Retry-After" in found["speak"]["responses"]["503"]["headers"]
    assert "Content-Range" in found["read_clip"]["responses"]["206"]["headers"]
    kinds = {one.media_type for one in SPEECH.values()} | {"text/event-stream"}
    assert kinds == set(found["speak"]["responses"]["200"]["content"])
    fields = schema["components"]["schemas"]["SpeakRequest"]["properties"]
    assert fields["format"]["enum"] == [*FORMATS]
    assert "audio/mpeg" in found["read_clip"]["responses"]["200"]["content"]
    form = found["create_voice"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["name", "audio"]
    assert form["properties"]["audio"]["format"] == "binary"


def test_what_is_no_json_is_never_null(schema: dict) -> None:  # type: ignore[type-arg]
    found = operations(schema)
    parameters = [p["schema"] for one in found.values() for p in one.get("parameters", ())]
    forms = [found[name]["requestBody"]["content"]["multipart/form-data"] for name in FORMS]
    fields = [field for form in forms for field in form["schema"]["properties"].values()]
    assert len(parameters) > 10 and len(fields) > 10
    assert not [one for one in (*parameters, *fields) if "anyOf" in one or one["type"] == "null"]
    assert [form["encoding"] for form in forms] == 2 * [{"audio": {"contentType": "audio/*"}}]


def test_the_page_of_the_docs_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    pytest.importorskip("fastapi_offline")
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert "//" not in page.text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 4
    for asset in assets:
        found = client.get(f"/{asset}")
        assert found.status_code == 200 and found.content
    assert "//" not in client.get("/docs/start.js").text
    assert client.get("/docs/core.py").status_code == client.get("/redoc").status_code == 404
    assert client.get("/").headers["location"] == "docs"
