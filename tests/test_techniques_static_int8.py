"""Static int8 through the technique: smoothing changes no output, the fallback list finds a planted outlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import all_logits, quiet_run, random_model, rms_gap

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.forms import Int8 as Int8Form
from flyweight.model.linear import Linear, computes, set_computes
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.runtime.parser import load
from flyweight.runtime.reference import rms_difference
from flyweight.techniques import static_int8
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.gptq import GPTQ
from flyweight.techniques.int8 import Int8
from flyweight.techniques.mixed_precision import MixedPrecision
from flyweight.techniques.static_int8 import StaticInt8, chosen_messages, smooth, smoothing
from flyweight.training.calibration import CALIBRATIONS, observe


def apply(model: NLUModel, data: NLUData, **settings: Any) -> NLUModel:
    step = StaticInt8(**({"n_messages": 60, "smooth": None, "fallback": None} | settings))
    return step.apply(model, quiet_run(data, model))


def linears(model: NLUModel) -> dict[str, Linear]:
    return {name: m for name, m, _ in model.matrices() if isinstance(m, Linear)}


def size(logits: list[np.ndarray]) -> float:
    return rms_difference(logits, [np.zeros_like(a) for a in logits])


# steps --------------------------------------------------------------------------------------------------------------


def test_steps_are_those_of_what_was_seen(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """min-max: the largest value that a matrix is given by the dynamic model, over 127."""
    child = apply(tiny_model, tiny_data, calibration="min-max")
    dynamic = Int8().apply(tiny_model, quiet_run(tiny_data, tiny_model))
    largest: dict[str, float] = {}
    outputs: dict[str, list[float]] = {}
    for name, module in linears(dynamic).items():
        module.register_forward_pre_hook(
            lambda _, x, n=name: largest.update({n: max(largest.get(n, 0), float(x[0].abs().max()))})
        )
        if name.endswith("qkv"):
            module.register_forward_hook(
                lambda _, x, y, n=name: outputs.setdefault(n, []).append(y.chunk(3, -1)[1].abs().max().item())
            )
    for m in tiny_data.train:  # one by one: no padding
        dynamic.logits([dynamic.tokenizer.encode(m.text)])
    for name, module in linears(child).items():
        assert module.activations == "static"
        assert module.input_scale == pytest.approx(largest[name] / 127, rel=1e-4), name
        assert (module.output_scales is not None) == name.endswith("qkv")
        if module.output_scales is not None:
            assert module.output_scales[1] == pytest.approx(max(outputs[name]) / 127, rel=1e-4)
        assert isinstance(module.form, Int8Form)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_a_trained_model_keeps_its_answers(calibration: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    texts = [m.text for m in tiny_data.messages]
    child = apply(tiny_model, tiny_data, calibration=calibration)
    kept = [a.frame == b.frame for a, b in zip(tiny_model.answers(texts), child.answers(texts), strict=True)]
    assert np.mean(kept) >= 0.95
    parent, found = all_logits(tiny_model, texts), all_logits(child, texts)
    assert 1e-3 < rms_difference(found, parent) / size(parent) < 0.1
    assert child.size_bytes() < 0.27 * tiny_model.size_bytes()


def test_settings_choose_what_becomes_static(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    whole = apply(model, tiny_data)
    assert all(m.activations == "static" for m in linears(whole).values())
    plain = apply(model, tiny_data, attention=False, heads=False, embeddings=False)
    found = linears(plain)
    assert all(m.output_scales is None for m in found.values())
    assert {n for n, m in found.items() if m.form is None} == {"heads.intent", "heads.tags"}
    assert {n for n, m in found.items() if m.activations == "static"} == {n for n in found if n.startswith("layers.")}
    assert plain.encoder.words.form is None


@pytest.mark.parametrize("first", [Int8(granularity="matrix"), Codebook(encoder=5, embeddings=3, heads=16)])
def test_a_packed_model_keeps_its_forms(first: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    packed = first.apply(model, quiet_run(tiny_data, model))
    child = apply(packed, tiny_data, smooth=0.5)
    for (name, a, _), (_, b, _) in zip(packed.matrices(), child.matrices(), strict=True):
        assert torch.equal(a.weight, b.weight), name
        assert type(a.form) is type(b.form)
        assert b.activations == ("float" if name.startswith("embeddings.") else "static")
    again = apply(child, tiny_data)  # what is static already is measured anew, from dynamic steps
    assert {n: computes(m) for n, m in linears(again).items()} == {n: computes(m) for n, m in linears(child).items()}


def test_float_centres_stay_as_they_are(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    floats = Codebook(encoder=4, embeddings=None, heads=None, activations="float")
    child = apply(floats.apply(model, quiet_run(tiny_data, model)), tiny_data, attention=False)
    assert {m.activations for n, m in linears(child).items() if n.startswith("layers.")} == {"float"}
    assert {m.activations for n, m in linears(child).items() if n.startswith("heads.")} == {"static"}


def test_messages_are_drawn_by_the_seed(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    def ids(seed: int, n: int) -> list[list[int]]:
        return [e.ids.tolist() for e in chosen_messages(tiny_model, tiny_data.train, n, seed)]

    every = [tiny_model.tokenizer.encode(m.text).ids.tolist() for m in tiny_data.train]
    assert sorted(ids(0, 1000)) == sorted(every)
    assert ids(0, 20) == ids(0, 1000)[:20] != ids(1, 20)
    empty = NLUData((), (), tiny_data.test, source="tests")
    with pytest.raises(ConfigError, match="static_int8 needs messages to calibrate on; the data have neither train"):
        StaticInt8().apply(tiny_model, quiet_run(empty, tiny_model))


# smoothing ----------------------------------------------------------------------------------------------------------


def test_smoothing_by_hand() -> None:
    x, w = np.array([16.0, 1.0, 0.0, 4.0]), np.array([4.0, 0.25, 3.0, 0.0])
    assert smoothing(x, w, 0.5).tolist() == [2.0, 2.0, 1.0, 1.0]  # sqrt(16 / 4), sqrt(1 / 0.25), dead, dead
    assert smoothing(x, w, 0.75).tolist() == pytest.approx([16**0.75 / 4**0.25, 1 / 0.25**0.25, 1.0, 1.0])


@pytest.mark.parametrize(("activation", "places"), [("gelu", 1), ("gelu_tanh", 1), ("relu", 2)])
def test_smoothing_leaves_the_float_model_and_evens_the_channels(
    activation: str, places: int, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    model = random_model(tiny_model, activation=activation)
    with torch.no_grad():
        assert model.encoder.layers[0].attention.qkv.bias is not None
        model.encoder.layers[0].attention.qkv.bias[2 * 21 + 3] = 50.0  # an outlier in V
    smoothed, texts = model.copy(), [m.text for m in tiny_data.messages]
    encoded = model.tokenizer.encode_batch(texts)
    seen = observe(model, encoded)
    smooth(smoothed, seen, 0.5)
    parent, child = all_logits(model, texts), all_logits(smoothed, texts)
    assert rms_difference(child, parent) <= 1e-5 * size(parent)  # float rounding alone
    changed = {n for n, m in linears(smoothed).items() if not torch.equal(m.weight, linears(model)[n].weight)}
    wanted = {f"layers.{i}.attention.{m}" for i in (0, 1) for m in ("qkv", "out")}
    assert changed == wanted | (
        {f"layers.{i}.ffn.{m}" for i in (0, 1) for m in ("up", "down")} if places == 2 else set()
    )
    qkv = smoothed.encoder.layers[0].attention.qkv
    assert torch.equal(qkv.weight[: 2 * 21], model.encoder.layers[0].attention.qkv.weight[: 2 * 21])  # Q and K
    before, after = (
        seen["layers.0.attention.out"].channels,
        observe(smoothed, encoded)["layers.0.attention.out"].channels,
    )
    assert before is not None
    assert after is not None
    assert before.max() / np.median(before) > 5 * after.max() / np.median(after)
    # alpha 1/2: activations and weights of a channel meet at the same largest value
    largest = smoothed.encoder.layers[0].attention.out.weight.abs().amax(0).detach().numpy()
    assert after == pytest.approx(largest, rel=1e-3)


# the fallback list --------------------------------------------------------------------------------------------------


def planted(like: NLUModel, data: NLUData) -> NLUModel:
    """A neuron of the second layer that fires at the first token alone, 1000 and more, and goes nowhere.

    A step a token bears it; one step for all tokens spans that value, and rounds the others away.
    """
    model = random_model(like)
    ffn = model.encoder.layers[1].ffn
    given: list[torch.Tensor] = []  # (T, D) of each message
    with ffn.up.register_forward_pre_hook(lambda _, x: given.append(x[0][0])):
        for m in data.train:
            model.logits([model.tokenizer.encode(m.text)])
    first, others = torch.stack([x[0] for x in given]), torch.cat([x[1:] for x in given])
    towards = first.mean(0) - others.mean(0)
    low, high = (others @ towards).max(), (first @ towards).min()
    assert low < high
    with torch.no_grad():
        assert ffn.up.bias is not None
        ffn.up.weight[7] = towards * 1000 / (high - low)
        ffn.up.bias[7] = -1000 * low / (high - low)
        ffn.down.weight[:, 7] = 0.0
    return model


def test_the_fallback_list_finds_a_planted_outlier(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = planted(tiny_model, tiny_data)
    child = apply(model, tiny_data, calibration="min-max", fallback=0.01)
    dynamic = {n for n, m in linears(child).items() if m.activations == "int8"}
    assert "layers.1.ffn.down" in dynamic
    assert len(dynamic) <= 3
    assert apply(model, tiny_data, calibration="min-max").encoder.layers[1].ffn.down.activations == "static"


@pytest.mark.parametrize("bound", [1e-12, 1e-4, 0.9])
def test_what_stays_static_costs_at_most_the_bound(bound: float, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    run = quiet_run(tiny_data, model)
    child = StaticInt8(n_messages=60, fallback=bound).apply(model, run)
    texts = chosen_messages(model, tiny_data.validation, static_int8.N_COST_MESSAGES, 0)
    parent = static_int8.stacked(Int8().apply(model, run), texts)
    gap = static_int8.stacked(child, texts) - parent
    assert gap @ gap <= bound * (parent @ parent)
    static = [n for n, m in linears(child).items() if m.activations == "static"]
    heads = [n for n, m in linears(child).items() if m.output_scales is not None]
    assert len(static) + len(heads) == {1e-12: 0, 0.9: 12}.get(bound, len(static) + len(heads))
    if bound == 0.9:
        assert run.said == {}
        return
    left = {n for n, m in linears(child).items() if m.activations == "int8"}
    left |= {f"{n} (attention)" for n, m in linears(child).items() if n.endswith("qkv") and m.output_scales is None}
    assert run.said["static"] == f"{12 - len(left)} of 12 tensors"
    assert set(run.said["dynamic"].split(", ")) == left
    if bound == 1e-4:
        assert 0 < len(static) + len(heads) < 12


def test_what_is_not_static_stays_as_it_was(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Also integer weights that were multiplied by floats."""
    model = Int8().apply(tiny_model, quiet_run(tiny_data, tiny_model))
    set_computes(model.encoder.layers[0].ffn.up, {"activations": "float"})
    child = apply(model, tiny_data, fallback=1e-12)
    found = {n: m.activations for n, m in linears(child).items()}
    assert found.pop("layers.0.ffn.up") == "float"
    assert set(found.values()) == {"int8"}


