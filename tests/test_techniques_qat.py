"""QAT: the founding loop by hand, the packed model equal to the last simulated one, interrupted work."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import all_logits, same_bits, variant

from flyweight.data.messages import Entity, Message, NLUData
from flyweight.errors import DataError, FlyweightWarning
from flyweight.forms.int8 import int8_matrix
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.techniques.qat import QAT
from flyweight.techniques.room import Run
from flyweight.techniques.trained_codes import TrainedCodes
from flyweight.training import quantized
from flyweight.training.loop import TrainingSettings, fit
from flyweight.training.losses import Batch, labels_loss
from flyweight.training.quantized import taught_data
from flyweight.training.quantizers import Int8Matrix, Quantizer, pack_quantized

TRAINED: list[Any] = [
    TrainedCodes(epochs=2, distil=None),
    TrainedCodes(encoder=2, embeddings=16, heads=3, epochs=2, reassign=4),
    TrainedCodes(encoder=16, granularity="matrix", epochs=2, distil="logits", reassign=None),
    QAT(epochs=2),
    QAT(epochs=2, granularity="matrix", activations="float"),
    QAT(epochs=2, activations="static", delay=0.5),
    QAT(epochs=2, activations="static", ranges="lsq", delay=0.3, distil="hidden"),
    QAT(epochs=2, activations="dynamic", ranges="lsq", granularity="matrix", embeddings=False),
]


def run_of(data: NLUData, teacher: NLUModel, folder: Path | None = None, loss: Any = labels_loss) -> Run:
    return Run(data, teacher, loss=loss, device="cpu", folder=None if folder is None else str(folder), progress=False)


@pytest.mark.parametrize("step", TRAINED, ids=str)
def test_the_packed_model_is_the_last_simulated_one(
    step: Any, tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, on messages with words that the training never saw too."""
    parent = variant(tiny_model, "relative")
    texts = [*(m.text for m in tiny_data.messages[::4]), "zebras quarrel xylophonically"]
    simulated: list[list[np.ndarray]] = []

    def watched(model: NLUModel) -> NLUModel:
        assert any(isinstance(m, Quantizer) for m in model.modules())
        simulated.append(all_logits(model, texts))
        return pack_quantized(model)

    monkeypatch.setattr(quantized, "pack_quantized", watched)
    child = step.apply(parent, run_of(tiny_data, parent))
    assert not any(isinstance(m, Quantizer) for m in child.modules())
    assert all(np.array_equal(a, b) for a, b in zip(simulated[0], all_logits(child, texts), strict=True))


@pytest.mark.parametrize("step", [TRAINED[0], TRAINED[1], TRAINED[6]], ids=str)
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_and_resumed_is_uninterrupted(
    step: Any, stop: int, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = variant(tiny_model, "plain")
    whole = step.apply(parent, run_of(tiny_data, parent))
    calls = 0

    def interrupting(*args: Any, loss: Any, **settings: Any) -> NLUModel:
        def one(model: NLUModel, batch: Batch) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGINT)
            found: torch.Tensor = loss(model, batch)
            return found

        one.__name__ = loss.__name__
        return fit(*args, loss=one, **settings)

    monkeypatch.setattr(quantized, "fit", interrupting)
    with pytest.raises(KeyboardInterrupt):
        step.apply(parent, run_of(tiny_data, parent, tmp_path))
    assert calls == stop
    torch.manual_seed(999)
    found = step.apply(parent, run_of(tiny_data, parent, tmp_path))
    n_steps = math.ceil(len(taught_data(tiny_data, step.distil, 0).train) / TrainingSettings.batch_size)
    assert calls == 2 * n_steps  # 2 epochs: no step was made twice
    assert same_bits(found, whole, [m.text for m in tiny_data.messages])
    again = step.apply(parent, run_of(tiny_data, parent, tmp_path))
    assert calls == 2 * n_steps  # a finished training is not made again, until its caller removes the folder
    assert same_bits(again, whole, [m.text for m in tiny_data.messages])


