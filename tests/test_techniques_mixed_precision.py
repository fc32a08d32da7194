"""MixedPrecision: budgets are kept, bytes are the file's, and what cannot be is refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import VARIANTS, quiet_run, random_model, rms_gap, variant

from flyweight.analyse import costs
from flyweight.analyse.costs import RESERVE, Milliseconds, file_bytes, milliseconds, other_bytes, whole_milliseconds
from flyweight.analyse.sensitivity import Cell, Measured
from flyweight.artifact import read
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.forms import Form
from flyweight.measure.latency import summarise
from flyweight.measure.quality import evaluate
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.runtime import native
from flyweight.techniques import mixed_precision
from flyweight.techniques.mixed_precision import MixedPrecision
from flyweight.techniques.room import Run


def bits_of(model: NLUModel) -> dict[str, int]:
    """matrix -> bits of a packed model."""
    return {name: module.form.bits for name, module, _ in model.matrices() if module.form is not None}


def average_bits(model: NLUModel) -> float:
    """Mean over the encoder's weights."""
    found = [(m.weight.numel(), m.form.bits) for _, m, part in model.matrices() if part == "encoder" and m.form]
    return sum(n * b for n, b in found) / sum(n for n, _ in found)


@pytest.fixture(scope="module")
def parent(tiny_model: NLUModel) -> NLUModel:
    """Layer 0 adds zeros, so its bits cost nothing: a table of few bits must take them there first."""
    model = random_model(tiny_model, layers=((4, 64), (4, 64)), hidden=64, head_size=16)
    with torch.no_grad():
        model.encoder.layers[0].attention.out.weight.zero_()
        model.encoder.layers[0].ffn.down.weight.zero_()
    return model


