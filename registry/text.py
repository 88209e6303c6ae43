"""Makes the text of a request fit to be spoken. It knows nothing about tokens or models."""

import re
import unicodedata

from registry.errors import TextInvalid, TextTooLong
from registry.invisible import JOINERS, is_joiner_needed

MOST_MARKS = 30  # marks on one letter
LETTERS_PER_S = 14.0  # letters of calm speech, with spaces and stops
_IDEOGRAPHS = re.compile(
    "[\u2e80-\u2fd5\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]"
)
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_SCRIPTS = {  # in the order to look: Japanese has ideographs, too
    "japanese": _KANA,
    "chinese": _IDEOGRAPHS,
    "korean": _HANGUL,
    "russian": re.compile("[\u0400-\u04ff]"),
}
_OTHERWISE_PER_S = (  # where a character is more than a letter
    (_IDEOGRAPHS, 4.5),
    (_KANA, 7.5),
    (_HANGUL, 5.5),  # syllables
    (re.compile("[\u05d0-\u07bf\u08a0-\u08ff]"), 10.0),  # Hebrew, Arabic: few vowels are written
    (re.compile(r"\d"), 3.0),
)

_NO_TEXT = re.compile(  # controls but white space, surrogates, noncharacters
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_HYPHENATED = re.compile("\u00ad[ \t]*\n[ \t]*")  # a word that goes on in the next line
_INVISIBLE = re.compile(  # what Unicode calls default ignorable, and its format controls
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = re.compile(f"[{JOINERS}]+")
_BLANKS = re.compile(r"(?:[^\S\n]|\ufffc)+")  # U+FFFC stands for a picture
_AROUND_LINE_ENDS = re.compile(r" ?\n ?")


def clean_text(text: str, limit: int, what: str = "The text") -> str:
    """Return a text in NFC without invisible characters; white space becomes spaces and newlines.

    Raises TextInvalid for nothing to say or characters that are no text, TextTooLong past `limit`
    code points.
    """
    if len(text) > 4 * limit:
        raise _too_long(text, limit, what)
    _refuse_what_is_no_text(text, what)
    text = _visible(_LINE_END.sub("\n", text))
    text = _AROUND_LINE_ENDS.sub("\n", _BLANKS.sub(" ", text)).strip()
    _refuse_heaps_of_marks(text, what)
    text = unicodedata.normalize("NFC", text)
    if not text:
        raise TextInvalid(f"{what} is empty: there is nothing to say.")
    if not any(map(_is_spoken, text)):
        raise TextInvalid(
            f"{what} holds no letter and no number, so there is nothing to say. Write signs as"
            " words: 'percent' for '%'."
        )
    if len(text) > limit:
        raise _too_long(text, limit, what)
    return text


def _too_long(text: str, limit: int, what: str) -> TextTooLong:
    return TextTooLong(
        f"{what} has {len(text):,} characters; the limit is {limit:,}. Split it into parts.",
        limit=limit,
        unit="characters",
    )


def _refuse_what_is_no_text(text: str, what: str) -> None:
    """Refuse bytes that were no text, or of another encoding: their meaning is unknown."""
    if found := _NO_TEXT.search(text):
        raise TextInvalid(
            f"{what} holds U+{ord(found[0]):04X} at position {found.start()}, which is no text:"
            " a control character, half of a surrogate pair, or a noncharacter."
        )


def _refuse_heaps_of_marks(text: str, what: str) -> None:
    """Refuse more marks on a letter than any writing has; sorting n takes n² steps (UAX 15, 13)."""
    marks = 0
    for position, character in enumerate(text):
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > MOST_MARKS:
            raise TextInvalid(
                f"{what} has more than {MOST_MARKS} marks on one letter, before position"
                f" {position}: no writing has."
            )


def _visible(text: str) -> str:
    text = _INVISIBLE.sub("", _HYPHENATED.sub("", text))
    return _JOINERS.sub(_joiner_if_needed, text)


def _joiner_if_needed(found: re.Match[str]) -> str:
    text, start, end = found.string, found.start(), found.end()
    needed = is_joiner_needed(text[start - 1 : start], text[end : end + 1])
    return found[0][0] if needed else ""


def _is_spoken(character: str) -> bool:
    """Tell letters, ideographs and numbers from signs, emoji and modifiers such as ー alone."""
    category = unicodedata.category(character)
    return category[0] in "LN" and category != "Lm"


def refuse_long(text: str, limit_s: float, instead: str = "") -> None:
    """Raise TextTooLong if the speech, made no faster than it plays, would not end in time."""
    speech_s = spoken_s(text)
    if speech_s > limit_s:
        most = int(len(text) * limit_s / speech_s)
        raise TextTooLong(
            f"The text is about {speech_s:.0f} s of speech, and one request may take"
            f" {limit_s:g} s here. Split it into parts of at most {most:,} characters{instead}.",
            limit=most,
            unit="characters",
        )


def spoken_s(text: str) -> float:
    """Estimate how many seconds the text takes to say, at a calm pace."""
    counts = [(len(script.findall(text)), per_s) for script, per_s in _OTHERWISE_PER_S]
    letters = len(text) - sum(count for count, _ in counts)
    return letters / LETTERS_PER_S + sum(count / per_s for count, per_s in counts)


def has_spaces(text: str) -> bool:
    """Tell whether its script writes words apart."""
    return not (_IDEOGRAPHS.search(text) or _KANA.search(text))


def script_of(text: str) -> str:
    """Return the language that its script suggests; English for a script that many use."""
    for language, script in _SCRIPTS.items():
        if script.search(text):
            return language
    return "english"
