"""Every error a person can meet, with its HTTP status and stable code (RFC 9457 problem details).

Inference raises them too; what its two processes tell apart and clients do not has a `wire_code`.

RegistryError
├── NameInvalid · FieldInvalid · TextInvalid · TextTooLong · LanguageUnsupported   422
├── ModeUnavailable · CursorInvalid · ClipUnusable · TranscriptMismatch            422
├── RequestMalformed 400 · PathInvalid 404 · BodyTooSlow 408 · RangeUnsatisfiable 416
├── OriginRefused 403 · HostUnknown 421  by the fence of `voices serve`, before any route
├── ClipUnsupported · ContentTypeUnsupported                                       415
├── VoiceNotFound · AliasNotFound 404 · NameTaken 409 · PromptNotReady 409 · EditConflict 412
├── ClipDamaged · VoiceDamaged                                                     500
├── StorageFull · StorageReadOnly                                                  507
├── StorageUnreadable · DatabaseDamaged                                            503
├── InferenceOff · ModelMismatch · ClipsUnopenable                                 503
├── StorageUnavailable · InferenceUnreachable 503                                  try again
├── Overloaded 503                       the queue is full, slow or closing: `retry_after_s`
│   └── ServerBusy · GpuCold
├── ModelUnavailable 503                 not downloaded, not installed, or not loadable
│   └── ModelCannotClone                 a checkpoint for preset or designed voices
├── SpeechFailed 500                     the model broke, or its sound is not finite
│   ├── ExtractionFailed                 no usable features come out of this clip
│   ├── SpeechUnfinished                 its frames or its time ended before the speech did
│   ├── StreamBroken                     a speech that ended before it should
│   ├── SpeechInaudible                  made again before a client sees it
│   └── InferenceFailed                  what it raised is no refusal
├── PromptBroken 500                     seldom seen: the registry rebuilds, then asks again
│   └── PromptMissing · PromptCorrupt    no file for this reference, or not what was written
├── SchemaTooNew · DatabaseLost · SettingInvalid · FolderInUse
│                                         refused before anything is served
└── BackupRefused                        never in an answer, so it has no code of its own
"""

from collections.abc import Sequence


class RegistryError(Exception):
    """An error for a person: `detail` is a sentence, `extra` goes into the problem document."""

    status: int = 500
    code = "internal-error"
    title = "Something went wrong"
    wire_code: str | None = None
    retry_after_s: float | None = None

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    def headers(self) -> dict[str, str]:
        wait_s = self.retry_after_s
        return {} if wait_s is None else {"Retry-After": str(whole_seconds(wait_s))}

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the sentence and the fields, for subclasses take other arguments."""
        return type(self).__new__, (type(self), self.detail), vars(self)


class NameInvalid(RegistryError):
    status, code, title = 422, "name-invalid", "This name can't be used"


class RequestMalformed(RegistryError):
    """Raised if the body can't be parsed at all: it is no JSON, or no form."""

    status, code, title = 400, "request-malformed", "The request can't be read"


class PathInvalid(RegistryError):
    status, code, title = 404, "not-found", "There is nothing here"


class OriginRefused(RegistryError):
    """Raised if a browser says that another site's page asks; `origin` is None if not named."""

    status, code, title = 403, "origin-refused", "Pages of other sites may not do this"

    def __init__(self, origin: str | None, method: str) -> None:
        page = "A page of another site" if origin is None else f"A page of {origin[:80]!r}"
        super().__init__(
            f"{page} may not {method[:20]} here. VOICES_ALLOWED_ORIGINS lists the origins that may."
        )


class HostUnknown(RegistryError):
    status, code, title = 421, "host-unknown", "This server has no such name"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This server is not {host[:80]!r}: it answers to its own address, and to the names "
            "that VOICES_ALLOWED_HOSTS lists."
        )


class BodyTooSlow(RegistryError):
    """Closes the connection, lest the rest of the body is taken for the next request."""

    status, code, title = 408, "body-too-slow", "The body came too slowly"

    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class FieldInvalid(RegistryError):
    status, code, title = 422, "request-invalid", "The request is not valid"


class TextInvalid(RegistryError):
    status, code, title = 422, "text-invalid", "This text can't be spoken"


class TextTooLong(RegistryError):
    status, code, title = 422, "text-too-long", "This text is too long for one request"


class LanguageUnsupported(RegistryError):
    status, code, title = 422, "language-unsupported", "The model doesn't speak this language"


class ModeUnavailable(RegistryError):
    status, code, title = 422, "mode-unavailable", "The voice can't speak in this mode"


class TranscriptMismatch(RegistryError):
    """Raised for words that no clip of this length can say, or that leave a text no room."""

    status, code, title = 422, "transcript-mismatch", "The transcript can't be what the clip says"


class CursorInvalid(RegistryError):
    status, code, title = 422, "cursor-invalid", "The cursor is not one of ours"


class ClipUnusable(RegistryError):
    """Refuses a reference clip for what it holds; the code is the decoder's own, `audio-…`."""

    status, code, title = 422, "audio-undecodable", "The reference clip can't be used"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ClipUnsupported(ClipUnusable):
    status, title = 415, "This audio format is not supported"


class ClipsUnopenable(RegistryError):
    """Raised if the child process that opens clips does not start, whatever the clip."""

    status, code, title = 503, "decoder-unavailable", "This server can't open clips now"
    retry_after_s = 5


class ContentTypeUnsupported(RegistryError):
    status, code, title = 415, "content-type-unsupported", "The content type is not supported"


