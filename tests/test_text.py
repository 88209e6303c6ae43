"""A text before it is spoken: what is invisible goes, what is no text is refused."""

# ruff: noqa: RUF001

import re
import sys
import unicodedata

import pytest

from registry.errors import TextInvalid, TextTooLong
from registry.text import clean_text

LIMIT = 5000
VISIBLE_FORMATS = ("ARABIC", "SYRIAC", "KAITHI")  # signs before numbers are format characters
PERSIAN, HINDI, MALAYALAM = "می\u200cخواهم", "क्\u200dष", "അവന്\u200d"
SINHALA, VISIBLE_VIRAMA = "ශ්\u200dරී", "क्\u200c"


def everything() -> list[str]:
    return [chr(number) for number in range(sys.maxunicode + 1)]


def test_no_format_character_survives_inside_a_word() -> None:
    formats = [c for c in everything() if unicodedata.category(c) == "Cf"]
    visible = [c for c in formats if unicodedata.name(c, "").startswith(VISIBLE_FORMATS)]
    visible.remove("\u061c")  # ARABIC LETTER MARK
    assert len(formats) > 150 and len(visible) < 15
    for character in formats:
        kept = character if character in visible else ""
        assert clean_text(f"bro{character}ken", LIMIT) == f"bro{kept}ken", hex(ord(character))


def test_no_variation_selector_filler_or_tag_survives() -> None:
    named = re.compile(r"VARIATION SELECTOR|HANGUL.*FILLER|^TAG |GRAPHEME JOINER|VOWEL INHERENT")
    found = [c for c in everything() if named.search(unicodedata.name(c, ""))]
    assert len(found) > 350
    for character in found:
        assert clean_text(f"bro{character}ken", LIMIT) == "broken", hex(ord(character))


def test_every_white_space_is_a_space_or_a_newline() -> None:
    spaces = [c for c in everything() if c.isspace() and not "\x1c" <= c <= "\x1f"]
    assert len(spaces) == 25
    for character in spaces:
        line_end = character in "\n\r\v\f\x85\u2028\u2029"
        assert clean_text(f"a{character}b", LIMIT) == ("a\nb" if line_end else "a b")
        assert clean_text(f"{character}a{character}", LIMIT) == "a"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("some\u200bthing is bro\u00adken", "something is broken"),
        ("\ufeffHello\u2060 there", "Hello there"),
        ("cafe\u200b\u0301", "café"),  # composed once what parted it is gone
        ("cafe\u034f\u0301", "café"),
        ("a \u200b b", "a b"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("one \t\n\t two", "one\ntwo"),
        ("bro\u00ad\n  ken", "broken"),
        ("see\ufffcthis", "see this"),
        ("see \ufffc\ufffc this", "see this"),
        ("wo\u200drd wo\u200crd", "word word"),
        ("I \u2764\ufe0f you", "I \u2764 you"),
        ("👩\u200d👩\u200d👧 family", "👩👩👧 family"),
        ("🏴\U000e0067\U000e0062\U000e007f flag", "🏴 flag"),
        ("ᠮᠣᠩᠭᠣᠯ\u180e\u180b", "ᠮᠣᠩᠭᠣᠯ"),
        ("\u202eabc\u202c \u2066def\u2069", "abc def"),
        ("100\u00a0%", "100 %"),
    ],
)
def test_invisible_characters_are_out(given: str, said: str) -> None:
    assert clean_text(given, LIMIT) == said


@pytest.mark.parametrize("text", [PERSIAN, HINDI, MALAYALAM, SINHALA, VISIBLE_VIRAMA, "ক\u200d্ষ"])
def test_joiners_stay_where_a_script_needs_them(text: str) -> None:
    assert clean_text(text, LIMIT) == unicodedata.normalize("NFC", text)
    doubled = text.replace("\u200c", "\u200c\u200c").replace("\u200d", "\u200d\u200d")
    assert clean_text(doubled, LIMIT) == clean_text(text, LIMIT)
    parted = text.replace("\u200c", "\u200b\u200c").replace("\u200d", "\ufeff\u200d")
    assert clean_text(parted, LIMIT) == clean_text(text, LIMIT)


