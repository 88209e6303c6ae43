"""A language by any of its names is the model's own; another is a sentence."""

import httpx
import pytest
from api import add, problem
from fakes import FakeInference

from registry.errors import LanguageUnsupported
from registry.voices.languages import language_named

TEN = (
    *("chinese", "english", "french", "german", "italian"),
    *("japanese", "korean", "portuguese", "russian", "spanish"),
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *((name, name) for name in (*TEN, "auto")),
        *(("English", "english"), (" ENGLISH ", "english"), ("AUTO", "auto")),
        *(("en", "english"), ("EN", "english"), ("eng", "english"), ("\uff45\uff4e", "english")),
        *(("en-US", "english"), ("EN_us", "english"), ("en-GB-oxendict", "english")),
        *(("en_US.UTF-8", "english"), ("de_DE@euro", "german"), ("en-x-pirate", "english")),
        *(("zh", "chinese"), ("zh-Hans", "chinese"), ("zh-Hant-TW", "chinese")),
        *(("zho", "chinese"), ("chi", "chinese"), ("cmn", "chinese"), ("zh-cmn-Hans", "chinese")),
        *(("deu", "german"), ("ger", "german"), ("de-CH-1996", "german"), ("Deutsch", "german")),
        *(("fra", "french"), ("fre", "french"), ("Français", "french"), ("pt-BR", "portuguese")),
        *(("es-419", "spanish"), ("Español", "spanish"), ("ru", "russian"), ("日本語", "japanese")),
        *(("ja_JP", "japanese"), ("ko-KR", "korean"), ("it", "italian"), ("中文", "chinese")),
    ],
)
def test_names_codes_and_tags_mean_the_model_s_language(given: str, name: str) -> None:
    assert language_named(given, TEN) == name
    assert language_named(given, None) == name


@pytest.mark.parametrize(
    "given", ["klingon", "xx", "nl-NL", "zh-yue", "zh_yue-HK", "e", "en-", "-en", "", "en US", "日"]
)
def test_another_language_is_refused_with_those_there_are(given: str) -> None:
    with pytest.raises(LanguageUnsupported) as refused:
        language_named(given, TEN)
    assert str(refused.value).startswith(f"The model does not speak {given!r}.")
    assert "chinese (zh), english (en)" in str(refused.value) and "auto" in str(refused.value)


def test_a_language_that_only_other_models_speak_is_refused() -> None:
    with pytest.raises(LanguageUnsupported, match=r"It speaks english \(en\), elvish, or auto"):
        language_named("de", ("english", "elvish"))
    assert language_named("Elvish", ("english", "elvish")) == "elvish"


@pytest.mark.slow
def test_it_is_kept_by_the_model_s_name(client: httpx.Client) -> None:
    assert add(client, "alice", language="en-US").json()["defaults"]["language"] == "english"
    patch = {"defaults": {"language": "ENG"}}
    add(client, "bob")
    assert client.patch("/voices/bob", json=patch).json()["defaults"]["language"] == "english"
    assert problem(add(client, "eve", language="de")) == (422, "language-unsupported")
    patch = {"defaults": {"language": "xx"}}
    assert problem(client.patch("/voices/bob", json=patch)) == (422, "language-unsupported")


def test_it_is_spoken_by_the_model_s_name(client: httpx.Client, fake: FakeInference) -> None:
    add(client, "alice")
    spoken = {"voice": "alice", "text": "Hi", "language": "en_GB"}
    assert client.post("/speak", json=spoken).status_code == 200
    assert fake.params[-1].language == "english"
    unknown = client.post("/speak", json=spoken | {"language": "xx"})
    assert problem(unknown) == (422, "language-unsupported")
    assert "english (en)" in unknown.json()["detail"]
