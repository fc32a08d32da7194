"""Rooms that remove heads, neurons and layers: how much goes, which ones, in which order, and what they refuse."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from random_models import quiet_run, random_model, same_bits, variant

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, DataError, FlyweightWarning
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_heads, keep_layers
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.head_pruning import HeadPruning
from flyweight.techniques.hidden_pruning import HiddenPruning
from flyweight.techniques.int8 import Int8
from flyweight.techniques.layer_pruning import LayerPruning, mean_loss
from flyweight.techniques.neuron_pruning import NeuronPruning
from flyweight.training import quantized
from flyweight.training.hidden import hidden_states_loss, layers_taught
from flyweight.training.importance import counts, head_importance, mask_gradients

TAUGHT = [name for name, cls in TECHNIQUES.items() if "distil" in {f.name for f in fields(cls)}]


def shapes(model: NLUModel) -> list[tuple[int, int]]:
    return [(s.heads, s.ffn) for s in model.encoder.config.layers]


@pytest.mark.parametrize(
    ("total", "keep", "step", "wanted"),
    [
        (72, 0.5, 0.1, [64, 56, 48, 40, 36]),
        (72, 0.0, 0.25, [54, 36, 18, 0]),
        (10, 0.9, 0.1, [9]),
        (10, 0.5, 1, [5]),
        (10, 0.96, 0.1, []),  # round(9.6) = 10: nothing goes
        (5, 0.0, 0.01, [4, 3, 2, 1, 0]),
        (0, 0.5, 0.1, []),
    ],
)
def test_counts_after_each_round(total: int, keep: float, step: float, wanted: list[int]) -> None:
    assert counts(total, keep, step) == wanted


def test_heads_go_in_rounds_and_are_scored_again(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((4, 8), (3, 8)))
    run = quiet_run(tiny_data, model)
    child = HeadPruning(keep=0.5, step=0.3, epochs=0, n_messages=16).apply(model, run)
    assert sum(h for h, _ in shapes(child)) == 4  # round(3.5), in one round of ceil(2.1) = 3
    by_hand = model
    scores = head_importance(mask_gradients(by_hand, tiny_data.train, 16, device="cpu"))
    least = sorted((float(s), i, h) for i, of_layer in enumerate(scores) for h, s in enumerate(of_layer))[:3]
    gone = {(i, h) for _, i, h in least}
    kept = {i: [h for h in range(n) if (i, h) not in gone] for i, n in enumerate((4, 3))}
    assert same_bits(child, keep_heads(model, kept), [m.text for m in tiny_data.validation])


@pytest.mark.parametrize("keep", [0.0, 0.3])
def test_neurons_go_over_all_layers(tiny_data: NLUData, tiny_model: NLUModel, keep: float) -> None:
    model = variant(tiny_model, "cut")
    room = NeuronPruning(keep=keep, step=0.4, between=0, epochs=0, n_messages=8)
    child = room.apply(model, quiet_run(tiny_data, model))
    assert sum(n for _, n in shapes(child)) == round(keep * 58)
    assert [h for h, _ in shapes(child)] == [h for h, _ in shapes(model)]


def test_training_between_rounds_is_training(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "plain")
    room = NeuronPruning(keep=0.5, step=0.25, between=1, epochs=2, n_messages=8)
    child = room.apply(model, quiet_run(tiny_data, model))
    trained = [step["training"]["epochs"] for step in child.card.steps if "training" in step]
    assert trained == [step["training"]["epochs"] for step in model.card.steps if "training" in step] + [1, 2]


def test_what_was_learnt_is_nearer_to_the_model_before(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    texts = [m.text for m in tiny_data.test]
    before = [a for a, _ in tiny_model.logits(tiny_model.tokenizer.encode_batch(texts))]

    def gap(epochs: int) -> float:
        room = NeuronPruning(keep=0.2, step=0.4, between=0, epochs=epochs, learning_rate=1e-3)
        child = room.apply(tiny_model, quiet_run(tiny_data, tiny_model))
        after = [a for a, _ in child.logits(child.tokenizer.encode_batch(texts))]
        return float(np.mean(np.square(np.subtract(after, before))))

    assert gap(20) < 0.7 * gap(0)


# layers -------------------------------------------------------------------------------------------------------------


def test_the_layer_that_does_least_goes_first(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Layer 1 of three adds nearly nothing before its norms, whose weights are 1: the model hardly sees it."""
    model = random_model(tiny_model, layers=((3, 37),) * 3)
    with torch.no_grad():
        for part in (model.encoder.layers[1].attention, model.encoder.layers[1].ffn):
            part.norm.weight.fill_(1)
            part.norm.bias.fill_(0)
        for matrix in (model.encoder.layers[1].attention.out, model.encoder.layers[1].ffn.down):
            assert matrix.bias is not None
            matrix.weight.mul_(1e-6)
            matrix.bias.fill_(0)
        model.encoder.layers[0].ffn.norm.weight.fill_(1)
        model.encoder.layers[0].ffn.norm.bias.fill_(0)
    child = LayerPruning(keep=2, epochs=0).apply(model, quiet_run(tiny_data, model))
    assert same_bits(child, keep_layers(model, [0, 2]), [m.text for m in tiny_data.test])


def test_the_layer_without_which_the_loss_is_least_goes_first(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((3, 37),) * 3)
    child = LayerPruning(keep=2, cost="loss", epochs=0).apply(model, quiet_run(tiny_data, model))
    cut = [keep_layers(model, [j for j in range(3) if j != i]) for i in range(3)]
    losses = [mean_loss(c, tiny_data.validation) for c in cut]
    assert len(set(losses)) == 3
    assert same_bits(child, cut[losses.index(min(losses))], [m.text for m in tiny_data.test])


