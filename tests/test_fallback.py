"""Not sure enough: a fallback is answered. The threshold is fitted with the temperature and travels with the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import random_model
from test_parser_guards import ENGINES, NO_GOLDEN

from flyweight.answers import Answer, Labels, softmax, with_fallback
from flyweight.artifact import write
from flyweight.data.messages import Entity, Message, NLUData, is_out_of_scope
from flyweight.errors import ArtifactError, ConfigError, FlyweightWarning
from flyweight.export.fly import contents, save
from flyweight.measure.quality import evaluate, evaluate_answers
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.runtime.parser import EngineName, Parser, load
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.tokenizer import Encoded
from flyweight.training.loop import TrainingSettings
from flyweight.training.teacher import calibrate, train


def ranking(**probabilities: float) -> list[dict[str, Any]]:
    """The best first."""
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return [{"name": name.replace("__", "/"), "confidence": p} for name, p in ranked]


# by hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [
        (0.0, [("greet", 0.6), ("book", 0.4)]),
        (0.59, [("greet", 0.6), ("book", 0.4)]),
        (0.6, [("greet", 0.6), ("book", 0.4)]),  # the threshold itself is enough
        (0.61, [("nlu_fallback", 0.61), ("greet", 0.6), ("book", 0.4)]),
        (0.99, [("nlu_fallback", 0.99), ("greet", 0.6), ("book", 0.4)]),
    ],
)
def test_a_fallback_stands_before_all(threshold: float, wanted: list[tuple[str, float]]) -> None:
    found = with_fallback(ranking(greet=0.6, book=0.4), threshold)
    assert [(r["name"], r["confidence"]) for r in found] == wanted


@pytest.mark.parametrize(
    ("probabilities", "threshold", "wanted"),
    [
        # the model's own intent for it is moved to the front, with the threshold as its least confidence
        ({"greet": 0.5, "book": 0.3, "oos": 0.2}, 0.6, [("oos", 0.6), ("greet", 0.5), ("book", 0.3)]),
        # of several the likeliest
        (
            {"greet": 0.4, "oos": 0.1, "out_of_scope__chat": 0.3, "book": 0.2},
            0.45,
            [("out_of_scope/chat", 0.45), ("greet", 0.4), ("book", 0.2), ("oos", 0.1)],
        ),
        # already likelier than the threshold
        ({"oos": 0.7, "greet": 0.2, "book": 0.1}, 0.5, [("oos", 0.7), ("greet", 0.2), ("book", 0.1)]),
        # an intent in scope is sure enough: the order stays, whatever is first
        ({"oos": 0.55, "greet": 0.45}, 0.45, [("oos", 0.55), ("greet", 0.45)]),
        # nothing in scope at all
        ({"oos": 0.6, "out_of_scope": 0.4}, 0.3, [("oos", 0.6), ("out_of_scope", 0.4)]),
    ],
)
def test_intents_for_it(probabilities: dict[str, float], threshold: float, wanted: list[tuple[str, float]]) -> None:
    given = ranking(**probabilities)
    before = json.dumps(given)
    found = with_fallback(given, threshold)
    assert [(r["name"], r["confidence"]) for r in found] == wanted
    assert json.dumps(given) == before
    confidences = [r["confidence"] for r in found]
    assert confidences == sorted(confidences, reverse=True)


def test_no_ranking_no_fallback() -> None:
    assert with_fallback([], 0.5) == []
    nothing = Answer("x", (), np.zeros(0), (), 0.5)
    assert (nothing.intent, nothing.confidence) == ("", 0.0)
    assert nothing.to_dict()["intent"] == {"name": None, "confidence": 0.0}


def test_answers_below_the_threshold() -> None:
    labels = Labels(("greet", "book"), temperature=2.0, threshold=0.8)
    nothing = Encoded(np.zeros(1, np.int32), np.zeros(0, np.int64), [])
    logits = np.array([2 * np.log(3.0), 0.0])  # 3/4 and 1/4 at temperature 2
    answer = labels.answer("x", nothing, logits, None)
    assert (answer.intent, answer.confidence) == ("nlu_fallback", 0.8)
    assert answer.probabilities == pytest.approx([0.75, 0.25])  # what the model said stays
    assert answer.frame == ("nlu_fallback", frozenset())
    found = answer.to_dict()
    assert found["intent"] == found["intent_ranking"][0] == {"name": "nlu_fallback", "confidence": 0.8}
    assert [r["name"] for r in found["intent_ranking"]] == ["nlu_fallback", "greet", "book"]
    sure = replace(labels, threshold=0.7).answer("x", nothing, logits, None)
    assert (sure.intent, sure.confidence) == ("greet", pytest.approx(0.75))


def test_a_tie_at_the_threshold_goes_to_the_first_intent() -> None:
    answer = Answer("x", ("a", "b"), np.array([0.5, 0.5]), (), 0.5)
    assert (answer.intent, answer.confidence) == ("a", 0.5)


# fitted ---------------------------------------------------------------------------------------------------------------

RATE = 0.25


@pytest.fixture(scope="module")
def unsure(tiny_model: NLUModel, tiny_data: NLUData) -> NLUModel:
    """tiny_model with a threshold that turns away 3 of the 12 validation messages."""
    model = tiny_model.copy()
    model.labels = replace(model.labels, fallback_rate=RATE)
    calibrate(model, tiny_data.validation)
    return model


def best_inside(model: NLUModel, messages: Sequence[Message]) -> np.ndarray:
    """Probability of the best intent in scope, of the messages in scope, from the logits."""
    inside = [not is_out_of_scope(name) for name in model.labels.intents]
    texts = [m.text for m in messages if m.intent in model.labels.intents and not is_out_of_scope(m.intent)]
    logits = np.stack([intent for intent, _ in model.logits(model.tokenizer.encode_batch(texts))])
    return np.asarray(softmax(logits / model.labels.temperature)[:, inside].max(axis=1))


def turned_away(answerer: NLUModel | Parser, messages: Sequence[Message]) -> int:
    answers = answerer.answers([m.text for m in messages])
    assert all(is_out_of_scope(a.intent) or a.confidence >= a.threshold for a in answers)
    return sum(is_out_of_scope(a.intent) for a in answers)


def test_the_rate_holds_on_validation(unsure: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    away = np.sort(best_inside(unsure, tiny_data.validation))[: int(RATE * 12)]
    assert unsure.labels.threshold > away.max()
    assert turned_away(unsure, tiny_data.validation) == 3
    assert [turned_away(unsure, [m]) for m in tiny_data.validation].count(1) == 3  # one by one as in a batch
    nlu = load(save(unsure, tmp_path / "float.fly"))
    assert turned_away(nlu, tiny_data.validation) == 3
    assert unsure.labels.intents == nlu.labels.intents


def test_training_fits_it(tiny_data: NLUData) -> None:
    settings = TrainingSettings(epochs=2, batch_size=16, learning_rate=2e-3)
    more: dict[str, Any] = {"settings": settings, "device": "cpu", "progress": False}
    plain = train(tiny_data, "small", **more)
    fitted = train(tiny_data, "small", fallback_rate=0.5, **more)
    assert (plain.labels.threshold, plain.labels.fallback_rate) == (0.0, 0.0)
    assert fitted.labels.fallback_rate == 0.5
    assert 4 <= turned_away(fitted, tiny_data.validation) <= 6  # less than half where confidences are equal
    assert fitted.labels.temperature == plain.labels.temperature
    with pytest.raises(ConfigError, match=r"^fallback_rate is 0\.5, but no validation message has an intent"):
        train(tiny_data.with_splits(tiny_data.train, (), ()), "small", fallback_rate=0.5, **more)
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=rf"^fallback_rate is {rate}; allowed: a share of the messages"):
            train(tiny_data, "small", fallback_rate=rate, **more)


def test_out_of_scope_messages_do_not_count(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    model = tiny_model.copy()
    names = tuple("out_of_scope/weather" if name == "weather" else name for name in model.labels.intents)
    model.labels = replace(model.labels, intents=names, fallback_rate=0.34)
    renamed = [replace(m, intent="out_of_scope/weather") if m.intent == "weather" else m for m in tiny_data.validation]
    calibrate(model, renamed)
    inside = best_inside(model, renamed)
    assert len(inside) == 9
    assert (inside < model.labels.threshold).sum() == 3  # of nine


def test_without_messages_it_stays(unsure: NLUModel) -> None:
    model = unsure.copy()
    calibrate(model, ())
    calibrate(model, [Message("no intent")])
    assert model.labels == unsure.labels


def test_messages_of_other_labels_fit_nothing(unsure: NLUModel, tiny_data: NLUData) -> None:
    model = unsure.copy()
    strangers = [Message(f"message {i}", "stranger") for i in range(40)]
    one_intent = [m for m in tiny_data.validation if m.intent == "weather"]
    for messages, n_known in ((strangers, 0), ([*strangers, *tiny_data.validation], 12), (one_intent, len(one_intent))):
        with pytest.warns(FlyweightWarning, match=f"of {len(messages)} validation messages {n_known} have an intent"):
            calibrate(model, messages)
        assert model.labels == unsure.labels


def test_compressing_with_messages_of_one_shared_intent_keeps_the_threshold(
    unsure: NLUModel, tiny_data: NLUData
) -> None:
    shared = [m for m in tiny_data.validation if m.intent == "weather"]
    assert unsure.labels.threshold > 0
    with pytest.warns(FlyweightWarning, match="temperature and threshold stay as they are"):
        small = compress(unsure, NLUData(tuple(shared), tuple(shared)), [Int8()], measure=False, progress=False)
    assert small.labels == unsure.labels


@pytest.mark.parametrize("step", [Int8(), Codebook(encoder=2, embeddings=4)])
def test_it_is_fitted_again_after_every_step(step: Any, unsure: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    small = compress(unsure, tiny_data, [step], measure=False, progress=False)
    assert small.labels.fallback_rate == RATE
    assert small.labels.threshold != unsure.labels.threshold
    inside = np.sort(best_inside(small, tiny_data.validation))
    assert small.labels.threshold == pytest.approx(inside[3] * (1 - 1e-4), rel=1e-6)
    assert turned_away(small, tiny_data.validation) == 3
    nlu = load(save(small, tmp_path / "small.fly"))
    assert nlu.labels.threshold == small.labels.threshold
    bare = unsure.copy()
    bare.labels = replace(bare.labels, threshold=0.0, fallback_rate=0.0)
    assert compress(bare, tiny_data, [step], measure=False, progress=False).labels.threshold == 0.0


def test_it_travels(unsure: NLUModel, tmp_path: Path) -> None:
    assert 0 < unsure.labels.threshold < 1
    again = NLUModel.load(unsure.save(tmp_path / "bot"))
    assert again.labels == unsure.labels
    config = json.loads((tmp_path / "bot" / "config.json").read_text())["labels"]
    assert (config["threshold"], config["fallback_rate"]) == (unsure.labels.threshold, RATE)
    nlu = load(save(unsure, tmp_path / "bot.fly"))
    assert nlu.labels == unsure.labels
    of_before = {k: v for k, v in config.items() if k not in ("threshold", "fallback_rate")}
    whole = json.loads((tmp_path / "bot" / "config.json").read_text()) | {"labels": of_before}
    (tmp_path / "bot" / "config.json").write_text(json.dumps(whole))
    old = NLUModel.load(tmp_path / "bot")  # folders made before there was one
    assert (old.labels.threshold, old.labels.fallback_rate) == (0.0, 0.0)


# answered -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineName:
    name: EngineName = request.param
    return name


INTENTS = ("out_of_scope/chat", "book", "oos", "greet")


@pytest.fixture(scope="module", params=["plain", "with intents for it"])
def random(request: pytest.FixtureRequest, tiny_model: NLUModel, tiny_data: NLUData) -> NLUModel:
    """A random model whose threshold turns away about half of the messages."""
    model = random_model(tiny_model, seed=3)
    intents = model.labels.intents if request.param == "plain" else INTENTS
    model.labels = replace(model.labels, intents=intents, threshold=0.0)
    best = [1 - a.out_of_scope_score for a in model.answers([m.text for m in tiny_data.messages])]
    middle = float(np.median(best))
    model.labels = replace(model.labels, threshold=middle + 1e-5)
    return model


def test_engines_and_pytorch_turn_away_the_same(
    engine: EngineName, random: NLUModel, tiny_data: NLUData, tmp_path: Path
) -> None:
    texts = [*(m.text for m in tiny_data.messages), "", "!?"]
    nlu = load(save(random, tmp_path / "m.fly"), engine=engine)
    wanted, answers, batch = random.answers(texts), nlu.answers(texts), nlu.parse_batch(texts)
    away = [is_out_of_scope(a.intent) for a in wanted]
    assert 20 < sum(away) < 70
    for text, a, b, parsed in zip(texts, wanted, answers, batch, strict=True):
        assert a.frame == b.frame
        assert b.threshold == random.labels.threshold
        assert parsed == b.to_dict() == nlu.parse(text)
        assert parsed["intent"] == parsed["intent_ranking"][0]
        assert parsed["intent"]["name"] == a.intent
        assert parsed["intent"]["confidence"] == pytest.approx(a.confidence, abs=1e-4)
        assert [r["name"] for r in a.ranking()][:2] == [r["name"] for r in parsed["intent_ranking"]][:2]
        assert random.parse(text)["intent"]["name"] == a.intent
    names = {b.intent for b, out in zip(answers, away, strict=True) if out}
    assert names == {"nlu_fallback"} if random.labels.intents != INTENTS else names <= {"oos", "out_of_scope/chat"}
    assert evaluate(nlu, tiny_data.messages, against=random).n_flips == 0


def test_a_threshold_for_this_time(engine: EngineName, unsure: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    path = save(unsure, tmp_path / "m.fly")
    texts = [m.text for m in tiny_data.validation]
    own = load(path, engine=engine)
    counts = []
    for threshold in (0.0, None, 0.999999):
        nlu = load(path, engine=engine, threshold=threshold)
        assert nlu.labels.threshold == (own.labels.threshold if threshold is None else threshold)
        counts.append(turned_away(nlu, tiny_data.validation))
        assert [r["intent"]["name"] for r in nlu.parse_batch(texts)] == [a.intent for a in nlu.answers(texts)]
    assert counts[:2] == [0, 3]
    assert counts[2] > 3
    for wrong in (1.0, -0.1, float("nan"), 17):
        with pytest.raises(ConfigError, match=rf"^threshold is {wrong}; allowed: a confidence, 0 <= threshold < 1$"):
            load(path, engine=engine, threshold=wrong)


def labelled(model: NLUModel, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file of a model whose labels `change` has had."""
    manifest, arrays = contents(model)
    manifest = json.loads(json.dumps(manifest))
    change(manifest["model"]["labels"])
    return write(folder / "m.fly", manifest | {"golden": NO_GOLDEN}, arrays)


