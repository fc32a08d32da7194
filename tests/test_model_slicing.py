"""A narrower residual stream: the fits by hand, and models that still are models."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from random_models import VARIANTS, all_logits, quiet_run, random_model, rms_gap, variant
from torch import nn

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, DataError
from flyweight.model import slicing
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.model.slicing import _batches, _fit_norm, _moments, _read, hidden_moments, sliced
from flyweight.techniques.hidden_pruning import HiddenPruning
from flyweight.techniques.int8 import Int8


def test_what_is_read_is_fitted_by_hand() -> None:
    # y = (a, b, a + 2 b + 5): a reader of y becomes one of (a, b) and a constant
    small = torch.tensor([[1.0, 0], [0, 1], [2, 1], [-1, 3], [4, -2]])
    y = torch.stack([small[:, 0], small[:, 1], small[:, 0] + 2 * small[:, 1] + 5], dim=1)
    reader = Linear(3, 1)
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([[10.0, 20, 30]]))
        assert reader.bias is not None
        reader.bias.fill_(1.0)
        _read(reader, *_moments([(small[:2], y[:2]), (small[2:], y[2:])]))
    # 10 a + 20 b + 30 (a + 2 b + 5) + 1
    assert reader.weight.tolist()[0] == pytest.approx([40.0, 80.0], rel=1e-2)
    assert reader.bias.tolist() == pytest.approx([151.0], rel=1e-2)


def test_a_norm_is_fitted_number_by_number() -> None:
    norm = nn.LayerNorm(3)
    z = torch.tensor([[1.0, 2, 6], [4, 4, 1], [0, 5, 1], [3, -3, 0]])
    n = nn.functional.layer_norm(z, (3,))
    with torch.no_grad():
        wanted = n * torch.tensor([3.0, -1, 0]) + torch.tensor([2.0, 0, 7])
        _fit_norm(norm, [(z[:3], wanted[:3]), (z[3:], wanted[3:])])
    assert norm.weight.tolist() == pytest.approx([3.0, -1.0, 0.0], abs=1e-2)
    assert norm.bias.tolist() == pytest.approx([2.0, 0.0, 7.0], abs=1e-2)


@pytest.mark.parametrize("of", VARIANTS)
def test_nothing_removed_changes_next_to_nothing(of: str, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    model, texts = variant(tiny_model, of), [m.text for m in tiny_data.train]
    hidden = model.encoder.config.hidden
    same = sliced(model, torch.eye(hidden), model.tokenizer.encode_batch(texts))
    size = np.sqrt(np.mean(np.concatenate([a.ravel() for a in all_logits(model, texts)]) ** 2))
    assert rms_gap(same, model, texts) < 0.05 * size  # the damping of twice as many fits as there are layers


@pytest.mark.parametrize("of", VARIANTS)
@pytest.mark.parametrize("width", [1, 9, 27])
def test_any_width_is_a_model(of: str, width: int, tiny_model: NLUModel, tiny_data: NLUData) -> None:
    model, texts = variant(tiny_model, of), [m.text for m in tiny_data.train]
    before = all_logits(model, texts[:3])
    write = torch.from_numpy(np.random.default_rng(width).normal(size=(28, width)).astype(np.float32))
    found = sliced(model, write, model.tokenizer.encode_batch(texts))
    assert found.encoder.config.hidden == width
    for name, module, _ in found.matrices():
        assert width in module.weight.shape or name == "embeddings.words" or "embedding" in VARIANTS[of], name
    assert all(np.isfinite(a).all() for a in all_logits(found, texts))
    assert all(np.array_equal(a, b) for a, b in zip(before, all_logits(model, texts[:3]), strict=True))


def test_packed_matrices_are_refused(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    model = variant(tiny_model, "plain")
    encoded = model.tokenizer.encode_batch(["hello"])
    packed = Int8().apply(model, quiet_run(tiny_data, model))
    with pytest.raises(ConfigError, match=re.escape("prune structure first")):
        sliced(packed, torch.eye(28)[:, :1], encoded)


def test_moments_weigh_states_alike(tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "plain")
    found = hidden_moments(model, model.tokenizer.encode_batch(["hello bot", "thank you"]))
    assert torch.allclose(found, found.t())
    assert float(found.trace()) == pytest.approx(5.0, rel=1e-5)  # embeddings, two of each of two layers


def test_batches_are_of_like_length(tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, tokenizer=tiny_model.tokenizer)
    encoded = model.tokenizer.encode_batch(["hello", *["hello bot thank you " * 5] * 32, *["hello bot"] * 31])
    found = _batches(encoded)
    lengths = [mask.sum(dim=1).tolist() for _, mask in found]
    assert [len(of) for of in lengths] == [32, 32]
    assert lengths[0] == sorted(len(e.ids) for e in encoded)[:32]
    assert found[0][0].shape[1] == len(encoded[-1].ids) < found[1][0].shape[1]


@pytest.mark.parametrize("of", ["cut", "relative", "pooler", "projected"])
def test_batches_change_nothing(
    of: str, tiny_model: NLUModel, tiny_data: NLUData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = variant(tiny_model, of), [m.text for m in tiny_data.train][:12]
    encoded, found, moments = model.tokenizer.encode_batch(texts), [], []
    for size in (5, 12):
        monkeypatch.setattr(slicing, "BATCH", size)
        found.append(sliced(model, torch.eye(model.encoder.config.hidden)[:, :20], encoded))
        moments.append(hidden_moments(model, encoded))
    assert torch.allclose(*moments, atol=1e-5)
    assert rms_gap(*found, texts) < 1e-3


def test_principal_numbers_lose_less_than_the_last(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    texts = [m.text for m in tiny_data.train]
    encoded = tiny_model.tokenizer.encode_batch(texts)
    vectors = torch.linalg.eigh(hidden_moments(tiny_model, encoded))[1].flip(1)
    n = tiny_model.encoder.config.hidden // 2
    gaps = [rms_gap(sliced(tiny_model, of, encoded), tiny_model, texts) for of in (vectors[:, :n], vectors[:, n:])]
    assert gaps[0] < gaps[1]


def test_a_share_of_the_hidden_size(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    model = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, model)
    assert HiddenPruning(keep=0.5, epochs=0).apply(model, run).encoder.config.hidden == 14
    assert HiddenPruning(keep=0.286, epochs=0).apply(model, run).encoder.config.hidden == 8
    wanted = "hidden_pruning: keep is 0.001, 0 of 28 numbers a token; 8 at least must stay, so allowed for this model: "
    with pytest.raises(ConfigError, match=f"^{wanted}0.286 to 1$"):
        HiddenPruning(keep=0.001, epochs=0).apply(model, run)
    assert HiddenPruning(keep=0.99, epochs=0).apply(model, run).encoder.config.hidden == 28
    with pytest.raises(DataError, match=r"^no training messages; what is left is fitted on them"):
        HiddenPruning().apply(model, quiet_run(NLUData(()), model))
