"""Learning from logits: how the words of teacher and student meet, the loss, the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.answers import Labels
from flyweight.data.messages import Entity, Message, NLUData
from flyweight.data.tags import spans_to_tags
from flyweight.errors import ConfigError, DataError
from flyweight.measure.quality import evaluate
from flyweight.model.nlu import NLUModel
from flyweight.training import logits as module
from flyweight.training import teacher as training
from flyweight.training.distances import divergence
from flyweight.training.logits import ABSENT, LogitsTeacher, Taught, soft_labels_loss
from flyweight.training.loop import TrainingSettings, collate, encode, fit
from flyweight.training.losses import Batch, Loss, labels_loss
from flyweight.training.teacher import build, train

INTENTS = ("book_flight", "greet", "thanks", "weather")  # of tiny_data
TAGS = ("O", "I-city", "B-city")
NOTHING = [0.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def fresh(tiny_data: NLUData) -> NLUModel:
    """An untrained `small`; copy it before training."""
    return build(tiny_data, "small")


def lengths(texts: list[str]) -> np.ndarray:
    """Logits (N, 4) that depend on the texts."""
    return np.stack([[len(t), t.count("e"), 3.5, -len(t)] for t in texts])


# words of teacher and student -----------------------------------------------------------------------------------------

CITY = Labels(INTENTS, ("city",))  # tags O, B-city, I-city


def aligned(words: Sequence[tuple[int, int]], taught: Taught, theirs: Labels = CITY, ours: Labels = CITY) -> np.ndarray:
    """Tag logits for the student's words; the likeliest tag of every row has 0."""
    return module._aligned(words, taught, theirs, ours)


def test_equal_words_take_equal_rows() -> None:
    taught = Taught(np.zeros(4), [(0, 2), (3, 7)], np.array([[5.0, 0, -2], [-1, 4, 0]]))
    assert aligned([(0, 2), (3, 7)], taught).tolist() == [[0, -5, -7], [-5, 0, -4]]


def test_a_teacher_with_coarser_words() -> None:
    # "to O'Neill": the teacher has one word, the student "O", "'", "Neill": they continue the entity
    tags = np.array([[5.0, 0, 0], [0, np.log(3), np.log(1.0)]])
    found = aligned([(0, 2), (3, 4), (4, 5), (5, 10)], Taught(np.zeros(4), [(0, 2), (3, 10)], tags))
    assert found[1] == pytest.approx([-np.log(3), 0, -np.log(3)])
    # e^B + e^I = 3 + 1 of 4 for I-city, beside 1 for O; B-city cannot be meant
    continued = [0 - np.log(3), ABSENT, np.log(4) - np.log(3)]
    assert found[2] == pytest.approx(continued, abs=1e-6)
    assert found[3] == pytest.approx(continued, abs=1e-6)


def test_a_teacher_with_finer_words() -> None:
    # the teacher splits "O'Neill" into three, all of one name: the student's word takes the first
    tags = np.array([[5.0, 0, 0], [0, 7, 0], [0, 0, 8], [0, 0, 9]])
    found = aligned([(0, 2), (3, 10)], Taught(np.zeros(4), [(0, 2), (3, 4), (4, 5), (5, 10)], tags))
    assert found.tolist() == [[0, -5, -5], [-7, 0, -7]]


def test_a_word_over_two_of_the_teacher_takes_the_first_that_is_no_o() -> None:
    # "$5": the teacher has "$" as O and "5" as B-city; spans_to_tags calls the student's word B, soft labels must too
    tags = np.array([[4.0, 1, 0], [0, 7, 2], [1, 0, 6], [9, 0, 0]])
    taught = Taught(np.zeros(4), [(0, 1), (1, 2), (2, 3), (3, 4)], tags)
    assert aligned([(0, 2), (2, 4)], taught).tolist() == [[-7, 0, -5], [-5, -6, 0]]
    assert spans_to_tags([(0, 2), (2, 4)], [Entity(1, 3, "city")]) == ["B-city", "I-city"]
    # O alone stays the first one's
    outside = np.array([[4.0, 1, 0], [9, 0, 1]])
    assert aligned([(0, 2)], Taught(np.zeros(4), [(0, 1), (1, 2)], outside)).tolist() == [[0, -3, -4]]
    # what is only another label's to the student is O
    theirs = Labels(INTENTS, ("actor", "city"))
    others = np.array([[1.0, 9, 0, 0, 0], [0, 0, 0, 3, 0]])
    assert aligned([(0, 2)], Taught(np.zeros(4), [(0, 1), (1, 2)], others), theirs).tolist() == [[-3, 0, -3]]


