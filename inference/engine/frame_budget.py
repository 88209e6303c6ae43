"""How many frames a text may come to: what the engine reserves for it. Needs no torch."""

FRAMES_PER_S = 12.5
BASE_FRAMES = 50
FRAMES_PER_TOKEN = 6
MAX_FRAMES = 2048
MAX_TOKENS = (MAX_FRAMES - BASE_FRAMES) // FRAMES_PER_TOKEN  # of a text


def frame_budget(tokens: int) -> int:
    """The most frames that a text of so many tokens may speak; MAX_TOKENS is all there is."""
    return BASE_FRAMES + FRAMES_PER_TOKEN * tokens
