"""Learning hidden states: the loss by hand, the teacher's own token ids, names of trainings."""

from __future__ import annotations

import json

import pytest
import torch
from random_models import random_model, variant

from flyweight.data.messages import Message, NLUData
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_layers
from flyweight.tokenizer import Tokenizer
from flyweight.training.hidden import hidden_states_loss
from flyweight.training.logits import soft_labels_loss
from flyweight.training.loop import TrainingSettings, collate, encode, fit
from flyweight.training.losses import Batch


@pytest.fixture
def pair(tiny_model: NLUModel) -> tuple[NLUModel, NLUModel]:
    """A teacher, and a student whose last norm is twice as large."""
    teacher = variant(tiny_model, "plain")
    student = teacher.copy()
    with torch.no_grad():
        for p in student.encoder.layers[-1].ffn.norm.parameters():
            p *= 2
    return teacher, student


@torch.no_grad()
def test_the_loss_by_hand(pair: tuple[NLUModel, NLUModel], tiny_data: NLUData) -> None:
    teacher, student = pair
    messages = tiny_data.train[:10]
    batch = collate(encode(student, messages), [3, 0, 7])
    soft = soft_labels_loss(teacher, student, messages, progress=False)(student, batch)
    found = hidden_states_loss(teacher, student, messages)(student, batch)
    # Only the last states differ: h = 2 t, so mean |h - t|^2 / mean |t|^2 = 1.
    # Each t is rounded to float16, by at most 2^-11 of itself, which moves (2 t - t')^2 / t'^2 by at most 2^-9.
    assert float(found - soft) == pytest.approx(1.0, abs=2**-9)
    same = hidden_states_loss(teacher, teacher.copy(), messages)
    assert float(same(teacher, batch)) == pytest.approx(
        float(soft_labels_loss(teacher, teacher, messages, progress=False)(teacher, batch)), rel=1e-6
    )


@torch.no_grad()
def test_filling_counts_for_nothing(pair: tuple[NLUModel, NLUModel]) -> None:
    """A short message beside a long one is worth the same as beside a short one."""
    teacher, student = pair
    with torch.no_grad():
        student.encoder.layers[0].ffn.up.weight.add_(0.1)
    short, long = Message("hi", "greet"), Message("book a flight from Rome to Oslo on May 5", "book_flight")

    def hidden_part(messages: list[Message]) -> float:
        batch = collate(encode(student, messages), list(range(len(messages))))
        soft = soft_labels_loss(teacher, student, messages, progress=False)(student, batch)
        return float(hidden_states_loss(teacher, student, messages)(student, batch) - soft)

    twice, once = hidden_part([short, short]), hidden_part([short])
    assert twice == pytest.approx(once, rel=1e-4)
    lone = hidden_part([long])
    assert min(once, lone) < hidden_part([short, long]) < max(once, lone)


def test_the_teacher_reads_its_own_token_ids(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Within `fit` the student's ids are numbered anew: a student equal to its teacher still has nothing to learn."""
    teacher = variant(tiny_model, "plain")
    student = teacher.copy()
    loss = hidden_states_loss(teacher, student, tiny_data.train, soft=1.0)
    values: list[float] = []

    def recorded(model: NLUModel, batch: Batch) -> torch.Tensor:
        assert int(batch.ids.max()) < len(model.encoder.words.weight) < len(teacher.encoder.words.weight)
        found = loss(model, batch)
        values.append(float(found.detach()))
        return found * 0

    settings = TrainingSettings(epochs=1, dropout=0.0, weight_decay=0.0)
    fit(student, tiny_data.train, (), settings, loss=recorded, device="cpu", progress=False)
    assert len(values) == 2
    assert max(values) < 1e-3  # bf16, where the processor has it, rounds both alike


def test_another_teacher_is_another_training(pair: tuple[NLUModel, NLUModel], tiny_data: NLUData) -> None:
    teacher, student = pair
    messages = tiny_data.train[:4]
    names = {
        hidden_states_loss(t, student, messages, soft=s).__name__  # type: ignore[attr-defined]
        for t in (teacher, student)
        for s in (0.8, 1.0)
    }
    assert len(names) == 4


def test_a_teacher_of_another_shape_is_refused(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    student = variant(tiny_model, "plain")
    other = variant(tiny_model, "plain")
    other.tokenizer = Tokenizer(other.tokenizer.source, 20)
    for teacher, words in (
        (variant(tiny_model, "cut"), "the teacher has 4 layers, the model 2"),
        (other, "the teacher has 20 tokens at most, the model 40"),
    ):
        with pytest.raises(ConfigError, match=f"^{words}: their hidden states cannot be compared; learn its logits"):
            hidden_states_loss(teacher, student, tiny_data.train)


@torch.no_grad()
def test_fewer_layers_learn_from_those_named(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """Layers 0 and 2 of four: the student's first states are the teacher's, those behind layer 2 are not."""
    teacher = random_model(tiny_model, layers=((3, 37),) * 4)
    student, messages = keep_layers(teacher, [0, 2]), tiny_data.train[:6]
    batch = collate(encode(student, messages), [3, 0, 5])
    found = hidden_states_loss(teacher, student, messages, layers=[0, 2])(student, batch)
    soft = soft_labels_loss(teacher, student, messages, progress=False)(student, batch)
    h = student.encoder.hidden_states(batch.ids, batch.mask)[2][batch.mask]
    t = teacher.encoder.hidden_states(batch.ids, batch.mask)[3][batch.mask]
    assert float(found - soft) == pytest.approx(float((h - t).square().mean() / t.square().mean()), rel=1e-4)
    with pytest.raises(ConfigError, match=r"^the teacher has 3 layers, the model 2: "):
        hidden_states_loss(teacher, student, messages, layers=[0, 1, 2])


def test_another_tokenizer_must_cut_messages_alike(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    teacher = variant(tiny_model, "plain")
    student = teacher.copy()
    spec = json.loads(teacher.tokenizer.source)
    spec["model"]["continuing_subword_prefix"] = "@@"  # no word has pieces any more: they are unknown, one token each
    student.tokenizer = Tokenizer(json.dumps(spec), 40)
    whole = [
        m
        for m in tiny_data.train
        if len(teacher.tokenizer.encode(m.text).words) + 2 == len(teacher.tokenizer.encode(m.text).ids)
    ]
    assert whole
    hidden_states_loss(teacher, student, whole)
    cut = Message("hellohello", "greet")
    n = len(teacher.tokenizer.encode(cut.text).ids)
    with pytest.raises(ConfigError, match=f"^the teacher cuts 'hellohello' into {n} tokens, the model into 3: "):
        hidden_states_loss(teacher, student, [*whole, cut])