@pytest.mark.parametrize(
    "text", ["می\u200c", "\u200cخواهم", "می\u200c خواهم", "٣\u200d", "क\u200d!"]
)
def test_joiners_that_join_nothing_are_out(text: str) -> None:
    assert clean_text(text, LIMIT) == text.replace("\u200c", "").replace("\u200d", "")


@pytest.mark.parametrize(
    "text",
    [
        *("***", "- - -", "?", "!?", "…", "%", "€", "°", "&", "@", "#", "+", "—", "_", "()", "/"),
        *("😂", "👩\u200d👩\u200d👧", "🇩🇪", "❤️", "👍🏽", "™", "♪", "→", "Ⓐ", "⠓", "\uf8ff"),
        *("。", "、", "・・・", "「」", "ー", "〜", "，！", "।", "؟", "¿", "״", "๏", "\u0301", "◌́"),
        *("\ufeff", "\u200b", "\u00ad", "\u2060\u200e", "\u3164", "\u2800", "\ufe0f", "\u180e"),
        *("", " ", "\u3000", "\n\f\v", "\u200b \u200b", "\u034f"),
    ],
)
def test_nothing_to_speak_is_refused(text: str) -> None:
    with pytest.raises(TextInvalid, match=r"The words .* there is nothing to say"):
        clean_text(text, LIMIT, "The words")


@pytest.mark.parametrize(
    "text",
    [
        *("a", "I", "é", "ß", "ñ", "Ω", "ж", "א", "ع", "อ", "你", "あ", "ア", "ｱ", "한", "अ", "ლ"),
        *("7", "٣", "३", "½", "²", "Ⅷ", "①", "五", "1\ufe0f\u20e3", "5°", "€5", "50%", "-5", "#1"),
        *("OK!", "你好。", "नमस्ते", "สวัสดี", "ｱｰ", "テスト", "😂 ha", "*a*", "C++", "𝐚"),
    ],
)
def test_one_letter_or_number_can_be_spoken(text: str) -> None:
    assert clean_text(text, LIMIT).startswith(text[0])


@pytest.mark.parametrize("number", [0, 7, 8, 0x1B, 0x1C, 0x7F, 0x84, 0x9D, 0xD83D, 0xDC00, 0xFFFE])
def test_what_is_no_text_is_refused_by_its_number_and_place(number: int) -> None:
    with pytest.raises(TextInvalid, match=f"U\\+{number:04X} at position 4, which is no text"):
        clean_text(f"one\u200b{chr(number)}two", LIMIT)


def test_the_limit_counts_what_is_left() -> None:
    assert clean_text("a\u200b" * 100, 100) == "a" * 100
    with pytest.raises(TextTooLong, match="101 characters; the limit is 100"):
        clean_text("a" * 101, 100)
    with pytest.raises(TextTooLong):
        clean_text("\u200b" * 401 + "a", 100)


@pytest.mark.parametrize("text", ["one\u2028two", PERSIAN, "e\u0301 \t\n a\u00ad", "ᄒ\u200bᅡᆫ"])
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean_text(clean_text(text, LIMIT), LIMIT) == clean_text(text, LIMIT)


@pytest.mark.parametrize("between", ["", "\u034f", "\u200b", "\ufe0f"])
def test_no_letter_has_a_heap_of_marks(between: str) -> None:
    """To put thousands in order would take seconds, while nobody else is served."""
    above, below = f"{between}\u0301", f"{between}\u0323"
    with pytest.raises(TextInvalid, match="more than 30 marks on one letter, before position 31"):
        clean_text("a" + above * 9000 + below * 9000, 40_000)
    assert clean_text("a" + below * 15 + above * 15, 5000)
    assert clean_text(("e" + above * 30) * 100, 5000)


@pytest.mark.parametrize(
    "text",
    [
        "Tiếng Việt có nhiều dấu",
        "นี่คือภาษาไทยที่มีวรรณยุกต์",
        "שָׁלוֹם עֲלֵיכֶם",
        "بِسْمِ ٱللَّٰهِ",
        "བོད་སྐད",
        "हिन्दी में",
    ],
)
def test_marks_that_a_language_writes_are_kept(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert clean_text(composed, 500) == composed
    assert clean_text(unicodedata.normalize("NFD", text), 500) == composed