@pytest.mark.parametrize("key", ["threshold", "fallback_rate"])
@pytest.mark.parametrize("value", [1, 1.0, -0.1, 1e400, -1e400, float("nan"), True, "high", None, [0.5], {}, 10**400])
def test_broken_thresholds_are_refused(key: str, value: object, tiny_model: NLUModel, tmp_path: Path) -> None:
    path = labelled(random_model(tiny_model), tmp_path, lambda labels: labels.update({key: value}))
    with pytest.raises(ArtifactError) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert "labels are broken" in str(error.value) or f"{key} " in str(error.value)
    assert str(error.value).endswith("export the model again")


def test_files_of_before_have_no_threshold(tiny_model: NLUModel, tmp_path: Path) -> None:
    def change(labels: dict[str, Any]) -> None:
        del labels["threshold"], labels["fallback_rate"]

    nlu = load(labelled(random_model(tiny_model), tmp_path, change))
    assert (nlu.labels.threshold, nlu.labels.fallback_rate) == (0.0, 0.0)
    assert nlu.parse("hello")["intent"]["name"] in nlu.labels.intents


def test_calibration_is_of_the_likeliest_intent_whatever_the_threshold() -> None:
    # 0.6 sure and right half of the time: |0.5 - 0.6|; with the fallback's 0.9 it would be 0.9.
    messages = [Message("a", "greet"), Message("b", "book")]
    for threshold in (0.0, 0.9):
        answers = [Answer(m.text, ("greet", "book"), np.array([0.6, 0.4]), (), threshold) for m in messages]
        assert evaluate_answers(answers, messages).expected_calibration_error == pytest.approx(0.1)


