"""Fewer tokens: texts of kept tokens are cut as before, other words into what stayed, in three kinds of tokenizer."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import all_logits, quiet_run, random_model, same_bits
from tokenizer_cases import EDGES, TEXTS, UNIGRAM_TEXTS, added, changed, roberta, small, unigram, with_tokens

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, DataError, FlyweightWarning
from flyweight.export.fly import save
from flyweight.model.nlu import NLUModel
from flyweight.model.small import train_tokenizer
from flyweight.model.surgery import keep_heads, keep_tokens
from flyweight.runtime.parser import load
from flyweight.techniques.int8 import Int8
from flyweight.techniques.qat import QAT
from flyweight.techniques.vocabulary import Vocabulary, domain_texts
from flyweight.tokenizer import Tokenizer
from flyweight.tokenizer.shrink import first_tokens, needed, shrunk

SOURCES: dict[str, Callable[[], str]] = {
    "WordPiece": small,
    "WordPiece, added tokens": lambda: with_tokens(small()),
    "BPE": lambda: roberta(600, False, True),
    "BPE, prefix space": lambda: roberta(420, True, False),
    "Unigram": unigram,
}
LIMIT = 200


def texts_of(name: str) -> list[str]:
    return UNIGRAM_TEXTS if name == "Unigram" else TEXTS


def unknown(source: str) -> int | None:
    model = json.loads(source)["model"]
    return model.get("unk_id", model["vocab"].get(model.get("unk_token")) if isinstance(model["vocab"], dict) else None)


# the tokenizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("seed", range(4))
def test_texts_of_kept_tokens_are_cut_as_before(name: str, seed: int) -> None:
    """Whole texts and words of them, in any order: what is kept comes from some of the texts only."""
    source, rng = SOURCES[name](), random.Random(seed)
    old = Tokenizer(source, LIMIT)
    known = rng.sample(texts_of(name), 3)
    kept = {int(i) for e in old.encode_batch(known) for i in e.ids}
    written, order = shrunk(source, kept)
    new = Tokenizer(written, LIMIT)
    assert (new.native is None) == (old.native is None)
    assert new.vocab_size == len(order) < old.vocab_size
    words = [word for text in texts_of(name) + EDGES for word in text.split()]
    tried = known + [" ".join(rng.sample(words, 6)) for _ in range(60)]
    same = 0
    for text, before, after in zip(tried, old.encode_batch(tried), new.encode_batch(tried), strict=True):
        if set(before.ids.tolist()) <= set(order):
            assert [order[i] for i in after.ids] == before.ids.tolist(), text
            assert after.first.tolist() == before.first.tolist()
            assert after.words == before.words
            same += 1
    assert same >= len(known)


@pytest.mark.parametrize("name", SOURCES)
def test_unseen_words_fall_back_to_what_stayed(name: str) -> None:
    """With nothing wanted all words are unseen: only a text that was unknown before may be so now, and none is lost."""
    source = SOURCES[name]()
    old = Tokenizer(source, LIMIT)
    written, order = shrunk(source, [])
    new = Tokenizer(written, LIMIT)
    unk = unknown(source)
    texts = texts_of(name) + EDGES
    for text, before, after in zip(texts, old.encode_batch(texts), new.encode_batch(texts), strict=True):
        if unk is None or unk not in before.ids:
            assert unk is None or order.index(unk) not in after.ids, text
        # Where words are made of tokens (Metaspace), two characters that were one token may be two words.
        more = len(after.words) >= len(before.words) if name == "Unigram" else len(after.words) == len(before.words)
        assert more or len(after.ids) == LIMIT, text
        assert len(after.ids) >= len(before.ids)


@pytest.mark.parametrize("name", SOURCES)
def test_everything_kept_is_the_same_tokenizer(name: str) -> None:
    source = SOURCES[name]()
    old = Tokenizer(source, LIMIT)
    written, order = shrunk(source, range(old.n_ids))
    assert order == list(range(old.n_ids))
    assert json.loads(written)["model"] == json.loads(source)["model"]
    assert json.loads(written)["added_tokens"] == json.loads(source)["added_tokens"]


def test_word_piece_by_hand() -> None:
    """book and ##ing were seen. Characters stay, both at the start and within; ß has no "##ß": "aß" stays whole."""
    vocab = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b", "ß", "ab", "##ab", "aß", "bab", "[X]"]
    source = changed(
        small(),
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(vocab)},
        },
        added_tokens=[added("[X]", 12), added("[Y]", 13)],
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]},
            },
        },
    )
    # Not kept: ab (8), ##ab (9), bab (11).
    assert needed(source, []) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 12, 13]
    assert needed(source, [9, 99]) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13]
    written, order = shrunk(source, [8])
    spec = json.loads(written)
    assert order == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13]
    assert spec["model"]["vocab"] == {vocab[i]: n for n, i in enumerate(order[:-1])}
    assert [(t["content"], t["id"]) for t in spec["added_tokens"]] == [("[X]", 10), ("[Y]", 11)]
    found = Tokenizer(written, 20).encode("bab abba [Y]")
    assert [order[i] for i in found.ids] == [1, 4, 5, 6, 8, 6, 5, 13, 2]  # b ##a ##b, ab ##b ##a, [Y]


