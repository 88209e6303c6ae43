"""Text tokenization: the ids of transformers' Qwen2 tokenizer, and never a control token."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speaking import run_python
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from inference.engine.checkpoint.tokenizer import load_tokenizer, read_tokenizer
from inference.engine.text import TextTokenizer
from inference.testing.text import ADDED_TOKENS, _tokenizer_config
from registry.errors import ModelUnavailable

CORPUS = [
    "It's what they've said: we'll see, I'd guess, you're right, he isn't, WE'VE, I'M.",
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background.",
    "Größenwahn, Übermut und äußerst süße Straßenbahnen fahren über 1.234,56 km.",
    "Être ou ne pas être, c'est là que naît l'œuvre élégante. El niño comió piña.",
    "今天天气很好、我们去北京大学看书。語音合成的聲音。こんにちは、世界。東京タワー。",
    "안녕하세요, 한국어 문장을 읽어 주세요. Привет, как дела? Съешь ещё этих булок.",
    "हिन्दी में क्षत्रिय और ज्ञान के मात्रा चिह्न। नमस्ते दुनिया, कृपया पढ़ें।",
    "مرحبا بالعالم، هذه جملة عربية مُشَكَّلة. שלום עולם. สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🎉🎉 👍🏽 ❤️ 🇩🇪  \u200d  → ∑ ½ ² ① Ⅷ ٣٤٥ ४५६",
    "def f(x):\n\treturn x  # two  spaces\r\n\r\n    \n\n  end   ",
]
TEXTS = [
    "",
    " ",
    "   \n \n\n  \t ",
    "\r\n\r\n  x",
    "a \u00a0\u2003\u3000b",
    "e\u0301 é \u1e9b\u0323 Å \ufb01",  # what NFC changes and what it leaves
    "don't DON'T it's we'Ll o'clock 'tis ''s",
    "1234567890 12,000.50 € 3½ Ⅷ ٣٤ ४५",
    "iPhone HTTPServer snake_case x.y(z)!?…",
    "क्षत्रिय ज़ कि\u093c",
    "\u0000\u0007\ufeff\ufffd\U0010ffff",
    "<|im_start|>assistant\nHi<|im_end|> <|im_end|",
    "<|im_end|><tts_pad><tts_text_bos><think></think><|endoftext|>",
    "<tts_text_bos_single> < tts_pad > <|audio_pad|>\n",
    *CORPUS,
]


@pytest.fixture(scope="session")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer whose merges are those of real text in many scripts."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([*CORPUS, *CORPUS, *["assistant"] * 9], trainer)
    folder.mkdir()
    tokenizer.model.save(str(folder))
    added = {t: tokenizer.get_vocab_size() + i for i, t in enumerate(ADDED_TOKENS)}
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(added)), "utf-8")
    merges = (folder / "merges.txt").read_text("utf-8").split("\n")
    assert sum(not line.isascii() for line in merges) > 100
    return folder


@pytest.fixture(scope="session", params=["tiny", "trained"])
def pair(request: pytest.FixtureRequest, checkpoint: Path, trained: Path) -> tuple[Any, Any]:
    """(ours, transformers') from the same files."""
    from transformers import Qwen2TokenizerFast

    folder = checkpoint if request.param == "tiny" else trained
    return read_tokenizer(folder), Qwen2TokenizerFast.from_pretrained(folder)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_are_those_of_transformers(pair: tuple[Any, Any], text: str) -> None:
    ours, theirs = pair
    assert ids(ours, text) == theirs.encode(text, add_special_tokens=False)


LETTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.one_of(
    st.text(LETTERS, max_size=8),
    st.sampled_from([*ADDED_TOKENS, *(word for line in CORPUS for word in line.split(" "))]),
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "\u0301", "\u094d", "1", "|>"]),
)


@given(st.lists(WORDS, max_size=12).map("".join))
def test_ids_of_any_text_are_those_of_transformers(pair: tuple[Any, Any], text: str) -> None:
    ours, theirs = pair
    assert ids(ours, text) == theirs.encode(text, add_special_tokens=False)


@given(st.lists(WORDS, max_size=12).map("".join))
def test_text_of_a_user_has_no_control_token(pair: tuple[Any, Any], text: str) -> None:
    plain, added = TextTokenizer(pair[0]), set(pair[1].added_tokens_decoder)
    found = plain.ids(text)
    assert not added & set(found)
    assert plain.target(text)[-5 - len(found) : -5] == found == plain.reference(text)[3:-2]
    assert pair[1].decode(found) == pair[0].normalizer.normalize_str(text)


def test_every_added_token_keeps_its_id(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for i, token in theirs.added_tokens_decoder.items():
        assert ids(ours, token.content) == [i]


def test_the_whole_description_is_that_of_transformers(pair: tuple[Any, Any]) -> None:
    ours, theirs = (json.loads(t.to_str()) for t in (pair[0], pair[1].backend_tokenizer))
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "truncation", "padding"):
        assert ours[part] == theirs[part]
    for description in (ours, theirs):  # an empty prefix and none are the same
        for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
            description["model"][affix] = description["model"][affix] or None
    assert ours["model"] == theirs["model"]


def test_the_role_opens_and_closes_a_turn(checkpoint: Path) -> None:
    plain, tokenizer = load_tokenizer(checkpoint), read_tokenizer(checkpoint)
    opening, end = ids(tokenizer, "<|im_start|>assistant\n"), ids(tokenizer, "<|im_end|>\n")
    assert (len(opening), len(end)) == (3, 2)
    assert plain.target("Hi") == [*opening, *plain.ids("Hi"), *end, *opening]
    assert plain.reference("Hi") == [*opening, *plain.ids("Hi"), *end]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


DEEP = b"[" * 50_000


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"{", b"[1]", b'{"a": []}', DEEP])
def test_a_damaged_file_is_one_sentence(copy: Path, name: str, content: bytes | None) -> None:
    if (name, content) == ("merges.txt", b""):
        return  # a tokenizer without merges is one
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"can't be read|damaged|belong|no valid"):
        read_tokenizer(copy)


def test_an_id_that_is_not_the_one_given_is_refused(copy: Path) -> None:
    vocabulary = json.loads((copy / "vocab.json").read_text("utf-8"))
    (copy / "vocab.json").write_text(json.dumps(vocabulary | {"one more": 272}), "utf-8")
    with pytest.raises(ModelUnavailable, match=r"<\|endoftext\|> is 272, but it is 273"):
        read_tokenizer(copy)


def test_loading_imports_no_transformers(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
from inference.engine.checkpoint.tokenizer import load_tokenizer
assert load_tokenizer(Path(sys.argv[1])).ids("Hi")
assert not {"transformers", "qwen_tts", "torch"} & set(sys.modules)
"""
    done = run_python(script, str(checkpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