def test_a_fallback_misses_without_being_a_class() -> None:
    """100 right answers of 101, the last a fallback: F1 of greet 1, of book 2 * 50 / (50 + 51)."""
    messages = [Message(f"g{i}", "greet") for i in range(50)] + [Message(f"b{i}", "book") for i in range(51)]
    names = ("greet", "book")
    sure = [np.array([0.9, 0.1])] * 50 + [np.array([0.1, 0.9])] * 50 + [np.array([0.5, 0.5])]
    answers = [Answer(m.text, names, p, (), 0.6) for m, p in zip(messages, sure, strict=True)]
    assert answers[-1].intent == "nlu_fallback"
    parent = [
        Answer(m.text, names, p[::-1] if m.intent != names[p.argmax()] else p)
        for m, p in zip(messages, sure, strict=True)
    ]
    quality = evaluate_answers(answers, messages, against=parent, n_bootstrap=5)
    assert quality.intent_macro_f1 == pytest.approx((1 + 100 / 101) / 2)
    assert quality.intent_accuracy == pytest.approx(100 / 101)
    assert quality.losses["intent_macro_f1"].child == pytest.approx((1 + 100 / 101) / 2)


def test_a_model_without_intents_is_compared_by_spans_alone() -> None:
    messages = [Message("to Oslo", "book", (Entity(3, 7, "city"),)), Message("hello", "greet")]
    tagger = [Answer(m.text, (), np.zeros(0), m.entities) for m in messages]
    other = [
        Answer(m.text, ("book", "greet"), np.array([0.9, 0.1]), e) for m, e in zip(messages, ((), ()), strict=True)
    ]
    quality = evaluate_answers(other, messages, against=tagger, n_bootstrap=5)
    assert set(quality.losses) == {"span_f1"}
    assert (quality.n_flips, quality.n_intent_flips) == (1, 0)
