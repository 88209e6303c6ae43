"""What inference may refuse or fail at: a stable `code` each, and a message for a person.

InferenceError
├── PromptMissing         prompt-missing        no file for this reference: enrol or rebuild
├── PromptCorrupt         prompt-corrupt        the file is not what was written: rebuild
├── ExtractionFailed      extraction-failed     no usable features come out of this clip
├── TextTooLong           text-too-long         more speech than one request may ask for
├── LanguageUnsupported   language-unsupported  the model does not speak it
├── ModeUnavailable       mode-unavailable      icl was asked of a voice without a transcript
├── Overloaded            overloaded            the queue is full, slow or closing: `retry_after_s`
├── SpeechUnfinished      speech-unfinished     the frame budget ended before the speech did
├── SpeechFailed          speech-failed         the model broke, or its sound is not finite
├── ModelUnavailable      model-unavailable     not downloaded, not installed, or not loadable
├── ModelCannotClone      model-cannot-clone    a checkpoint for preset or designed voices
└── StorageFailed         storage-unavailable   a Volume can't be read or written now
"""

from typing import ClassVar


class InferenceError(RuntimeError):
    """The root: `str(error)` is a sentence, `code` is for programs."""

    code: ClassVar[str] = "inference-failed"


class PromptMissing(InferenceError):
    code = "prompt-missing"


class PromptCorrupt(InferenceError):
    code = "prompt-corrupt"


class ExtractionFailed(InferenceError):
    code = "extraction-failed"


class TextTooLong(InferenceError):
    code = "text-too-long"


class LanguageUnsupported(InferenceError):
    code = "language-unsupported"


class ModeUnavailable(InferenceError):
    code = "mode-unavailable"


class Overloaded(InferenceError):
    """Come back in `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class SpeechUnfinished(InferenceError):
    code = "speech-unfinished"


class SpeechFailed(InferenceError):
    code = "speech-failed"


class ModelUnavailable(InferenceError):
    code = "model-unavailable"


class ModelCannotClone(InferenceError):
    code = "model-cannot-clone"


class StorageFailed(InferenceError):
    code = "storage-unavailable"
