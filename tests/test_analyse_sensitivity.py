"""Sensitivity: KL by hand, a planted sensitive layer, prefix reuse, and an interrupted run that goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import all_logits, random_model, variant

from flyweight.analyse import heat_map
from flyweight.analyse import sensitivity as module
from flyweight.analyse.quantized import Quantized, few_bits, set_bits
from flyweight.analyse.sensitivity import ALL, Cell, Measured, Sensitivity, divergence, parts_of, sensitivity
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.forms import Form
from flyweight.model.linear import Matrix
from flyweight.model.nlu import NLUModel

PARTS = ["embeddings.words", "embeddings.positions", "layers.0.attention", "layers.0.ffn", "layers.1.attention"]
PARTS += ["layers.1.ffn", "heads.intent", "heads.tags", ALL]


@pytest.fixture(scope="module")
def planted(tiny_model: NLUModel) -> NLUModel:
    """Layer 0 adds zeros, whatever its inputs; of the positions all are zero; layer 1 is what matters."""
    model = random_model(tiny_model)
    with torch.no_grad():
        first = model.encoder.layers[0]
        for weight in (first.attention.out.weight, first.ffn.down.weight, model.encoder.positions.weight):
            weight.zero_()
    return model


@pytest.fixture(scope="module")
def whole(planted: NLUModel, tiny_data: NLUData) -> Sensitivity:
    return sensitivity(planted, tiny_data.validation, progress=False)


def test_divergence_by_hand() -> None:
    """p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812."""
    p, q = np.array([[0.0, math.log(3)], [0.0, 5.0]]), np.array([[7.0, 7.0], [1.0, 6.0]])
    assert divergence(p, q) == pytest.approx([0.130812, 0.0], abs=1e-6)
    assert divergence(q, p)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergence(np.array([[0.0, 0.0]]), np.array([[0.0, 1e4]]))[0] == pytest.approx(
        0.5 * math.log(0.5) + 354.2 + 0.5 * math.log(0.5), rel=1e-3
    )  # finite where a class is ruled out
    assert divergence(np.zeros((3, 0)), np.zeros((3, 0))).tolist() == [0, 0, 0]


def test_parts(tiny_model: NLUModel) -> None:
    parts = parts_of(variant(tiny_model, "projected"))
    assert list(parts) == [*PARTS[:2], "embeddings.projection", *PARTS[2:6], "heads.pooler", *PARTS[6:]]
    assert parts["layers.1.ffn"] == ("layers.1.ffn.up", "layers.1.ffn.down")
    assert parts["heads.tags"] == ("heads.tags",)
    assert [name for part in parts if part != ALL for name in parts[part]] == list(parts[ALL])


def test_the_planted_layer_is_found(whole: Sensitivity, tiny_data: NLUData) -> None:
    assert (whole.parts, whole.bits, whole.n_messages) == (PARTS, [8, 4, 3, 2, 1], len(tiny_data.validation))
    for part in ("embeddings.positions", "layers.0.attention", "layers.0.ffn"):
        for cell in (whole.cell(part, b) for b in whole.bits):
            same = (cell.kl, cell.n_flips, cell.intent_macro_f1, cell.span_f1)
            assert same == (0.0, 0, whole.intent_macro_f1, whole.span_f1), cell
    for part in ("embeddings.words", "layers.1.attention", "layers.1.ffn", "heads.intent", "heads.tags", ALL):
        by_bits = [whole.cell(part, b).kl for b in (8, 4, 1)]
        assert 0 < by_bits[0] < by_bits[1] < by_bits[2], part
    assert whole.cell(ALL, 1).n_flips > 0


@pytest.mark.parametrize("name", ["plain", "cut", "relative", "similarity", "projected", "entities only"])
def test_a_cell_is_the_model_with_that_part_quantized(name: str, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """What is reused of the layers before changes nothing: the same numbers as a whole forward pass."""
    model, texts = variant(tiny_model, name), [m.text for m in tiny_data.validation]
    before = all_logits(model, texts)
    found = sensitivity(model, tiny_data.validation, bits=(2,), progress=False)
    measured = Measured(model, tiny_data.validation)
    for part, names in parts_of(model).items():
        child = model.copy()
        for matrix, m, _ in child.matrices():
            if matrix in names:
                set_bits(m, few_bits(matrix, m, 2))
        kl = measured.kl(child.logits(child.tokenizer.encode_batch(texts)))
        assert found.cell(part, 2).kl == pytest.approx(kl, rel=1e-4, abs=1e-9), part
        wanted = sum(a.frame != b.frame for a, b in zip(model.answers(texts), child.answers(texts), strict=True))
        assert found.cell(part, 2).n_flips == wanted
    assert all(np.array_equal(a, b) for a, b in zip(before, all_logits(model, texts), strict=True))
    assert all(m.form is None for _, m, _ in model.matrices())


def test_a_packed_model_counts_as_what_it_decodes_to(whole: Sensitivity, planted: NLUModel, tiny_data: NLUData) -> None:
    packed = planted.copy()
    for name, m, _ in packed.matrices():
        set_bits(m, few_bits(name, m, 8))
    floats = packed.copy().unpack()
    a, b = (sensitivity(m, tiny_data.validation, bits=(1,), progress=False) for m in (packed, floats))
    assert a.cells == b.cells
    assert a.identity == b.identity != whole.identity


def test_an_interrupted_run_goes_on(
    whole: Sensitivity, planted: NLUModel, tiny_data: NLUData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Sensitivity:
        return sensitivity(planted, tiny_data.validation, folder=tmp_path, progress=False)

    measure, done = Measured.cell, []

    def counted(self: Measured, part: str, bits: int, forms: dict[str, Form]) -> Cell:
        if len(done) == 17:
            raise KeyboardInterrupt
        done.append((part, bits))
        return measure(self, part, bits, forms)

    with monkeypatch.context() as patch:
        patch.setattr(module.Measured, "cell", counted)
        with pytest.raises(KeyboardInterrupt):
            run()
    [file] = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    assert [(c["part"], c["bits"]) for c in map(json.loads, lines)] == done
    file.write_text(file.read_text() + lines[0][:20])  # killed while it wrote
    again = []

    def remembered(self: Measured, part: str, bits: int, forms: dict[str, Form]) -> Cell:
        again.append((part, bits))
        return measure(self, part, bits, forms)

    with monkeypatch.context() as patch:
        patch.setattr(module.Measured, "cell", remembered)
        assert json.dumps(run().to_dict()) == json.dumps(whole.to_dict())
        assert [*done, *again] == [(cell.part, cell.bits) for cell in whole.cells]
        again.clear()
        assert run() == whole
        assert again == []


def test_other_models_messages_and_quantizers_have_other_files(
    planted: NLUModel, tiny_data: NLUData, tmp_path: Path
) -> None:
    def coarse(name: str, matrix: Matrix, bits: int) -> Form:
        return few_bits(name, matrix, 1)

    other = planted.copy()
    with torch.no_grad():
        other.encoder.norm.bias[3] += 1e-3
    asked, fewer = tiny_data.validation, tiny_data.validation[1:]
    for model, messages, q in ((planted, asked, few_bits), (other, asked, few_bits), (planted, fewer, few_bits)):
        sensitivity(model, messages, bits=(1,), quantized=Quantized(model, q), folder=tmp_path, progress=False)
    found = sensitivity(
        planted, asked, bits=(8,), quantized=Quantized(planted, coarse), folder=tmp_path, progress=False
    )
    assert len(list(tmp_path.iterdir())) == 4
    assert found.cell(ALL, 8).kl > 1e-3  # it was asked, and gave one bit


def test_nothing_to_measure_on(planted: NLUModel) -> None:
    with pytest.raises(ConfigError, match=r"^no messages to measure sensitivity on; give data with a validation"):
        sensitivity(planted, (), progress=False)


def test_losses_in_percent() -> None:
    cell = Cell("a", 4, 0.1, 0.6, 0.5, 2)
    found = Sensitivity("", 10, 10, 0, 0.8, 0.0, (cell,))
    assert found.metrics == ["intent_macro_f1"]  # no spans: no loss of them
    assert found.loss_percent(cell, "intent_macro_f1") == pytest.approx(25)
    assert found.to_dict()["cells"][0]["intent_macro_f1_loss_percent"] == pytest.approx(25)


def test_warmth_tells_small_losses_apart() -> None:
    assert [heat_map.warmth(v, 0.1, 10) for v in (-3, 0, 0.1, 1, 10, 99)] == pytest.approx([0, 0, 0, 0.5, 1, 1])


def test_numbers_in_the_picture() -> None:
    assert [heat_map.loss_text(v) for v in (12.34, 0.354, -0.004, -1.5, 0)] == ["12.3", "0.35", "0", "-1.50", "0"]
    assert [heat_map.kl_text(v) for v in (3900.4, 25.1, 1.41, 0.021, 0.001, 0)] == [
        "3900",
        "25",
        "1.4",
        "0.02",
        "0",
        "0",
    ]


def test_lines_that_are_no_cells_are_measured_again(
    planted: NLUModel, tiny_data: NLUData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"heads.intent": ("heads.intent",), "heads.tags": ("heads.tags",)}

    def run() -> Sensitivity:
        return sensitivity(planted, tiny_data.validation, parts=parts, bits=(2,), folder=tmp_path, progress=False)

    wanted = run()
    [file] = tmp_path.iterdir()
    first, second = file.read_text().splitlines()
    numbers = second.replace('"n_flips": ', '"n_flips": "a", "was": ')
    foreign = ['{"foo": 1}', "5", "null", "[]", "no json", numbers, json.dumps(json.loads(first) | {"part": ["x"]})]
    file.write_bytes("\n".join([*foreign, first]).encode() + b"\n\xff\n")
    measure, asked = Measured.cell, []

    def counted(self: Measured, part: str, bits: int, forms: dict[str, Form]) -> Cell:
        asked.append(part)
        return measure(self, part, bits, forms)

    monkeypatch.setattr(Measured, "cell", counted)
    assert run() == wanted
    assert asked == ["heads.tags"]


def test_widths_are_those_that_a_room_would_write(planted: NLUModel) -> None:
    """A table a row up to 64 centres; 16 rows share one of 128, which is stored once."""
    matrix = planted.encoder.layers[0].ffn.up  # 37 rows
    tables = {bits: few_bits("m", matrix, bits).arrays()["table"].shape for bits in (1, 6, 7)}
    assert tables == {1: (37, 2), 6: (37, 64), 7: (3, 128)}
