"""Rules for names: how a voice may be called, which names are the same, and which look alike.

Names never reach a path. They are stored in NFC and compared by `name_key`.
"""

import re
import secrets
import unicodedata
from difflib import SequenceMatcher

from registry.errors import NameInvalid
from registry.invisible import JOINERS, is_ink, is_invisible, is_joiner_needed

MAX_LENGTH = 64
LONGEST = 4 * MAX_LENGTH  # as it comes, in any form; putting marks in order takes quadratic time
ID_PREFIX = "voice_"
OPENAI_VOICES = frozenset(  # some programs can say no other names than these
    {
        "alloy",
        "ash",
        "ballad",
        "cedar",
        "coral",
        "echo",
        "fable",
        "marin",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
    }
)
NOTHING_SEEN = "a name has at least one visible character"
_ID = re.compile(r"voice_[0-9a-f]{32}")
_SPACES = re.compile("[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")  # category Zs


def new_voice_id() -> str:
    """Make an id of 128 random bits, so that it can be neither guessed nor counted."""
    return ID_PREFIX + secrets.token_hex(16)


def is_voice_id(reference: object) -> bool:
    return isinstance(reference, str) and _ID.fullmatch(reference) is not None


def name_key(name: str) -> str:
    """Return what names are compared by: NFKC, case folding, single spaces and no joiners.

    It is applied until nothing changes. What is too long for a name is its own key, which no voice
    has.
    """
    if len(name) > LONGEST:
        return name
    key = _key(name)
    while (next_key := _key(key)) != key:
        key = next_key
    return key


def _key(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return with_single_spaces(without_joiners(unicodedata.normalize("NFKC", folded)))


def with_single_spaces(name: str) -> str:
    """Strip spaces, and put one plain one between words: nobody can tell two from one."""
    return _SPACES.sub(" ", name).strip(" ")


def without_joiners(name: str) -> str:
    """Remove joiners that a script needs; others only hide, and are left to be refused."""
    return "".join(
        character
        for before, character, after in zip(f"\0{name}", name, f"{name}\0"[1:], strict=False)
        if not (character in JOINERS and is_joiner_needed(before, after))
    )


def check_name(name: str) -> str:
    """Return the name as stored: NFC, single spaces between words. Raises NameInvalid."""
    if len(name) > LONGEST:
        raise NameInvalid(f"A voice can't be called that: {_refused_length(name)}.", field="name")
    stored = with_single_spaces(unicodedata.normalize("NFC", name.strip()))
    reason = _refusal(without_joiners(stored)) or _refusal(name_key(stored))
    reason = reason or _refused_length(stored)
    if not any(map(is_ink, stored)):
        reason = reason or NOTHING_SEEN
    if reason:
        raise NameInvalid(f"A voice can't be called {name!r}: {reason}.", field="name")
    return stored


def _refusal(name: str) -> str | None:
    """Return why a name, or its key, is refused: in the key a full-width slash is a slash."""
    if not name:
        return NOTHING_SEEN
    if reason := _refused_length(name):
        return reason
    if name in (".", ".."):
        return "'.' and '..' mean folders"
    if name.startswith("-"):
        return "a leading '-' looks like an option"
    if name.casefold().startswith(ID_PREFIX):
        return f"names that begin with {ID_PREFIX!r} look like ids"
    return _refused_character(name)


def _refused_length(name: str) -> str | None:
    if len(name) > MAX_LENGTH:
        return f"a name has at most {MAX_LENGTH} characters, this one has {len(name)}"
    return None


def _refused_character(name: str) -> str | None:
    for character in name:
        if character in "@/\\":
            return f"{character!r} is not allowed in names"
        if is_invisible(character):
            return f"the character U+{ord(character):04X} can't be seen, or is none of Unicode's"
    return None


def variants(key: str) -> set[str]:
    """Return the key, and the key with any one character left out.

    Two keys share a variant if one typing slip separates them (a character more, less, other, or
    two swapped), so near names cost a few indexed reads however many voices there are. After
    SymSpell (W. Garbe): deletions on both sides cover all four kinds of slip.
    """
    return ({key} | {key[:i] + key[i + 1 :] for i in range(len(key))}) - {""}


def likeness(key: str, other: str) -> float:
    return SequenceMatcher(None, key, other, autojunk=False).ratio()
