"""The languages of a model by the names that people and programs give them.

A model has a name of its own for each. ISO 639 codes, BCP 47 tags (`en-US`, `EN_us`, `zh-Hans`) and
what a language calls itself mean the same.
"""

import re
import unicodedata
from collections.abc import Sequence

from registry.errors import LanguageUnsupported

AUTO = "auto"  # found from the text
ALSO = {  # the first is the code that people are told
    "chinese": ("zh", "zho", "chi", "cmn", "mandarin", "中文", "汉语", "漢語", "普通话"),
    "english": ("en", "eng"),
    "french": ("fr", "fra", "fre", "français"),
    "german": ("de", "deu", "ger", "deutsch"),
    "italian": ("it", "ita", "italiano"),
    "japanese": ("ja", "jpn", "日本語"),
    "korean": ("ko", "kor", "한국어"),
    "portuguese": ("pt", "por", "português"),
    "russian": ("ru", "rus", "русский"),
    "spanish": ("es", "spa", "español", "castellano"),
}
_NAMES = {also: name for name, others in ALSO.items() for also in others}
_TAG = re.compile(r"(zh[-_][a-z]{3}|[a-z]{2,3})(?:[-_][a-z0-9]{1,8})*(?:[.@][\w.@=-]*)?")


def language_named(given: str, languages: Sequence[str] | None) -> str:
    """Return the model's name for a language, or `auto`; raise LanguageUnsupported.

    Without a model (None) a name that is not known here is taken as it is.
    """
    name = _name_of(given)
    if name == AUTO or languages is None or name in languages:
        return name
    raise LanguageUnsupported(
        f"The model does not speak {given!r}. It speaks {', '.join(map(_told, languages))}, or"
        " auto, which finds the language from the text."
    )


def _name_of(given: str) -> str:
    """Return the name that is meant; a tag means its language, whatever the region.

    `zh-yue` is Cantonese, which is no Chinese that the models know.
    """
    key = unicodedata.normalize("NFKC", given).casefold().strip()
    if key in _NAMES:
        return _NAMES[key]
    if tag := _TAG.fullmatch(key):
        return _NAMES.get(tag[1][-3:].lstrip("-_"), key)
    return key


def known_language(given: str) -> str | None:
    """Return what a language that has a line here is called; None for any other word."""
    name = _name_of(given)
    return name if name in ALSO else None


def codes_of(languages: Sequence[str]) -> list[str]:
    """Return the codes of languages that people are told."""
    return [ALSO[name][0] for name in languages if name in ALSO]


def _told(name: str) -> str:
    return f"{name} ({ALSO[name][0]})" if name in ALSO else name
