"""Decodes bytes to text without guessing: by UTF-8, or the charset that was declared, or not at
all.
"""

import codecs
import encodings
import re
from encodings.aliases import aliases
from pkgutil import iter_modules

CODECS = re.compile(
    r"utf-8|utf-(16|32)(-[bl]e)?|ascii|iso8859-\d+|cp\d+|gb\w+|hz|big5\w*|koi8-\w|tis-620"
    r"|shift_jis\w*|euc_\w+|iso2022_\w+|johab|mac-\w+"
)  # codecs of natural text: Python has others, for escapes and host names
# Python keeps every name that it was ever asked for, so it is asked for none but these.
NAMES = {*aliases, *aliases.values(), *(found.name for found in iter_modules(encodings.__path__))}
LONGEST = 40
MARKS = {"utf-16": (b"\xff\xfe", b"\xfe\xff"), "utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff")}


class NotText(ValueError):
    """Says what the bytes are not, as the end of a sentence about them."""


def decode(data: bytes, charset: str | None = None) -> str:
    """Return the text without its byte order mark. Raises NotText."""
    codec = _codec(charset or "utf-8")
    if codec in MARKS and not data.startswith(MARKS[codec]):
        raise NotText(f"is declared as {charset}, but has no byte order mark")
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong = f"0x{data[error.start]:02X} at byte {error.start}"
        wanted = "UTF-8" if charset is None else f"{charset}, as declared"
        raise NotText(f"is not {wanted}: it has {wrong}") from error


def _codec(charset: str) -> str:
    asked = encodings.normalize_encoding(charset[: LONGEST + 1]).lower()
    try:
        name = codecs.lookup(asked).name if asked in NAMES else ""
    except LookupError:  # a codec of another platform
        name = ""
    is_odd = len(charset) > LONGEST or not (charset.isascii() and charset.isprintable())
    if is_odd or not CODECS.fullmatch(name):
        raise NotText(f"is declared as {charset[:LONGEST]!r}, which is not known here")
    return name