def test_pieces_of_a_word_that_was_not_the_first() -> None:
    # teacher: "($" as O, "500" as B-city. Student: "(", "$5", "00": the second opens the entity, the third continues it
    taught = Taught(np.zeros(4), [(0, 2), (2, 5)], np.array([[4.0, 1, 0], [0, 7, 2]]))
    found = aligned([(0, 1), (1, 3), (3, 5)], taught)
    assert found[:2].tolist() == [[0, -3, -4], [-7, 0, -5]]
    assert found[2] == pytest.approx([-7, ABSENT, np.logaddexp(7, 2) - 7], abs=1e-6)
    assert spans_to_tags([(0, 1), (1, 3), (3, 5)], [Entity(2, 5, "city")]) == ["O", "B-city", "I-city"]
    # a piece of an entity's word that reaches into the next entity still continues the first
    tags = np.array([[0.0, 3, 0], [0, 5, 0]])
    found = aligned([(0, 1), (1, 3)], Taught(np.zeros(4), [(0, 2), (2, 3)], tags))
    assert found[1].argmax() == 2
    assert spans_to_tags([(0, 1), (1, 3)], [Entity(0, 2, "city"), Entity(2, 3, "city")]) == ["B-city", "I-city"]


def test_words_that_cross() -> None:
    # the student's second word overlaps both of the teacher's: the first counts; the third still opens the second's
    tags = np.array([[0.0, 1, 0], [0, 2, 0]])
    found = aligned([(0, 2), (2, 4), (4, 6)], Taught(np.zeros(4), [(0, 3), (3, 6)], tags))
    assert found[0].tolist() == [-1, 0, -1]
    assert found[1] == pytest.approx([-1, ABSENT, np.logaddexp(1, 0) - 1], abs=1e-6)
    assert found[2].tolist() == [-2, 0, -2]


def test_words_that_the_teacher_did_not_see() -> None:
    taught = Taught(np.zeros(4), [(3, 7)], np.array([[1.0, 0, 0]]))
    found = aligned([(0, 2), (3, 7), (7, 8)], taught)  # touching is no overlap
    assert np.isnan(found[[0, 2]]).all()
    assert found[1].tolist() == [0, -1, -1]
    assert np.isnan(aligned([(0, 2)], Taught(np.zeros(4), [], np.zeros((0, 3))))).all()
    assert aligned([], taught).shape == (0, 3)


def test_labels_that_only_the_teacher_has_are_left_out() -> None:
    theirs = Labels(INTENTS, ("actor", "city", "date"))
    tags = np.array([[0.0, 90, 90, 1, 2, 90, 90]])  # O, actor, city, date
    assert aligned([(0, 1)], Taught(np.zeros(4), [(0, 1)], tags), theirs).tolist() == [[-2, -1, 0]]


# the loss -------------------------------------------------------------------------------------------------------------


