"""Names of a former version: whatever their length, what they become is a name of today."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session, col, create_engine, select

from registry.errors import NameInvalid
from registry.names import MAX_LENGTH, check_name, name_key
from registry.storage.rows.renames import rename, renames
from registry.storage.tables import SQLModel, Voice, utc_now

LIGATURE = "\ufdfa"  # of 18 characters in a key
UNSEEN = ("\u1680 ", "\ufe0f", "\u2800", "\u3164")  # what a former version took
JOINER = "\u06cc\u200c\u0631"  # Persian: the one in the middle is needed where it stands
MARKED = "x\u0323\u0301"
FILLERS = ("a", "a ", JOINER, MARKED, "\u00e9\u0301", "\U0001f600", "\uff21-")
LENGTHS = range(60, MAX_LENGTH + 1)


@pytest.fixture
def session() -> Session:
    engine = create_engine("sqlite://")
    SQLModel.metadata.create_all(engine)
    return Session(engine)


def put(session: Session, *names: tuple[str, str], deleted: bool = False) -> None:
    """Names and keys as they were once written, whatever is thought of them today."""
    now = utc_now()
    first = len(session.exec(select(Voice.id)).all())
    for number, (name, key) in enumerate(names, first):
        session.add(
            Voice(
                id=f"voice_{number:032x}",
                name=name,
                name_key=key,
                description="",
                defaults={},
                version=1,
                row_version=1,
                created_at=now,
                updated_at=now,
                deleted_at=now if deleted else None,
            )
        )
    session.flush()


def written_anew(session: Session) -> list[str]:
    """The names once they are mended, which are sound then, and each its own."""
    rename(session, renames(session))
    session.expire_all()
    assert renames(session) == [], "a second repair would find more"
    voices = session.exec(select(Voice).order_by(col(Voice.id))).all()
    for voice in voices:
        assert check_name(voice.name) == voice.name and name_key(voice.name) == voice.name_key
    live = [voice.name_key for voice in voices if voice.deleted_at is None]
    assert len({*live}) == len(live)
    return [voice.name for voice in voices]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("filler", FILLERS)
def test_a_name_of_any_length_finds_room_for_its_number(
    session: Session, filler: str, length: int
) -> None:
    """A space, a joiner or a mark may stand where it is cut."""
    names = []
    for shift in range(len(filler) + 1):
        name = ("b" * shift + filler * MAX_LENGTH)[:length].strip()
        names.append(name + "b" * (length - len(name)))
    sound = sorted({name for name in names if is_name(name)})
    assert sound
    former = [(name, name_key(name)) for name in sound]
    odd = [(name + mark, f"{n} {mark}") for n, name in enumerate(sound) for mark in UNSEEN]
    put(session, *former, *odd)
    found = written_anew(session)
    assert found[: len(sound)] == sound
    assert all(name.endswith(tuple("2345")) for name in found[len(sound) :])


def is_name(name: str) -> bool:
    try:
        return check_name(name) == name
    except NameInvalid:
        return False


def test_a_key_of_the_greatest_length_has_room_for_a_number(session: Session) -> None:
    name = LIGATURE * 3 + " b c d e f"
    assert len(name_key(name)) == MAX_LENGTH
    put(session, (name, name_key(name)), (f"{name}\ufe0f", "another"))
    assert written_anew(session) == [name, LIGATURE * 3 + " b c d e 2"]


def test_a_key_that_a_refused_name_holds_is_not_free(session: Session) -> None:
    """It stays a fault, which a person mends; until then nobody else can have its key."""
    put(session, ("a/b", "ann"), ("ann\ufe0f", "other"))
    rename(session, renames(session))
    session.expire_all()
    keys = session.exec(select(Voice.name, Voice.name_key).order_by(col(Voice.id))).all()
    assert keys == [("a/b", "ann"), ("ann 2", "ann 2")]


def test_of_deleted_voices_many_may_have_one_name(session: Session) -> None:
    put(session, *[(f"ann{mark}", str(n)) for n, mark in enumerate(UNSEEN)], deleted=True)
    assert written_anew(session) == ["ann"] * len(UNSEEN)


NAMES = st.text(
    st.sampled_from("aZ -.\u0301\u06cc\u200c\u00a8\ufb03\ufdfa\u1680\ufe0f\u00df\u0345")
)


@pytest.mark.slow
@given(st.lists(st.text(max_size=70) | NAMES, min_size=1, max_size=4))
def test_what_is_renamed_needs_no_second_time(names: list[str]) -> None:
    engine = create_engine("sqlite://")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        twice = [*names, *names]
        put(session, *[(name, f"key {n}") for n, name in enumerate(twice)])
        rename(session, renames(session))
        session.expire_all()
        assert renames(session) == []
