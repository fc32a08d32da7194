"""The native Unigram equals the `tokenizers` package: ids, first sub-tokens and words of every text.

The package is the specification, its odd corners too: a charsmap's shortest key replaces a whole grapheme cluster,
scores are not rounded correctly. SPELLING has every character as a piece, so that ids show what normalizers make.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flyweight.errors import CheckpointError, MissingExtraError
from flyweight.tokenizer import Encoded, Tokenizer

pytest.importorskip("tokenizers", reason="the package that the native tokenizer is compared with is absent")
try:
    importlib.import_module("flyweight._native").Tokenizer  # noqa: B018
except (ImportError, AttributeError):
    pytest.skip("flyweight._native was not built", allow_module_level=True)

from tokenizer_cases import (
    BLANK,
    CODE_POINTS,
    EDGES,
    LIMITS,
    MARKS,
    PIECES,
    UNIGRAM_TEXTS,
    added,
    both,
    changed,
    charsmap,
    compare,
    messages,
    metaspace,
    nfkc_rules,
    plain,
    sequence,
    trained_unigram,
    unigram,
)

WHITE = {"type": "WhitespaceSplit"}
SQUEEZE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
TO_BLANK = SQUEEZE | {"content": BLANK}
OLD = {"type": "Metaspace", "str_rep": BLANK, "replacement": BLANK, "add_prefix_space": True}


def strip(left: bool, right: bool) -> dict[str, object]:
    return {"type": "Strip", "strip_left": left, "strip_right": right}


@cache
def nfkc() -> dict[str, object]:
    return charsmap(nfkc_rules())


@cache
def spelling() -> dict[str, Any]:
    """A model whose pieces are single characters: all that are common, and what NFKC makes."""
    characters = {BLANK, *map(chr, [*range(0x21, 0x3400), *range(0x1F300, 0x1F700)]), *"".join(nfkc_rules().values())}
    vocab = [[name, 0.0] for name in ("<s>", "</s>", "<unk>")] + [[c, -1.0] for c in sorted(characters)]
    return {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False}


SPELLING: dict[str, Callable[[], str]] = {
    "spelling, NFKC": lambda: unigram(spelling(), normalizer=nfkc()),
    "spelling, as it is": lambda: unigram(spelling(), normalizer=None, pre_tokenizer=metaspace("never")),
    "spelling, conversion of today": lambda: unigram(
        spelling(), normalizer=sequence("normalizers", nfkc(), strip(False, True), TO_BLANK)
    ),
}
MADE: dict[str, Callable[[], str]] = SPELLING | {
    "XLM-R": lambda: unigram(pre_tokenizer=sequence("pretokenizers", WHITE, OLD)),
    "NFKC": unigram,
    "nothing normalized": lambda: unigram(normalizer=None),
    "stripped first": lambda: unigram(
        normalizer=sequence("normalizers", strip(True, True), nfkc(), SQUEEZE), pre_tokenizer=metaspace("first")
    ),
    "stripped left": lambda: unigram(normalizer=strip(True, False), pre_tokenizer=metaspace("first")),
    "never a blank in front": lambda: unigram(pre_tokenizer=metaspace("never")),
    "not split": lambda: unigram(
        normalizer=sequence("normalizers", nfkc(), SQUEEZE), pre_tokenizer=metaspace("always", False)
    ),
    "not split, first": lambda: unigram(pre_tokenizer=metaspace("first", False)),
    "white space split, first": lambda: unigram(pre_tokenizer=sequence("pretokenizers", WHITE, metaspace("first"))),
    "no post-processor": lambda: unigram(pre_tokenizer=sequence("pretokenizers", OLD), post_processor=None),
}


@cache
def made(name: str) -> str:
    return MADE[name]()


ODD = [
    "\x01abc", "a\x01b", "ﬁ\x01x", "…\x01\x01y", "½ ⅔", "a´b", "ﷺ", "™\u200d", "e\u0301", "x\u0301\u0302", "क्ष\u0301",
    "\u1100\u1161\u11a8\u0301", "각\u0301", "\r\n", "a\r\nb", "😀\u200d©\u0301", "\u0600a\u0301", "ｶﾞ", "Ａ\u0301 Ａ",
    "▁", "▁▁a▁", " ▁ a", "a▁b", "<unk>", "x<unk>☃", "☃☃☃", "☃ ☃☃", "<mask>", "a  <mask> b", "QqQq", "Ünï  Ünï", "aQqa",
    "a" * 300, "aab" * 100, "  to  Berlin .  ", "北京天气" * 20, "ก็ดี" * 9, "\u200b\ufeff\u00a0", "\u0345\u0345",
]  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_edges(name: str) -> None:
    for max_tokens in LIMITS:
        compare(made(name), EDGES + UNIGRAM_TEXTS + ODD, max_tokens)


def test_embedded_messages() -> None:
    for name in ("XLM-R", "spelling, NFKC"):
        compare(made(name), messages("assistant"))


@pytest.mark.parametrize("folder", ["atis", "snips", "banking77", "sara", "sara-dedup", "sara-2019-dedup"])
def test_public_messages(real_data: Path, folder: str) -> None:
    texts = messages(real_data / folder)
    compare(made("XLM-R"), texts, 128)
    compare(made("spelling, conversion of today"), texts, 40)


# Unicode -------------------------------------------------------------------------------------------------------------

ANYTHING = [*PIECES, *ODD[:32], *MARKS, *MARKS, *[" "] * 20, *["  "] * 5]
texts = st.lists(
    st.one_of(
        st.sampled_from(ANYTHING),
        st.just(" "),
        st.text(st.sampled_from(MARKS + "\u200d\ufe0f\u094d"), min_size=1, max_size=5),
        st.text(st.characters(), min_size=1, max_size=3),
        st.text("abto Berlin.", min_size=1, max_size=12),
    ),
    max_size=14,
).map("".join)


@settings(max_examples=150)
@given(text=texts, max_tokens=st.sampled_from((5, 64)))
@example(text="\x01 a´b\u0301 \ud800", max_tokens=64)
def test_any_text(text: str, max_tokens: int) -> None:
    for name in MADE:
        compare(made(name), [text], max_tokens)


def test_many_random_texts() -> None:
    rng = random.Random(5)
    for name in MADE:
        compare(made(name), ["".join(rng.choices(ANYTHING, k=rng.randrange(30))) for _ in range(250)])


@pytest.mark.parametrize("name", SPELLING)
def test_every_code_point(name: str) -> None:
    """Each one between letters, and with a mark behind it."""
    texts = [
        " ".join(f"a{chr(c)}b {chr(c)}\u0301" for c in CODE_POINTS[i : i + 200])
        for i in range(0, len(CODE_POINTS), 200)
    ]
    compare(made(name), texts, 4096)


# Of every class of grapheme clusters, in one to four bytes.
CLUSTERS = (
    "ab©®™😀ℹ\u1100\u1101\u1161\u1162\u11a8가각\u0915\u0937\u094d\u0995\u09cd\u0b15\u0b4d\u0301\u0302\u200d\u200c\ufe0f"
    "\u093f\u0600\u06dd\u0d4e\r\n\x01 \u00ad🇩🇪\U000110bd\U0001f3fb\u0e33\u0345\u20dd\u1160\u11ff\ud7b0\ud7cb\ua960"
)


def test_grapheme_clusters_and_charsmaps_of_all_kinds() -> None:
    """Which characters are one cluster decides what is replaced; keys are one or two of them, at random."""
    rng = random.Random(8)
    outputs = "xyz ▁é…"
    vocab = [["<s>", 0], ["</s>", 0], ["<unk>", 0.0]]
    vocab += [[c, -float(i % 7)] for i, c in enumerate(sorted({*CLUSTERS, *outputs}))]
    model = {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False}
    for _ in range(25):
        keys = {"".join(rng.choices(CLUSTERS, k=rng.randrange(1, 3))) for _ in range(12)}
        rules = {key: "".join(rng.choices(outputs, k=rng.randrange(4))) for key in sorted(keys)}
        texts = ["".join(rng.choices(CLUSTERS, k=rng.randrange(1, 12))) for _ in range(400)]
        compare(unigram(model, normalizer=charsmap(rules)), texts, 512)


# scores --------------------------------------------------------------------------------------------------------------


def test_scores_are_those_that_the_package_reads() -> None:
    """Of 17 digits, of which every seventh is read as a neighbour: sums that tie but for the last bit decide."""
    rng = random.Random(3)
    for _ in range(60):
        # aa scores as a a, aaa as a aa, and so on, but for roundings
        unit = -rng.random() * 5
        vocab = [["<s>", 0], ["</s>", 0], ["<unk>", 0], [BLANK, -1]]
        vocab += [["a" * n, unit * n * (1 + rng.choice((-1, 0, 1)) * 2.0**-52)] for n in range(1, 7)]
        model = {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False}
        compare(unigram(model, normalizer=None), ["a" * n for n in range(1, 60)])


def test_scores_in_other_spellings() -> None:
    model = json.dumps({"type": "Unigram", "unk_id": 2, "byte_fallback": False, "vocab": "VOCAB"})
    scores = ["0", "-1.5e0", "0.0", "-1", "-25E-1", "-2.50000000000000000000001", "-3", "-0.0000000001", "1e-7"]
    names = ["<s>", "</s>", "<unk>", BLANK, "a", "b", "ab", "aa", "bb"]
    pairs = [f"[{json.dumps(n)}, {s}]" for n, s in zip(names, scores, strict=True)]
    vocab = model.replace('"VOCAB"', f"[{','.join(pairs)}]")
    source = changed(unigram(), added_tokens=[], post_processor=None, model="MODEL").replace('"MODEL"', vocab)
    rng = random.Random(4)
    compare(source, ["".join(rng.choices("ab ☃", k=9)) for _ in range(200)])


def test_bytes_that_are_no_utf8_count_as_fffd() -> None:
    ours, package = both(made("XLM-R"), 64)
    for raw in (b"a\xffb", b"\xe2\x96", b"to \xf0\x9f\x98 Berlin", b"\xed\xa0\x80"):
        found = Encoded(*ours.native.encode(raw))
        assert plain(found) == plain(package.encode_batch([raw.decode("utf-8", "replace")])[0])


# what is not supported goes to the package ---------------------------------------------------------------------------


def model(**options: object) -> dict[str, object]:
    return trained_unigram() | options


def vocabulary(*last: object) -> dict[str, object]:
    return model(vocab=[*trained_unigram()["vocab"], *last])


PLAIN = {"added_tokens": [], "post_processor": None, "normalizer": None}
TRIM = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
REFUSED: dict[str, Callable[[], str]] = {
    "pre_tokenizer of a Unigram model is None": lambda: unigram(pre_tokenizer=None),
    "pre_tokenizer of a Unigram model is 'Whitespace'": lambda: unigram(pre_tokenizer={"type": "Whitespace"}),
    "pre_tokenizer is a Sequence of Metaspace, WhitespaceSplit": lambda: unigram(
        pre_tokenizer=sequence("pretokenizers", metaspace(), WHITE)
    ),
    "pre_tokenizer in a Sequence is 'Digits'": lambda: unigram(
        pre_tokenizer=sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, metaspace())
    ),
    "Metaspace has replacement = '_'": lambda: unigram(pre_tokenizer=metaspace() | {"replacement": "_"}),
    "Metaspace has prepend_scheme = 'last'": lambda: unigram(pre_tokenizer=metaspace("last")),
    "Metaspace has add_prefix_space = False": lambda: unigram(pre_tokenizer=OLD | {"add_prefix_space": False}),
    "Metaspace has 'x'": lambda: unigram(pre_tokenizer=metaspace() | {"x": 1}),
    "normalizer of a Unigram model is 'NFKC'": lambda: unigram(normalizer={"type": "NFKC"}),
    "Replace has pattern = {'Regex': ' +'}": lambda: unigram(normalizer=SQUEEZE | {"pattern": {"Regex": " +"}}),
    "Replace has content = 'x'": lambda: unigram(normalizer=SQUEEZE | {"content": "x"}),
    "a charsmap that is cut off": lambda: unigram(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAA="}),
    "Unigram has byte_fallback = True": lambda: unigram(model(byte_fallback=True)),
    "Unigram has unk_id = None": lambda: unigram(model(unk_id=None)),
    "Unigram has unk_id = True": lambda: changed(unigram(), model=model(unk_id=True)),
    "unk_id is not in the vocabulary": lambda: changed(unigram(), model=model(unk_id=9999)),
    "two tokens of the same text": lambda: changed(unigram(), **PLAIN, model=vocabulary(["x1", -1.0], ["x1", -2.0])),
    "a score that is no number": lambda: changed(unigram(), **PLAIN, model=vocabulary(["x1", "-1.0"])),
    "an entry that is not a token and its score": lambda: changed(unigram(), **PLAIN, model=vocabulary(["x1"])),
    "Unigram has a token [1, -1.0]": lambda: changed(unigram(), **PLAIN, model=vocabulary([1, -1.0])),
    "trim_offsets behind a Metaspace": lambda: unigram(post_processor=TRIM | {"add_prefix_space": True}),
    "an added token of blanks alone": lambda: unigram(
        added_tokens=[added(BLANK * 7, len(trained_unigram()["vocab"]), special=False)], post_processor=None
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package answers instead, or says itself what is wrong; without it the message says what to install."""
    source = REFUSED[reason]()
    try:
        tokenizer = Tokenizer(source, 16)
    except CheckpointError:
        pass
    else:
        assert tokenizer.native is None
        assert reason in str(tokenizer.refusal)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError) as refused:
        Tokenizer(source, 16)
    assert reason in str(refused.value)


def test_a_table_that_is_none_cannot_be_read() -> None:
    for table, why in (("?", "its precompiled_charsmap is no base64"), ("AAA=", "")):
        with pytest.raises(CheckpointError, match=rf"^tokenizer\.json cannot be read: {why}"):
            Tokenizer(unigram(normalizer={"type": "Precompiled", "precompiled_charsmap": table}), 16)


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = both(made("XLM-R"), 16)
    wanted = [plain(ours.encode(text + "\ud83d")) for text in UNIGRAM_TEXTS]
    monkeypatch.setitem(sys.modules, "flyweight._native", None)
    tokenizer = Tokenizer(made("XLM-R"), 16)
    assert (tokenizer.native, tokenizer.refusal) == (None, "flyweight._native was not built")
    assert [plain(tokenizer.encode(text + "\ud83d")) for text in UNIGRAM_TEXTS] == wanted
