"""Words that stand for others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flyweight.model.nlu import NLUModel
from flyweight.tokenizer import Tokenizer
from flyweight.training import substitutes
from flyweight.training.substitutes import WordVectors, alike, nearest, word_vectors


def test_words_between_the_same_words_are_alike() -> None:
    found = alike([line.split() for line in ("to rome today", "to oslo today", "in rome", "rain")])
    # rome: left {to: log 2, in: log 2}, right {today: log 2, end: log 2}; oslo: left {to}, right {today}:
    # both cosines are 1 / sqrt 2, and so is their geometric mean. to and in both follow the edge and precede rome:
    # left 1, right: to {rome, oslo}, in {rome}: 1 / sqrt 2.
    assert found == {"rome": ["oslo"], "oslo": ["rome"], "to": ["in"], "in": ["to"]}


def test_the_most_alike_comes_first_and_few_have_enough() -> None:
    lines = ["a x b", "a y b", "a x c", "a y c", "a z b", "q z r"]
    found = alike([line.split() for line in lines])
    # x, y: between a and {b, c}: 1. z: left {a, q}, right {b, r}: sqrt(1/sqrt 2 * 1/2) = 0.59
    assert found["x"] == ["y", "z"]
    assert found["z"] == ["x", "y"]
    # All end a message; b comes behind x, y, z, c behind x and y, r behind z: cosines 2 / sqrt 6 and 1 / sqrt 3
    assert found["b"] == ["c", "r"]
    assert alike([]) == {}
    assert alike([["yes"], [], ["no"]]) == {"yes": ["no"], "no": ["yes"]}


def test_blocks_of_words_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lines = [[f"w{i}" for i in rng.integers(30, size=5)] for _ in range(80)]
    vectors = WordVectors([f"w{i}" for i in range(30)], rng.normal(size=(30, 4)), "", False)
    whole = alike(lines), nearest(vectors.words, vectors)
    monkeypatch.setattr(substitutes, "BLOCK", 7)
    assert (alike(lines), nearest(vectors.words, vectors)) == whole


def test_words_of_near_embeddings() -> None:
    rows = np.array([[3.0, 0.0], [1.0, 0.1], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]])
    vectors = WordVectors(["rain", "snow", "song", "sing", "sun"], rows, "", False)
    assert nearest(["rain", "song", "unknown"], vectors) == {
        "rain": ["snow", "sing"],  # cosines 0.995, 0.71; 0 and -1 are below LEAST_NEAR
        "song": ["sing"],  # 0.71; snow 0.0995
    }
    assert nearest(["sun"], vectors) == {}  # nothing is near
    assert nearest(["rain"], WordVectors([], np.zeros((0, 0)), "", False)) == {}


def test_the_words_of_a_model(tiny_model: NLUModel) -> None:
    rows = tiny_model.encoder.words.weight.detach().numpy()
    found = word_vectors(tiny_model.tokenizer, rows)
    assert {"hello", "weather", "berlin"} <= set(found.words)
    assert all(len(word) > 1 and word.isalpha() for word in found.words)
    assert not {"[MASK]", "MASK", "##s"} & set(found.words)
    at = found.words.index("hello")
    encoded = tiny_model.tokenizer.encode("hello")
    assert len(encoded.ids) == 3
    assert (found.rows[at] == rows[encoded.ids[1]]).all()
    assert (found.mask, found.keeps_case) == ("[MASK]", False)
    assert word_vectors(tiny_model.tokenizer, None)[2:] == ("[MASK]", False)
    assert word_vectors(tiny_model.tokenizer, None).words == []


def test_a_mask_is_one_token_to_all_readers(tiny_model: NLUModel) -> None:
    ours = tiny_model.tokenizer
    other = Tokenizer(ours.source.replace("[MASK]", "<mask>"), 40)
    assert word_vectors(other, None).mask == "<mask>"
    assert word_vectors(ours, None, other).mask == "[UNK]"
    strange = Tokenizer(other.source.replace("[UNK]", "<what>").replace("<mask>", "<hidden>"), 40)
    assert word_vectors(ours, None, strange).mask == ""


def test_case_is_kept_if_any_reader_keeps_it(tiny_model: NLUModel) -> None:
    ours = tiny_model.tokenizer
    spec = json.loads(ours.source)
    spec["normalizer"]["lowercase"] = False
    cased = Tokenizer(json.dumps(spec), 40)
    assert word_vectors(cased, None).keeps_case
    assert word_vectors(ours, None, cased).keeps_case
