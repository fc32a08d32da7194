"""Joint pruning to a measured time: what is chosen, what it refuses, what is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import counted, quiet_run, random_model, same_bits

from flyweight.analyse import shapes
from flyweight.analyse.shapes import Clock, ShapeTimes, grid, packed_at_random, quiet_ms, spread
from flyweight.analyse.structures import Block, Parts, blocks_of, choices, cut
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, FlyweightWarning
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_layers
from flyweight.model.survivors import survivors_of
from flyweight.recipe import compress
from flyweight.runtime import native
from flyweight.techniques.int8 import Int8
from flyweight.techniques.structured import StructuredPruning
from flyweight.tokenizer import Encoded
from flyweight.training import quantized
from flyweight.training.hidden import hidden_states_loss, teachers_of

QUICK: dict[str, Any] = {"rounds": 1, "epochs": 0}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "measure", counted)
    monkeypatch.setattr(shapes, "_KNOWN", {})


@pytest.fixture(scope="module")
def parent(tiny_model: NLUModel) -> NLUModel:
    return random_model(tiny_model, layers=((4, 64), (4, 64), (4, 64)))


def layers(*shape: tuple[int, int]) -> tuple[LayerShape, ...]:
    return tuple(LayerShape(heads=h, ffn=n) for h, n in shape)


def share(model: NLUModel, dense: NLUModel) -> float:
    """By the counted clock."""
    return counted(Clock(dense, ["a"], 8, None), model.encoder.config, 1)[1]


# times --------------------------------------------------------------------------------------------------------------


def test_a_table_gives_additive_times_back(parent: NLUModel, tiny_data: NLUData) -> None:
    clock = Clock(parent, [m.text for m in tiny_data.validation], 8, None)
    times = clock.table(progress=False)
    assert times.dense_ms == 2.0
    assert list(times.ffn) == [0, 16, 32, 48, 64]
    assert len(times.attention) == 5
    for shape in (layers((4, 64), (4, 64), (4, 64)), layers((1, 16)), (), layers((0, 0), (3, 48))):
        wanted = counted(clock, replace(parent.encoder.config, layers=shape), 1)[1]
        assert times.predicted(shape) == pytest.approx(wanted, abs=1e-12)


def test_between_widths_lies_a_straight_line() -> None:
    times = ShapeTimes(1.0, 0.1, (0.01, 0.02), {0: 0.0, 16: 0.2, 32: 0.6})
    assert times.ffn_share(24) == pytest.approx(0.4)
    assert times.predicted(layers((1, 8))) == pytest.approx(0.1 + 0.02 + 0.1)


@pytest.mark.parametrize(
    ("widths", "wanted"),
    [([0], [0]), ([37], [0, 16, 32, 37]), ([48, 21], [0, 16, 21, 32, 48]), ([640], [*range(0, 640, 64), 640])],
)
def test_the_grid_of_widths(widths: list[int], wanted: list[int]) -> None:
    assert grid(widths) == wanted


def test_messages_are_spread_over_the_lengths() -> None:
    encoded = [Encoded(np.zeros(n, np.int64), np.zeros(0, np.int64), []) for n in range(1, 102)]
    assert sorted(len(e.ids) for e in spread(encoded, 5)) == [1, 26, 51, 76, 101]
    assert len(spread(encoded[:3], 5)) == 3


def test_what_was_measured_is_kept(parent: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Clock(parent, ["hello", "good morning"], 8, str(tmp_path)).table(progress=False)
    monkeypatch.setattr(shapes, "_KNOWN", {})
    monkeypatch.setattr(Clock, "measure", None)
    assert Clock(parent, ["hello", "good morning"], 8, str(tmp_path)).table(progress=False) == first
    (file,) = tmp_path.iterdir()
    for broken in ("", "[]", '{"a": 3}', '{"a": [1, NaN]}', '{"a": [1, -1]}', json.dumps({"a": ["x", 1]})):
        file.write_text(broken)
        monkeypatch.setattr(shapes, "_KNOWN", {})
        assert Clock(parent, ["hello", "good morning"], 8, str(tmp_path)).known == {}


def test_the_dense_time_is_that_of_a_quiet_machine(
    parent: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # messages 0 and 1 in turn: fastest 1 and 3; of three messages in two calls 2 and 5
    assert quiet_ms(np.array([9.0, 3, 1, 8, 2]), 2) == 2.0
    assert quiet_ms(np.array([2.0, 5]), 3) == 3.5
    found: list[float] = []

    def busy(clock: Clock, config: EncoderConfig, n_calls: int) -> tuple[float, float]:
        found.append(1.0 + len(found))
        return found[-1], counted(clock, config, n_calls)[1]

    monkeypatch.setattr(Clock, "measure", busy)
    clock = Clock(parent, [m.text for m in tiny_data.validation], 8, None)
    # shapes: none, norms only (also 0 heads), 4 numbers of heads, 4 of neurons: 1 to 10 ms
    assert clock.table(progress=False).dense_ms == pytest.approx(1.9)
    clock.share(replace(parent.encoder.config, layers=layers((1, 16))))  # a whole counts nothing
    assert clock.table(progress=False).dense_ms == pytest.approx(1.9)


def test_other_messages_or_bits_are_measured_anew(parent: NLUModel, tmp_path: Path) -> None:
    for texts, bits in ((["hello"], 8), (["hello", "hello"], 8), (["hello"], 4)):
        assert Clock(parent, texts, bits, str(tmp_path)).known == {}
        Clock(parent, texts, bits, str(tmp_path)).table(progress=False)


@pytest.mark.skipif(native.module() is None, reason="the native engine is not built")
@pytest.mark.parametrize("bits", [8, 4])
def test_the_engine_is_really_timed(
    parent: NLUModel, tiny_data: NLUData, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    clock = Clock(parent, [m.text for m in tiny_data.validation], bits, None)
    dense_ms, found = clock.measure(replace(parent.encoder.config, layers=layers((1, 16), (0, 0))), n_calls=3)
    assert dense_ms > 0
    assert found > 0
    assert {
        m.form.bits
        for _, m, part in packed_at_random(parent, parent.encoder.config, bits).matrices()
        if part == "encoder"
    } == {bits}


def test_times_need_the_engine(parent: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(shapes, "_KNOWN", {})
    monkeypatch.setattr(native, "_import", lambda: (None, "the native engine was not built"))
    with pytest.raises(
        ConfigError, match=r"^milliseconds are those of the native engine, but the native engine was no"
    ):
        StructuredPruning().apply(parent, quiet_run(tiny_data, parent))


# choices ------------------------------------------------------------------------------------------------------------


def block(name: str, *kl: float) -> Block:
    """A block whose loss with 0, 1, 2, ... left is given; the first goes first."""
    n = len(kl) - 1
    return Block(name, 1, torch.eye(n + 1), tuple(range(n)), tuple(range(n + 1)), kl)


def test_the_least_loss_within_a_time() -> None:
    # heads cost 1 each, neurons 0.1 each; two layers of 2 heads and 16 neurons, all of a size: 0.5 + 2 (2 + 1.6) = 7.7
    times = ShapeTimes(1.0, 0.5, (0.0, 1.0, 2.0), {0: 0.0, 16: 1.6})
    ffn = Block("f", 1, torch.eye(17), tuple(range(16)), (0, 16), (5.0, 0.0))
    dear, cheap = block("a", 9.0, 4.0, 0.0), block("a", 0.3, 0.1, 0.0)
    found = choices([Parts(dear, ffn, 14.0), Parts(cheap, ffn, 5.3)], times, ["heads", "neurons"])
    by_share = {round(c.share, 6): c for c in found}
    assert by_share[7.7].kl == 0
    assert by_share[6.7].layers == layers((2, 16), (1, 16))
    assert by_share[5.7].layers == layers((2, 16), (0, 16))
    assert by_share[5.7].kl == pytest.approx(0.3)
    assert found[0].layers == layers((0, 0), (0, 0))
    assert [c.share for c in found] == sorted(c.share for c in found)


def test_only_what_may_go_goes() -> None:
    times = ShapeTimes(1.0, 0.5, (0.1, 1.0, 2.0), {0: 0.1, 16: 1.6})
    ffn = Block("f", 1, torch.eye(17), tuple(range(16)), (0, 16), (5.0, 0.0))
    pair = Parts(block("a", 9.0, 4.0, 0.0), ffn, 3.0)
    of = {s: choices([pair, pair], times, s.split("+")) for s in ("heads", "neurons", "layers", "heads+neurons+layers")}
    assert {(s.heads, s.ffn) for c in of["heads"] for s in c.layers if s} == {(0, 16), (1, 16), (2, 16)}
    assert {(s.heads, s.ffn) for c in of["neurons"] for s in c.layers if s} == {(2, 0), (2, 16)}
    assert {c.layers for c in of["layers"]} <= {
        layers((2, 16), (2, 16)),
        (None, *layers((2, 16))),
        (None, None),
        (*layers((2, 16)), None),
    }
    assert of["heads+neurons+layers"][0].layers == (None, None)
    assert of["heads+neurons+layers"][0].share == 0.5  # without the norms of empty layers
    assert of["heads+neurons+layers"][0].kl == 6.0  # what was measured without the layer, not the sum of its parts
    assert all(s is not None for c in of["heads"] for s in c.layers)


def test_more_left_is_never_worse() -> None:
    found = block("a", 0.1, 0.5, 0.3, 0.0)
    assert [found.loss(n) for n in range(4)] == [0.1, 0.1, 0.1, 0.0]


def test_a_cut_keeps_the_last_of_the_order_and_fits_the_rest(parent: NLUModel, tiny_data: NLUData) -> None:
    texts = [m.text for m in tiny_data.train]
    blocks = blocks_of(parent, texts, tiny_data.validation, progress=False)
    whole = tuple(parent.encoder.config.layers)
    assert same_bits(cut(parent, blocks, whole), parent, texts[:5])
    small = cut(parent, blocks, (*layers((2, 32)), None, *layers((4, 16))))
    found = survivors_of(small)
    assert found.layers == (0, 2)
    assert found.heads == (tuple(blocks[0][0].left(2)), (0, 1, 2, 3))
    assert found.neurons == (tuple(blocks[0][1].left(32)), tuple(blocks[2][1].left(16)))
    assert small.encoder.config.layers == layers((2, 32), (4, 16))
    # fitted weights lose less than those that only stay
    plain = small.copy()
    with torch.no_grad():
        for i, (old, kept) in enumerate(((0, blocks[0][1].left(32)), (2, blocks[2][1].left(16)))):
            ffn = parent.encoder.layers[old].ffn
            plain.encoder.layers[i].ffn.down.weight.copy_(ffn.down.weight[:, kept])
            plain.encoder.layers[i].ffn.down.bias.copy_(ffn.down.bias)
    ids = torch.from_numpy(parent.tokenizer.encode_batch(texts[:1])[0].ids.astype(np.int64))[None]
    x = parent.encoder.embed(ids).detach()
    errors = []
    for model in (small, plain):
        hidden = parent.encoder.layers[2].ffn
        ffn = model.encoder.layers[1].ffn
        errors.append(
            float((hidden.down(hidden.activation(hidden.up(x))) - ffn.down(ffn.activation(ffn.up(x)))).norm().detach())
        )
    assert errors[0] < errors[1]


# the room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speedup", [1.5, 3.0, 6.0])
def test_the_speedup_is_reached(parent: NLUModel, tiny_data: NLUData, speedup: float) -> None:
    child = StructuredPruning(speedup=speedup, **QUICK).apply(parent, quiet_run(tiny_data, parent))
    assert 0.7 / speedup < share(child, parent) <= 1 / speedup


def test_a_time_in_milliseconds(parent: NLUModel, tiny_data: NLUData) -> None:
    run = quiet_run(tiny_data, parent)
    child = StructuredPruning(target_ms=1.0, **QUICK).apply(parent, run)
    assert same_bits(child, StructuredPruning(speedup=2.0, **QUICK).apply(parent, run), ["hello bot"])


@pytest.mark.parametrize("target_ms", [2.0, 100.0])
def test_a_time_that_is_reached_already_cuts_nothing(parent: NLUModel, tiny_data: NLUData, target_ms: float) -> None:
    with pytest.warns(
        FlyweightWarning,
        match=rf"^structured: target_ms is {target_ms:g}, the model takes 2 ms as it is: nothing is cut",
    ):
        child = StructuredPruning(target_ms=target_ms).apply(parent, quiet_run(tiny_data, parent))
    assert child is not parent
    assert same_bits(child, parent, ["hello bot"])
    assert child.card.survivors is None


def test_the_receipt_says_what_was_reached(parent: NLUModel, tiny_data: NLUData) -> None:
    small = compress(parent, tiny_data, [StructuredPruning(speedup=3.0, **QUICK)], measure=False, progress=False)
    found = small.card.steps[-1]["reached"]
    assert (found["dense_ms"], found["wanted_ms"], found["bits"]) == (2.0, 0.66667, 8)
    assert found["measured_ms"] == pytest.approx(2 * share(small, parent), abs=1e-5)
    assert found["predicted_ms"] == pytest.approx(found["measured_ms"], abs=1e-5)
    assert found["times_faster"] == pytest.approx(1 / share(small, parent), abs=1e-3)
    assert found["layers"] == [[s.heads, s.ffn] for s in small.encoder.config.layers]


def test_a_pruned_teacher_teaches_its_hidden_states(
    parent: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Any] = []

    def seen(*given: Any, layers: Any) -> Any:
        taught.append(layers)
        return hidden_states_loss(*given, layers=layers)

    monkeypatch.setattr(quantized, "hidden_states_loss", seen)
    settings: dict[str, Any] = {"speedup": 1.2, "structures": "neurons", "rounds": 1, "epochs": 1, "transfer": 0}
    pruned = keep_layers(parent, [0, 2])
    child = StructuredPruning(**settings).apply(pruned, quiet_run(tiny_data, pruned))
    assert taught == [[0, 1]]
    assert survivors_of(child).layers == (0, 2)


def test_rounds_cut_step_by_step(parent: NLUModel, tiny_data: NLUData) -> None:
    child = StructuredPruning(speedup=4.0, rounds=3, epochs=1, transfer=1).apply(parent, quiet_run(tiny_data, parent))
    assert share(child, parent) <= 0.25
    found = survivors_of(child)
    assert found.dense == parent.encoder.config.layers
    assert [(len(h), len(n)) for h, n in zip(found.heads, found.neurons, strict=True)] == [
        (s.heads, s.ffn) for s in child.encoder.config.layers
    ]


def test_receipts_and_files_say_what_survived(parent: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    small = compress(
        parent, tiny_data, [StructuredPruning(speedup=3.0, **QUICK), Int8()], measure=False, progress=False
    )
    found = survivors_of(small)
    assert found.dense == parent.encoder.config.layers
    assert len(found.layers) == len(small.encoder.layers)
    assert survivors_of(NLUModel.load(small.save(tmp_path / "m"))) == found


def test_a_whole_that_is_slower_than_its_parts_is_cut_further(
    parent: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(clock: Clock, config: EncoderConfig, n_calls: int) -> tuple[float, float]:
        dense_ms, found = counted(clock, config, n_calls)
        return dense_ms, found * (1.1 if n_calls == shapes.N_WHOLE_CALLS else 1.0)

    monkeypatch.setattr(Clock, "measure", slower)
    with pytest.warns(
        FlyweightWarning, match=r"^structured: a shape predicted to take .* ms, wanted are 0\.99; one step"
    ):
        child = StructuredPruning(target_ms=1.0, **QUICK).apply(parent, quiet_run(tiny_data, parent))
    assert share(child, parent) <= 0.5 / 1.1


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"speedup": 1000.0},
            r"structured: speedup is 1000; with structures=heads\+neurons\+layers this model reaches 51.4",
        ),
        (
            {"target_ms": 0.01, "structures": "heads"},
            r"structured: target_ms is 0.01; with structures=heads this model ",
        ),
    ],
)
def test_a_time_that_cannot_be_reached(
    parent: NLUModel, tiny_data: NLUData, settings: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{wanted}"):
        StructuredPruning(**settings, **QUICK).apply(parent, quiet_run(tiny_data, parent))


def test_one_target_at_a_time() -> None:
    with pytest.raises(ConfigError, match=r"^structured: target_ms and speedup are given; give one of them$"):
        StructuredPruning(target_ms=1.0, speedup=2.0)


def test_packed_models_are_refused(parent: NLUModel, tiny_data: NLUData) -> None:
    run = quiet_run(tiny_data, parent)
    with pytest.raises(ConfigError, match="prune structure first"):
        StructuredPruning(**QUICK).apply(Int8().apply(parent, run), run)


@pytest.mark.parametrize(
    ("kept", "wanted"), [([0, 1, 2], [0, 1, 2]), ([0, 2], [1, 2]), ([1], [2]), ([0, 1], [0, 2]), ([], [])]
)
def test_a_layer_learns_what_the_next_was_given(kept: list[int], wanted: list[int]) -> None:
    assert teachers_of(kept, 3) == wanted
