"""Learning what a teacher computes: what is compared with what, projections, padding, and that every loss falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import quiet_run, random_model, variant
from torch import Tensor

from flyweight.data.messages import Message, NLUData
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.techniques.student import Student
from flyweight.tokenizer import Tokenizer
from flyweight.training.distances import ANSWERS, LOSSES
from flyweight.training.distillation import (
    DistilledLoss,
    Links,
    distilled_loss,
    relation_heads,
    without_projections,
)
from flyweight.training.logits import LogitsTeacher, soft_labels_loss
from flyweight.training.loop import TrainingSettings, collate, encode, fit
from flyweight.training.losses import Batch

INSIDE = tuple(name for name in LOSSES if name not in ANSWERS)


def loss_of(
    names: str, teacher: NLUModel, student: NLUModel, messages: tuple[Message, ...], soft: float = 1.0
) -> DistilledLoss:
    answers = soft_labels_loss(teacher, student, messages, False, soft=soft)
    return distilled_loss(names.split("+"), teacher, student, messages, answers, device="cpu", progress=False)


@torch.no_grad()
def value(loss: DistilledLoss, model: NLUModel, messages: tuple[Message, ...], rows: list[int]) -> float:
    return float(loss(model, collate(encode(model, messages), rows)))


# what is compared with what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "hidden", "hints"),
    [
        (2, 6, [(1, 3), (2, 6)], (1, 3)),
        (3, 12, [(1, 4), (2, 8), (3, 12)], (2, 6)),
        (6, 6, [(i, i) for i in range(1, 7)], (3, 3)),
        (4, 2, [(1, 1), (2, 1), (3, 2), (4, 2)], (2, 1)),  # deeper: .5 -> 1 at least, 1, 1.5 -> 2, 2
        (1, 6, [(1, 6)], (1, 3)),
        (0, 6, [(0, 6)], (0, 3)),
        (1, 1, [(1, 1)], (1, 1)),
        (1, 0, [(1, 0)], (1, 0)),
    ],
)
def test_layers_are_mapped_evenly(ours: int, theirs: int, hidden: list[Any], hints: tuple[int, int]) -> None:
    found = Links.of(list(LOSSES), ours, theirs)
    assert found.states == {"hidden": hidden, "hints": [hints], "embeddings": [(0, 0)]}
    assert found.layers["relations"] == [(ours - 1, theirs - 1)]
    assert found.layers["attention"] == [(i - 1, j - 1) for i, j in hidden]


@pytest.mark.parametrize(("ours", "theirs", "wanted"), [(384, 128, 16), (28, 21, 7), (64, 64, 16), (5, 7, 1)])
def test_relation_heads_divide_both(ours: int, theirs: int, wanted: int) -> None:
    assert relation_heads(ours, theirs) == wanted


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("tags", "neurons")])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    name: str, tiny_model: NLUModel, tiny_data: NLUData
) -> None:
    """States are kept as float16: relative errors of 2^-11, squared."""
    teacher = variant(tiny_model, "plain")
    student = teacher.copy()
    loss = loss_of(name, teacher, student, tiny_data.train)
    assert value(loss, student, tiny_data.train, [0, 3, 20, 44]) == pytest.approx(0.0, abs=1e-5)
    assert len(getattr(student, "projections", ())) == 0  # none is needed


def test_hidden_by_hand(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """States of the last layer twice as large: (2 t - t)^2 / t^2 = 1, those before it equal: 0."""
    teacher = variant(tiny_model, "plain")
    student = teacher.copy()
    with torch.no_grad():
        for p in student.encoder.layers[-1].ffn.norm.parameters():  # type: ignore[union-attr]
            p *= 2
    assert value(loss_of("hidden", teacher, student, tiny_data.train), student, tiny_data.train, [1, 7]) == (
        pytest.approx(1.0, abs=2**-9)
    )


@pytest.mark.parametrize("name", ["hidden", "attention", "relations", "embeddings"])
def test_filling_counts_for_nothing(name: str, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """Two messages of one length are worth the mean of each beside a longer one and alone."""
    teacher, student = variant(tiny_model, "plain"), random_model(tiny_model, seed=5)
    short, long = Message("hi", "greet"), Message("book a flight from Rome to Oslo on May 5", "book_flight")
    messages = (short, long)
    loss = loss_of(name, teacher, student, messages)
    alone, padded = value(loss, student, messages, [0]), value(loss, student, messages, [0, 1])
    lone = value(loss, student, messages, [1])
    assert min(alone, lone) < padded < max(alone, lone)


def test_labels_have_the_rest_of_the_share(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """soft s: (1 - s) labels + s answers + inside; plain text has no labels."""
    teacher, student = variant(tiny_model, "plain"), random_model(tiny_model, seed=5)
    messages = (*tiny_data.train[:4], Message("a flight for two"))
    rows = [0, 2, 4]

    def at(soft: float, names: str = "logits") -> float:
        return value(loss_of(names, teacher, student, messages, soft), student, messages, rows)

    labels, answers = at(0.0), at(1.0)
    assert at(0.75) == pytest.approx(0.25 * labels + 0.75 * answers, rel=1e-5)
    inside = at(1.0, "relations")
    assert at(0.75, "logits+relations") == pytest.approx(at(0.75) + inside, rel=1e-5)
    same = soft_labels_loss(teacher, student, messages, False, soft=0.75)
    with torch.no_grad():
        assert at(0.75) == pytest.approx(float(same(student, collate(encode(student, messages), rows))), rel=1e-5)


def unfitted(student: NLUModel) -> None:
    """Projections that say nothing yet: relative errors are 1."""
    with torch.no_grad():
        for p in getattr(student, "projections", torch.nn.Module()).parameters():
            p.zero_()


# projections --------------------------------------------------------------------------------------------------------


def test_projections_are_least_squares_at_first_and_thrown_away(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    teacher = random_model(tiny_model, layers=((3, 37),) * 2)
    student = random_model(tiny_model, layers=((2, 11),), hidden=16, head_size=8, seed=3)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    loss = loss_of("hidden+neurons", teacher, student, tiny_data.train)
    found = dict(student.projections.named_parameters())  # type: ignore[union-attr]
    assert {k: tuple(p.shape) for k, p in found.items()} == {
        "hidden_0.weight": (28, 16),
        "hidden_0.bias": (28,),
        "neurons_0.weight": (14, 16),
        "neurons_0.bias": (14,),
    }
    rows = list(range(len(tiny_data.train)))
    fitted = value(loss, student, tiny_data.train, rows)
    with torch.no_grad():
        for p in found.values():
            p *= 1.05
    assert value(loss, student, tiny_data.train, rows) > fitted
    assert fitted < 2.0  # two relative errors, less than of guessing 0
    after = without_projections(student).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_training_lowers_every_loss(name: str, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    run = quiet_run(tiny_data, tiny_model)
    student = Student(layers=1, hidden=64, ffn=64).apply(tiny_model, run)
    loss = loss_of(name, tiny_model, student, tiny_data.train)
    unfitted(student)
    start, values = student.copy(), []

    def recorded(model: NLUModel, batch: Batch) -> Tensor:
        found = loss(model, batch)
        values.append(float(found.detach()))
        return found

    settings = TrainingSettings(epochs=8, batch_size=20, learning_rate=3e-3, dropout=0.0)
    fit(student, tiny_data.train, (), settings, loss=recorded, device="cpu", progress=False)
    rows = list(range(len(tiny_data.train)))
    before, after = (value(loss, m, tiny_data.train, rows) for m in (start, student))
    assert after < 0.7 * before
    assert after < min(values[:3])


@pytest.mark.parametrize("kind", ["bilstm", "cnn", "bag"])
def test_students_of_other_kinds_learn_hidden_states(kind: str, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    student = Student(kind=kind, hidden=128).apply(tiny_model, quiet_run(tiny_data, tiny_model))  # type: ignore[arg-type]
    loss = loss_of("hidden", tiny_model, student, tiny_data.train)
    assert set(student.projections) == {"hidden_0"}  # type: ignore[arg-type]  # as wide, but nothing alike
    unfitted(student)
    start = student.copy()
    settings = TrainingSettings(epochs=4, batch_size=20, learning_rate=3e-3, dropout=0.0)
    fit(student, tiny_data.train, (), settings, loss=loss, device="cpu", progress=False)
    rows = list(range(len(tiny_data.train)))
    assert value(loss, start, tiny_data.train, rows) == pytest.approx(1.0)
    assert value(loss, student, tiny_data.train, rows) < 0.7


def test_what_has_no_room_is_asked_again(
    tiny_model: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = variant(tiny_model, "plain"), random_model(tiny_model, seed=5)
    kept = loss_of("hidden+relations", teacher, student, tiny_data.train)
    wanted = [value(kept, student, tiny_data.train, [0, 9]) for _ in range(2)]
    monkeypatch.setattr("flyweight.training.distillation.ROOM", 0)
    asked = loss_of("hidden+relations", teacher, student, tiny_data.train)
    # Padding moves float sums, and those float16 roundings: 2^-11 of a number at most.
    assert [value(asked, student, tiny_data.train, [0, 9]) for _ in range(2)] == pytest.approx(wanted, rel=2**-11)
    assert kept.watched is not None
    assert asked.watched is not None
    assert kept.watched.kept
    assert not asked.watched.kept


# what cannot be compared --------------------------------------------------------------------------------------------


def test_teachers_that_cannot_teach_so_are_refused_in_one_line(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    student = variant(tiny_model, "plain")
    messages = tiny_data.train[:4]
    answers = soft_labels_loss(student, student, messages, False)

    def refusal(names: str, teacher: Any, model: NLUModel = student) -> str:
        with pytest.raises(ConfigError) as caught:
            distilled_loss(names.split("+"), teacher, model, messages, answers)
        return str(caught.value)

    function = LogitsTeacher(lambda texts: torch.zeros(len(texts), 4), student.labels.intents)
    assert refusal("logits+hidden", function) == (
        "the losses hidden compare what a model computes, and this teacher gives answers only; "
        "name one model folder as the teacher, or learn logits, mse, tags"
    )
    other = variant(tiny_model, "plain")
    other.tokenizer = Tokenizer(other.tokenizer.source, 4)
    found = refusal("hidden+neurons", other)
    assert found.startswith("the teacher cuts '")
    assert found.endswith(": the losses hidden+neurons compare tokens; learn answers and neurons only")
    found_one = distilled_loss(["neurons"], other, student.copy(), messages, answers, device="cpu", progress=False)
    assert isinstance(found_one, DistilledLoss)
    cut = variant(tiny_model, "cut")
    assert refusal("attention", cut, cut) == (
        "the model has no attention heads in layer 0, and the losses attention compare attention heads; leave them out"
    )
    nothing = random_model(tiny_model, layers=())
    for name in ("relations", "attention"):
        assert refusal(name, student, nothing) == (
            f"the model has no layers, and the losses {name} compare attention heads; leave them out"
        )
    tagger = variant(tiny_model, "entities only")
    assert refusal("neurons", tagger, tagger) == (
        "the loss neurons chooses them by the teacher's intents, and it has none; leave neurons out"
    )


def test_relative_bias_is_part_of_attention(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    teacher = random_model(tiny_model, relative_buckets=32)
    student = teacher.copy()
    loss = loss_of("attention", teacher, student, tiny_data.train)
    assert value(loss, student, tiny_data.train, [0, 5]) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        student.encoder.layers[0].attention.relative_bias[3] += 2.0  # type: ignore[union-attr, index, operator]
    assert value(loss, student, tiny_data.train, [0, 5]) > 1e-3


def test_another_loss_is_another_training(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    teacher, messages = variant(tiny_model, "plain"), tiny_data.train[:6]
    other = random_model(tiny_model, seed=9)
    names = {
        loss_of(names, t, teacher.copy(), messages, soft).__name__
        for names in ("logits", "mse", "logits+hidden", "logits+embeddings")
        for t in (teacher, other)
        for soft in (1.0, 0.5)
    }
    assert len(names) == 16