def test_other_messages_in_the_same_folder_are_another_training(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    parent, step = variant(tiny_model, "plain"), QAT(epochs=1)
    fewer = NLUData(tiny_data.train[:20], tiny_data.validation, ())
    step.apply(parent, run_of(tiny_data, parent, tmp_path))
    found = step.apply(parent, run_of(fewer, parent, tmp_path))
    assert same_bits(found, step.apply(parent, run_of(fewer, parent)), [m.text for m in tiny_data.messages])
    assert len(list(tmp_path.iterdir())) == 2


def test_messages_without_labels_teach_no_labels() -> None:
    plain, tagged, named = Message("hi"), Message("to Rome", None, (Entity(3, 7, "city"),)), Message("bye", "leave")
    data = NLUData((plain, tagged, named), (named, plain), (plain,))
    found = taught_data(data, None, 0)
    assert found.parts == {"train": (tagged, named), "validation": (named,), "test": (plain,)}
    assert set(data.train) < set(taught_data(data, "logits", 0).train)
    assert taught_data(data, None, 0, lambda model, batch: torch.zeros(())).train == data.train
    tagger = NLUData((plain, tagged), (plain,), ())  # no message has an intent: none has an entity to say so
    assert taught_data(tagger, None, 0) == tagger


@pytest.mark.parametrize("room", [TrainedCodes, QAT])
@pytest.mark.parametrize("distil", [None, "logits", "hidden"])
def test_nothing_to_learn_from_is_one_line(room: Any, distil: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    nothing = NLUData((), tiny_data.validation, ())
    with pytest.raises(DataError, match=r"^no training messages; training needs at least one, labelled or not$"):
        room(distil=distil).apply(tiny_model, run_of(nothing, tiny_model))
    if distil is None:
        plain = NLUData((Message("hi"), Message("bye")), tiny_data.validation, ())
        with pytest.raises(DataError, match=r"^none of the 2 training messages has a label; .*distil=logits or hidden"):
            room(distil=distil).apply(tiny_model, run_of(plain, tiny_model))


def test_the_founding_loop_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Three steps: weights quantized, forward, gradient, float weights updated; quantized for good at the end."""
    parent = variant(tiny_model, "plain")
    data = NLUData(tiny_data.train[:24], (), ())
    child = QAT(granularity="matrix", activations="float", embeddings=False, epochs=1, learning_rate=1e-2).apply(
        parent, run_of(data, parent)
    )
    by_hand = parent.copy()
    linear = [m for _, m, _ in by_hand.matrices() if isinstance(m, Linear)]

    def loop(model: NLUModel, batch: Batch) -> torch.Tensor:
        floats = [m.weight.detach().clone() for m in linear]
        with torch.no_grad():  # 1. quantize; forward with the quantized weights
            for m in linear:
                m.weight.copy_(torch.from_numpy(int8_matrix(m.weight.numpy()).dense()))
        loss = labels_loss(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)  # 2. the gradient
        with torch.no_grad():
            for m, w in zip(linear, floats, strict=True):
                m.weight.copy_(w)
        # 3. the optimizer updates the float weights by that gradient
        return sum((p * g).sum() for p, g in zip(model.parameters(), gradients, strict=True) if g is not None)  # type: ignore

    fit(
        by_hand,
        data.train,
        (),
        TrainingSettings(epochs=1, learning_rate=1e-2),
        loss=loop,
        device="cpu",
        progress=False,
    )
    before = {name: m.weight.detach().numpy() for name, m, _ in parent.matrices()}
    for (name, a, _), (_, b, _) in zip(child.matrices(), by_hand.matrices(), strict=True):
        wanted = b.weight.detach().numpy()
        if isinstance(b, Linear):  # 4. quantized for good
            assert a.form is not None
            wanted = int8_matrix(wanted).dense()
        assert np.allclose(a.weight.detach().numpy(), wanted, atol=1e-6), name
        assert not np.allclose(wanted, before[name], atol=1e-3)
    assert all(m.activations == "float" for _, m, _ in child.matrices())


def test_static_steps_are_the_watched_ranges(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    child = QAT(activations="static", epochs=1, delay=0.0).apply(parent, run_of(tiny_data, parent))
    for name, module, _ in child.matrices():
        if not isinstance(module, Linear):
            assert module.activations == "float"
            continue
        assert module.activations == "static", name
        assert module.input_scale is not None
        assert module.input_scale == float(np.float32(module.input_scale)) > 0
        assert (module.output_scales is not None) == name.endswith("qkv")
    # An encoder's input comes from a LayerNorm: 127 steps reach as far as its largest value, about 3.
    first = child.encoder.layers[0].attention.qkv.input_scale
    assert first is not None
    assert 1 < 127 * first < 12


def test_hidden_states_need_a_teacher_of_the_same_shape(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Of another, only logits are learnt: the same model as with distil=logits."""
    small, other = variant(tiny_model, "plain"), variant(tiny_model, "cut")
    with pytest.warns(FlyweightWarning, match=r"^the teacher has 4 layers, the model 2: .*distil=logits\)$"):
        found = TrainedCodes(epochs=1).apply(small, run_of(tiny_data, other))
    wanted = TrainedCodes(epochs=1, distil="logits").apply(small, run_of(tiny_data, other))
    assert same_bits(found, wanted, [m.text for m in tiny_data.test])


def test_matrices_of_the_founding_form_keep_zero_as_zero() -> None:
    w = torch.tensor([[0.0, 0.5, 2.0]])
    assert Int8Matrix()(w)[0, 0] == 0