def kl(wanted: Sequence[float], found: Sequence[float], T: float) -> float:
    """sum p log(p / q), with plain loops."""
    p = [np.exp(x / T) for x in wanted]
    q = [np.exp(x / T) for x in found]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def test_kl_by_hand() -> None:
    # softmax(log[3, 1]) = [3/4, 1/4] against [1/2, 1/2]: 3/4 log 3/2 + 1/4 log 1/2
    wanted, found = torch.log(torch.tensor([[3.0, 1.0]])), torch.zeros(1, 2)
    by_hand = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(divergence(found, wanted)) == pytest.approx(by_hand, rel=1e-6)
    assert float(divergence(found - 3, wanted + 7)) == pytest.approx(by_hand, rel=1e-5)  # offsets mean nothing
    # T = 2: log[9, 1] / 2 = log[3, 1]; T^2 = 4 times the same
    assert float(divergence(found, 2 * wanted, 2.0)) == pytest.approx(4 * by_hand, rel=1e-6)
    # the mean over rows, and 0 where both say the same
    rows = torch.zeros(2, 2), torch.cat([wanted, found])
    assert float(divergence(*rows)) == pytest.approx(by_hand / 2, rel=1e-6)
    assert float(divergence(wanted, wanted, 3.0)) == pytest.approx(0, abs=1e-7)
    # a class that cannot be meant costs nothing where both rule it out
    impossible = torch.tensor([[0.0, ABSENT]])
    assert float(divergence(impossible, impossible)) == pytest.approx(0, abs=1e-7)


def test_the_gradient_keeps_its_size_whatever_the_temperature() -> None:
    # for small logits dL/dz = (z - v) / C - mean, without 1/T^2 or 1/T: Hinton et al., section 2.1
    v = torch.tensor([[0.01, 0.0, -0.01]])
    for T in (1.0, 4.0, 20.0):
        z = torch.zeros(1, 3, requires_grad=True)
        divergence(z, v, T).backward()
        assert z.grad is not None
        assert z.grad[0].tolist() == pytest.approx([-0.01 / 3, 0, 0.01 / 3], rel=0.01, abs=2e-5)


def by_function(model: NLUModel, texts: list[str]) -> list[tuple[np.ndarray, list[tuple[int, int]], np.ndarray]]:
    """Logits for each text, on the words of a model, that depend on nothing but the text."""
    found = []
    for e, text in zip(model.tokenizer.encode_batch(texts), texts, strict=True):
        rng = np.random.default_rng(len(text))
        tags = len(model.labels.tags)
        found.append((rng.normal(size=4), list(e.words), rng.normal(size=(len(e.words), tags))))
    return found