def test_bpe_by_hand() -> None:
    """low is merged as l + ow: with it stay ow; lo, which another merge makes, goes with its merge."""
    spec = json.loads(roberta(300, False, True))
    letters = [t for t, _ in sorted(spec["model"]["vocab"].items(), key=lambda item: item[1]) if len(t) == 1]
    assert len(letters) == 256
    vocab = [*letters, "ow", "lo", "low", "er", "lower", "<s>", "</s>"]
    spec["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    merges = [["o", "w"], ["l", "o"], ["l", "ow"], ["e", "r"], ["low", "er"]]
    spec["added_tokens"] = [added("<s>", 261), added("</s>", 262)]
    spec["post_processor"] |= {"sep": ["</s>", 262], "cls": ["<s>", 261]}
    for form in (merges, [" ".join(m) for m in merges]):
        spec["model"]["merges"] = form
        written, order = shrunk(json.dumps(spec), [258])
        assert order == [*range(256), 256, 258, 261, 262]
        made = json.loads(written)
        assert made["model"]["merges"] == [form[0], form[2]]
        assert (made["post_processor"]["cls"], made["post_processor"]["sep"]) == (["<s>", 258], ["</s>", 259])
        found = [order[i] for i in Tokenizer(written, 20).encode("lower").ids]
        assert found == [261, 258, vocab.index("e"), vocab.index("r"), 262]


def test_unigram_scores_keep_their_spelling() -> None:
    source = unigram()
    texts = {str(entry[1]) for entry in json.loads(source, parse_float=str)["model"]["vocab"]}
    written, _ = shrunk(source, [])
    left = json.loads(written, parse_float=str)["model"]["vocab"]
    assert {str(score) for _, score in left} <= texts
    least = min(float(s) for s in texts)
    assert least in [float(score) for _, score in left]  # what an unknown character's score is counted from


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "the tokenizer is a WordLevel; its vocabulary can be"),
        ({"surprise": 1}, "tokenizer.json has 'surprise'; its vocabulary cannot be reduced: leave vocabulary out"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"^{wanted}"):
        shrunk(changed(small(), **change), [])


# the room -----------------------------------------------------------------------------------------------------------


def with_base(tiny_model: NLUModel, name: str = "WordPiece", **shape: Any) -> NLUModel:
    """A model whose tokenizer knows more than the messages."""
    return random_model(tiny_model, tokenizer=Tokenizer(SOURCES[name](), 40), **shape)


@pytest.mark.parametrize("name", SOURCES)
def test_messages_of_the_domain_have_the_same_answers(
    tiny_data: NLUData, tiny_model: NLUModel, name: str, tmp_path: Path
) -> None:
    model = with_base(tiny_model, name)
    child = Vocabulary(common=0).apply(model, quiet_run(tiny_data, model))
    assert len(child.encoder.words.weight) == child.encoder.config.vocab_size == child.tokenizer.n_ids
    assert child.encoder.config.vocab_size < model.encoder.config.vocab_size
    texts = [m.text for m in (*tiny_data.train, *tiny_data.validation)]
    assert same_bits(model, child, texts)
    assert same_bits(NLUModel.load(child.save(tmp_path / "bot")), child, texts)
    before, after = load(save(model, tmp_path / "before.fly")), load(save(child, tmp_path / "after.fly"))
    for a, b in zip(all_logits(before, texts), all_logits(after, texts), strict=True):
        assert np.array_equal(a, b)
    unseen = ["zqx jvbk", "Łódź?!", "東京 1234567"]
    assert [a.intent for a in after.answers(unseen)] == [a.intent for a in child.answers(unseen)]
    assert (tmp_path / "after.fly").stat().st_size < (tmp_path / "before.fly").stat().st_size