# what comes after ---------------------------------------------------------------------------------------------------

# int8, codes with int8 centres, float centres, parts only, and the room that starts from floats
AFTER: list[Any] = [
    Int8(),
    Int8(granularity="matrix", heads=False, embeddings=False),
    Codebook(encoder=4, embeddings=3, heads=4),
    Codebook(encoder=4, embeddings=None, heads=None, activations="float"),
    Codebook(encoder=None, embeddings=3, heads=None),
    Codebook(encoder=4, embeddings=None, heads=4, sensitivity="fisher"),
    GPTQ(encoder=4, embeddings=3, heads=16, n_messages=20),
    MixedPrecision(max_average_bits=4, messages=5, rounding="nearest"),
]


@pytest.mark.parametrize("integer_only", [False, True])
@pytest.mark.parametrize("second", AFTER)
def test_the_next_room_takes_the_steps_of_what_it_packs(
    second: Any, integer_only: bool, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    """Its file answers like its model; static stays what it left alone, and the receipt counts what it took."""
    model = random_model(tiny_model)
    first = StaticInt8(n_messages=20, fallback=None, integer_only=integer_only)
    child = compress(model, tiny_data, [first, second], measure=False, progress=False)
    nlu = load(save(child, tmp_path / "bot.fly"))  # refused where a block differs
    assert rms_gap(nlu, child, [m.text for m in tiny_data.test]) <= nlu.check_golden().tolerance
    assert not child.encoder.config.integer_only
    first_model = first.apply(model, quiet_run(tiny_data, model))
    parts = {"encoder": second.encoder, "heads": second.heads} if isinstance(second, (Codebook, GPTQ)) else {}
    if isinstance(second, Int8):
        parts = {"encoder": True, "heads": second.heads or None}
    repacked = {n for n, m, p in child.matrices() if isinstance(m, Linear) and parts.get(p, True) is not None}
    before = linears(first_model)
    for name, module in linears(child).items():
        if name in repacked:
            assert module.activations in ("int8", "float")
            assert (module.input_scale, module.output_scales) == (None, None)
        else:
            assert computes(module) == computes(before[name])
    taken = child.card.steps[-1]["repacked"]
    assert taken >= len(repacked)
    assert taken - len(repacked) == sum(
        b.form.bits != a.form.bits
        for (_, a, p), (_, b, _) in zip(first_model.matrices(), child.matrices(), strict=True)
        if p == "embeddings" and not isinstance(a, Linear)
    )
