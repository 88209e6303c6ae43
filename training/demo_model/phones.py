"""The phonemes that helper heads and the probe tell apart: espeak-ng's names, merged a little."""

CONSONANTS = "p b t d k g f v s z h m n N l r w j S Z T D tS dZ"
VOWELS = "a aa A: A@ E e@ I i i: i@ 0 O: o@ U U@ u: V 3 3: @ @L aI aU eI OI oU"
NAMES = ("", *CONSONANTS.split(), *VOWELS.split())
LONGER = ":"  # of the phoneme before
MERGED = {"O@": "o@", "O2": "O:", "i@3": "i@", "aI@": "aI", "aI3": "aI", "r-": "r", "n-": "n"}
_INDEX = {name: index for index, name in enumerate(NAMES)}


def index_of(name: str) -> int | None:
    """The class of espeak-ng's phoneme; 0 is silence and what is rare; None goes on as before."""
    bare = name.lstrip("',%=|_;\"").rstrip("|").replace("#", "")
    if bare == LONGER:
        return None
    bare = MERGED.get(bare, bare)
    return _INDEX.get(bare, _INDEX.get(bare.rstrip("2-[").removesuffix("R"), 0))