def test_what_the_domain_is(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    data = replace(tiny_data, lookups={"river": ["Rhine", "Weser"]})
    texts = domain_texts(data)
    assert {"Rhine", "Weser", "NYC", "New York"} <= set(texts)
    assert not {m.text for m in data.test} - {m.text for m in (*data.train, *data.validation)} & set(texts)


def test_rare_tokens_go_and_common_ones_stay(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """The tokenizer knows the words of the messages, and as many more."""
    texts = [m.text for m in tiny_data.messages] + TEXTS
    model = random_model(tiny_model, tokenizer=Tokenizer(train_tokenizer(texts, 900), 40))
    rows = [
        room.apply(model, quiet_run(tiny_data, model)).encoder.config.vocab_size
        for room in (
            Vocabulary(least=1000, common=0),
            Vocabulary(least=3, common=0),
            Vocabulary(common=0),
            Vocabulary(common=440),
        )
    ]
    assert rows[0] == len(needed(model.tokenizer.source, []))
    assert rows[0] < rows[1] < rows[2] < rows[3] < model.encoder.config.vocab_size
    common = Vocabulary(common=440, least=1000).apply(model, quiet_run(tiny_data, model))
    assert json.loads(model.tokenizer.source)["model"]["vocab"].keys() >= set(
        json.loads(common.tokenizer.source)["model"]["vocab"]
    )
    first = {t for t, i in json.loads(model.tokenizer.source)["model"]["vocab"].items() if i < 440}
    assert first <= set(json.loads(common.tokenizer.source)["model"]["vocab"])


def test_rows_that_the_base_keeps_free_are_not_common() -> None:
    vocab = {t: i for i, t in enumerate(["[PAD]", "[unused0]", "[unused12]", "a", "unused1", "madeupword0003", "b"])}
    model = {"type": "WordPiece", "unk_token": "[PAD]", "continuing_subword_prefix": "##", "vocab": vocab}
    assert [first_tokens(changed(small(), model=model), n) for n in (0, 2, 3, 9)] == [
        [],
        [0, 3],
        [0, 3, 4],
        [0, 3, 4, 6],
    ]


def test_rows_that_no_token_has_go(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Bases pad their embeddings: MiniLM's tokenizer has 30,522 tokens, others' models some rows more."""
    model = with_base(tiny_model)
    child = keep_tokens(model, range(model.encoder.config.vocab_size))
    assert child.encoder.config.vocab_size == model.tokenizer.n_ids


def test_a_training_afterwards_learns_from_the_old_tokens(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = with_base(tiny_model)
    run = quiet_run(tiny_data, model)
    child = QAT(epochs=1, distil="hidden").apply(Vocabulary(common=0).apply(model, run), run)
    assert child.encoder.config.vocab_size < model.encoder.config.vocab_size


def test_refusals(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    run = quiet_run(tiny_data, tiny_model)
    packed = Int8().apply(tiny_model, run)
    with pytest.raises(ConfigError, match=r"^embeddings\.words is packed or masked; "):
        Vocabulary(common=0).apply(packed, run)
    bare = replace(tiny_data, train=(), validation=(), synonyms={})
    with pytest.raises(DataError, match=r"^no training messages; vocabulary needs at least one, labelled or not$"):
        Vocabulary(common=0).apply(tiny_model, quiet_run(bare, tiny_model))


def test_where_all_tokens_are_common_none_goes_and_it_is_said(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    n, run = tiny_model.encoder.config.vocab_size, quiet_run(tiny_data, tiny_model)
    for common in (n, 10_000):
        words = f"^vocabulary: the model has {n} tokens, common is {common}: none goes; give a lower common$"
        with pytest.warns(FlyweightWarning, match=words) as said:
            child = Vocabulary(common=common).apply(tiny_model, run)
        assert len(said) == 1
        assert same_bits(child, tiny_model, [m.text for m in tiny_data.test])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Vocabulary(common=n - 1).apply(tiny_model, run)
        Vocabulary(common=10_000_000).apply(tiny_model, run)  # wanted so


def test_heads_and_tokens_go_in_any_order(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = with_base(tiny_model)
    kept = Vocabulary(common=0).apply(model, quiet_run(tiny_data, model))
    texts = [m.text for m in tiny_data.train]
    one, other = keep_heads(kept, {0: [1]}), keep_heads(model, {0: [1]})
    assert same_bits(one, Vocabulary(common=0).apply(other, quiet_run(tiny_data, model)), texts)
