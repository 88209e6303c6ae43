"""Entity tags as RFC 9110 has them: quoted, weak or strong, in lists, or `*` for any."""

import re
from dataclasses import dataclass

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[\s,]*{_TAG}(?:\s*,[\s,]*{_TAG})*[\s,]*")


@dataclass(frozen=True)
class Tags:
    """The tags that If-Match or If-None-Match names, as they were sent."""

    tags: tuple[str, ...]
    any: bool = False

    @classmethod
    def of(cls, header: str) -> "Tags":
        """Parse a header; a malformed one gives no tags, and so names nothing that is here."""
        if header.strip() == "*":
            return cls((), any=True)
        return cls(tuple(re.findall(_TAG, header)) if _LIST.fullmatch(header) else ())

    def has(self, tag: str) -> bool:
        """Compare strongly, as If-Match and If-Range do: a weak tag equals no other."""
        return self.any or tag in self.tags

    def has_like(self, tag: str) -> bool:
        """Compare weakly, as If-None-Match does."""
        return self.any or tag in {sent.removeprefix("W/") for sent in self.tags}


def voice_tag(voice_id: str, row_version: int) -> str:
    """Return the tag of one edit of one voice.

    The id is in it because every voice begins at 1, and a name may be given to another voice.
    """
    return f'"{row_version}-{voice_id[-8:]}"'
