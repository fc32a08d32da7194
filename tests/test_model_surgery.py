"""Surgery equals masks, for random subsets of heads, neurons and layers, none included; what comes out is a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import VARIANTS, all_logits, largest_difference, random_model, same_bits, variant

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.model.encoder import masked
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_heads, keep_layers, keep_neurons
from flyweight.runtime import native
from flyweight.runtime.parser import EngineName, load
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Run
from flyweight.training.loop import TrainingSettings, fit

# A sum over fewer terms is added up in another order: some units in the last place of numbers near 1 (2^-23 = 1.2e-7),
# through two to four layers.
ULPS = 5e-6
SHAPES = ["plain", "relative", "cut", "pooler"]


def texts_of(data: NLUData) -> list[str]:
    return [m.text for m in data.validation] + ["", "book a flight to " * 9]


def mask_of(kept: list[int], count: int) -> torch.Tensor:
    mask = torch.zeros(count)
    mask[kept] = 1
    return mask


def subsets(draw: st.DrawFn, counts: list[int]) -> dict[int, list[int]]:
    """Some layers, each with any subset of its `count` parts, in any order."""
    layers = draw(st.sets(st.sampled_from(range(len(counts)))))
    return {i: draw(st.lists(st.sampled_from(range(counts[i])), unique=True)) if counts[i] else [] for i in layers}


def of_layers(model: NLUModel) -> tuple[list[int], list[int]]:
    shapes = model.encoder.config.layers
    return [s.heads for s in shapes], [s.ffn for s in shapes]


# equality -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_the_pruned_model_equals_the_masked_model(
    tiny_data: NLUData, tiny_model: NLUModel, draw: st.DataObject
) -> None:
    model = variant(tiny_model, draw.draw(st.sampled_from(SHAPES)))
    n_heads, n_neurons = of_layers(model)
    heads, neurons = draw.draw(st.composite(subsets)(n_heads)), draw.draw(st.composite(subsets)(n_neurons))
    pruned = keep_neurons(keep_heads(model, heads), neurons)
    texts = texts_of(tiny_data)
    with masked(
        model,
        heads={i: mask_of(kept, n_heads[i]) for i, kept in heads.items()},
        neurons={i: mask_of(kept, n_neurons[i]) for i, kept in neurons.items()},
    ):
        wanted = all_logits(model, texts)
    assert of_layers(pruned) == (
        [len(heads.get(i, range(n))) for i, n in enumerate(n_heads)],
        [len(neurons.get(i, range(n))) for i, n in enumerate(n_neurons)],
    )
    assert largest_difference(all_logits(pruned, texts), wanted) <= ULPS


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_left_of_any_layer_but_biases_and_norms(tiny_data: NLUData, tiny_model: NLUModel, name: str) -> None:
    model = variant(tiny_model, name)
    none: dict[int, list[int]] = {i: [] for i in range(len(model.encoder.layers))}
    pruned = keep_neurons(keep_heads(model, none), none)
    with torch.no_grad():
        ids = torch.tensor([[1, 5, 3]])
        x = model.encoder.embed(ids)
        for layer in model.encoder.layers:
            assert layer.attention.out.bias is not None
            assert layer.ffn.down.bias is not None
            x = layer.attention.norm(x + layer.attention.out.bias)
            x = layer.ffn.norm(x + layer.ffn.down.bias)
        found = pruned.encoder(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(found, x)


@pytest.mark.parametrize("kept", [[], [1], [2, 0], [0, 1, 2, 3]])
def test_layers_that_go_leave_the_others_as_they_were(
    tiny_data: NLUData, tiny_model: NLUModel, kept: list[int]
) -> None:
    model = variant(tiny_model, "cut")
    pruned = keep_layers(model, kept)
    assert pruned.encoder.config.layers == tuple(model.encoder.config.layers[i] for i in sorted(kept))
    ids = torch.tensor([[1, 5, 3, 2]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        x = model.encoder.embed(ids)
        for i in sorted(kept):
            x = model.encoder.states_from(i, x, mask)[1]
        assert torch.equal(pruned.encoder(ids, mask), x)


def test_every_subset_kept_whole_is_the_model_bit_for_bit(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "relative")
    n_heads, n_neurons = of_layers(model)
    same = keep_layers(
        keep_neurons(
            keep_heads(model, {i: list(range(n))[::-1] for i, n in enumerate(n_heads)}),
            {i: list(range(n)) for i, n in enumerate(n_neurons)},
        ),
        range(len(n_heads)),
    )
    assert same_bits(same, model, texts_of(tiny_data))


def test_rows_follow_their_heads(tiny_model: NLUModel) -> None:
    """Head size 7: head 2 of three has rows 14 to 20 of Q, of K (from 21) and of V (from 42)."""
    model = random_model(tiny_model, layers=((3, 4),), relative_buckets=32)
    pruned = keep_heads(model, {0: [2]})
    old, new = model.encoder.layers[0].attention, pruned.encoder.layers[0].attention
    rows = [*range(14, 21), *range(35, 42), *range(56, 63)]
    assert torch.equal(new.qkv.weight, old.qkv.weight[rows])
    assert torch.equal(new.out.weight, old.out.weight[:, 14:21])
    for a, b, kept in (
        (new.qkv.bias, old.qkv.bias, (rows,)),
        (new.out.bias, old.out.bias, ()),
        (new.relative_bias, old.relative_bias, (slice(None), [2])),
    ):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b[kept])


# masks --------------------------------------------------------------------------------------------------------------


def test_masks_are_gone_after_the_block_even_when_it_fails(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model, texts = variant(tiny_model, "plain"), texts_of(tiny_data)
    before = all_logits(model, texts)

    def fails() -> None:
        with masked(model, heads={0: torch.zeros(3)}, neurons={1: torch.zeros(21)}):
            assert largest_difference(all_logits(model, texts), before) > 0.01
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all(np.array_equal(a, b) for a, b in zip(all_logits(model, texts), before, strict=True))


def test_a_row_of_factors_a_message_and_gradients(tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "plain")
    ids = torch.tensor([[1, 5, 3], [1, 7, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    heads, neurons = torch.tensor([[1.0, 0.5, 0.0], [0.2, 1.0, 1.0]]), torch.rand(2, 37)
    with masked(model, heads={0: heads}, neurons={0: neurons}):
        both = model.encoder(ids, mask)
    for row in range(2):
        with masked(model.encoder, heads={0: heads[row]}, neurons={0: neurons[row]}):
            alone = model.encoder(ids[row : row + 1], mask[row : row + 1])
        assert torch.allclose(alone, both[row : row + 1], atol=ULPS)
    factors = torch.ones(3, requires_grad=True)
    with masked(model, heads={1: torch.ones(2)}, neurons={}), masked(model, heads={0: factors}):
        model(ids, mask)[0].square().sum().backward()
    assert factors.grad is not None
    assert (factors.grad != 0).all()


# what comes out is a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["plain", "relative", "entities only"])
def test_a_pruned_model_saves_trains_exports_and_runs(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, name: str, seed: int
) -> None:
    model, rng, texts = variant(tiny_model, name), np.random.default_rng(seed), texts_of(tiny_data)
    n_heads, n_neurons = of_layers(model)
    heads = {i: np.flatnonzero(rng.random(n) < rng.random()).tolist() for i, n in enumerate(n_heads)}
    neurons = {i: np.flatnonzero(rng.random(n) < rng.random()).tolist() for i, n in enumerate(n_neurons)}
    layers = np.flatnonzero(rng.random(len(n_heads)) < 0.8).tolist()
    pruned = keep_layers(keep_neurons(keep_heads(model, heads), neurons), layers)
    assert same_bits(NLUModel.load(pruned.save(tmp_path / "saved")), pruned, texts)

    labelled = [m if model.labels.intents else replace(m, intent=None) for m in tiny_data.train if m.entities]
    trained = fit(
        pruned.copy(),
        labelled,
        (),
        TrainingSettings(epochs=1),
        device="cpu",
        progress=False,
    )
    assert not same_bits(trained, pruned, texts)
    if pruned.encoder.layers and trained.encoder.layers[0].ffn.up.weight.numel():
        assert not torch.equal(trained.encoder.layers[0].ffn.up.weight, pruned.encoder.layers[0].ffn.up.weight)

    engines: list[EngineName] = ["numpy"] if native.module() is None else ["native", "numpy"]
    for child in (pruned, Int8().apply(pruned, Run(tiny_data, model, device="cpu", progress=False))):
        path = save(child, tmp_path / "child.fly")
        for engine in engines:
            parser = load(path, engine=engine)
            assert [a.intent for a in parser.answers(texts)] == [a.intent for a in child.answers(texts)]
            if child is pruned:
                assert largest_difference(all_logits(parser, texts), all_logits(child, texts)) <= 10 * ULPS


# refusals -----------------------------------------------------------------------------------------------------------


def test_packed_matrices_are_refused(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    packed = Int8().apply(tiny_model, Run(tiny_data, tiny_model, device="cpu", progress=False))
    for cut in (lambda: keep_heads(packed, {}), lambda: keep_neurons(packed, {}), lambda: keep_layers(packed, [0])):
        with pytest.raises(ConfigError, match=r"^embeddings\.words is packed or masked; .*prune structure first"):
            cut()


def test_indices_that_are_none_are_refused(tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "plain")
    for cut, wanted in (
        (lambda: keep_heads(model, {2: [0]}), "layer 2 is none of the model's; allowed: 0 to 1"),
        (lambda: keep_heads(model, {0: [3]}), "head 3 of layer 0 is to be kept; allowed: 0 to 2, each once"),
        (lambda: keep_neurons(model, {1: [-1]}), "neuron -1 of layer 1 is to be kept; allowed: 0 to 20, each once"),
        (lambda: keep_neurons(model, {0: [4, 4]}), "neuron 4 of layer 0 is to be kept; allowed: 0 to 36, each once"),
        (lambda: keep_layers(model, [0, 5]), "layer 5 of the model is to be kept; allowed: 0 to 1, each once"),
    ):
        with pytest.raises(ConfigError, match=f"^{wanted}$"):
            cut()


def test_the_input_is_untouched(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    for name in VARIANTS:
        model = variant(tiny_model, name)
        keep_layers(keep_neurons(keep_heads(model, {0: []}), {0: []}), [0])
        assert same_bits(model, variant(tiny_model, name), texts_of(tiny_data))
        assert model.encoder.config == variant(tiny_model, name).encoder.config
