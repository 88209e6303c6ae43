"""Reads multipart/form-data strictly: no text is guessed, and no field is dropped silently.

Whether a field is a file or a text is for the form to say, not for the client: a file where words
are meant gives its words, and a clip is a clip without a file name too.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from registry.api.charset import NotText, decode
from registry.api.ignored import ignore
from registry.api.pace import exchange_of
from registry.api.problems import ClientGone
from registry.api.requests import (
    HEADER_LIMIT,
    refuse_other_type,
    refuse_repeated_parameters,
    refuse_unknown,
)
from registry.api.uploads import Uploads, client_of
from registry.errors import FieldInvalid, RequestMalformed
from registry.storage.uploads import Upload

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

TEXT_LIMIT = 64 * 1024
MOST_HEADERS = 16  # headers of a part
MOST_IGNORED = 64  # fields that are passed over
BLOCK = 256 * 1024  # bytes of a file that are written at once
MEDIA_TYPE = "multipart/form-data"
CLIP = "audio/*"
CHARSET = "_charset_"  # the field that names the charset of the others (RFC 7578, section 4.6)
PLAIN = (b"", b"text/plain", b"application/octet-stream", b"application/json")
AS_UTF8 = "Send it as UTF-8, or declare its charset in the Content-Type of its part."
AS_IT_IS = (b"", b"7bit", b"8bit", b"binary")

M = TypeVar("M", bound=BaseModel)
Options = dict[bytes, bytes]


@dataclass
class FormPart:
    """One part of a form: its headers, its name, and its content so far."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    content: bytearray = field(default_factory=bytearray)

    def options(self, header: bytes) -> Options:
        return parse_options_header(self.headers.get(header))[1]

    def text(self, charset: str | None) -> str:
        """Return the content as text. Raises FieldInvalid."""
        kind, options = parse_options_header(self.headers.get(b"content-type"))
        own = options.get(b"charset")
        declared = charset if own is None else own.decode("latin-1")
        if kind not in PLAIN:
            raise self._refused(f"is sent as {kind[:80].decode('latin-1')}, not as plain text.")
        try:
            text = decode(bytes(self.content), declared)
        except NotText as error:
            raise self._refused(f"{error}. {AS_UTF8}") from error
        if declared is None and "\0" in text:
            raise self._refused(f"has zero bytes, as UTF-16 has. {AS_UTF8}")
        return text

    def _refused(self, why: str) -> FieldInvalid:
        return FieldInvalid(f"The field {self.name!r} {why}", field=self.name)


@asynccontextmanager
async def taken_in(request: Request, model: type[M], uploads: Uploads) -> AsyncIterator[M]:
    """Read the form; its upload exists within the block. Raises ServerBusy before reading it.

    Also raises ContentTypeUnsupported, and what `read_form` does.
    """
    refuse_other_type(request, MEDIA_TYPE)
    with closing(uploads.begin(client_of(request.scope), exchange_of(request.scope))) as upload:
        yield await read_form(request, model, upload)


async def read_form(request: Request, model: type[M], upload: Upload) -> M:
    """Read the body as `model`, in which a file is the `upload`, written as it comes.

    Raises FieldInvalid, RequestMalformed, ClientGone, and what the storage refuses.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    reader = FormReader(model, options, upload)
    try:
        parser = MultipartParser(_boundary(options), reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            await reader.write_out(BLOCK)
        await reader.write_out()
        ignore(request, reader.ignored)
    except FormParserError as error:
        reason = str(error).rstrip(".")
        raise RequestMalformed(f"The body is not the form it is said to be: {reason}.") from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return reader.form()


def form_body(model: type[BaseModel]) -> dict[str, object]:
    """Describe a request with such a form to OpenAPI."""
    schema = model.model_json_schema(schema_generator=FormSchema)
    files = [name for name, field in model.model_fields.items() if field.annotation is Upload]
    content = {"schema": schema, "encoding": {name: {"contentType": CLIP} for name in files}}
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: content}}}


class FormSchema(GenerateJsonSchema):
    """Makes schemas of forms, which have no null: a field without a value is left out."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _boundary(options: Options) -> bytes:
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestMalformed("The Content-Type of the form names no boundary.")
    return boundary


