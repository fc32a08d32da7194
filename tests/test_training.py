"""The training loop: it learns, it repeats itself bit for bit, it resumes where it was interrupted."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.data.messages import Message, NLUData
from flyweight.errors import ConfigError, DataError
from flyweight.forms.int8 import int8_rows
from flyweight.model.linear import Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.training import loop, teacher
from flyweight.training.loop import TrainingSettings, batches, collate, encode, fit, parameter_groups, rate
from flyweight.training.losses import Batch, Logits, Loss, labels_loss
from flyweight.training.teacher import build, calibrate, default_settings, train

SETTINGS = TrainingSettings(epochs=3, batch_size=16, learning_rate=1e-3)  # 60 messages: 4 steps an epoch, 12 in all


@pytest.fixture(scope="module")
def fresh(tiny_data: NLUData) -> NLUModel:
    """An untrained `small`; copy it before training."""
    return build(tiny_data, "small")


def weights(model: NLUModel) -> dict[str, torch.Tensor]:
    return {name: v.clone() for name, v in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def recorded(losses: list[float]) -> Loss:
    """labels_loss that writes down its values."""

    @functools.wraps(labels_loss)
    def loss(model: NLUModel, batch: Batch) -> torch.Tensor:
        value = labels_loss(model, batch)
        losses.append(float(value.detach()))
        return value

    return loss


def interrupting(step: int, times: int = 1) -> Loss:
    """labels_loss that presses Ctrl-C during a step (0 is the first)."""
    calls = iter(range(10_000))

    @functools.wraps(labels_loss)
    def loss(model: NLUModel, batch: Batch) -> torch.Tensor:
        if next(calls) == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return labels_loss(model, batch)

    return loss


def run(model: NLUModel, data: NLUData, settings: TrainingSettings = SETTINGS, **more: Any) -> NLUModel:
    """fit on the CPU, quietly."""
    return fit(model, data.train, data.validation, settings, device="cpu", progress=False, **more)


# learning -----------------------------------------------------------------------------------------------------------


def test_the_loss_falls(fresh: NLUModel, tiny_data: NLUData) -> None:
    losses: list[float] = []
    model = run(fresh.copy(), tiny_data, replace(SETTINGS, epochs=6), loss=recorded(losses))
    assert len(losses) == 24
    # at the start all answers are equally likely: log 4 intents + log 9 tags, up to the random heads
    assert losses[0] == pytest.approx(np.log(4) + np.log(9), rel=0.2)
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    assert not model.training
    [entry] = model.card.steps
    assert (entry["steps"], entry["messages"]) == (24, 60)
    assert entry["training"]["learning_rate"] == 1e-3


def test_the_same_seed_gives_the_same_bits(fresh: NLUModel, tiny_data: NLUData) -> None:
    torch.manual_seed(123)
    first = run(fresh.copy(), tiny_data)
    torch.manual_seed(456)
    np.random.default_rng(5).random()
    assert same_bits(weights(run(fresh.copy(), tiny_data)), weights(first))
    assert not same_bits(weights(run(fresh.copy(), tiny_data, replace(SETTINGS, seed=1))), weights(first))


def test_every_setting_matters(fresh: NLUModel, tiny_data: NLUData) -> None:
    settings = replace(SETTINGS, epochs=1)
    base = weights(run(fresh.copy(), tiny_data, settings))
    changes: dict[str, float] = {"learning_rate": 2e-3, "batch_size": 20, "warmup": 0.5, "weight_decay": 0.3}
    for name, value in (changes | {"dropout": 0.0, "clip": 0.01}).items():
        change: dict[str, Any] = {name: value}
        assert not same_bits(weights(run(fresh.copy(), tiny_data, replace(settings, **change))), base), change


def test_validation_does_not_change_what_is_learnt(fresh: NLUModel, tiny_data: NLUData) -> None:
    # Validation chooses the epoch, it draws no random number: with one epoch the weights are the same.
    settings = replace(SETTINGS, epochs=1)
    without = fit(fresh.copy(), tiny_data.train, (), settings, device="cpu", progress=False)
    assert same_bits(weights(run(fresh.copy(), tiny_data, settings)), weights(without))
    assert without.card.steps[-1]["validation_f1"] is None


def test_unseen_tokens_keep_their_rows(fresh: NLUModel, tiny_data: NLUData) -> None:
    before = weights(fresh)["encoder.words.weight"]
    model = run(fresh.copy(), tiny_data)
    after = model.encoder.words.weight.detach()
    seen = {0} | {int(i) for e in encode(fresh, tiny_data.train + tiny_data.validation) for i in e.encoded.ids}
    unseen = [i for i in range(len(before)) if i not in seen]
    assert len(unseen) > 20
    assert torch.equal(after[unseen], before[unseen])
    trained = sorted({int(i) for e in encode(fresh, tiny_data.train) for i in e.encoded.ids})
    assert (after[trained] != before[trained]).any(dim=1).all()
    assert after.shape == before.shape
    assert model.encoder.words.weight.requires_grad


def test_only_given_messages_are_tokenized(tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch) -> None:
    from flyweight.tokenizer import Tokenizer

    seen: set[str] = set()
    original = Tokenizer.encode_batch

    def spy(self: Tokenizer, texts: list[str]) -> list[Any]:
        seen.update(texts)
        return original(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", spy)
    marked = tuple(Message(f"{m.text} zyzzyva", m.intent) for m in tiny_data.test)
    data = tiny_data.with_splits(tiny_data.train, tiny_data.validation, marked)
    model = train(data, "small", replace(SETTINGS, epochs=1), device="cpu", progress=False)
    assert seen == {m.text for m in tiny_data.train + tiny_data.validation}
    assert "zyzzyva" not in model.tokenizer.source
    assert not set(model.card.golden) & {m.text for m in marked}


def test_messages_without_intent_train_tags_only(fresh: NLUModel, tiny_data: NLUData) -> None:
    messages = tuple(replace(m, intent=None) for m in tiny_data.train)
    model = fit(fresh.copy(), messages, (), SETTINGS, device="cpu", progress=False)
    before, after = weights(fresh), weights(model)
    # no gradient reaches the label embeddings: they only decay, by at most lr * decay a step
    decay = 1 - 12 * SETTINGS.learning_rate * SETTINGS.weight_decay
    ratio = after["intent_head.weight"] / before["intent_head.weight"]
    assert ratio.max() <= 1
    assert ratio.min() >= decay
    moved = (after["tag_head.weight"] - before["tag_head.weight"]).abs()
    assert (moved > 1e-4).float().mean() > 0.9


def test_losses_by_hand(fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy().eval()
    known = encode(model, tiny_data.train[:3])
    unknown = encode(model, [replace(m, intent=None) for m in tiny_data.train[:1]])
    batch = collate([*known, *unknown], [0, 1, 2, 3])
    wanted_intent, wanted_tags, n_words = 0.0, 0.0, 0
    for example in [*known, *unknown]:
        [(intent, tags)] = model.logits([example.encoded])
        assert tags is not None
        wanted_intent -= (
            float(torch.log_softmax(torch.from_numpy(intent), 0)[example.intent]) if example.intent >= 0 else 0
        )
        wanted_tags -= float(
            sum(torch.log_softmax(torch.from_numpy(t), 0)[z] for t, z in zip(tags, example.tags, strict=True))
        )
        n_words += len(tags)
    with torch.no_grad():
        assert float(labels_loss(model, batch)) == pytest.approx(wanted_intent / 3 + wanted_tags / n_words, rel=1e-5)
        nothing = collate(encode(model, [Message("", None)]), [0])
        assert float(labels_loss(model, nothing)) == 0


def test_a_packed_model_trains_after_unpacking(fresh: NLUModel, tiny_data: NLUData) -> None:
    packed = fresh.copy()
    for _, module, _ in packed.matrices():
        form = int8_rows(module.weight.detach().numpy())
        set_form(module, form, "int8" if isinstance(module, Linear) else "float")
    start = weights(packed)
    model = run(packed, tiny_data, replace(SETTINGS, epochs=1))
    assert model is packed
    assert all(m.form is None and m.activations == "float" for _, m, _ in model.matrices())
    moved = [k for k, v in weights(model).items() if not torch.equal(v, start[k])]
    assert len(moved) == len(start)  # gradients reach every tensor


# interruption -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(fresh: NLUModel, tiny_data: NLUData) -> dict[str, torch.Tensor]:
    return weights(run(fresh.copy(), tiny_data))


@pytest.mark.parametrize("step", [0, 2, 3, 4, 10, 11])  # within an epoch, at its last and at its first step
def test_interrupted_and_resumed_is_uninterrupted(
    fresh: NLUModel, tiny_data: NLUData, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], step: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(fresh.copy(), tiny_data, loss=interrupting(step), folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [f.name for f in tmp_path.iterdir()] == ["training.pt"]
    torch.manual_seed(999)  # another process has another state
    losses: list[float] = []
    model = run(fresh.copy(), tiny_data, loss=recorded(losses), folder=tmp_path)
    assert len(losses) == 12 - (step + 1)  # the interrupted step was finished and saved
    assert same_bits(weights(model), uninterrupted)
    # A finished training keeps its checkpoint until its result is safe: asked again, it is done at once.
    again = run(fresh.copy(), tiny_data, loss=recorded(losses), folder=tmp_path)
    assert len(losses) == 12 - (step + 1)
    assert same_bits(weights(again), uninterrupted)
    loop.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_many_times(
    fresh: NLUModel, tiny_data: NLUData, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run(fresh.copy(), tiny_data, loss=interrupting(1), folder=tmp_path)
    assert same_bits(weights(run(fresh.copy(), tiny_data, folder=tmp_path)), uninterrupted)


def test_a_second_interrupt_stops_at_once(fresh: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(fresh.copy(), tiny_data, loss=interrupting(1, times=2), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []  # before the step was finished and saved
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupted_training_leaves_a_whole_model(fresh: NLUModel, tiny_data: NLUData) -> None:
    model = fresh.copy()
    with pytest.raises(KeyboardInterrupt):
        run(model, tiny_data, loss=interrupting(1))
    assert model.encoder.words.weight.shape == fresh.encoder.words.weight.shape
    model.answers(["hello"])


def test_checkpoints_of_other_trainings_are_not_resumed(
    fresh: NLUModel, tiny_data: NLUData, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(fresh.copy(), tiny_data, loss=interrupting(5), folder=tmp_path)
    checkpoint = (tmp_path / "training.pt").read_bytes()

    def refused(model: NLUModel, data: NLUData, settings: TrainingSettings = SETTINGS) -> bool:
        with pytest.raises(ConfigError, match="belongs to a training with other settings or messages; choose another"):
            run(model, data, settings, folder=tmp_path)
        return (tmp_path / "training.pt").read_bytes() == checkpoint

    other_weights = fresh.copy()
    with torch.no_grad():
        other_weights.encoder.norm.bias[0] += 1
    fewer = tiny_data.with_splits(tiny_data.train[:-1], tiny_data.validation, ())
    reordered = tiny_data.with_splits(tiny_data.train[::-1], tiny_data.validation, ())
    unvalidated = tiny_data.with_splits(tiny_data.train, tiny_data.validation[1:], ())
    assert refused(fresh.copy(), tiny_data, replace(SETTINGS, seed=1))
    assert refused(fresh.copy(), tiny_data, replace(SETTINGS, clip=0.9))
    assert refused(other_weights, tiny_data)
    for data in (fewer, reordered, unvalidated):
        assert refused(fresh.copy(), data)
    losses: list[float] = []
    run(fresh.copy(), tiny_data, loss=recorded(losses), folder=tmp_path)
    assert len(losses) == 6  # the right one goes on


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + b"\0" * 100])
def test_a_broken_checkpoint_is_refused(fresh: NLUModel, tiny_data: NLUData, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "training.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"training\.pt cannot be read \(.*\); delete it to train anew"):
        run(fresh.copy(), tiny_data, folder=tmp_path)


def test_work_is_saved_within_an_epoch_too(fresh: NLUModel, tiny_data: NLUData, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    saved: list[int] = []
    original = loop._Run.save

    def spy(self: loop._Run) -> None:
        saved.append(self.step)
        original(self)

    monkeypatch.setattr(loop._Run, "save", spy)
    run(fresh.copy(), tiny_data, folder=tmp_path)
    assert saved == [4, 8, 12]  # at the end of each epoch
    saved.clear()
    loop.forget(tmp_path)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run(fresh.copy(), tiny_data, folder=tmp_path)
    assert saved == [*range(1, 13), 12]  # after each step, and the result


def test_training_in_a_thread_leaves_signals_alone(
    fresh: NLUModel, tiny_data: NLUData, uninterrupted: dict[str, torch.Tensor]
) -> None:
    found: list[NLUModel] = []
    thread = threading.Thread(target=lambda: found.append(run(fresh.copy(), tiny_data)))
    thread.start()
    thread.join()
    assert same_bits(weights(found[0]), uninterrupted)


# the best epoch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.1, -1.0), (0.9, -1.0), (0.5, -1.0)], 2),
        ([(0.9, -3.0), (0.9, -1.0), (0.9, -2.0)], 2),  # equal F1: the likelier
        ([(0.9, -1.0), (0.9, -1.0), (0.1, 0.0)], 2),  # equal: the later
        ([(0.0, -9.0), (0.0, -9.5), (0.0, -9.9)], 1),
    ],
)
def test_the_best_epoch_is_kept(
    fresh: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]], best: int
) -> None:
    left: Iterator[tuple[float, float]] = iter(scores)
    states: list[dict[str, torch.Tensor]] = []

    def validate(self: loop._Run) -> tuple[float, float]:
        states.append({k: v.clone() for k, v in self.model.state_dict().items() if k != "encoder.words.weight"})
        return next(left)

    monkeypatch.setattr(loop._Run, "validate", validate)
    model = run(fresh.copy(), tiny_data)
    found = {k: v for k, v in weights(model).items() if k != "encoder.words.weight"}
    assert [same_bits(found, state) for state in states] == [i == best for i in (1, 2, 3)]
    assert model.card.steps[-1]["best_epoch"] == best
    assert model.card.steps[-1]["validation_f1"] == scores[best - 1][0]


def test_the_validation_score_is_the_models_own(fresh: NLUModel, tiny_data: NLUData) -> None:
    from flyweight.measure.quality import macro_f1, span_f1

    model = run(fresh.copy(), tiny_data, replace(SETTINGS, epochs=6))
    answers = model.answers([m.text for m in tiny_data.validation])
    intent = macro_f1([str(m.intent) for m in tiny_data.validation], [a.intent for a in answers])
    spans = span_f1([m.entities for m in tiny_data.validation], [a.entities for a in answers])
    assert model.card.steps[-1]["validation_f1"] == pytest.approx((intent + spans) / 2, abs=1e-5)


def test_another_score_chooses_the_epoch(fresh: NLUModel, tiny_data: NLUData) -> None:
    """It is given the logits of the known validation messages in order; it may lie far below 0."""
    seen: list[Sequence[Logits]] = []
    validation = (Message("what is this", "unheard_of"), *tiny_data.validation)

    def agreement(logits: Sequence[Logits]) -> float:
        seen.append(logits)
        return [-300.0, -20.0, -50.0][len(seen) - 1]

    model = fit(fresh.copy(), tiny_data.train, validation, SETTINGS, score=agreement, device="cpu", progress=False)
    step = model.card.steps[-1]
    assert (step["best_epoch"], step["validation_agreement"], "validation_f1" in step) == (2, -20.0, False)
    own = model.logits(model.tokenizer.encode_batch([m.text for m in tiny_data.validation]))
    assert len(seen) == SETTINGS.epochs == 3
    for (intent, tags), (wanted, wanted_tags) in zip(seen[1], own, strict=True):
        assert np.allclose(intent, wanted, atol=1e-5)
        assert tags is not None
        assert np.allclose(tags, wanted_tags, atol=1e-5)


def test_unknown_intents_in_validation_are_left_out(fresh: NLUModel, tiny_data: NLUData) -> None:
    validation = (*tiny_data.validation, Message("what is this", "unheard_of"))
    model = fit(fresh.copy(), tiny_data.train, validation, replace(SETTINGS, epochs=1), device="cpu", progress=False)
    assert model.card.steps[-1]["validation_f1"] is not None
    with pytest.raises(
        DataError, match="intent 'unheard_of'; the model was made for: book_flight, greet, thanks, weather"
    ):
        fit(fresh.copy(), validation, (), SETTINGS, device="cpu", progress=False)


# learning rate, batches, settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "warmup", "wanted"),
    [
        (10, 0.2, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (4, 0.0, [1, 1, 2 / 3, 1 / 3]),  # one step of warm-up at least
        (5, 0.5, [1 / 2, 1, 1, 2 / 3, 1 / 3]),  # round(2.5) is 2
        (1, 0.1, [1]),
        (3, 0.99, [1 / 3, 2 / 3, 1]),
    ],
)
def test_rate_by_hand(n_steps: int, warmup: float, wanted: list[float]) -> None:
    assert [rate(step, n_steps, warmup) for step in range(n_steps)] == pytest.approx(wanted, abs=1e-12)
    assert rate(n_steps, n_steps, warmup) == 0


@pytest.mark.parametrize("size", [1, 7, 16, 60, 100])
def test_batches_hold_each_row_once(fresh: NLUModel, tiny_data: NLUData, size: int) -> None:
    examples = encode(fresh, tiny_data.train)
    found = list(batches(examples, size, np.random.default_rng(0)))
    assert sorted(i for batch in found for i in batch) == list(range(60))
    assert len(found) == -(-60 // size)
    assert sorted(len(batch) for batch in found)[1:] == [size] * (len(found) - 1)
    assert list(batches(examples, size, np.random.default_rng(0))) == found


def test_messages_of_like_length_share_a_batch(
    fresh: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = encode(fresh, tiny_data.train)
    lengths = [[len(examples[i].encoded.ids) for i in b] for b in batches(examples, 10, np.random.default_rng(0))]
    ordered = sorted(lengths)
    assert [n for batch in ordered for n in batch] == sorted(len(e.encoded.ids) for e in examples)
    assert lengths != ordered  # the batches themselves come in random order
    monkeypatch.setattr(loop, "BUCKET_BATCHES", 2)
    rng = np.random.default_rng(0)
    order = rng.permutation(60)
    runs = [sorted(order[at : at + 20].tolist()) for at in range(0, 60, 20)]
    found = list(batches(examples, 10, np.random.default_rng(0)))
    assert all(any(set(b) <= set(r) for r in runs) for b in found)  # sorted within runs of 2 batches


def test_collate_by_hand(fresh: NLUModel) -> None:
    messages = [Message("hello", "greet"), Message("thank you", None)]
    batch = collate(encode(fresh, [*messages, Message("")]), [1, 0, 2])
    words = [fresh.tokenizer.encode(m.text) for m in (messages[1], messages[0])]
    T = max(len(w.ids) for w in words)
    assert batch.ids.shape == batch.mask.shape == (3, T)
    assert batch.ids[0, : len(words[0].ids)].tolist() == words[0].ids.tolist()
    assert batch.mask.sum(1).tolist() == [len(words[0].ids), len(words[1].ids), 2]
    assert not batch.ids[~batch.mask].any()
    assert batch.intents.tolist() == [-100, 1, -100]
    assert batch.tag_at.tolist() == [*words[0].first.tolist(), *(T + words[1].first).tolist()]
    assert batch.tags.tolist() == [0] * (len(words[0].first) + len(words[1].first))
    assert batch.rows.tolist() == [1, 0, 2]


def test_encoded_tags(fresh: NLUModel, tiny_data: NLUData) -> None:
    [example] = encode(fresh, tiny_data.train[9:10])  # book a flight from NYC to San Francisco today
    names = [fresh.labels.tags[i] for i in example.tags]
    assert names == ["O", "O", "O", "O", "B-city#from", "O", "B-city#to", "I-city#to", "B-date"]


def test_vectors_do_not_decay(fresh: NLUModel) -> None:
    decayed, kept = parameter_groups(fresh, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(fresh.parameters()))


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("epochs", 0, "none, or a whole number of at least 1"),
        ("epochs", 1.5, "none, or a whole number of at least 1"),
        ("seed", -1, "a whole number from 0 to below 2^63"),
        ("learning_rate", "fast", "above 0 and below 1"),
        ("learning_rate", 0.0, "above 0 and below 1"),
        ("learning_rate", 1.0, "above 0 and below 1"),
        ("learning_rate", float("nan"), "above 0 and below 1"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", True, "a whole number of at least 1"),
        ("warmup", 1.0, "from 0 to below 1"),
        ("warmup", -0.1, "from 0 to below 1"),
        ("weight_decay", -1.0, "at least 0"),
        ("dropout", 1.0, "from 0 to below 1"),
        ("clip", 0.0, "above 0"),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainingSettings(**{setting: value})  # type: ignore[arg-type]
    assert str(error.value) == f"training setting {setting} is {value!r}; allowed: {allowed}"


def test_epochs_follow_from_the_number_of_messages(fresh: NLUModel, tiny_data: NLUData) -> None:
    def n_steps(n_messages: int) -> int:
        messages = (tiny_data.train * (n_messages // 60 + 1))[:n_messages]
        state = loop._Run(fresh.copy(), messages, (), TrainingSettings(), labels_loss, None, torch.device("cpu"), None)
        return state.n_steps

    assert n_steps(60) == 40 * 2  # few messages: 40 epochs at most
    assert n_steps(4800) == 20 * 150  # 3000 steps
    assert default_settings("small").epochs == 60
    assert default_settings("minilm").epochs is None


def test_bad_input_is_refused(fresh: NLUModel, tiny_data: NLUData) -> None:
    with pytest.raises(DataError, match="no training messages; at least one labelled message is needed"):
        fit(fresh.copy(), [], progress=False)
    with pytest.raises(ConfigError, match="device 'gpu'"):
        fit(fresh.copy(), tiny_data.train, device="gpu", progress=False)


def test_temperature_is_fitted_on_validation(fresh: NLUModel, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    from flyweight.measure.quality import fit_temperature

    model = tiny_model.copy()
    calibrate(model, tiny_data.validation)
    assert model.labels.temperature == tiny_model.labels.temperature
    pairs = model.logits(model.tokenizer.encode_batch([m.text for m in tiny_data.validation]))
    gold = [model.labels.intents.index(str(m.intent)) for m in tiny_data.validation]
    wanted = fit_temperature(np.stack([intent for intent, _ in pairs]), gold)
    assert model.labels.temperature == pytest.approx(wanted, abs=5e-5)
    assert 0.05 < model.labels.temperature < 20
    untouched = fresh.copy()
    calibrate(untouched, [])
    assert untouched.labels.temperature == 1.0


def test_trained_models_are_written(tiny_data: NLUData, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    model = train(tiny_data, "small", settings, device="cpu", out=tmp_path / "m", progress=False)
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert same_bits(weights(NLUModel.load(tmp_path / "m")), weights(model))


def test_nothing_is_lost_between_the_last_step_and_the_saved_model(
    tiny_data: NLUData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(epochs=1, learning_rate=1e-3)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teacher, "calibrate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            teacher.train(tiny_data, "small", settings, out=tmp_path, progress=False)
    assert [f.name for f in tmp_path.iterdir()] == ["training.pt"]
    steps: list[int] = []
    original = loop._Run.train_step
    monkeypatch.setattr(loop._Run, "train_step", lambda self: steps.append(self.step) or original(self))
    model = teacher.train(tiny_data, "small", settings, out=tmp_path, progress=False)
    assert steps == []  # all were done before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert same_bits(weights(NLUModel.load(tmp_path)), weights(model))


def test_saved_files_can_be_read_by_others(tiny_model: NLUModel, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    wanted = (tmp_path / "plain").stat().st_mode
    for file in tiny_model.save(tmp_path / "model").iterdir():
        assert file.stat().st_mode == wanted, file.name
