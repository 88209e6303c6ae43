"""Tells which characters nobody sees, and where the two joiners are needed by scripts.

The rules use the running Python's Unicode data, so that those of a newer Unicode are known with it.
"""

import re
import unicodedata

JOINERS = "\u200c\u200d"  # ZWNJ, ZWJ
_VIRAMA = 9  # a combining class
_CONTROLS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # the private and unassigned, too
# Format characters that are drawn, around numbers: Prepended_Concatenation_Mark in PropList.txt.
_DRAWN_FORMATS = frozenset(
    map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD))
)
# What is left of Default_Ignorable_Code_Point when controls are out: variation selectors, which
# their names tell, and Other_Default_Ignorable_Code_Point in PropList.txt.
_IGNORABLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
# Drawn as nothing without being ignorable: blanks of Braille, hieroglyphs and music, the filler of
# Khitan, and what stands for an object.
_BLANK = frozenset("\u2800\ufffc\U00013441\U00013442\U00016fe4\U0001d159")
_JOINING = re.compile(  # scripts whose letters join or stack: Arabic to Tibetan, Myanmar, Khmer …
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1700-\u18af\u1900-\u1c7f\u1cc0-\u1cff"
    "\ua800-\ua82f\ua840-\ua95f\ua980-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f]"
)


def is_invisible(character: str) -> bool:
    """Tell whether nobody sees it: also white space but for spaces, and joiners anywhere."""
    if character in _IGNORABLE or character in _BLANK:
        return True
    if unicodedata.category(character) in _CONTROLS:
        return character not in _DRAWN_FORMATS
    return "VARIATION SELECTOR" in unicodedata.name(character, "")


def is_unseen_mark(character: str) -> bool:
    """Tell whether nobody sees it though it is neither a control nor a format character."""
    return is_invisible(character) and unicodedata.category(character)[0] != "C"


def is_ink(character: str) -> bool:
    """Tell whether it is seen when it stands alone: no space, and no mark that needs a letter."""
    return unicodedata.category(character)[0] in "LNPS" and not is_invisible(character)


def is_joiner_needed(before: str, after: str) -> bool:
    """Tell whether a joiner between these two (or nothing) tells words apart.

    It does between letters of Persian or Hindi, and after a virama also at the end of a word;
    elsewhere it glues emoji, or hides.
    """
    after_virama = bool(before) and unicodedata.combining(before) == _VIRAMA
    return _joins(before) and (after_virama or _joins(after))


def _joins(character: str) -> bool:
    """Tell whether it is a letter, or a mark on one, of a script that uses joiners."""
    return bool(_JOINING.match(character)) and unicodedata.category(character)[0] in "LM"