class VoiceNotFound(RegistryError):
    """Raised for an unknown voice; `near` holds names that look like it, best first."""

    status, code, title = 404, "voice-not-found", "No such voice"

    def __init__(self, wanted: str, near: Sequence[str] = (), advice: str = "") -> None:
        hint = f" Did you mean {' or '.join(repr(n) for n in near[:2])}?" if near else ""
        kind = "with the id" if wanted.startswith("voice_") else "named"
        super().__init__(f"No voice {kind} {wanted!r}.{hint}{advice}", near=list(near))


class NameTaken(RegistryError):
    status, code, title = 409, "name-taken", "Another voice has this name"

    def __init__(self, name: str, holder: str, kind: str = "a voice") -> None:
        alike = "" if name == holder else f" ({name!r} counts as the same name)"
        super().__init__(f"There is already {kind} named {holder!r}{alike}.", holder=holder)


class AliasNotFound(RegistryError):
    status, code, title = 404, "alias-not-found", "No such alias"


class PromptNotReady(RegistryError):
    status, code = 409, "prompt-not-ready"
    title = "The voice has no sound prompt features for the model in use"


class EditConflict(RegistryError):
    status, code, title = 412, "edit-conflict", "The voice has changed since you read it"


class RangeUnsatisfiable(RegistryError):
    status, code, title = 416, "range-unsatisfiable", "There are no such bytes"

    def __init__(self, size: int) -> None:
        super().__init__(f"None of the ranges asked for is within the {size:,} bytes of the file.")
        self.size = size

    def headers(self) -> dict[str, str]:
        return {"Content-Range": f"bytes */{self.size}"}


class ClipDamaged(RegistryError):
    code, title = "reference-corrupt", "The stored reference clip is damaged"


class VoiceDamaged(RegistryError):
    """Raised for a row that no request could have made."""

    code, title = "voice-damaged", "The stored voice is damaged"


class SpeechFailed(RegistryError):
    code, title = "speech-failed", "The model could not do this"


class ExtractionFailed(SpeechFailed):
    code = "extraction-failed"


class SpeechUnfinished(SpeechFailed):
    code = "speech-unfinished"


class InferenceFailed(SpeechFailed):
    code = "inference-failed"


class StorageFull(RegistryError):
    status, code, title = 507, "storage-full", "The disk is full"


class StorageReadOnly(RegistryError):
    """Raised where trying again does not help: someone must make the folder writable."""

    status, code, title = 507, "storage-read-only", "The data directory can't be written"


class StorageUnreadable(RegistryError):
    status, code, title = 503, "storage-unreadable", "The data directory can't be read"


class DatabaseDamaged(RegistryError):
    """Stops all writing from the first sign of damage on; only a backup mends it."""

    status, code, title = 503, "database-damaged", "The database is damaged"


class StorageUnavailable(RegistryError):
    """Raised if the storage did not say yes in time; what was asked is not stored."""

    status, code, title = 503, "storage-unavailable", "The storage can't be written now"
    retry_after_s = 5


class InferenceOff(RegistryError):
    status, code, title = 503, "inference-off", "This server runs without a model"


class ModelUnavailable(RegistryError):
    status, code, title = 503, "model-unavailable", "The model can't be used"


class ModelCannotClone(ModelUnavailable):
    code = "model-cannot-clone"


class Overloaded(RegistryError):
    status, code, title = 503, "overloaded", "Too many requests are waiting"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail, retry_after_s=whole_seconds(retry_after_s))
        self.retry_after_s = retry_after_s


class ServerBusy(Overloaded):
    """Refuses a request that was not looked at: not the model but the server has too much to do."""

    code, title = "server-busy", "The server answers too many requests"


class GpuCold(Overloaded):
    """Ends a request for which the GPU did not answer in time; it goes on starting."""

    code, title = "gpu-cold", "The GPU is starting"


class InferenceUnreachable(RegistryError):
    status, code, title = 503, "inference-unreachable", "The model can't be reached"


class StreamBroken(SpeechFailed):
    """Ends a speech before its end. It is never asked for again: some of it was heard."""

    code, title = "stream-broken", "The speech broke off"


class SpeechInaudible(SpeechFailed):
    """Raised if nothing can be heard of a speech, or less than its text takes."""

    code, title = "speech-inaudible", "The model made no speech of this text"


class PromptBroken(RegistryError):
    """Raised for a missing or damaged prompt file; clients see it only if rebuilding fails."""

    code, title = "prompt-broken", "The prompt features are damaged"


class PromptMissing(PromptBroken):
    wire_code = "prompt-missing"


class PromptCorrupt(PromptBroken):
    wire_code = "prompt-corrupt"


class SchemaTooNew(RegistryError):
    code, title = "schema-too-new", "The data directory is newer than this program"


class DatabaseLost(RegistryError):
    code, title = "database-lost", "The database is gone, but its files are here"


class FolderInUse(RegistryError):
    """Raised while a backup is restored there, or to a restore while a program works there."""

    code, title = "folder-in-use", "The data directory is in use"


class BackupRefused(RegistryError):
    """Says why a backup can't be made or restored."""

    title = "The backup can't be used"


class SettingInvalid(RegistryError):
    code, title = "setting-invalid", "A setting has a value that can't be used"


class ModelMismatch(RegistryError):
    status, code, title = 503, "model-mismatch", "The data directory uses another model"


def whole_seconds(seconds: float) -> int:
    """Round seconds up, to 1 at least, as Retry-After needs them."""
    return max(1, round(seconds))
