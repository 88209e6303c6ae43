"""The one family of errors: how they are pickled, cross to another process, and are told."""

import pickle

from registry import errors, key_errors
from registry.errors import (
    ClipUnusable,
    GpuCold,
    Overloaded,
    PromptMissing,
    RangeUnsatisfiable,
    RegistryError,
    ServerBusy,
    SpeechFailed,
    VoiceNotFound,
)
from registry.speech.items import BY_CODE, error_of


def test_errors_survive_pickling_whatever_they_are_made_of() -> None:
    made = [
        *(kind("A sentence.") for kind in BY_CODE.values() if not issubclass(kind, Overloaded)),
        *(kind("A sentence.", 2.5) for kind in (Overloaded, ServerBusy, GpuCold)),
        ClipUnusable("audio-silent", "A sentence."),
        RangeUnsatisfiable(4),
        VoiceNotFound("alcie", ["alice"]),
    ]
    for error in made:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == error.detail
        assert vars(copy) == vars(error)


def test_no_two_errors_have_a_code_of_their_own_that_is_the_same() -> None:
    named = vars(errors) | vars(key_errors)
    kinds = [k for k in named.values() if isinstance(k, type) and issubclass(k, Exception)]
    own = [
        vars(kind)[name] for kind in kinds for name in ("code", "wire_code") if vars(kind).get(name)
    ]
    assert len(own) > 40 and sorted(own) == sorted(set(own))


def test_what_another_process_raised_is_told_by_its_code() -> None:
    assert BY_CODE["prompt-missing"] is PromptMissing and BY_CODE["overloaded"] is Overloaded
    for code in ("prompt-missing", "prompt-corrupt"):
        assert error_of(code, "So.", 5).code == "prompt-broken", "as clients have it"
    unknown = error_of("from-the-future", "So.", 5)
    assert type(unknown) is SpeechFailed and unknown.code == "from-the-future"


def test_what_is_not_made_of_a_sentence_does_not_cross() -> None:
    assert not {VoiceNotFound, RangeUnsatisfiable, RegistryError} & set(BY_CODE.values())


def test_a_client_is_told_whole_seconds_and_one_at_least() -> None:
    for told_s, header in ((0.0, "1"), (2.6, "3"), (7, "7")):
        error = Overloaded("Too many wait.", told_s)
        assert error.headers() == {"Retry-After": header}
        assert error.extra == {"retry_after_s": int(header)} and error.retry_after_s == told_s