class FormReader(Generic[M]):
    """Takes the parts as the parser meets them; refuses the first that is wrong.

    A part that the form does not know is passed over unless the form forbids that, as most do.
    """

    def __init__(self, model: type[M], options: Options, upload: Upload) -> None:
        self._model = model
        self._upload = upload
        self._passes_over = model.model_config.get("extra") != "forbid"
        self._charset = _declared(options)
        self._parts: dict[str, FormPart] = {}
        self._part = FormPart()
        self._file: FormPart | None = None
        self._header = bytearray()
        self._value = bytearray()
        self._ended = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": _appender(lambda: self._header),
            "on_header_value": _appender(lambda: self._value),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_end": self._end,
        }

    def form(self) -> M:
        """Return the form, checked. Raises RequestMalformed, RequestValidationError."""
        if not self._ended:
            raise RequestMalformed("The form is cut short: it has no closing boundary.")
        if (charset := self._parts.pop(CHARSET, None)) is not None:
            self._charset = charset.text(None).strip()
        known = (part for part in self._parts.values() if self._is_known(part.name))
        values = {part.name: self._value_of(part) for part in known}
        try:
            return self._model.model_validate(values)
        except ValidationError as error:
            errors = [{**e, "loc": ("body", *e["loc"])} for e in error.errors()]
            raise RequestValidationError(errors) from error

    @property
    def ignored(self) -> list[str]:
        return [n for n in self._parts if n != CHARSET and not self._is_known(n)]

    async def write_out(self, least: int = 0) -> None:
        """Write what has come of the file to the upload, if it is `least` bytes or more."""
        part = self._file
        if part is not None and len(part.content) >= least:
            content, part.content = part.content, bytearray()
            await to_thread.run_sync(self._upload.write, content)

    def _value_of(self, part: FormPart) -> Upload | str:
        return self._upload if self._is_file(part.name) else part.text(self._charset)

    def _is_known(self, name: str) -> bool:
        return name in self._model.model_fields

    def _is_file(self, name: str) -> bool:
        return self._is_known(name) and self._model.model_fields[name].annotation is Upload

    def _begin_part(self) -> None:
        self._part = FormPart()

    def _end_header(self) -> None:
        name, value = bytes(self._header).lower(), bytes(self._value)
        header = name.decode("latin-1").title()[:80]
        if len(self._part.headers) == MOST_HEADERS:
            raise RequestMalformed(f"A part of the form has more than {MOST_HEADERS} headers.")
        if name in self._part.headers:
            raise RequestMalformed(f"A part of the form has the header {header!r} twice.")
        refuse_repeated_parameters(header, value.decode("latin-1"))
        self._part.headers[name] = value
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        part = self._part
        part.name = _name(part)
        if self._passes_over and len(self.ignored) == MOST_IGNORED:
            raise RequestMalformed(f"The form has over {MOST_IGNORED} fields that are not known.")
        if part.name != CHARSET and not self._passes_over:
            refuse_unknown(part.name, self._model.model_fields, "a field of this form")
        if part.name in self._parts:
            raise FieldInvalid(f"The field {part.name!r} is given twice.", field=part.name)
        encoding = part.headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in AS_IT_IS:
            raise FieldInvalid(
                f"The field {part.name!r} is sent as {encoding.decode('latin-1')!r}. "
                "A form takes it as it is.",
                field=part.name,
            )
        self._parts[part.name] = part
        if self._is_file(part.name):
            self._file = part

    def _add(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name != CHARSET and not self._is_known(part.name):
            return
        part.content += data[start:end]
        if len(part.content) > TEXT_LIMIT and not self._is_file(part.name):
            raise FieldInvalid(
                f"The field {part.name!r} has more than {TEXT_LIMIT // 1024} KiB of text.",
                field=part.name,
            )

    def _end(self) -> None:
        self._ended = True


def _name(part: FormPart) -> str:
    name = part.options(b"content-disposition").get(b"name")
    if name is None:
        raise RequestMalformed("A part of the form has no name in its Content-Disposition.")
    try:
        return decode(name)
    except NotText as error:
        raise RequestMalformed(f"The name of a field {error}.") from error


def _declared(options: Options) -> str | None:
    charset = options.get(b"charset")
    return None if charset is None else charset.decode("latin-1")


def _appender(target: Callable[[], bytearray]) -> Callable[[bytes, int, int], None]:
    def append(data: bytes, start: int, end: int) -> None:
        target().extend(data[start:end])
        if len(target()) > HEADER_LIMIT:
            raise RequestMalformed(f"A part's header is longer than {HEADER_LIMIT // 1024} KiB.")

    return append
