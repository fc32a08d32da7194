"""Kwon's search, swaps and factors on hand-made numbers; the room against what it promises."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from random_models import quiet_run, random_model, same_bits, variant

from flyweight.analyse import shapes
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.model.encoder import EncoderConfig
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_neurons
from flyweight.techniques.int8 import Int8
from flyweight.techniques.mask_search import MaskSearch
from flyweight.training.masks import factors, rearranged, search, tune

F_HEADS = [np.array([5.0, 1.0]), np.array([3.0])]
F_NEURONS = [np.array([4.0, 0.5, 0.25]), np.array([2.0])]


@pytest.mark.parametrize(
    ("costs", "budget", "heads", "neurons"),
    [
        # All: 3 heads of 2 and 4 neurons of 1 cost 10.
        ((2, 1), 10, {0: [0, 1], 1: [0]}, {0: [0, 1, 2], 1: [0]}),
        # 6: three heads lose 6.75 of neurons; two and two lose 1 + 0.75; one and four lose 4.
        ((2, 1), 6, {0: [0], 1: [0]}, {0: [0], 1: [0]}),
        # 4: two heads lose 1 + 6.75; one and two 4 + 0.75; none and four 9.
        ((2, 1), 4, {0: [0], 1: []}, {0: [0], 1: [0]}),
        ((2, 1), 0, {0: [], 1: []}, {0: [], 1: []}),
        # Free heads all stay.
        ((0, 1), 1, {0: [0, 1], 1: [0]}, {0: [0], 1: []}),
        ((2, 0), 3.9, {0: [0], 1: []}, {0: [0, 1, 2], 1: [0]}),
    ],
)
def test_the_search_by_hand(costs: Any, budget: float, heads: Any, neurons: Any) -> None:
    assert search(F_HEADS, F_NEURONS, costs, budget) == (heads, neurons)


def test_swaps_undo_what_single_scores_cannot_see() -> None:
    """Units 0 and 1 do the same: both removed cost (1 + 1)^2, 0 and 2 cost 1 + 1.5^2. So 1 stays and 2 goes."""
    g = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.5]]) * np.sqrt(2)  # two messages: means are sums of the squares
    assert rearranged(g, [2]) in ([0], [1])
    assert rearranged(g, []) == []
    assert rearranged(g, [0, 1, 2]) == [0, 1, 2]
    assert rearranged(np.zeros((2, 3)), [1]) == [1]


def test_swaps_never_lose(tiny_data: NLUData) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        g = rng.normal(size=(6, 7)) @ rng.normal(size=(7, 7))
        start = sorted(rng.permutation(7)[:3].tolist())

        def lost(kept: Any, g: np.ndarray = g) -> float:
            return float(np.mean(g[:, [u for u in range(7) if u not in kept]].sum(axis=1) ** 2))

        found = rearranged(g, start)
        assert len(found) == 3
        assert lost(found) <= lost(start) * (1 + 1e-12)
        swaps = [sorted({*found, j} - {i}) for i in found for j in range(7) if j not in found]
        assert lost(found) <= min(map(lost, swaps)) * (1 + 1e-9)  # no swap is left that helps
        assert lost(found) >= min(lost(c) for c in combinations(range(7), 3)) * (1 - 1e-9)


def test_factors_by_hand() -> None:
    """Two units along the axes, inputs 1 and 2, target (3, 3): factors 3 and 3/2; drawn to 1 by d = mean(1, 4) / 2."""
    w, a, target = torch.eye(2).double(), torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, 3.0]]).double()
    given = (w, a.t() @ a, (a * (target @ w)).sum(dim=0))
    assert factors(*given, 1, damp=0.0).tolist() == pytest.approx([3, 1.5])
    assert factors(*given, 1, damp=0.5).tolist() == pytest.approx([(3 + 1.25) / (1 + 1.25), (6 + 1.25) / (4 + 1.25)])
    # One unit of both: minimise (m - 3)^2 + (2 m - 3)^2, so 5 m = 9.
    assert factors(*given, 2, damp=0.0).tolist() == pytest.approx([1.8])
    far = (w, a.t() @ a, (a * (20 * target @ w)).sum(dim=0))
    assert factors(*far, 1, damp=0.0).tolist() == [1, 1]


@torch.no_grad()
def states(model: NLUModel, data: NLUData) -> torch.Tensor:
    encoded = model.tokenizer.encode_batch([m.text for m in data.test])
    return torch.cat(
        [model.encoder(torch.tensor(e.ids)[None].long(), torch.ones(1, len(e.ids)).bool())[0] for e in encoded]
    )


def test_tuning_brings_back_what_a_factor_can(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Neurons 0 and 1 are twins: without 1, neuron 0 must count as much as both, and nothing else changes."""
    dense = variant(tiny_model, "relative")
    with torch.no_grad():
        for layer in dense.encoder.layers:
            layer.ffn.up.weight[1], layer.ffn.up.bias[1] = layer.ffn.up.weight[0], layer.ffn.up.bias[0]  # type: ignore[index]
            layer.ffn.down.weight[:, 0] *= 3
            layer.ffn.down.weight[:, 1] = layer.ffn.down.weight[:, 0] / 2
    pruned = keep_neurons(dense, {i: [0, *range(2, len(m.ffn.up.weight))] for i, m in enumerate(dense.encoder.layers)})
    before = states(pruned, tiny_data) - states(dense, tiny_data)
    tune(dense, pruned, dense.tokenizer.encode_batch([m.text for m in tiny_data.train]))
    after = states(pruned, tiny_data) - states(dense, tiny_data)
    for ours, theirs in zip(pruned.encoder.layers, dense.encoder.layers, strict=True):
        ratio = (ours.ffn.down.weight[:, 0] / theirs.ffn.down.weight[:, 0]).mean().item()
        assert 1.2 < ratio < 1.6  # 1.5 but for the pull to 1
    assert float(after.square().mean()) < 0.2 * float(before.square().mean())


