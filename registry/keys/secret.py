"""Makes and reads keys as text: `vr_<id>_<secret>_<check>`. The secret has 256 random bits.

By its check a typo is told from a wrong key, without asking whose it is, and whatever looks for
secrets in files and logs knows one. Standard library only.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass

DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_DIGITS = string.digits + string.ascii_lowercase
ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 8, 43, 6
KEY = re.compile(r"(vr_([0-9a-z]{8})_([0-9A-Za-z]{43}))_([0-9A-Za-z]{6})")
LONGEST = 3 + ID_LENGTH + 1 + SECRET_LENGTH + 1 + CHECK_LENGTH
LIKE_A_KEY = re.compile(r"vr_([0-9a-z]{8})_[0-9A-Za-z_]{8,}")


@dataclass(frozen=True)
class PresentedKey:
    """A key as it is compared: its id, and the hash of its secret."""

    id: str
    secret_sha256: str


def new_id() -> str:
    return "".join(secrets.choice(ID_DIGITS) for _ in range(ID_LENGTH))


def new_key(key_id: str) -> str:
    secret = "".join(secrets.choice(DIGITS) for _ in range(SECRET_LENGTH))
    begun = f"vr_{key_id}_{secret}"
    return f"{begun}_{_check(begun)}"


def presented(text: str) -> PresentedKey | None:
    """Parse a key; None for what is no key, or has a character wrong or missing."""
    found = KEY.fullmatch(text) if len(text) == LONGEST else None
    if found is None or _check(found[1]) != found[4]:
        return None
    return PresentedKey(found[2], hashlib.sha256(found[3].encode()).hexdigest())


def without_keys(text: str) -> str:
    """Shorten what looks like a key to its id."""
    return LIKE_A_KEY.sub(r"vr_\1_…", text)


def _check(begun: str) -> str:
    number, digits = zlib.crc32(begun.encode()), ""
    for _ in range(CHECK_LENGTH):
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return digits
