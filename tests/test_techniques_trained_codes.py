"""Trained codes of a model that is packed already: every matrix keeps its bits, and the result is nearer to the float
model than what came in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_models import all_logits, quiet_run, variant

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.forms import Codes, Form, Int8
from flyweight.model.linear import Embedding
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.gptq import GPTQ
from flyweight.techniques.int8 import Int8 as Int8Room
from flyweight.techniques.mixed_precision import MixedPrecision
from flyweight.techniques.qat import QAT
from flyweight.techniques.trained_codes import TrainedCodes, float_weights
from flyweight.training import quantized
from flyweight.training.logits import SoftLabels, soft_labels_loss
from flyweight.training.quantizers import Quantizer, pack_quantized

KEPT: dict[str, Any] = {"encoder": "kept", "embeddings": "kept", "heads": "kept"}
MIXED = MixedPrecision(max_size_mb=0.06, messages=10)
PACKED: dict[str, Any] = {
    "mixed": MIXED,
    "rows": Codebook(encoder=4, embeddings=100, heads=3),
    "row embeddings": Codebook(encoder=8, embeddings=16, heads=None),
    "groups": Codebook(encoder=4, embeddings=None, heads=4, granularity="group", group=3, activations="float"),
    "gptq": GPTQ(encoder=3, embeddings=None, heads=256, grid="uniform", n_messages=40),
    "int8": Int8Room(granularity="matrix", embeddings=False),
}


def kind(form: Form | None) -> Any:
    """What the file says of a matrix, and how much it stores of it."""
    if form is None or isinstance(form, Int8):
        return type(form)
    return form.fields(), {name: (a.dtype, a.shape) for name, a in form.arrays().items()}


@pytest.mark.parametrize("of", ["plain", "cut", "similarity"])
@pytest.mark.parametrize("name", PACKED)
def test_every_matrix_keeps_its_bits_and_is_what_was_simulated(
    name: str, of: str, tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = variant(tiny_model, of)
    parent = PACKED[name].apply(teacher, quiet_run(tiny_data, teacher))
    texts = [*(m.text for m in tiny_data.messages[::4]), "zebras quarrel xylophonically"]
    simulated: list[list[np.ndarray]] = []

    def watched(model: NLUModel) -> NLUModel:
        simulated.append(all_logits(model, texts))
        return pack_quantized(model)

    monkeypatch.setattr(quantized, "pack_quantized", watched)
    packed = {part for _, m, part in parent.matrices() if m.form is not None}
    kept: dict[str, Any] = {part: "kept" if part in packed else None for part in KEPT}
    child = TrainedCodes(**kept, epochs=2).apply(parent, quiet_run(tiny_data, teacher))
    assert not any(isinstance(m, Quantizer) for m in child.modules())
    assert all(np.array_equal(a, b) for a, b in zip(simulated[0], all_logits(child, texts), strict=True))
    for (matrix, a, _), (_, b, _) in zip(parent.matrices(), child.matrices(), strict=True):
        assert kind(a.form) == kind(b.form), matrix
        assert a.activations == b.activations, matrix
        own_tables = isinstance(a.form, Codes) and len(a.form.table) > 1
        if b.weight.numel():
            assert torch.equal(a.weight, b.weight) == (own_tables and isinstance(a, Embedding)), matrix


@pytest.mark.parametrize("distil", ["hidden", "logits"])
def test_a_mixed_model_comes_nearer_to_its_teacher(distil: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    run = quiet_run(tiny_data, tiny_model)
    parent = MixedPrecision(max_average_bits=2, messages=10, rounding="nearest").apply(tiny_model, run)
    assert len({m.form.bits for _, m, part in parent.matrices() if m.form and part == "encoder"}) > 1
    child = TrainedCodes(**KEPT, epochs=8 if distil == "hidden" else 24, distil=distil).apply(parent, run)
    for messages in (tiny_data.train, tiny_data.validation):
        wanted = soft_labels_loss(tiny_model, tiny_model, messages, False)
        encoded = tiny_model.tokenizer.encode_batch([m.text for m in messages])
        before, after = (wanted.agreement(m.logits(encoded)) for m in (parent, child))
        assert before < after < 0


def test_weights_start_from_the_float_model_unless_it_was_trained_meanwhile(
    tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    teacher = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, teacher)
    packed = Codebook(encoder=4).apply(teacher, run)
    found = float_weights(packed, teacher)
    assert all(torch.equal(found[name], m.weight) for name, m, _ in teacher.matrices())
    assert float_weights(QAT(epochs=1).apply(teacher, run), teacher) == {}
    assert float_weights(packed, variant(tiny_model, "cut")) == {}
    fewer = packed.copy()
    fewer.encoder.words.weight = torch.nn.Parameter(fewer.encoder.words.weight[:-1].detach())
    assert set(found) - set(float_weights(fewer, teacher)) == {"embeddings.words"}


def test_bits_of_a_float_model_cannot_be_kept(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    run = quiet_run(tiny_data, tiny_model)
    wanted = "^trained_codes: {} is kept, but no matrix of that part is packed; apply mixed_precision, .*"
    with pytest.raises(ConfigError, match=wanted.format("encoder")):
        TrainedCodes(encoder="kept").apply(tiny_model, run)  # the defaults pack the other parts
    packed = Codebook(encoder=4, embeddings=None).apply(tiny_model, run)
    with pytest.raises(ConfigError, match=wanted.format("embeddings")):
        TrainedCodes(**KEPT).apply(packed, run)


def test_a_receipt_counts_no_kept_matrix_as_packed_anew(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    teacher = variant(tiny_model, "plain")
    steps = [MIXED, TrainedCodes(**KEPT, epochs=1), TrainedCodes(encoder=16, embeddings=None, heads=None, epochs=1)]
    small = compress(teacher, tiny_data, steps, measure=False, progress=False)
    first, second, third = small.card.steps[-3:]
    assert (first["repacked"], second["repacked"]) == (0, 0)
    assert second["bits"] == first["bits"]
    assert len(set(first["bits"].values())) > 1
    assert third["repacked"] == sum(third["bits"][name] != bits for name, bits in second["bits"].items()) > 0


def test_epochs_aim_at_a_number_of_steps(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int | None] = []

    def watched(model: NLUModel, data: NLUData, settings: Any, **_: Any) -> NLUModel:
        found.append(settings.epochs)
        return model

    for room in ("qat", "trained_codes"):
        monkeypatch.setattr(f"flyweight.techniques.{room}.fit_taught", watched)
    for n in (1, 32 * 50, 32 * 150, 32 * 1000):
        data = NLUData((tiny_data.train * n)[:n], (), ())
        for step in (QAT(), TrainedCodes(encoder=2, embeddings=None, heads=None), QAT(epochs=3)):
            step.apply(tiny_model, quiet_run(data, tiny_model))
    # QAT without a teacher: epochs of n messages; trained codes, of n and as many splices as there are: n from 1600 on.
    assert found == [40, 40, 3, 30, 15, 3, 10, 5, 3, 2, 2, 3]


def test_agreement_is_minus_the_mean_divergence_by_hand() -> None:
    """Intents: p (1/2, 1/2) against q (1/4, 3/4), and a row that agrees; tags: one of two words was seen."""
    half, quarter = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    unseen = np.full(2, np.nan, np.float32)
    tags = [torch.from_numpy(np.stack([half, unseen])), torch.zeros(0, 2)]
    wanted = SoftLabels(torch.from_numpy(np.stack([half, quarter])), tags, torch.tensor([True, True]), 2.0, 0.8)
    divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)  # 0.1438
    none = np.zeros((0, 2), np.float32)
    rows = [(quarter, np.stack([quarter, half])), (quarter, none)]
    assert wanted.agreement(rows) == pytest.approx(-divergence / 2 - divergence, rel=1e-5)
    assert wanted.agreement([(half + 3, np.stack([half, quarter])), (quarter - 1, none)]) == pytest.approx(0, abs=1e-6)
