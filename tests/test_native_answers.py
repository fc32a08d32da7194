"""Text in, answer out in one native call: what Python's decoding gives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from engine_cases import artifact_of, packed

from flyweight.answers import softmax
from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.data.tags import legal_tags, tag_names
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.native import Native
from flyweight.runtime.parser import Parser
from flyweight.training.teacher import build

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native engine is not built")


@pytest.fixture(scope="module")
def like(tiny_data: NLUData) -> NLUModel:
    """Tokenizer, labels and card for the random models; untrained."""
    return build(tiny_data, "small")


def odd_texts(data: NLUData) -> list[str]:
    return [m.text for m in data.messages] + [
        "", " ", " \t\n  ", "?", "x" * 10_000, "go to " * 500, "👩\u200d👧 to 🗼 Paris", "日本 hello", "\ud83d to Rome",
        "Berlin \udc00", "\x00", "naïve Zürich", "e\u0301", "NYC NYC NYC",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "temperature"), [("plain", 1.0), ("relative", 0.05), ("no entities", 7.3), ("entities only", 0.3)]
)
def test_answers_are_those_of_python(shape: str, temperature: float, tiny_data: NLUData, like: NLUModel) -> None:
    """Confidences within 1e-12 of the float64 softmax; ranks and tag paths equal."""
    model = packed(like, shape, "int8 row", std=0.4)
    artifact = artifact_of(model)
    parser = Parser(artifact)
    texts = odd_texts(tiny_data)
    encoded = parser.tokenizer.encode_batch(texts)
    engine = parser.engine
    assert isinstance(engine, Native)
    n_entities = 0
    answers = engine.answers(parser.tokenizer.native, texts, temperature)
    for e, found, (intent, tags) in zip(encoded, answers, engine.logits(encoded), strict=True):
        assert found is not None
        order, confidences, words, path = found
        wanted = softmax(intent / temperature) if intent.size else np.zeros(0)
        assert order == np.argsort(-wanted, kind="stable").tolist()
        assert np.abs(confidences - wanted[order]).max(initial=0) <= 1e-12
        assert abs(sum(confidences) - bool(model.labels.intents)) <= 1e-12
        wanted_path = [] if tags is None else legal_tags(tags, tag_names(model.labels.entity_labels)).tolist()
        assert path == (wanted_path if any(wanted_path) else [])
        assert words == (list(e.words) if any(wanted_path) else [])
        n_entities += any(wanted_path)
    assert (n_entities > 10) == (shape != "no entities")
    assert answers == [engine.answers(parser.tokenizer.native, [text], temperature)[0] for text in texts]


@pytest.mark.parametrize(("shape", "threshold"), [("plain", 0.0), ("plain", 0.5), ("entities only", 0.3)])
def test_parse_results_are_those_of_answers(shape: str, threshold: float, tiny_data: NLUData, like: NLUModel) -> None:
    """Made without an Entity or a Decoded between; with roles, groups, synonyms and fallbacks."""
    parser = Parser(artifact_of(packed(like, shape, "int8 row", std=0.4)), threshold=threshold)
    names = ("place#from", "place##first", "time#to#last", "name")[: len(parser.labels.entity_labels)]
    words = {word.lower(): word.upper() for m in tiny_data.messages for word in m.text.split()[::2]}
    parser.labels = replace(parser.labels, entity_labels=names, synonyms=words)
    texts = odd_texts(tiny_data)
    wanted = [answer.to_dict() for answer in parser.answers(texts)]
    assert parser.parse_batch(texts) == wanted
    assert [parser.parse(text) for text in texts] == wanted
    found = [entity for result in wanted for entity in result["entities"]]
    assert {"role", "group"} <= {key for entity in found for key in entity}
    assert any(entity["value"].isupper() for entity in found)
    assert any(entity["end"] - entity["start"] > len(max(words, key=len)) for entity in found)  # of several words


def test_ties_take_the_lower_index(like: NLUModel) -> None:
    whole = artifact_of(packed(like, "plain", "float32"))
    tags = np.array([1, 1, 2, 0, 2, 1, 2, 0, 0], np.float32)
    for intent, order in (
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([1, 3, 1, 3], [1, 3, 0, 2]),
        ([-1e5, 0, -2e5, 0], [1, 3, 0, 2]),
    ):
        new = {"heads.intent.bias": np.array(intent, np.float32), "heads.tags.bias": tags}
        new |= {f"heads.{k}.values": np.zeros_like(whole.array(f"heads.{k}.values")) for k in ("intent", "tags")}
        parser = Parser(Artifact(whole.path, whole.manifest, whole.arrays | new, 0))
        [found] = parser.engine.answers(parser.tokenizer.native, ["one two three four"], 1.0)  # type: ignore[union-attr]
        assert found[0] == order
        assert found[3] == legal_tags(np.tile(tags, (4, 1)), tag_names(like.labels.entity_labels)).tolist()


def test_what_cannot_be_answered_is_refused(like: NLUModel) -> None:
    engine, tokenizer = Native(artifact_of(packed(like, "plain", "int8 row")))._engine, like.tokenizer.native
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^temperature is \S+; allowed: above 0$"):
            engine.answers(tokenizer, ["hello"], temperature)
    assert engine.answers(tokenizer, [], 1.0) == []
    names = like.labels.intents
    for text in (None, 3, ["hello"]):
        with pytest.raises(TypeError, match="a message is str"):
            engine.answers(tokenizer, ["hello", text], 1.0)
        with pytest.raises(TypeError, match="a message is str"):
            engine.rankings(names, tokenizer, ["hello", text], 1.0)
    with pytest.raises(ValueError, match=f"^{len(names) - 1} names for {len(names)} intents$"):
        engine.rankings(names[1:], tokenizer, ["hello"], 1.0)
    assert len(engine.answers(tokenizer, ["hello"], 1e-30, 2)) == 1  # infinite logits over it: no answer, no crash
