"""Entity tags as RFC 9110 has them: quoted, weak or strong, in lists, or `*` for any."""

import re
from dataclasses import dataclass

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[\s,]*{_TAG}(?:\s*,[\s,]*{_TAG})*[\s,]*")


@dataclass(frozen=True)
class Tags:
    """What If-Match or If-None-Match asks for; `tags` are as they were sent."""

    tags: tuple[str, ...]
    any: bool = False

    @classmethod
    def of(cls, header: str) -> "Tags":
        """No tags at all if the header is none: then it names nothing that is here."""
        if header.strip() == "*":
            return cls((), any=True)
        return cls(tuple(re.findall(_TAG, header)) if _LIST.fullmatch(header) else ())

    def has(self, tag: str) -> bool:
        """The strong comparison, of If-Match and If-Range: a weak tag is like no other."""
        return self.any or tag in self.tags

    def has_like(self, tag: str) -> bool:
        """The weak comparison, of If-None-Match."""
        return self.any or tag in {sent.removeprefix("W/") for sent in self.tags}


def voice_tag(voice_id: str, row_version: int) -> str:
    """The tag of one edit of one voice: every voice begins at 1, and a name may be given anew."""
    return f'"{row_version}-{voice_id[-8:]}"'