# the room -----------------------------------------------------------------------------------------------------------


def cost(model: NLUModel, like: NLUModel, data: NLUData) -> float:
    lengths = [len(e.ids) for e in like.tokenizer.encode_batch([m.text for m in data.train])]
    t, config = float(np.mean(lengths)), model.encoder.config
    head = t * (4 * config.hidden + 2 * t) * config.head_size
    return sum(s.heads * head + s.ffn * t * 2 * config.hidden for s in config.layers)


@pytest.mark.parametrize("name", ["plain", "cut", "relative"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8])
def test_the_budget_is_kept_and_used(tiny_data: NLUData, tiny_model: NLUModel, name: str, keep: float) -> None:
    model = variant(tiny_model, name)
    child = MaskSearch(keep=keep).apply(model, quiet_run(tiny_data, model))
    share = cost(child, model, tiny_data) / cost(model, model, tiny_data)
    assert keep - 0.02 <= share <= keep + 1e-9  # a neuron is at most a fiftieth


def test_one_kind_alone(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, model)
    neurons = MaskSearch(keep=0.5, heads=False).apply(model, run).encoder.config.layers
    assert ([s.heads for s in neurons], sum(s.ffn for s in neurons)) == ([3, 2], 29)
    heads = MaskSearch(keep=0.4, neurons=False).apply(model, run).encoder.config.layers
    assert (sum(s.heads for s in heads), [s.ffn for s in heads]) == (2, [37, 21])


def test_milliseconds_weigh_what_was_measured(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that take no time stay, whatever the neurons'; and the other way round."""
    model = random_model(tiny_model, layers=((3, 40), (3, 40)))
    run = quiet_run(tiny_data, model)

    def clock(head: float, neuron: float) -> Any:
        def share(_: object, config: EncoderConfig, n_calls: int = 0) -> float:
            return 0.1 + sum(s.heads * head + s.ffn * neuron for s in config.layers)

        return share

    monkeypatch.setattr(shapes.Clock, "share", clock(0.0, 0.01))
    child = MaskSearch(keep=0.5, cost="ms").apply(model, run).encoder.config.layers
    assert (sum(s.heads for s in child), sum(s.ffn for s in child)) == (6, 40)
    monkeypatch.setattr(shapes.Clock, "share", clock(0.1, 0.0))
    child = MaskSearch(keep=0.5, cost="ms").apply(model, run).encoder.config.layers
    assert (sum(s.heads for s in child), sum(s.ffn for s in child)) == (3, 80)


def test_each_step_helps_the_trained_model(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Mean squared distance of hidden states on messages that nothing saw; the search alone, then with factors."""
    run = quiet_run(tiny_data, tiny_model)

    def distance(**settings: Any) -> float:
        child = MaskSearch(keep=0.3, **settings).apply(tiny_model, run)
        return float((states(child, tiny_data) - states(tiny_model, tiny_data)).square().mean())

    assert distance(swap=False) < distance(swap=False, tune=False)


def test_refusals(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    run = quiet_run(tiny_data, tiny_model)
    with pytest.raises(ConfigError, match=r"^embeddings\.words is packed or masked; "):
        MaskSearch().apply(Int8().apply(tiny_model, run), run)
    words = r"^mask_search: heads and neurons are both False; allowed: true for one of them, or for both$"
    with pytest.raises(ConfigError, match=words):
        MaskSearch(heads=False, neurons=False)
    assert same_bits(MaskSearch(keep=1).apply(tiny_model, run), tiny_model, [m.text for m in tiny_data.test])