def test_layers_down_to_none(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "cut")
    for keep, left in ((None, 2), (1, 1), (0, 0)):
        child = LayerPruning(keep=keep, epochs=0).apply(model, quiet_run(tiny_data, model))
        assert len(child.encoder.layers) == left


@torch.no_grad()
def test_the_mean_loss_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    messages = [m for m in tiny_data.validation if not m.entities]
    model = variant(tiny_model, "no entities")
    found = []
    for m in messages:
        [(logits, _)] = model.logits([model.tokenizer.encode(m.text)])
        p = np.exp(logits.astype(np.float64) - logits.max())
        found.append(-np.log(p[model.labels.intents.index(str(m.intent))] / p.sum()))
    assert mean_loss(model, messages) == pytest.approx(float(np.mean(found)), rel=1e-5)


def test_the_teachers_layers_of_what_is_left(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Each learns what the next one left was given; a model that was cut before is a teacher of what is cut from it."""
    model = random_model(tiny_model, layers=((3, 37),) * 4)
    first = keep_layers(model, [0, 2, 3])
    assert layers_taught(model, model) == [0, 1, 2, 3]
    assert layers_taught(first, model) == [1, 2, 3]
    assert layers_taught(keep_layers(first, [0, 2]), model) == [2, 3]
    assert layers_taught(keep_layers(first, [0, 2]), first) == [1, 2]
    assert layers_taught(first, keep_layers(model, [0, 1, 2])) is None  # layer 3 is none of the teacher's
    assert layers_taught(first, variant(tiny_model, "plain")) is None


def test_layers_then_heads_learn_hidden_states(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((3, 37),) * 3)
    run = quiet_run(tiny_data, model)
    child = HeadPruning(keep=0.5, epochs=1).apply(LayerPruning(keep=2, epochs=1).apply(model, run), run)
    assert (len(child.encoder.layers), sum(h for h, _ in shapes(child))) == (2, 3)


# what comes after, taught by the model before -----------------------------------------------------------------------


def test_the_rooms_that_are_taught() -> None:
    wanted = {"qat", "trained_codes", "magnitude", "movement", "head_pruning", "neuron_pruning", "layer_pruning"}
    assert set(TAUGHT) == wanted


@pytest.mark.parametrize("name", TAUGHT)
def test_after_layers_every_room_learns_the_hidden_states_of_what_is_left(
    name: str, tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = random_model(tiny_model, layers=((3, 37),) * 4)
    learnt: list[Any] = []

    def watched(*args: Any, layers: Any, **settings: Any) -> Any:
        learnt.append(layers)
        return hidden_states_loss(*args, layers=layers, **settings)

    monkeypatch.setattr(quantized, "hidden_states_loss", watched)
    model = keep_layers(teacher, [0, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlyweightWarning)
        TECHNIQUES[name](epochs=1, distil="hidden").apply(model, quiet_run(tiny_data, teacher))
    assert set(map(tuple, learnt)) == {(3,) if name == "layer_pruning" else (1, 3)}


@pytest.mark.parametrize("name", TAUGHT)
def test_a_narrower_model_learns_logits_and_says_so(name: str, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    teacher = random_model(tiny_model, layers=((3, 37),) * 2)
    run = quiet_run(tiny_data, teacher)
    model = HiddenPruning(keep=0.5, epochs=0).apply(teacher, run)
    words = (
        "the teacher has 28 numbers a token, the model 14: their hidden states cannot be compared, so only its logits "
        "are learnt (distil=logits)"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        found = TECHNIQUES[name](epochs=1, distil="hidden").apply(model, run)
    assert [str(w.message) for w in said if w.category is FlyweightWarning] == [words]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlyweightWarning)
        wanted = TECHNIQUES[name](epochs=1, distil="logits").apply(model, run)
    assert same_bits(found, wanted, [m.text for m in tiny_data.test])


# refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [HeadPruning(), NeuronPruning(), LayerPruning()])
def test_a_packed_model_is_refused_in_one_line(tiny_data: NLUData, tiny_model: NLUModel, room: Any) -> None:
    run = quiet_run(tiny_data, tiny_model)
    packed = Int8(embeddings=False, heads=False).apply(tiny_model, run)
    with pytest.raises(ConfigError, match=r"^[^\n]* is packed or masked; [^\n]*prune structure first[^\n]*$"):
        room.apply(packed, run)


def test_without_messages_that_tell(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    bare = replace(tiny_data, train=(), validation=())
    for room in (HeadPruning(epochs=0), NeuronPruning(epochs=0)):
        with pytest.raises(DataError, match=r"^no labelled message; "):
            room.apply(tiny_model, quiet_run(bare, tiny_model))
    with pytest.raises(DataError, match=r"^no validation messages and no training messages; "):
        LayerPruning(epochs=0).apply(tiny_model, quiet_run(bare, tiny_model))
    unlabelled = replace(bare, validation=tuple(replace(m, intent=None, entities=()) for m in tiny_data.validation))
    with pytest.raises(DataError, match=r"^no labelled message; [^\n]* the loss of the labels "):
        LayerPruning(epochs=0, cost="loss").apply(tiny_model, quiet_run(unlabelled, tiny_model))


@pytest.mark.parametrize("cost", ["agreement", "loss"])
def test_without_validation_messages_layers_are_measured_on_those_of_training(
    cost: Any, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    model, room = random_model(tiny_model, layers=((3, 37),) * 3), LayerPruning(keep=2, cost=cost, epochs=0)
    without = replace(tiny_data, validation=())
    both = replace(tiny_data, validation=tiny_data.train)
    found, wanted = (room.apply(model, quiet_run(data, model)) for data in (without, both))
    assert same_bits(found, wanted, [m.text for m in tiny_data.test])
