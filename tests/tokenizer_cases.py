"""What the tests of the tokenizer share: tokenizers, texts, and the comparison with the `tokenizers` package."""

from __future__ import annotations

import base64
import importlib.util
import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from flyweight.data.load import load_data
from flyweight.model.small import train_tokenizer
from flyweight.tokenizer import Encoded, Tokenizer
from flyweight.tokenizer.package import Package

TEXTS = [
    "I'd like to fly from Köln to São Paulo on May 5th, it's urgent!",
    "what's the weather in Zürich, Łódź and 東京 tomorrow? we'll see",
    "naïve café déjà vu — Ångström's façade costs 1234.50 €",
    "Привет, как дела? Ελληνικά ΣΊΣΥΦΟΣ İstanbul DIŞ",
    "한국어 문장 하나, 日本語のテキスト、हिन्दी में वाक्य ไทย עברית العربية",
    "👩‍👩‍👧 family 🇩🇪 flag ☕ I ❤️ it (really) [MASK] <mask> </s>",
    "play some music by queen in the living room please, thanks a lot",
]


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
    tokenizer = tokenizers.Tokenizer(models.BPE())
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


# SentencePiece's Unigram ---------------------------------------------------------------------------------------------

BLANK = "\u2581"
UNIGRAM_TEXTS = [
    *TEXTS,
    "北京天气很好，我想去上海。明日は東京へ行きますか？",
    "ภาษาไทยไม่มีวรรคระหว่างคำ ພາສາລາວ ភាសាខ្មែរ မြန်မာဘာသာ",
    "aaaa aaab bbbb 7:30 don't to Berlin. ½ … ﬁ ｶﾞ",
]


def charsmap(rules: Mapping[str, str]) -> dict[str, object]:
    """A Precompiled normalizer with these replacements."""
    path = Path(__file__).parents[1] / "native" / "tokenizer" / "charsmap.py"
    spec = importlib.util.spec_from_file_location("charsmap", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(module.charsmap(rules)).decode()}


@cache
def nfkc_rules() -> dict[str, str]:
    """Of the kind that XLM-R has: control characters go, odd white space is a blank, the rest is NFKC."""
    rules = {chr(c): "" for c in [*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F]}
    rules |= dict.fromkeys("\t\n\x0c\r\u1680\u200b\u200e\u200f\u2028\u2029▁\ufeff�", " ")
    for x in map(chr, [*range(1, 0xD800), *range(0xE000, 0x30000)]):
        nfkc, nfd = unicodedata.normalize("NFKC", x), unicodedata.normalize("NFD", x)
        if nfkc != x:
            rules.setdefault(x, nfkc)
        if len(nfd) > 1 and unicodedata.normalize("NFC", nfd) == x and not "\uac00" <= x < "\ud7a4":
            rules[nfd] = x
    return rules


@cache
def trained_unigram() -> dict[str, Any]:
    """Its model, learned from UNIGRAM_TEXTS."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False
    )
    made.train_from_iterator(UNIGRAM_TEXTS * 3, trainer)
    model: dict[str, Any] = json.loads(made.to_str())["model"]
    return model


def metaspace(scheme: str = "always", split: bool = True) -> dict[str, object]:
    return {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": split}


def sequence(kind: str, *steps: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", kind: list(steps)}


def unigram(model: dict[str, Any] | None = None, **parts: object) -> str:
    """XLM-R's kind: <s> message </s>, <mask>, and two more added tokens."""
    model = model or trained_unigram()
    n = len(model["vocab"])
    names = [entry[0] for entry in model["vocab"]]
    ends = {name: {"id": name, "ids": [names.index(name)], "tokens": [name]} for name in ("<s>", "</s>")}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ends]
    single.insert(1, {"Sequence": {"id": "A", "type_id": 0}})
    spec = {
        "version": "1.0",
        "added_tokens": [
            *(added(name, names.index(name)) for name in ("<s>", "</s>", "<unk>")),
            added("<mask>", n, lstrip=True),
            added("Qq", n + 1, special=False),
            added("Ünï", n + 2, normalized=True, rstrip=True, special=False),
        ],
        "normalizer": charsmap(nfkc_rules()),
        "pre_tokenizer": metaspace(),
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ends},
        "model": model,
    }
    return json.dumps(spec | parts, ensure_ascii=False)


# comparing -----------------------------------------------------------------------------------------------------------


@cache
def both(source: str, max_tokens: int) -> tuple[Tokenizer, Package]:
    ours = Tokenizer(source, max_tokens)
    assert ours.native is not None, ours.refusal
    assert ours.refusal is None
    package = Package(source, max_tokens, "")
    assert (ours.vocab_size, ours.n_ids) == (package.vocab_size, package.n_ids)
    return ours, package


def plain(encoded: Encoded) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    return encoded.ids.tolist(), encoded.first.tolist(), encoded.words


def compare(source: str, texts: Sequence[str], max_tokens: int = 64) -> None:
    ours, package = both(source, max_tokens)
    wanted = package.encode_batch(list(texts))
    for text, found, want in zip(texts, ours.encode_batch(list(texts)), wanted, strict=True):
        if plain(found) != plain(want):  # a lone assert would print all texts
            assert (text, plain(found)) == (text, plain(want))


# texts ---------------------------------------------------------------------------------------------------------------

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


def messages(folder: Path | str) -> list[str]:
    return list(dict.fromkeys(m.text for m in load_data(folder).messages))


MARKS = "\u0301\u0323\u0334\u0345\u302e\u302f\u0f71\u0f72\u3099\u093c\u05b0\u064b\u0e48\U0001d165\U0001d16d\U00016ff0"
WORDS = "I'd like to fly, it's we'll don't!? 12 3.50 WE'RE é É ü ß İ Σ ς ñ Å ﬁ ǅ 한국어 각 Straße Ünï 中 Qq été tschüß"
TOKENS = "[SEP] [MASK] <mask> </s> <sw> <both> [ < Ġ ## ▁ 👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 👍🏽 \u1100\u1161\u11a8"
PIECES = [
    *WORDS.split(), *TOKENS.split(), *"中文東京𠀀豈", "\0", "\ufffd", "\ud800", "\udfff", "\u200d", "\u200b", "\xad",
    "\n", "\t", " ", "  ", "\u00a0", "\u2000", "\u3000", "\x85", "\x1c", "\ue000", "\U0010fffd", "\u0378",
]  # fmt: skip

# All that can be something, and of the wide empty planes every 251st.
CODE_POINTS = [*range(0xD800), *range(0xE000, 0x33500), *range(0x33500, 0x110000, 251), *range(0xE0000, 0xE1000)]
