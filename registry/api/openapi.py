"""Describes the answers to OpenAPI: the codes of the problems by route, headers, bytes."""

from collections.abc import Iterable, Mapping

from registry.api.problems import MEDIA_TYPE, ProblemDocument
from registry.audio.formats import CLIP_ENDINGS

Codes = Mapping[int, tuple[str, ...]]
Responses = dict[int | str, dict[str, object]]

ALWAYS: Codes = {
    401: ("key-missing", "key-invalid"),
    403: ("origin-refused", "scope-missing", "key-limited"),
    404: ("not-found",),
    421: ("host-unknown",),
    422: ("request-invalid",),
    500: ("internal-error",),
    503: ("server-busy", "storage-unavailable", "storage-unreadable", "database-damaged"),
}
NAMED: Codes = {404: ("voice-not-found",), 500: ("voice-damaged",)}
KEYS: Codes = {404: ("key-not-found",)}
NEW_KEYS: Codes = {409: ("keys-full",), 422: ("admin-limited",)}
EDITS: Codes = {412: ("edit-conflict",)}
WRITES: Codes = {507: ("storage-full", "storage-read-only")}
BODY: Codes = {
    400: ("request-malformed",),
    408: ("body-too-slow",),
    413: ("body-too-large",),
    415: ("content-type-unsupported",),
}
NAMES: Codes = {409: ("name-taken",), 422: ("name-invalid",)}
PAGES: Codes = {422: ("cursor-invalid",)}
WORDS: Codes = {422: ("text-invalid", "text-too-long", "language-unsupported")}
MODES: Codes = {422: ("mode-unavailable",)}
TRANSCRIPTS: Codes = {422: ("transcript-mismatch",)}
CLIPS: Codes = {
    415: ("audio-unsupported",),
    422: (
        "audio-empty",
        "audio-undecodable",
        "audio-too-short",
        "audio-too-long",
        "audio-channels-differ",
        "audio-cut-off",
        "audio-silent",
        "audio-dc-only",
        "audio-not-finite",
        "audio-too-loud",
    ),
    503: ("decoder-unavailable",),
}
KEPT_CLIPS: Codes = {500: ("reference-corrupt",)}
KEPT_PROMPTS: Codes = {409: ("prompt-not-ready",)}
RANGES: Codes = {412: ("edit-conflict",), 416: ("range-unsatisfiable",)}
ALIASES: Codes = {404: ("alias-not-found",)}
MODELS: Codes = {404: ("model-not-found",)}
VALUES: Codes = {400: ("unsupported-value",)}
MODEL: Codes = {
    503: ("inference-off", "model-unavailable", "model-cannot-clone", "model-mismatch"),
}
GPU: Codes = {503: ("overloaded", "gpu-cold", "inference-unreachable")}
FEATURES: Codes = {500: ("extraction-failed",)}
SPEECH: Codes = {
    500: (
        "speech-failed",
        "inference-failed",
        "speech-unfinished",
        "speech-inaudible",
        "stream-broken",
        "prompt-broken",
    ),
}

# What several routes may answer alike, whatever the dialect.
SPEAKING = (BODY, NAMED, WORDS, MODES, CLIPS, KEPT_CLIPS, FEATURES, SPEECH, MODEL, GPU, WRITES)
ENROLLING = (NAMES, WORDS, TRANSCRIPTS, CLIPS, FEATURES, MODEL, GPU, WRITES)

RETRY_AFTER = {"Retry-After": "Seconds after which it may work."}
CHALLENGE = {"WWW-Authenticate": "`Bearer`, and what is wrong with the key (RFC 6750)."}
HEADERS_OF = {401: CHALLENGE, 503: RETRY_AFTER}
ETAG = {
    "ETag": "For `If-Match`: the `row_version`, a hyphen, and the last 8 digits of the id, quoted."
}
LOCATION = {"Location": "The path of the voice, by its id."}
FILE_HEADERS = {
    "ETag": "The SHA-256 of the file, in quotation marks.",
    "Accept-Ranges": "`bytes`",
    "Content-Disposition": "The voice's name as a file name (RFC 6266).",
}
CONTENT_RANGE = {"Content-Range": "Which bytes, of how many."}


def problems(*groups: Codes) -> Responses:
    """Describe by status the problems of these codes, and those that any route may have."""
    return {status: _problem(status, codes) for status, codes in by_status(*groups).items()}


def by_status(*groups: Codes) -> dict[int, list[str]]:
    codes: dict[int, list[str]] = {}
    for group in (ALWAYS, *groups):
        for status, some in group.items():
            known = codes.setdefault(status, [])
            known += [code for code in some if code not in known]
    return {status: codes[status] for status in sorted(codes)}


def _problem(status: int, codes: list[str]) -> dict[str, object]:
    schema = ProblemDocument.model_json_schema()
    schema["properties"]["code"] |= {"enum": codes}
    return refusal(status, codes, {MEDIA_TYPE: {"schema": schema}})


def refusal(status: int, codes: Iterable[str], content: Mapping[str, object]) -> dict[str, object]:
    """Describe one status and its codes, in whichever shape."""
    described = " · ".join(f"`{code}`" for code in codes)
    about: dict[str, object] = {"description": described, "content": content}
    return about | {"headers": headers(HEADERS_OF[status])} if status in HEADERS_OF else about


def headers(named: Mapping[str, str]) -> dict[str, object]:
    """Describe headers by name."""
    return {
        name: {"description": description, "schema": {"type": "string"}}
        for name, description in named.items()
    }


def binary(kinds: Iterable[str]) -> dict[str, object]:
    return {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}


def file(kinds: Iterable[str]) -> Responses:
    """Describe a whole file, a part of one, or the answer that nothing is new."""
    content = binary([*kinds, "application/octet-stream"])
    part = FILE_HEADERS | CONTENT_RANGE
    return {
        200: {"description": "The file.", "content": content, "headers": headers(FILE_HEADERS)},
        206: {
            "description": "The ranges that were asked for.",
            "content": content | binary(["multipart/byteranges"]),
            "headers": headers(part),
        },
        304: {"description": "It is the one that `If-None-Match` names."},
    }


CLIP_FILE = file(CLIP_ENDINGS)
PROMPT_FILE = file(())
