# ruff: noqa: RUF001

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import NameInvalid
from registry.invisible import is_invisible
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


@pytest.mark.slow
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


# What nobody sees


def everything() -> list[str]:
    return [chr(number) for number in range(sys.maxunicode + 1)]


def default_ignorable(character: str) -> bool:
    """As DerivedCoreProperties.txt makes it, of what general categories and names tell."""
    number, name = ord(character), unicodedata.name(character, "")
    if number in (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0):
        return True
    if 0xFFF0 <= number <= 0xFFF8 or 0xE0000 <= number <= 0xE0FFF:
        return True
    drawn = name.startswith(("ARABIC", "SYRIAC", "KAITHI")) and number != 0x61C
    is_format = unicodedata.category(character) == "Cf" and not drawn
    return "VARIATION SELECTOR" in name or is_format


def test_every_ignorable_code_point_is_refused_by_its_number() -> None:
    ignorable = [c for c in everything() if default_ignorable(c)]
    marks_and_letters = [c for c in ignorable if unicodedata.category(c)[0] in "LM"]
    assert len(ignorable) > 4100 and len(marks_and_letters) == 267
    for character in ignorable:
        for name in (f"al{character}ice", f"{character}alice", f"alice{character}", character):
            with pytest.raises(NameInvalid, match=rf"U\+{ord(character):04X}\b"):
                check_name(name)


@pytest.mark.parametrize(
    "character", "\u2800\u3164\uffa0\u115f\ufffc\U00016fe4\U0001d159\ue000\x7f"
)
def test_what_is_drawn_as_nothing_is_refused_by_its_number(character: str) -> None:
    for name in (f"al{character}ice", f"小{character}明", character):
        with pytest.raises(NameInvalid, match=rf"U\+{ord(character):04X}\b") as refused:
            check_name(name)
        assert refused.value.code == "name-invalid"


@pytest.mark.slow
def test_what_is_seen_is_taken() -> None:
    """All but what has a meaning of its own; a mark stands on a letter."""
    drawn = [c for c in everything() if unicodedata.category(c)[0] in "LMNPS"]
    taken = [c for c in drawn if not default_ignorable(c) and not is_invisible(c)]
    assert len(drawn) - len(taken) in (271, 273)  # two blank hieroglyphs came with Unicode 15
    refused = {c for c in taken if not {*name_key(f"x{c}")}.isdisjoint("@/\\")}
    for character in taken:
        if character not in refused:
            check_name(f"x{character}")
    assert len(refused) < 20


@pytest.mark.parametrize(
    "name", ["\u0301", "\u0301 \u0302", "\u094d", "\u20e3", "\u0488", "\u0345", "\u00a0\u0301"]
)
def test_a_name_of_marks_alone_has_nothing_to_see(name: str) -> None:
    with pytest.raises(NameInvalid, match="at least one visible character"):
        check_name(name)


@pytest.mark.parametrize("name", ["¨", "°", "😀", "؀1", "·", "ー", "👍🏽", "🇩🇪", "〿"])
def test_a_sign_alone_is_a_name(name: str) -> None:
    assert check_name(name) == name


NEEDED = {
    "Persian": "علی\u200cرضا",
    "Persian of three parts": "بی\u200cبی\u200cسی",
    "Urdu": "خوش\u200cبو",
    "Uyghur": "خەير\u200cخاھ",
    "Syriac": "ܡܪ\u200cܝܡ",
    "Hindi, half form": "क्\u200dष",
    "Hindi, visible virama": "क्\u200cष",
    "Marathi": "दर्\u200dया",
    "Bengali": "র\u200d্যাব",
    "Bengali, khanda ta of old": "সত্\u200d",
    "Malayalam, chillu at the end": "മോഹന്\u200d",
    "Malayalam, chillu before a blank": "മോഹന്\u200d ലാല്\u200d",
    "Sinhala": "ශ්\u200dරී",
    "Kannada": "ರ್\u200dಯ",
    "Telugu": "రాజ్\u200cకుమార్",
    "Gujarati": "ક્\u200dષ",
    "Nepali": "गर्\u200dयो",
    "Tamil": "க்\u200cஷ",
    "Khmer": "ស\u200cរ",
    "Mongolian": "ᠮ\u200dᠣ",
    "Balinese": "ᬓ᭄\u200cᬱ",
    "Javanese": "ꦏ꧀\u200cꦱ",
    "Adlam": "𞤀\u200c𞤁",
}


@pytest.mark.parametrize("script", NEEDED)
def test_a_joiner_that_its_script_needs_is_kept_and_tells_no_two_names_apart(script: str) -> None:
    name = NEEDED[script]
    without = name.replace("\u200c", "").replace("\u200d", "")
    assert check_name(name) == unicodedata.normalize("NFC", name)
    assert name_key(name) == name_key(without)
    assert {*name_key(name)}.isdisjoint("\u200c\u200d")


SPACES = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Zs"]


@pytest.mark.parametrize("space", SPACES)
def test_no_two_names_differ_by_white_space_alone(space: str) -> None:
    assert len(SPACES) > 15
    for between in (space, space * 3, f" {space} ", f"{space}\u00a0"):
        named = f"{space}Ann{between}Lee{space}"
        assert check_name(named) == "Ann Lee"
        assert name_key(named) == "ann lee"
    with pytest.raises(NameInvalid, match="at least one visible character"):
        check_name(space * 3)


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many characters Unicode's forms were asked of, each time."""
    asked: list[int] = []
    form = unicodedata.normalize

    def counted(kind: str, text: str) -> str:
        asked.append(len(text))
        return form(kind, text)  # type: ignore[arg-type]

    monkeypatch.setattr(unicodedata, "normalize", counted)
    return asked


@pytest.mark.parametrize("marks", ["\u0301" * 8000 + "\u0323" * 8000, "\ufdfa" * 16_000])
def test_what_is_too_long_is_refused_before_its_marks_are_put_in_order(
    marks: str, ordered: list[int]
) -> None:
    with pytest.raises(NameInvalid, match="at most 64 characters, this one has 16001"):
        check_name(f"a{marks}")
    assert name_key(f"a{marks}") == f"a{marks}"
    assert max(ordered, default=0) == 0
    with pytest.raises(NameInvalid):
        check_name(marks[:256])
    assert max(ordered) < 256 * 18**2  # which is what a form of a form can be at most
