"""The text of one request, made fit to be spoken. It knows nothing about tokens or models."""

import unicodedata

from registry.errors import TextInvalid, TextTooLong

LETTERS_PER_S, WIDE_PER_S = 14.0, 4.5  # of calm speech; wide: Chinese, Japanese, Korean
_KEPT_CONTROLS = "\n\t"
_BIDI_CONTROLS = dict.fromkeys(
    [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def clean_text(text: str, limit: int, what: str = "The text") -> str:
    """NFC without bidirectional controls or outer blanks; line ends become newlines.

    Raises TextInvalid for nothing to say or characters that are no text, TextTooLong past `limit`
    code points. Joiners (ZWJ, ZWNJ) stay: scripts need them.
    """
    if len(text) > 4 * limit:
        raise _too_long(text, limit, what)
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = text.translate(_BIDI_CONTROLS).strip()
    if not text:
        raise TextInvalid(f"{what} is empty: there is nothing to say.")
    if len(text) > limit:
        raise _too_long(text, limit, what)
    _refuse_controls(text, what)
    return text


def _too_long(text: str, limit: int, what: str) -> TextTooLong:
    return TextTooLong(
        f"{what} has {len(text):,} characters; the limit is {limit:,}. Split it into parts.",
        limit=limit,
        unit="characters",
    )


def _refuse_controls(text: str, what: str) -> None:
    for position, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in _KEPT_CONTROLS:
            raise TextInvalid(
                f"{what} holds U+{ord(character):04X} at position {position}, "
                "a control character or half of a surrogate pair."
            )


def refuse_long(text: str, limit_s: float, instead: str = "") -> None:
    """TextTooLong if, made no faster than it is spoken, the speech would not be done in time."""
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
    """How long the text takes to say, at a calm pace."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return wide / WIDE_PER_S + (len(text) - wide) / LETTERS_PER_S
