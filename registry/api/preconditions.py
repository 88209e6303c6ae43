"""Reads If-Match: which edit of which voice a request is about."""

from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema

from registry.api.etags import Tags, voice_tag
from registry.errors import EditConflict
from registry.storage.queries import Visible
from registry.storage.store import VoiceStore

IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(description="The ETag you read; a stale one answers 412.", examples=['"3-594f2441"']),
]


class Precondition:
    """If-Match: which edit of which voice is meant; checked after the rest of the request."""

    def __init__(self, request: Request, if_match: IfMatch = None) -> None:
        self._sent = None if if_match is None else ", ".join(request.headers.getlist("if-match"))

    def target(self, store: VoiceStore, voice: str, only: Visible) -> tuple[str, int | None]:
        """Return the voice to edit, and the row_version it must be at; None for any.

        A voice that was matched is named by its id from here on: another may take its name. Raises
        EditConflict.
        """
        if self._sent is None or (tags := Tags.of(self._sent)).any:
            return target_of(store, voice, only), None
        row = store.get(voice, only).row
        tag = voice_tag(row.id, row.row_version)
        if not tags.has(tag):
            raise EditConflict(
                f"{row.name!r} is at edit {row.row_version}, and its ETag is {tag}; "
                f"If-Match has {self._sent[:80] or 'nothing'}. Read it again and repeat the edit.",
                row_version=row.row_version,
            )
        return row.id, row.row_version


def target_of(store: VoiceStore, voice: str, only: Visible) -> str:
    """Return a name for the voice that can't mean one outside of `only`."""
    return voice if only is None else store.id_of(voice, only)


IfMatches = Annotated[Precondition, Depends()]