@pytest.mark.parametrize(("temperature", "soft"), [(1.0, 1.0), (2.0, 0.8), (3.0, 0.25)])
def test_the_loss_by_hand(temperature: float, soft: float, fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy().eval()
    messages = [*tiny_data.train[:3], replace(tiny_data.train[20], intent=None), tiny_data.train[40]]
    teacher = LogitsTeacher(lambda texts: by_function(model, texts), model.labels.intents, model.labels.tags)
    loss = soft_labels_loss(teacher, model, messages, False, temperature=temperature, soft=soft)
    batch = collate(encode(model, messages), [4, 0, 2, 3])  # in any order, one left out
    intents, tags = [], []
    for i in (4, 0, 2, 3):
        [(intent, _, rows)] = by_function(model, [messages[i].text])
        [(ours, our_tags)] = model.logits([model.tokenizer.encode(messages[i].text)])
        intents.append(kl(intent.tolist(), ours.tolist(), temperature))
        assert our_tags is not None
        tags += [kl(a, b, temperature) for a, b in zip(rows.tolist(), our_tags.tolist(), strict=True)]
    with torch.no_grad():
        hard = float(labels_loss(model, batch))
        found = float(loss(model, batch))
    wanted = (1 - soft) * hard + soft * temperature**2 * (np.mean(intents) + np.mean(tags))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_text_without_labels_has_soft_labels_only(fresh: NLUModel, tiny_data: NLUData) -> None:
    """Its words are not taught as O: nobody said that they are no entities."""
    model = fresh.copy().eval()
    plain = [Message("fly to Oslo at noon"), Message("good morning all")]
    teacher = LogitsTeacher(lambda texts: by_function(model, texts), model.labels.intents, model.labels.tags)
    with torch.no_grad():
        for messages in (plain, [*plain, tiny_data.train[0]]):
            whole, half = (
                float(
                    soft_labels_loss(teacher, model, messages, False, soft=soft)(
                        model, collate(encode(model, messages), list(range(len(messages))))
                    )
                )
                for soft in (1.0, 0.5)
            )
            labelled = messages[len(plain) :]
            rows = list(range(len(labelled)))
            hard = float(labels_loss(model, collate(encode(model, labelled), rows))) if labelled else 0.0
            assert half == pytest.approx(0.5 * whole + 0.5 * hard, rel=1e-4)


def test_a_teacher_without_entities_teaches_intents_alone(fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy().eval()
    messages = tiny_data.train[:4]
    loss = soft_labels_loss(LogitsTeacher(lengths, INTENTS), model, messages, False, temperature=1, soft=1)
    with torch.no_grad():
        found = float(loss(model, collate(encode(model, messages), [0, 1, 2, 3])))
    rows = model.logits(model.tokenizer.encode_batch([m.text for m in messages]))
    wanted = lengths([m.text for m in messages]).tolist()
    assert found == pytest.approx(np.mean([kl(w, i.tolist(), 1) for w, (i, _) in zip(wanted, rows, strict=True)]), 1e-4)


def test_intents_in_another_order_and_more_of_them(fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy().eval()
    messages = tiny_data.train[:4]
    names = ("weather", "joke", "greet", "thanks", "book_flight")
    columns = [INTENTS.index(name) if name in INTENTS else None for name in names]

    def shuffled(texts: list[str]) -> list[list[float]]:
        return [[99.0 if c is None else float(row[c]) for c in columns] for row in lengths(texts)]

    values = []
    for teacher in (LogitsTeacher(lengths, INTENTS), LogitsTeacher(shuffled, names)):
        loss = soft_labels_loss(teacher, model, messages, False)
        with torch.no_grad():
            values.append(float(loss(model, collate(encode(model, messages), [0, 1, 2, 3]))))
    assert values[0] == values[1]  # "joke", which only the teacher knows, takes no probability away


def test_words_that_the_teacher_did_not_see_teach_nothing(fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy().eval()
    messages = tiny_data.train[:4]

    def blind(texts: list[str]) -> list[Any]:
        return [(intent, [], []) for intent, _, _ in by_function(model, texts)]

    whole = LogitsTeacher(lambda texts: [i for i, _, _ in by_function(model, texts)], INTENTS)
    for teacher in (LogitsTeacher(blind, INTENTS, model.labels.tags), whole):
        loss = soft_labels_loss(teacher, model, messages, False, soft=1.0)
        batch = collate(encode(model, messages), [0, 1, 2, 3])
        value = loss(model.copy().eval(), batch)
        assert torch.isfinite(value)
        model.zero_grad()
        loss(model, batch).backward()
        assert model.tag_head is not None
        assert model.tag_head.weight.grad is None or not model.tag_head.weight.grad.any()


def test_labels_that_the_teacher_lacks_are_refused(fresh: NLUModel, tiny_data: NLUData) -> None:
    few = LogitsTeacher(lambda texts: np.zeros((len(texts), 2)), ("greet", "weather"))
    with pytest.raises(DataError) as error:
        soft_labels_loss(few, fresh, tiny_data.train, False)
    assert str(error.value) == (
        "the teacher lacks 2 of the 4 intents: 'book_flight', 'thanks'; "
        "train the teacher on the same labels, or leave these messages out"
    )
    # A teacher of some entities would teach that there are no others.
    cities = LogitsTeacher(lambda texts: [(NOTHING, [], []) for _ in texts], INTENTS, TAGS)
    with pytest.raises(DataError, match="the teacher lacks 3 of the 4 entity labels: 'city#from', 'city#to', 'date'; "):
        soft_labels_loss(cities, fresh, tiny_data.train, False)
    with pytest.raises(DataError, match="the teacher lacks 2 of the 4 intents"):
        train(tiny_data, "small", TrainingSettings(epochs=1), teacher=few, progress=False)


# training -------------------------------------------------------------------------------------------------------------


def test_small_learns_the_answers_of_a_teacher(tiny_data: NLUData) -> None:
    """The labels say nothing: no message has one. All that is learnt comes from the teacher."""
    turn = {"book_flight": "weather", "weather": "greet", "greet": "thanks", "thanks": "book_flight"}
    wrong = {m.text: INTENTS.index(turn[str(m.intent)]) for m in tiny_data.messages}

    def contrary(texts: list[str]) -> np.ndarray:
        return np.array([[8.0 * (i == wrong[text]) for i in range(4)] for text in texts])

    teacher = LogitsTeacher(contrary, INTENTS)
    data = tiny_data.with_splits(
        [*tiny_data.train[::15], *(replace(m, intent=None, entities=()) for m in tiny_data.train)],
        (),
        tiny_data.test,
    )
    settings = TrainingSettings(epochs=10, batch_size=8, learning_rate=2e-3)
    student = train(data, "small", settings, teacher=teacher, device="cpu", progress=False)
    texts = [m.text for m in tiny_data.messages if m.text != "cheers"]
    same = [a.intent == b.intent for a, b in zip(student.answers(texts), teacher.answers(texts), strict=True)]
    assert np.mean(same) > 0.9
    assert student.card.steps[-1]["messages"] == 64


def test_a_model_teaches_entities(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    data = tiny_data.with_splits(tiny_data.train, (), tiny_data.test)
    settings = TrainingSettings(epochs=20, batch_size=8, learning_rate=2e-3)
    student = train(data, "small", settings, teacher=tiny_model, device="cpu", progress=False)
    texts = [m.text for m in tiny_data.test]
    pairs = list(zip(student.answers(texts), tiny_model.answers(texts), strict=True))
    assert np.mean([a.intent == b.intent for a, b in pairs]) > 0.9
    quality = evaluate(student, [Message(b.text, b.intent, b.entities) for _, b in pairs])
    assert quality.n_gold_spans > 5
    assert quality.span_f1 > 0.8


def interrupting(loss: Loss, step: int) -> Loss:
    """The loss, with Ctrl-C during a step."""
    calls = iter(range(10_000))

    def wrapped(model: NLUModel, batch: Batch) -> torch.Tensor:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch)

    wrapped.__name__ = loss.__name__  # type: ignore[attr-defined]
    return wrapped


def test_an_interrupted_training_goes_on_with_the_same_logits_only(
    fresh: NLUModel, tiny_data: NLUData, tmp_path: Path
) -> None:
    settings = TrainingSettings(epochs=3, batch_size=16, learning_rate=1e-3)

    def losses(function: Callable[[list[str]], Any], **more: Any) -> Loss:
        return soft_labels_loss(LogitsTeacher(function, INTENTS), fresh, tiny_data.train, False, **more)

    def go(loss: Loss, folder: Path | None) -> NLUModel:
        more: dict[str, Any] = {"loss": loss, "device": "cpu", "folder": folder, "progress": False}
        return fit(fresh.copy(), tiny_data.train, tiny_data.validation, settings, **more)

    with pytest.raises(KeyboardInterrupt):
        go(interrupting(losses(lengths), 5), tmp_path)
    others = [
        losses(lambda texts: lengths(texts) + np.array([0, 0, 0, 1e-3])),
        losses(lengths, temperature=3.0),
        losses(lengths, soft=0.5),
        labels_loss,
    ]
    for other in others:
        with pytest.raises(ConfigError, match="belongs to a training with other settings or messages"):
            go(other, tmp_path)
    resumed, whole = go(losses(lengths), tmp_path), go(losses(lengths), None)
    state = whole.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in resumed.state_dict().items())


def test_the_teacher_is_asked_of_training_messages_only(tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def function(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return lengths(texts)

    settings = TrainingSettings(epochs=1, batch_size=16)
    monkeypatch.setattr(training, "calibrate", lambda *_: None)
    train(tiny_data, "small", settings, teacher=LogitsTeacher(function, INTENTS), device="cpu", progress=False)
    assert asked == [m.text for m in tiny_data.train]  # each once, however many epochs


def test_one_forward_pass_a_step(fresh: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh.copy()
    loss = soft_labels_loss(LogitsTeacher(lengths, INTENTS), model, tiny_data.train, False)
    calls = []
    right = NLUModel.forward
    monkeypatch.setattr(NLUModel, "forward", lambda self, *a: calls.append(1) or right(self, *a))
    loss(model, collate(encode(model, tiny_data.train[:4]), [0, 1, 2, 3]))
    assert len(calls) == 1