@pytest.fixture(scope="module")
def run(parent: NLUModel, tiny_data: NLUData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return replace(quiet_run(tiny_data, parent), folder=str(tmp_path_factory.mktemp("run")))


# settings -----------------------------------------------------------------------------------------------------------


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^mixed_precision: max_size_mb and max_ms are given; give one budget$"):
        MixedPrecision(max_size_mb=1.0, max_ms=1.0)


def test_the_budget() -> None:
    assert MixedPrecision().budget == ("max_average_bits", 3.0)
    assert MixedPrecision(max_f1_drop=1).budget == ("max_f1_drop", 1.0)


# bits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.0, 2.0, 3.0, 4.7, 8.0])
def test_average_bits_are_kept_and_spent_where_they_matter(limit: float, parent: NLUModel, run: Run) -> None:
    child = MixedPrecision(max_average_bits=limit).apply(parent, run)
    found = bits_of(child)
    assert {found[name] for name in found if not name.startswith("layers.")} == {8}
    first, last = ([b for name, b in found.items() if name.startswith(f"layers.{i}")] for i in (0, 1))
    assert set(first) == {1}  # half of the weights, which cost nothing
    most = min(limit, 4.5)
    assert most - 0.5 <= average_bits(child) <= most  # a matrix of a twelfth of all weights by 4 bits more: 0.34
    assert (set(last) == {8}) == (limit > 4.5)


def test_no_matrix_gets_fewer_than_the_lowest(parent: NLUModel, run: Run) -> None:
    found = bits_of(MixedPrecision(max_average_bits=4, lowest_bits=3).apply(parent, run))
    assert min(found.values()) == 3
    with pytest.raises(ConfigError) as refused:
        MixedPrecision(max_average_bits=2.5, lowest_bits=3).apply(parent, run)
    assert str(refused.value) == (
        "mixed_precision: max_average_bits is 2.5; the least for this model with lowest_bits=3 is 3 bits a weight; "
        "give more"
    )


def test_the_table_is_in_the_receipt_and_in_the_file(parent: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    small = compress(parent, tiny_data, [MixedPrecision(max_average_bits=2.5)], measure=False, progress=False)
    weights = read(save(small, tmp_path / "bot.fly")).manifest["weights"]
    wanted = {name: 8 if e["form"] == "int8" else (e["centres"] - 1).bit_length() for name, e in weights.items()}
    assert small.card.steps[-1]["bits"] == wanted == bits_of(small)
    assert len(set(wanted.values())) > 2


# bytes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("limit", [0.061, 0.066])
def test_bytes_are_those_of_the_file(
    name: str, limit: float, tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path
) -> None:
    model = variant(tiny_model, name)
    child = MixedPrecision(max_size_mb=limit, messages=5).apply(model, quiet_run(tiny_data, model))
    artifact = read(save(child, tmp_path / "bot.fly"))
    table = bits_of(child)
    predicted = 0
    for matrix, module, _ in child.matrices():
        stored = [a.nbytes for k, a in artifact.arrays.items() if k.rpartition(".")[0] == matrix and k[-5:] != ".bias"]
        wanted = sum(64 * -(-n // 64) for n in stored)
        assert file_bytes(matrix, module, table[matrix]) == wanted, matrix
        predicted += wanted
    rest = artifact.size_bytes - predicted
    assert rest <= other_bytes(model) <= rest + RESERVE + 2048  # and the entries of codes are longer than int8's
    assert artifact.size_bytes <= limit * 1e6


def test_a_size_below_the_smallest(parent: NLUModel, run: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"^mixed_precision: max_size_mb is 0\.01; the least .* is 0\.\d+ MB; give more$"
    ):
        MixedPrecision(max_size_mb=0.01).apply(parent, run)


# milliseconds -------------------------------------------------------------------------------------------------------


def test_milliseconds_are_saved_where_they_cost_least(
    parent: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFN matrices of 4096 weights save 1 us a 1000 weights at 2 bits, attention none; layer 0 does it for nothing."""
    row = {4: 0.0, 2: -1e-6, 1: -1e-6}
    fake = Milliseconds(0.1, {"ffn.up": row, "ffn.down": row})
    monkeypatch.setattr(mixed_precision, "milliseconds", lambda *_: fake)
    monkeypatch.setattr(mixed_precision, "whole_milliseconds", lambda *_, **__: 0.0)
    saved = 4096 * 1e-6
    first, last = ({f"layers.{i}.ffn.{part}" for part in ("up", "down")} for i in (0, 1))
    for wanted, fewer in ((0.0, first), (1.5, first), (2.5, first), (3.5, first | last)):
        found = bits_of(MixedPrecision(max_ms=0.1 - wanted * saved).apply(parent, run))
        low = {name for name, b in found.items() if b < 8}
        assert first <= low <= fewer | last
        assert len(low) == max(2, math.ceil(wanted)), wanted
        assert {found[name] for name in low} == {2}  # one bit would save no more
    with pytest.raises(ConfigError) as refused:
        MixedPrecision(max_ms=0.1 - 4.5 * saved).apply(parent, run)
    assert str(refused.value).endswith(f"with lowest_bits=1 is {0.1 - 4 * saved:.3g} ms; give more")


def test_the_packed_whole_is_measured_and_the_budget_lowered(
    parent: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each FFN matrix at 2 bits is said to save 1 ms of 10; in truth they save half of that, plus what `slow` says."""
    row, asked = {2: -1 / 4096}, []
    fake = Milliseconds(10.0, {"ffn.up": row, "ffn.down": row})
    slow = 0.0

    def truth(model: NLUModel, texts: list[str], int8_ms: float) -> float:
        asked.append(sum(b == 2 for n, b in bits_of(model).items() if ".ffn." in n))
        return int8_ms - 0.5 * asked[-1] + slow

    monkeypatch.setattr(mixed_precision, "milliseconds", lambda *_: fake)
    monkeypatch.setattr(mixed_precision, "whole_milliseconds", truth)
    found = bits_of(MixedPrecision(max_ms=8.5).apply(parent, run))  # 2 of them: 9; 3 of them: 8.5
    assert asked == [2, 3]
    assert sum(b == 2 for n, b in found.items() if ".ffn." in n) == 3
    slow = 0.25
    asked.clear()
    with pytest.raises(ConfigError) as refused:
        MixedPrecision(max_ms=8.0).apply(parent, run)
    assert asked == [2, 4]
    assert str(refused.value) == (
        "mixed_precision: max_ms is 8; the least that was reached with lowest_bits=1, packed and measured, is 8.25 ms; "
        "give more"
    )


@pytest.mark.skipif(native.module() is None, reason="the native engine is not built")
def test_the_time_of_a_whole_is_relative_to_int8(
    parent: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of a round's calls over int8's, the median of the rounds, times what int8 takes."""
    means = iter([2.0, 3.0, 1.0, 0.5, 4.0, 4.8])  # int8, whole: ratios 1.5, 0.5, 1.2

    def timed(callables: Any, texts: Any, **_: Any) -> dict[str, Any]:
        assert [call(texts[0])["text"] for call in callables.values()] == [texts[0]] * 2
        return {name: replace(latency, mean_ms=next(means)) for name in callables}

    latency = summarise([1])
    monkeypatch.setattr(costs, "compare", timed)
    assert whole_milliseconds(parent, [m.text for m in tiny_data.validation], 10.0) == pytest.approx(12.0)


def test_milliseconds_need_the_engine(parent: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_import", lambda: (None, "the native engine was not built"))
    with pytest.raises(ConfigError, match=r"^milliseconds are those of the native engine, but the native engine was"):
        MixedPrecision(max_ms=1.0).apply(parent, run)


@pytest.mark.skipif(native.module() is None, reason="the native engine is not built")
def test_milliseconds_are_measured_once(
    parent: NLUModel, tiny_data: NLUData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [m.text for m in tiny_data.validation]
    monkeypatch.setattr(costs, "N_CALLS", 3)
    found = milliseconds(parent, texts, (8, 4, 3, 2, 1), str(tmp_path), progress=False)
    assert found.int8_ms > 0
    kinds = ("attention.qkv", "attention.out", "ffn.up", "ffn.down")
    assert {kind: list(row) for kind, row in found.per_weight.items()} == {kind: [4, 2, 1] for kind in kinds}
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text())["int8_ms"] == found.int8_ms
    modules = {name: module for name, module, _ in parent.matrices()}
    assert found.of("layers.1.ffn.up", modules["layers.1.ffn.up"], 2) == found.per_weight["ffn.up"][2] * 64 * 64
    assert found.of("layers.1.ffn.up", modules["layers.1.ffn.up"], 3) == 0  # multiplied as int8
    assert found.of("embeddings.words", modules["embeddings.words"], 1) == 0
    whole = file.read_text()
    for spoiled in ("", whole[:-20], "[]", '{"int8_ms": 1.0, "per_weight": {}}', whole.replace("ffn.up", "ffn.on")):
        file.write_text(spoiled)
        with monkeypatch.context() as patch:
            patch.setattr(costs, "_measure", lambda *_: found)
            assert milliseconds(parent, texts, (8, 4, 3, 2, 1), str(tmp_path), progress=False) is found
        assert [p.read_text() for p in tmp_path.iterdir()] == [whole]
    monkeypatch.setattr(costs, "_measure", None)
    assert milliseconds(parent, texts, (8, 4, 3, 2, 1), str(tmp_path), progress=False) == found
    with pytest.raises(TypeError):  # messages of other lengths would be measured
        milliseconds(parent, texts[1:], (8, 4, 3, 2, 1), str(tmp_path), progress=False)


# F1 -----------------------------------------------------------------------------------------------------------------


def scored(monkeypatch: pytest.MonkeyPatch, loss: Any) -> list[float]:
    """Measured F1 of a joint table becomes that of the float model less loss(mean bits) percent; asked means."""
    measure, asked = Measured.cell, []

    def fake(self: Measured, part: str, bits: int, forms: dict[str, Form]) -> Cell:
        cell = measure(self, part, bits, forms)
        if bits:
            return cell
        mean = sum(f.bits for f in forms.values()) / len(forms)
        asked.append(mean)
        share = 1 - loss(mean) / 100
        return replace(cell, intent_macro_f1=self.quality.intent_macro_f1 * share, span_f1=self.quality.span_f1)

    monkeypatch.setattr(Measured, "cell", fake)
    return asked


def test_the_smallest_file_within_a_drop_of_f1(parent: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scored(monkeypatch, lambda mean: 10 - mean)
    child = MixedPrecision(max_f1_drop=5.0).apply(parent, run)
    chosen = sum(bits_of(child).values()) / len(bits_of(child))
    assert chosen in asked  # it was measured, as a whole
    assert 5.0 <= chosen <= 5.0 + 1.5  # the fewest bits that lose at most 5%: a mean of 5, but for the next larger file
    assert len(asked) < 20


def test_a_drop_that_int8_exceeds(parent: NLUModel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scored(monkeypatch, lambda mean: 3.25)
    with pytest.raises(ConfigError) as refused:
        MixedPrecision(max_f1_drop=2).apply(parent, run)
    wanted = "mixed_precision: max_f1_drop is 2; with 8 bits everywhere this model loses 3.25% already; give more"
    assert str(refused.value) == wanted
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("without", "named"),
    [({"intent": None}, "intents"), ({"entities": ()}, "entities"), ({"intent": None, "entities": ()}, "intents or ")],
)
def test_a_drop_that_cannot_be_measured_is_refused(
    without: dict[str, Any], named: str, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    bare = replace(tiny_data, validation=tuple(replace(m, **without) for m in tiny_data.validation))
    wanted = (
        rf"max_f1_drop is 3; none of the {len(bare.validation)} messages to measure it on has {named}.*give labelled"
    )
    with pytest.raises(ConfigError, match=wanted):
        MixedPrecision(max_f1_drop=3).apply(tiny_model, quiet_run(bare, tiny_model))


def test_a_real_drop_is_kept(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    child = MixedPrecision(max_f1_drop=3.0).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    losses = evaluate(child, tiny_data.validation, against=tiny_model).losses
    assert max(losses[metric].loss_percent for metric in ("intent_macro_f1", "span_f1")) <= 3.0
    assert child.size_bytes() < 0.25 * tiny_model.size_bytes()
    assert min(bits_of(child).values()) < 8


def test_gptq_keeps_bits_and_comes_nearer(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """The same table; the codes of the encoder differ, and the model's answers are nearer to the float model's."""
    run = quiet_run(tiny_data, tiny_model)
    near, better = (
        MixedPrecision(max_average_bits=2.5, rounding=rounding).apply(tiny_model, run)  # type: ignore[arg-type]
        for rounding in ("nearest", "gptq")
    )
    assert bits_of(near) == bits_of(better)
    texts = [m.text for m in tiny_data.validation]
    gaps = [rms_gap(tiny_model, child, texts) for child in (near, better)]
    assert gaps[1] < 0.8 * gaps[0]
    same = {
        name
        for (name, a, _), (_, b, _) in zip(near.matrices(), better.matrices(), strict=True)
        if torch.equal(a.weight, b.weight)
    }
    assert same >= {name for name, bits in bits_of(near).items() if bits == 8}
    assert not any(name.startswith("layers.") for name in same if bits_of(near)[name] < 8)
