"""Renames voices whose names an older version took and this one would not: none is lost.

Only characters that nobody sees are changed. A name refused for another reason stays a fault.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from sqlmodel import Session, col, func, select, update

from registry.errors import NameInvalid
from registry.invisible import is_unseen_mark
from registry.names import LONGEST, MAX_LENGTH, check_name, name_key
from registry.storage.tables import Voice

UNNAMED = "unnamed"  # the name for one of which nothing was seen
BEGINNING = MAX_LENGTH - 9  # characters of a name that a number up to 99,999,999 leaves


@dataclass(frozen=True)
class Rename:
    """A voice's name, and what it has to be today."""

    voice_id: str
    old: str
    new: str

    def __str__(self) -> str:
        if self.old == self.new:
            return f"the key of the name {self.old!r} is another name's"
        return f"the name {self.old!r} is {self.new!r} by the rules of today"


def renames(session: Session) -> list[Rename]:
    """Find each voice whose name or key would be another today; no two live ones get one name."""
    asked = select(Voice.id, Voice.name, Voice.name_key, Voice.deleted_at)
    rows = session.exec(asked.where(func.length(Voice.name) <= LONGEST).order_by(col(Voice.id)))
    taken, odd = set[str](), list[tuple[str, str, str, bool]]()
    for voice_id, name, key, deleted_at in rows:
        new = _today(name) if isinstance(name, str) else None
        if new is not None and (new != name or name_key(name) != key):
            odd.append((voice_id, name, new, deleted_at is None))
        elif deleted_at is None:
            taken.add(key)
    return [*_renamed(odd, taken)]


def rename(session: Session, found: list[Rename]) -> None:
    """Write new names and keys, after all old keys: a new one may be another's old one."""
    for one in found:
        _write(session, one.voice_id, name_key=one.voice_id)
    for one in found:
        _write(session, one.voice_id, name=one.new, name_key=name_key(one.new))


def _renamed(odd: list[tuple[str, str, str, bool]], taken: set[str]) -> Iterator[Rename]:
    # The numbers still free for names that share a beginning, once cut for a number.
    numbers = defaultdict[str, Iterator[int]](lambda: count(2))
    for voice_id, name, new, is_live in odd:
        if is_live:
            new = _free(new, taken, numbers[name_key(new[:BEGINNING])])
            taken.add(name_key(new))
        yield Rename(voice_id, name, new)


def _today(name: str) -> str | None:
    """Return the name without what nobody sees; None if it is refused even so."""
    seen = "".join(" " if is_unseen_mark(character) else character for character in name)
    is_blank = name.strip() and not seen.strip()
    try:
        return check_name(UNNAMED if is_blank else seen)
    except NameInvalid:
        return None


def _free(name: str, taken: set[str], numbers: Iterator[int]) -> str:
    if name_key(name) not in taken:
        return name
    numbered = (_numbered(name, f" {number}") for number in numbers)
    return next(other for other in numbered if name_key(other) not in taken)


def _numbered(name: str, end: str) -> str:
    """Append a number to as much of the name as leaves it and its key valid today."""
    longest = MAX_LENGTH - len(end)
    shorter = (f"{name[:length].strip()}{end}" for length in range(longest, 0, -1))
    return next(other for other in shorter if _today(other) == other)


def _write(session: Session, voice_id: str, **values: str) -> None:
    session.execute(update(Voice).where(col(Voice.id) == voice_id).values(**values))
