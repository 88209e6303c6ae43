import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import NameInvalid
from registry.names import check_name, is_voice_id, name_key, new_voice_id, variants

REFUSED = ["", "   ", "a" * 65, ".", "..", "-rf", "a/b", "a\\b", "@alice"]
REFUSED += [
    "al\u200bice",
    "a\nb",
    "a\x00b",
    "\ud800",
    "a\u202eb",
    "a\u2028b",
    "voice_0123",
    "VOICE_x",
]
REFUSED += ["\uff0fetc", "\uff20alice", "\uff0dx", "\uff0e\uff0e"]  # full-width / @ - ..


@pytest.mark.parametrize("name", REFUSED)
def test_refused_names_say_why(name: str) -> None:
    with pytest.raises(NameInvalid) as refused:
        check_name(name)
    assert "can't be called" in refused.value.detail


@pytest.mark.parametrize(
    "name", ["alice", "Alice (studio)", "小明", "Zoë", "a.b", "a-b", "😀", "é" * 64]
)
def test_ordinary_names_are_kept_in_nfc(name: str) -> None:
    decomposed = unicodedata.normalize("NFD", f" {name} ")
    assert check_name(decomposed) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Alice", "ALICE"),
        ("\uff41\uff4c\uff49\uff43\uff45", "alice"),
        ("Strasse", "Straße"),
        ("e\u0301", "é"),
        ("\u212a", "k"),
    ],
)
def test_names_that_read_the_same_have_one_key(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@given(st.text())
def test_the_key_of_a_key_is_itself(name: str) -> None:
    assert name_key(name_key(name)) == name_key(name)


PERSIAN, HINDI, SINHALA = "می\u200cرود", "क्\u200dष", "ශ්\u200dරී"


@pytest.mark.parametrize("name", [PERSIAN, HINDI, SINHALA, f"{PERSIAN} (studio) 2"])
def test_joiners_between_letters_that_are_joined_are_kept(name: str) -> None:
    assert check_name(name) == unicodedata.normalize("NFC", name)
    assert name_key(name) == name_key(name.replace("\u200c", "").replace("\u200d", ""))


@pytest.mark.parametrize(
    "name",
    [
        "al\u200cice",
        "\u200cمی",
        "می\u200c",
        "می\u200c\u200cرود",
        "می\u200c ",
        "می\u200ca",
        "1\u200c2",
        "می\u200bرود",
        "می\u2060رود",
        "👨\u200d👩",
        "می\u200eرود",
        PERSIAN * 20,
    ],
)
def test_a_joiner_anywhere_else_hides_and_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        check_name(name)


def test_ids_are_not_names_and_names_are_not_ids() -> None:
    voice_id = new_voice_id()
    assert is_voice_id(voice_id)
    assert new_voice_id() != voice_id
    with pytest.raises(NameInvalid):
        check_name(voice_id)


@pytest.mark.parametrize("typed", ["alcie", "alic", "alicee", "alixe", "lice"])
def test_one_slip_leaves_a_variant_in_common(typed: str) -> None:
    assert variants(typed) & variants("alice")


def test_other_names_share_no_variant() -> None:
    assert not variants("robert") & variants("alice")
