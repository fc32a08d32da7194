"""The room `distillation`: students learn; who teaches; which text; hints first; interrupted, it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import quiet_run, random_model

import flyweight as fw
from flyweight.data.messages import Message, NLUData
from flyweight.errors import ConfigError, DataError
from flyweight.model.nlu import NLUModel
from flyweight.techniques import distillation
from flyweight.techniques.room import Run
from flyweight.training import loop
from flyweight.training.logits import soft_labels_loss


def agreement(teacher: NLUModel, model: NLUModel, messages: tuple[Message, ...]) -> float:
    """Minus the KL divergence, in nats."""
    score = soft_labels_loss(teacher, model, messages, False).agreement
    return score(model.logits(model.tokenizer.encode_batch([m.text for m in messages])))


@pytest.fixture
def run(tiny_data: NLUData, tiny_model: NLUModel) -> Run:
    return quiet_run(tiny_data, tiny_model)


@pytest.fixture
def student(tiny_model: NLUModel, run: Run) -> NLUModel:
    return fw.Student(layers=1, hidden=64).apply(tiny_model, run)


def same_weights(a: NLUModel, b: NLUModel) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(
    "losses",
    ["logits", "mse", "logits+tags", "mse+relations", "logits+hidden+embeddings+attention", "hints+logits+neurons"],
)
def test_a_student_learns_to_answer_as_its_teacher(
    losses: str, student: NLUModel, tiny_model: NLUModel, tiny_data: NLUData, run: Run
) -> None:
    found = fw.Distillation(losses=losses, transfer=3, epochs=6, learning_rate=3e-3).apply(student, run)
    before, after = (agreement(tiny_model, m, tiny_data.test) for m in (student, found))
    assert after > 0.5 * before  # both below 0: half of the divergence is gone
    right = sum(
        a.intent == b.intent
        for a, b in zip(*(m.answers([x.text for x in tiny_data.test]) for m in (found, tiny_model)), strict=True)
    )
    assert right >= 10  # of 12
    assert found.state_dict().keys() == student.state_dict().keys()  # nothing is left of projections


@pytest.mark.parametrize("kind", ["bilstm", "cnn", "bag"])
def test_students_of_other_kinds_learn(kind: Any, tiny_model: NLUModel, tiny_data: NLUData, run: Run) -> None:
    student = fw.Student(kind=kind, hidden=64, ngrams=128 if kind == "bag" else None).apply(tiny_model, run)
    found = fw.Distillation(transfer=3, epochs=8, learning_rate=5e-3).apply(student, run)
    before, after = (agreement(tiny_model, m, tiny_data.test) for m in (student, found))
    assert after > 0.7 * before


def test_teacher_and_student_may_cut_text_differently(tiny_model: NLUModel, tiny_data: NLUData, run: Run) -> None:
    student = fw.Student(vocabulary=210, layers=1).apply(tiny_model, run)
    found = fw.Distillation(losses="logits+tags+neurons", transfer=1, epochs=3).apply(student, run)
    assert agreement(tiny_model, found, tiny_data.test) > agreement(tiny_model, student, tiny_data.test)
    with pytest.raises(
        ConfigError, match=r"^the teacher cuts .* into \d+ tokens, the model into \d+: the losses hidden"
    ):
        fw.Distillation(losses="hidden", epochs=1).apply(student, run)


# who teaches --------------------------------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Teachers that are asked, in order."""
    found: list[Any] = []
    right = soft_labels_loss

    def watch(teacher: Any, *given: Any, **more: Any) -> Any:
        found.append(teacher)
        return right(teacher, *given, **more)

    monkeypatch.setattr(distillation, "soft_labels_loss", watch)
    return found


