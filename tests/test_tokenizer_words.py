"""Which characters are a word, by hand, natively and by the package; and what becomes of messages that are too long."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import artifact_of
from random_models import random_model

from flyweight.data.messages import NLUData
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.parser import EngineName, Parser
from flyweight.tokenizer import Tokenizer
from flyweight.tokenizer.package import UNSPACED, WHITE_SPACE
from flyweight.training.teacher import build

pytest.importorskip("tokenizers", reason="the package whose words are looked at is absent")

from tokenizer_cases import added, changed, charsmap, metaspace, plain, roberta, sequence, small, unigram

NATIVE = native.module() is not None
# Who tokenizes, and which engine computes: the native one has no use for the package's tokens.
WAYS: list[tuple[str, EngineName]] = [("package", "numpy"), ("native", "numpy"), ("native", "native")]


@pytest.fixture(params=["native", "package"] if NATIVE else ["package"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who tokenizes."""
    return go(request.param, monkeypatch)


def go(way: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if way == "package":
        monkeypatch.setitem(sys.modules, "flyweight._native", None)
    return way


PIECES = [
    "▁", "▁to", "▁Ber", "lin", "Berlin", "▁Berlin", "Ber", ".", "▁don", "'", "t", "▁t", "▁7", ":", "30",
    "▁New", "▁York", "▁na", "ïve", "é", "▁e", "\u0301", "▁U", "S", "A", "▁I", "▁a", "a", "▁b", "b",
    ",", "_", "-", "▁1", "⁄", "2",
    "北京", "天气", "去", "吧", "！", "東京", "タ", "ワー", "▁ก", "็ดี", "ก็", "ดี", "▁می", "خواهم", "\u200c",
    "▁한국", "어", "❤", "\ufe0f", "👍", "🏽",
]  # fmt: skip
RULES = {"½": "1⁄2", "…": "...", "\u00a0": " ", "\u3000": " ", "\u0085": "", "´": " \u0301"}


def model(*more: str, last: float = -1.0) -> dict[str, Any]:
    """Longer pieces are likelier: each character costs 10, less 1 a character beyond the first of a piece."""
    vocab = [[name, 0.0] for name in ("<s>", "</s>", "<unk>")]
    vocab += [[piece, -10.0 - (len(piece) - 1)] for piece in dict.fromkeys(PIECES)]
    return {"type": "Unigram", "unk_id": 2, "vocab": [*vocab, *([p, last] for p in more)], "byte_fallback": False}


@cache
def hand_made(*more: str) -> str:
    return unigram(model(*more), normalizer=charsmap(RULES))


def spelled(source: str, text: str, way: str, max_tokens: int = 64) -> tuple[list[str], list[int]]:
    """(the words' text, the index of each one's first token)."""
    tokenizer = Tokenizer(source, max_tokens)
    assert (tokenizer.native is not None) == (way == "native"), tokenizer.refusal
    encoded = tokenizer.encode(text)
    return [text[a:b] for a, b in encoded.words], encoded.first.tolist()


# words ---------------------------------------------------------------------------------------------------------------

GOLDEN: list[tuple[str, list[str], list[int]]] = [
    ("", [], []),
    ("   ", [], []),
    ("to", ["to"], [1]),
    ("to Berlin.", ["to", "Berlin", "."], [1, 2, 3]),
    ("  to   Berlin  ", ["to", "Berlin"], [2, 5]),  # every blank more is a token
    ("don't", ["don", "'", "t"], [1, 2, 3]),
    ("7:30", ["7", ":", "30"], [1, 2, 3]),
    ("북", ["북"], [2]),  # unknown, behind the Metaspace's blank
    ("한국어", ["한국어"], [1]),  # Hangul has blanks between words
    ("北京天气", ["北京", "天气"], [2, 3]),
    ("去Berlin吧！", ["去", "Berlin", "吧", "！"], [2, 3, 4, 5]),
    ("東京タワー", ["東京", "タ", "ワー"], [2, 3, 4]),
    ("ก็ดี", ["ก็ดี"], [1]),  # the second piece begins with a mark of what is in front of it
    ("aก็ดี", ["a", "ก็", "ดี"], [1, 2, 3]),
    ("می\u200cخواهم", ["می\u200cخواهم"], [1]),
    ("naïve", ["naïve"], [1]),
    ("e\u0301a", ["e\u0301a"], [1]),
    ("a_b-a,b", ["a", "_", "b", "-", "a", ",", "b"], [1, 2, 3, 4, 5, 6, 7]),
    ("U.S.A.", ["U", ".", "S", ".", "A", "."], [1, 2, 3, 4, 5, 6]),
    ("I ❤\ufe0f👍🏽", ["I", "❤\ufe0f", "👍", "🏽"], [1, 3, 5, 6]),
    ("½ a½", ["½", "a½"], [1, 4]),  # three pieces of one character, a number, are not three words
    ("a…b", ["a", "…", "b"], [1, 2, 5]),
    ("to\u00a0Berlin\u3000b", ["to", "Berlin", "b"], [1, 2, 3]),
    ("a\tb", ["a", "b"], [1, 3]),  # a tab is an unknown piece here, and no word
    ("a\u0085b", ["a", "b"], [1, 2]),  # gone: the characters round it do not touch
    ("a´", ["a", "´"], [1, 3]),  # a blank and a mark: of the blank, which is one character with it, nothing is left
    ("a▁b", ["a", "b"], [1, 2]),  # the blank's sign in a text is a blank
    ("☃☃ a☃", ["☃☃", "a", "☃"], [2, 3, 4]),
    ("a <mask>b", ["a", "<mask>", "b"], [1, 2, 3]),  # it takes the blank in front along; words do without
    ("aQqa", ["a", "Qq", "a"], [1, 2, 3]),
]


@pytest.mark.parametrize(("text", "words", "first"), GOLDEN)
def test_words_behind_a_metaspace(text: str, words: list[str], first: list[int], way: str) -> None:
    assert spelled(hand_made(), text, way) == (words, first)


def test_a_piece_is_never_cut(way: str) -> None:
    source = hand_made("▁7:30", "▁don't", "北京天气", "▁to▁Berlin")
    for text in ("7:30", "don't", "北京天气"):
        assert spelled(source, text, way)[0] == [text]
    whole = changed(source, pre_tokenizer=metaspace(split=False))
    assert spelled(whole, "to Berlin to Berlin.", way)[0] == ["to Berlin", "to Berlin", "."]
    assert spelled(source, "to Berlin", way)[0] == ["to", "Berlin"]


def test_metaspaces_of_all_kinds_give_the_same_words(way: str) -> None:
    text = " to Berlin.  don't 北京天气 7:30 "
    wanted = ["to", "Berlin", ".", "don", "'", "t", "北京", "天气", "7", ":", "30"]
    white = {"type": "WhitespaceSplit"}
    for pre in (
        metaspace(),
        metaspace("first"),
        metaspace("always", False),
        sequence("pretokenizers", white, metaspace()),
    ):
        assert spelled(changed(hand_made(), pre_tokenizer=pre), text, way)[0] == wanted
    never = changed(hand_made("to"), pre_tokenizer=metaspace("never"))
    assert spelled(never, text[1:], way)[0] == wanted


def test_a_metaspace_before_byte_pairs_goes_by_the_package() -> None:
    vocab = {name: i for i, name in enumerate(["<unk>", *dict.fromkeys("".join(PIECES)), "▁t", "▁to", "Be", "Ber"])}
    merges = [["▁", "t"], ["▁t", "o"], ["B", "e"], ["Be", "r"]]
    spec = {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>"}
    source = unigram(model(), normalizer=None)
    source = changed(source, model=spec, added_tokens=[], post_processor=None)
    assert spelled(source, "to Berlin. 北京", "package") == (["to", "Berlin", ".", "北", "京"], [0, 2, 6, 8, 9])


def test_byte_level_words(way: str) -> None:
    for prefix in (False, True):
        source = roberta(256, prefix, True)
        assert spelled(source, "to Berlin.", way)[0] == ["to", "Berlin", "."]
        assert spelled(source, " don't  7:30", way)[0] == ["don", "'t", "7", ":", "30"]
        assert spelled(source, "Zürich …", way)[0] == ["Zürich", "…"]
    untrimmed, _ = spelled(roberta(256, False, False), "to Berlin.", way)
    assert untrimmed == ["to", " Berlin", "."]


def test_white_space_and_scripts_are_what_they_are_called() -> None:
    """White_Space of Unicode, which str.isspace is not quite; and the names are those of the pattern's scripts."""
    assert set(WHITE_SPACE) == {chr(c) for c in range(0x3001) if chr(c).isspace()} - set("\x1c\x1d\x1e\x1f")
    assert list(UNSPACED) == sorted(UNSPACED)


# messages that are too long ------------------------------------------------------------------------------------------

MAX_TOKENS = 10
LONG = " ".join(["to Berlin"] * 40)


def tokenizers() -> dict[str, str]:
    return {"WordPiece": small(), "byte-level BPE": roberta(256, False, True), "Unigram": hand_made()}


@pytest.fixture(scope="module")
def like(tiny_data: NLUData) -> NLUModel:
    return build(tiny_data, "small")


def tagging_all(like: NLUModel, tokenizer: Tokenizer) -> NLUModel:
    """A random model that takes every word for a city that begins."""
    made = random_model(like, tokenizer=tokenizer, std=0.3)
    assert made.tag_head is not None
    with torch.no_grad():
        made.tag_head.bias.zero_()  # type: ignore[union-attr]
        made.tag_head.bias[made.labels.tags.index("B-city")] = 100  # type: ignore[index]
    return made


@pytest.mark.parametrize(("by", "engine"), WAYS if NATIVE else WAYS[:1])
@pytest.mark.parametrize("kind", tokenizers())
def test_a_message_that_is_too_long(
    kind: str, engine: EngineName, like: NLUModel, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tail is lost, the special tokens stay, and the answer is that of the beginning that is left."""
    go(by, monkeypatch)
    tokenizer, whole = (Tokenizer(tokenizers()[kind], n) for n in (MAX_TOKENS, 400))
    found, all_ids = tokenizer.encode(LONG), whole.encode(LONG)
    assert len(found.ids) == MAX_TOKENS < len(all_ids.ids)
    assert found.ids[:-1].tolist() == all_ids.ids[: MAX_TOKENS - 1].tolist()
    assert found.ids[-1] == all_ids.ids[-1]
    end = found.words[-1][1]
    n = len(found.words)
    assert 2 <= n < len(all_ids.words) == 80
    assert found.words[:-1] == all_ids.words[: n - 1]  # a word may be cut off
    parser = Parser(artifact_of(tagging_all(like, tokenizer)), engine=engine)
    answer, beginning = parser.answers([LONG, LONG[:end]])
    assert plain(tokenizer.encode(LONG[:end])) == plain(found)
    assert np.array_equal(answer.probabilities, beginning.probabilities)
    assert answer.entities == beginning.entities
    assert [(e.start, e.end) for e in answer.entities] == found.words  # none beyond
    assert parser.parse(LONG)["entities"] == parser.parse(LONG[:end])["entities"]
    at_the_limit = LONG[: all_ids.words[n - 2][1]]  # one word fewer: not cut, another answer
    assert len(tokenizer.encode(at_the_limit).words) == n - 1
    assert not np.array_equal(parser.answers([at_the_limit])[0].probabilities, answer.probabilities)


@pytest.mark.parametrize("kind", tokenizers())
def test_the_least_limit_leaves_the_special_tokens(kind: str, way: str) -> None:
    tokenizer = Tokenizer(tokenizers()[kind], 2)
    assert plain(tokenizer.encode(LONG)) == plain(tokenizer.encode("")) == (tokenizer.encode("").ids.tolist(), [], [])
    assert len(tokenizer.encode("").ids) == 2
    three = Tokenizer(tokenizers()[kind], 3).encode(LONG)
    assert (len(three.ids), len(three.words)) == (3, 1)


def test_an_added_token_counts_as_one(way: str) -> None:
    text = "a <mask> a <mask> a"
    assert spelled(hand_made(), text, way, 5)[0] == ["a", "<mask>", "a"]
    assert spelled(hand_made(), text, way, 4)[0] == ["a", "<mask>"]
    n = len(model()["vocab"])
    tokens = [added("Berlin to", n, special=False)]
    source = changed(hand_made(), added_tokens=tokens, post_processor=None)
    assert spelled(source, "to Berlin to Berlin", way, 3)[0] == ["to", "Berlin to"]
