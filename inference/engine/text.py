"""Text to token ids such that what a user wrote is always plain text, never a control token.

For text without control tokens the ids are those that qwen_tts gets from its own templates.
"""

from tokenizers import Tokenizer

OPENING = "<|im_start|>assistant\n"
END = "<|im_end|>\n"


class TextTokenizer:
    """Encodes user text with the model's tokenizer without its added tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer`: of the Qwen2 kind, with the control tokens added."""
        self._template = tokenizer
        self._plain = Tokenizer(tokenizer.model)  # shares the vocabulary
        self._plain.normalizer = tokenizer.normalizer
        self._plain.pre_tokenizer = tokenizer.pre_tokenizer

    def ids(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def fitting(self, text: str, tokens: int) -> int:
        """Count the characters of a longer text that its first `tokens` tokens hold."""
        return int(self._plain.encode(text, add_special_tokens=False).offsets[tokens][0])

    def target(self, text: str) -> list[int]:
        """Encode the turn to speak: 3 ids of the role, the text, 5 ids that close it."""
        return [*self._control(OPENING), *self.ids(text), *self._control(END + OPENING)]

    def reference(self, text: str) -> list[int]:
        """Encode the reference clip's turn: 3 ids of the role, the transcript, 2 ids after it."""
        return [*self._control(OPENING), *self.ids(text), *self._control(END)]

    def _control(self, template: str) -> list[int]:
        return list(self._template.encode(template, add_special_tokens=False).ids)