def test_the_assistant_is_the_model_before_the_last_student(
    student: NLUModel, tiny_model: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = asked(monkeypatch)
    step = fw.Distillation(teacher="assistant", epochs=1, transfer=0)
    with pytest.raises(
        ConfigError, match=r"^distillation: teacher is 'assistant'; allowed: after a student in the same"
    ):
        step.apply(student, run)
    assistant = random_model(tiny_model)
    step.apply(student, replace(run, assistant=assistant))
    assert all(t is assistant for t in teachers)
    assert teachers
    teachers.clear()
    fw.Distillation(epochs=1, transfer=0).apply(student, replace(run, assistant=assistant))
    assert all(t is run.teacher for t in teachers)


def test_a_chain_in_a_recipe(tiny_model: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = asked(monkeypatch)
    steps: list[Any] = [
        fw.Student(layers=1),
        fw.Distillation(epochs=1, transfer=0),
        fw.Student(hidden=32),
        fw.Distillation(epochs=1, transfer=0, teacher="assistant"),
    ]
    found = fw.compress(tiny_model, tiny_data, steps, measure=False, progress=False, device="cpu")
    assert [len(t.encoder.layers) for t in teachers] == [2, 2, 1, 1]
    assert teachers[-1].encoder.config.hidden == 128
    assert [step["technique"] for step in found.card.steps[-4:]] == ["student", "distillation"] * 2


def test_teachers_on_disk(
    student: NLUModel, tiny_model: NLUModel, tiny_data: NLUData, run: Run, tmp_path: Path
) -> None:
    """A folder teaches what the model in memory does, bit for bit; a .fly and a file of logits nearly."""

    def taught(teacher: Any, losses: str = "logits") -> NLUModel:
        return fw.Distillation(losses=losses, teacher=teacher, epochs=1, transfer=0).apply(student, run)

    folder = str(tiny_model.save(tmp_path / "teacher"))
    assert same_weights(taught(folder, "logits+hidden"), taught("first", "logits+hidden"))
    fly = str(fw.save(tiny_model, tmp_path / "teacher.fly"))
    texts = [m.text for m in (*tiny_data.train, *tiny_data.validation)]
    encoded = tiny_model.tokenizer.encode_batch(texts)
    rows = [
        {"text": t, "intent": i.tolist(), "words": e.words, "tags": tags.tolist()}  # type: ignore[union-attr]
        for t, e, (i, tags) in zip(texts, encoded, tiny_model.logits(encoded), strict=True)
    ]
    head = {"intents": list(tiny_model.labels.intents), "tags": list(tiny_model.labels.tags)}
    lines = tmp_path / "teacher.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in [head, *rows]))
    wanted = taught("first")
    for teacher in (fly, str(lines), [folder, fly, str(lines)]):
        found = taught(teacher)
        gap = max(float((v - wanted.state_dict()[k]).abs().max()) for k, v in found.state_dict().items())
        assert gap < 1e-3  # Adam's steps are as large as the learning rate wherever a gradient is next to 0
    with pytest.raises(ConfigError, match=r"^the losses hidden compare what a model computes, and this teacher gives"):
        taught(fly, "logits+hidden")
    with pytest.raises(
        ConfigError, match=r"^distillation: teacher is 'nowhere'; allowed: first, assistant, or a model"
    ):
        taught("nowhere")


def test_yaml_names_an_ensemble_by_a_list(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text("techniques:\n  - distillation: {teacher: [a, b.fly]}\n")
    assert fw.Recipe.load(tmp_path / "r.yml").techniques == (fw.Distillation(teacher=("a", "b.fly")),)


# text ---------------------------------------------------------------------------------------------------------------


def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(training messages, epochs, names of the losses) of each `fit`, which does nothing else."""
    found: list[Any] = []

    def watch(model: NLUModel, train: Any, validation: Any, settings: Any, *, loss: Any, score: Any, **_: Any) -> None:
        found.append((train, settings.epochs, loss.names, score is not None, settings.learning_rate))

    monkeypatch.setattr(distillation, "fit", watch)
    return found


def test_transfer_text_and_the_users_own(
    student: NLUModel, tiny_data: NLUData, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = trained_on(monkeypatch)
    own = [f"please call number {i} for me" for i in range(5)]
    (tmp_path / "own.txt").write_text("\n".join([*own, tiny_data.test[0].text, tiny_data.validation[0].text]))
    fw.Distillation(transfer=2, text=str(tmp_path / "own.txt"), epochs=1).apply(student, run)
    fw.Distillation(transfer=0, epochs=1).apply(student, run)
    (train, *_), (plain, *_) = fits
    texts = [m.text for m in train]
    assert plain == tiny_data.train
    assert tuple(train[:60]) == tiny_data.train
    assert len(train) == 60 + 2 * 60 + 5
    assert texts[-5:] == own
    assert not set(texts[60:]) & {m.text for m in (*tiny_data.test, *tiny_data.validation)}
    with pytest.raises(DataError):
        fw.Distillation(text=str(tmp_path / "none.txt")).apply(student, run)


def test_hints_come_first_and_alone(student: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = trained_on(monkeypatch)
    fw.Distillation(losses="logits+hints+tags", transfer=0, epochs=10).apply(student, run)
    assert [(epochs, names, chosen) for _, epochs, names, chosen, _ in fits] == [
        (3, ("hints",), False),
        (10, ("logits", "tags"), True),
    ]


def test_what_is_not_given_follows_the_size(
    student: NLUModel, tiny_model: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = trained_on(monkeypatch)
    fw.Distillation(transfer=0).apply(student, run)
    fw.Distillation(transfer=0).apply(tiny_model, run)
    assert fits[0][1] == 60  # 2 steps an epoch: 4000 steps would be 2000
    assert [fit[4] for fit in fits] == [1e-3, 0.0768 / 128]


def test_labels_alone_are_chosen_by_f1(student: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = trained_on(monkeypatch)
    fw.Distillation(soft=0, epochs=1, transfer=0).apply(student, run)
    fw.Distillation(soft=0, losses="logits+hidden", epochs=1, transfer=0).apply(student, run)
    assert [chosen for _, _, _, chosen, _ in fits] == [False, True]


def test_no_messages(student: NLUModel, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    nothing = quiet_run(NLUData((), tiny_data.validation, ()), tiny_model)
    with pytest.raises(DataError, match=r"^no training messages; distillation needs at least one, labelled or not$"):
        fw.Distillation(epochs=1).apply(student, nothing)
    plain = quiet_run(NLUData(tuple(Message(m.text) for m in tiny_data.train), (), ()), tiny_model)
    found = fw.Distillation(epochs=1, transfer=0).apply(student, plain)  # without a label
    assert not same_weights(found, student)


def test_masks_stay(tiny_model: NLUModel, tiny_data: NLUData, run: Run) -> None:
    """A pruned model gets back what it lost, and stays as sparse as it was."""
    pruned = fw.Magnitude(sparsity=0.7, schedule="one-shot", epochs=0).apply(tiny_model, run)
    found = fw.Distillation(epochs=3, transfer=1, learning_rate=1e-3).apply(pruned, run)
    assert found.n_parameters() == pruned.n_parameters()
    for (_, a, _), (_, b, _) in zip(pruned.matrices(), found.matrices(), strict=True):
        assert np.array_equal(a.weight.detach() == 0, b.weight.detach() == 0) or a.bias is None
    assert agreement(tiny_model, found, tiny_data.test) > agreement(tiny_model, pruned, tiny_data.test)


# interruptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [2, 9])
def test_interrupted_it_goes_on(
    stop_at: int, student: NLUModel, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the stage of hints (2 epochs of 4 steps), and behind it: the same bits as in one go."""
    step = fw.Distillation(losses="hints+logits+relations", epochs=5, transfer=1)
    whole = step.apply(student, replace(run, folder=str(tmp_path / "whole")))
    taken, right = [0], loop._Run.train_step

    def stopped(self: Any) -> float:
        taken[0] += 1
        if taken[0] == stop_at:
            raise KeyboardInterrupt
        return right(self)

    kept = replace(run, folder=str(tmp_path / "kept"))
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop._Run, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        step.apply(student, kept)
    monkeypatch.setattr(loop._Run, "train_step", right)
    assert same_weights(step.apply(student, kept), whole)
    assert list((tmp_path / "kept" / "answers").glob("*.sqlite"))  # the teacher was asked once


def test_what_is_named_is_read_before_the_first_technique(
    tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "t.jsonl").write_text("{}\n")
    tiny_model.save(tmp_path / "bot")

    def never(self: fw.Int8, model: NLUModel, run: Run) -> NLUModel:
        raise AssertionError

    monkeypatch.setattr(fw.Int8, "apply", never)
    bot, file = str(tmp_path / "bot"), str(tmp_path / "t.jsonl")
    for error, match, settings in (
        (DataError, "latin.txt", {"text": str(tmp_path / "latin.txt")}),
        (DataError, "latin.txt", {"text": str(tmp_path / "latin.txt"), "epochs": 0}),
        (DataError, "t.jsonl", {"teacher": file}),
        (ConfigError, "nothere", {"teacher": (bot, str(tmp_path / "nothere"))}),
        (ConfigError, "the losses hidden compare what a", {"teacher": file, "losses": "logits+hidden"}),
        (ConfigError, "the losses relations compare", {"teacher": (bot, bot), "losses": "relations", "soft": 0.5}),
    ):
        with pytest.raises(error, match=match):
            fw.compress(tiny_model, tiny_data, [fw.Int8(), fw.Distillation(**settings)], measure=False, progress=False)
    with pytest.raises(AssertionError):
        fw.compress(tiny_model, tiny_data, [fw.Int8(), fw.Distillation(teacher=bot)], measure=False, progress=False)
