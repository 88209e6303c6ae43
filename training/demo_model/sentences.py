"""What the training voices say: words in random order, sentences of a small grammar, natural ones.

The held-out sentences are read here too, and never drawn.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TEXT = Path(__file__).parent / "text"
PATTERNS = (
    "The {adjective} {noun} and the {noun} {verbs} the {noun}.",
    "I {verb} the {noun} in the {adjective} {noun}.",
    "Please {verb} the {noun} before {number} o'clock.",
    "Can you {verb} my {noun}?",
    "{name} and {name} {verb} a {adjective} {noun}.",
    "We will {verb} the {noun} {adverb}.",
    "There are {number} {nouns} in the {noun}.",
    "It was a {adjective} {noun}, and {name} was {adjective}.",
    "How many {nouns} do you {verb}?",
    "This is the {adjective} {noun} of the {noun}.",
    "Hello, my name is {name}.",
    "{adverb}, {name} {verbs} the {nouns}.",
    "My {noun} is {adjective}, but your {noun} is {adjective}.",
    "{name} said that the {noun} would {verb}.",
    "Do not {verb} the {noun}, {verb} the {nouns}!",
    "They are {verbing} {number} {adjective} {nouns}.",
    "She {verbed} the {noun} {adverb}, and he {verbed} it again.",
    "The {noun} has {verbed} near the {noun}.",
    "Nobody {verbs} {nouns} on {name}.",
    "When the {noun} {verbs}, the {nouns} {verb}.",
    "He was {verbing} {adverb} with {number} {nouns}.",
    "Why is the {noun} so {adjective}?",
)
ENDS = (".", ".", ".", ".", "?", "!", "")
LENGTHS = (2, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 10, 11, 12)


@dataclass(frozen=True)
class Lexicon:
    """The committed word lists."""

    kinds: dict[str, list[str]]
    more: list[str]
    sentences: list[str]

    @classmethod
    def read(cls) -> "Lexicon":
        lines = (TEXT / "words.txt").read_text("utf-8").splitlines()
        kinds = {kind: words.split() for kind, words in (line.split(":") for line in lines)}
        return cls(kinds, (TEXT / "more.txt").read_text("utf-8").split(), read_lines("sentences"))

    @cached_property
    def everything(self) -> list[str]:
        """Every word, with the plurals and the forms of the verbs."""
        forms = [form(word, "s") for word in self.kinds["noun"]]
        verbs = [form(word, end) for word in self.kinds["verb"] for end in ("s", "ed", "ing")]
        return [
            *(word for words in self.kinds.values() for word in words),
            *self.more,
            *forms,
            *verbs,
        ]


def read_lines(name: str) -> list[str]:
    """The lines of a file in text/: sentences, heldout, reference."""
    return (TEXT / f"{name}.txt").read_text("utf-8").splitlines()


def form(word: str, end: str) -> str:
    """A regular English form: near enough, for it is only to be pronounced."""
    if end == "s":
        if word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        return word[:-1] + "ies" if _consonant_y(word) else word + "s"
    if word.endswith("e"):
        return word[:-1] + end
    return word[:-1] + "ied" if end == "ed" and _consonant_y(word) else word + end


def _consonant_y(word: str) -> bool:
    return len(word) > 2 and word.endswith("y") and word[-2] not in "aeiou"


def sentence(chance: random.Random, lexicon: Lexicon) -> str:
    """Something to say, of 1 to about 12 words."""
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(lexicon.sentences)
    text = _pattern(chance, lexicon) if kind < 0.45 else _jumble(chance, lexicon)
    return text[:1].upper() + text[1:]


def _pattern(chance: random.Random, lexicon: Lexicon) -> str:
    text = chance.choice(PATTERNS)
    while "{" in text:
        start, end = text.index("{"), text.index("}")
        text = text[:start] + _slot(text[start + 1 : end], chance, lexicon) + text[end + 1 :]
    return text


def _slot(name: str, chance: random.Random, lexicon: Lexicon) -> str:
    if name == "number":
        return _number(chance)
    for end in ("ing", "ed", "s"):
        if name.endswith(end) and (kind := name.removesuffix(end)) in lexicon.kinds:
            return form(chance.choice(lexicon.kinds[kind]), end)
    if name in ("noun", "adjective") and chance.random() < 0.3:
        return chance.choice(lexicon.more)
    return chance.choice(lexicon.kinds[name])


def _number(chance: random.Random) -> str:
    return str(chance.choice((chance.randint(0, 20), chance.randint(0, 99), 100, 1000)))


def _jumble(chance: random.Random, lexicon: Lexicon) -> str:
    count = chance.choice(LENGTHS)
    words = [_any_word(chance, lexicon) for _ in range(count)]
    commas = [word + ("," if chance.random() < 0.06 else "") for word in words[:-1]]
    return " ".join([*commas, words[-1]]) + chance.choice(ENDS)


def _any_word(chance: random.Random, lexicon: Lexicon) -> str:
    kind = chance.random()
    if kind < 0.02:
        return _number(chance)
    return chance.choice(lexicon.kinds["other"] if kind < 0.22 else lexicon.everything)
