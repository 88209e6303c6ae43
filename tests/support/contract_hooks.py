"""What schemathesis must be told of our API: texts and clips as its formats name them, and when a
request that fits the schema may be refused nevertheless."""

import base64
import json
from typing import Any

import schemathesis
from clips import file, tone
from hypothesis import strategies as st

from registry.errors import NameInvalid, TextInvalid
from registry.names import check_name, name_key
from registry.text import clean_text

REFUSED_FOR_WHAT_IS_THERE = {  # no schema knows the voices, the model, or how long a clip is
    "admin-limited",  # nor that one field rules out another
    "edit-conflict",
    "language-unsupported",
    "mode-unavailable",
    "name-taken",
    "transcript-mismatch",
}
REFUSALS = (400, 412, 415, 422)
CLIPS = [
    file(tone(2.0), 24_000),
    file(tone(1.5, 16_000, channels=2), 16_000, "FLAC"),
    file(tone(3.0, 48_000), 48_000, "OGG", "VORBIS"),
]


def _is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except NameInvalid:
        return False


def _is_spoken(text: str) -> bool:
    try:
        return bool(clean_text(text, 5000))
    except TextInvalid:
        return False


def _cursor(name: str) -> str:
    return base64.urlsafe_b64encode(name_key(name).encode()).decode().rstrip("=")


NAMES = st.text(min_size=1, max_size=40).filter(_is_name)
schemathesis.openapi.format("voice-name", NAMES)
schemathesis.openapi.format("spoken-text", st.text(min_size=1, max_size=60).filter(_is_spoken))
schemathesis.openapi.format("cursor", NAMES.map(_cursor))
schemathesis.openapi.format("binary", st.sampled_from(CLIPS))


@schemathesis.hook
def before_load_schema(_: object, schema: dict[str, Any]) -> None:
    """A status is described where it is met: that there may be others describes none."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("default", None)


@schemathesis.check
def valid_data_is_refused_only_for_what_is_there(_: object, response: Any, case: Any) -> None:
    if not case.meta.generation.mode.is_positive or response.status_code not in REFUSALS:
        return
    told = json.loads(response.content)
    code = told.get("error", told)["code"].replace("_", "-")
    assert code in REFUSED_FOR_WHAT_IS_THERE, f"{code} for what fits the schema"
