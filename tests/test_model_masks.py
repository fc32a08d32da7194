"""Masks of matrices: what forward computes, what packing, copies, folders and training do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import same_bits, variant

from flyweight.data.messages import NLUData
from flyweight.forms import Codes, Float32, Int8, Sparse
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.model.linear import Embedding, Linear, float_form, mask_of, set_form, set_mask
from flyweight.model.nlu import NLUModel
from flyweight.training.loop import TrainingSettings, fit
from flyweight.training.quantizers import Centres, Int8Rows, LearnedRows

W = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0], [0.5, 0.0, -1.5, 2.0, 2.5]])
MASK = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])


def pruned() -> Linear:
    """W under MASK, with a bias."""
    module = Linear(5, 2)
    with torch.no_grad():
        module.weight.copy_(W)
        assert module.bias is not None
        module.bias.copy_(torch.tensor([10.0, 20.0]))
    set_mask(module, MASK)
    return module


def pruned_model(like: NLUModel, share: float = 0.5) -> NLUModel:
    """A random model whose encoder matrices have random masks."""
    model, rng = variant(like, "plain"), np.random.default_rng(0)
    for _, module, part in model.matrices():
        if part == "encoder" and isinstance(module, Linear):
            set_mask(module, torch.from_numpy(rng.random(tuple(module.weight.shape)) < share))
    return model


# one matrix ---------------------------------------------------------------------------------------------------------


def test_weights_outside_the_mask_are_gone_by_hand() -> None:
    module = pruned()
    assert module.weight.tolist() == [[1, 0, 3, -4, 0], [0, 0, -1.5, 0, 2.5]]
    assert module(torch.ones(5)).tolist() == [10.0, 21.0]
    assert module.form is None
    form = float_form(module)
    assert isinstance(form, Sparse)
    assert form.size_bytes == 2 * 1 + 4 * 6  # a byte of bits a row, six floats (one of them 0)
    module(torch.ones(1, 5)).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == MASK.float().tolist()


def test_what_a_quantizer_makes_of_zeros_does_not_matter() -> None:
    """No centre is 0, and no weight outside the mask gives a centre its gradient."""
    module = pruned()
    module.weight_quantizer = quantizer = Centres(np.array([[-4.0, 3.0], [-1.5, 2.5]]), module.weight, integer=False)
    assert module(torch.eye(5)).T.tolist() == [[13, 10, 13, 6, 10], [20, 18.5, 18.5, 20, 22.5]]
    module(torch.ones(1, 5)).sum().backward()
    assert quantizer.centres.grad is not None
    assert quantizer.centres.grad.tolist() == [[1, 2], [2, 1]]
    set_form(module, quantizer.form(module.weight.detach()))
    assert isinstance(module.form, Sparse)
    assert isinstance(module.form.values, Codes)
    assert module.weight.tolist() == [[3, 0, 3, -4, 0], [0, -1.5, -1.5, 0, 2.5]]


def test_forms_are_made_sparse_and_sparse_forms_bring_their_mask() -> None:
    module = pruned()
    set_form(module, int8_rows(module.weight.detach().numpy()), "int8")
    assert isinstance(module.form, Sparse)
    assert isinstance(module.form.values, Int8)
    assert module.activations == "int8"
    assert np.array_equal(module.weight.detach().numpy(), module.form.dense())
    other = Linear(5, 2)
    set_form(other, module.form)
    assert other.mask is not None
    assert torch.equal(other.mask, MASK)
    set_form(other, Sparse(module.form.values, np.ones((2, 5), bool)))  # a sparse form's own mask counts
    assert other.mask.all()


def test_int8_with_a_shift_takes_the_mask_away_but_not_the_zeros() -> None:
    module = pruned()
    form = int8_matrix(module.weight.detach().numpy())
    assert form.shift
    set_form(module, form)
    assert module.form is form
    assert module.mask is None
    assert not module.weight.detach()[~MASK].any()


def test_a_form_of_floats_is_no_packed_form() -> None:
    module, looked_up = Linear(5, 2), Embedding(2, 5)
    for matrix in (module, looked_up):
        set_form(matrix, Float32(W.numpy()))
        assert matrix.form is None
        assert mask_of(matrix) is None
        assert torch.equal(matrix.weight, W)


def test_a_mask_is_no_part_of_the_state_and_goes_along_with_copies() -> None:
    module = pruned()
    assert set(module.state_dict()) == {"weight", "bias"}
    moved = module.to(torch.float64)
    assert moved.mask is not None
    assert moved.mask.dtype == torch.bool
    assert [name for name, _ in module.named_buffers()] == ["mask"]


def test_learned_steps_start_from_the_weights_that_are_there() -> None:
    """2 mean|w| / sqrt(127): rows 1 3 4 and 0 1.5 2.5 have means 8/3 and 4/3, the matrix 12/6."""
    module = pruned()
    rows = LearnedRows(module.weight, mask=module.mask)
    assert (rows.start[:, 0] * 127**0.5 / 2).tolist() == pytest.approx([8 / 3, 4 / 3])
    whole = LearnedRows(module.weight, per_row=False, mask=module.mask)
    assert float(whole.start * 127**0.5 / 2) == pytest.approx(2.0)
    assert torch.equal(LearnedRows(W).start, LearnedRows(W, mask=torch.ones_like(W, dtype=torch.bool)).start)


# a model ------------------------------------------------------------------------------------------------------------


def test_folders_keep_masks(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    model = pruned_model(tiny_model)
    found = NLUModel.load(model.save(tmp_path / "model"))
    for (name, a, _), (_, b, _) in zip(model.matrices(), found.matrices(), strict=True):
        assert np.array_equal(mask_of(a), mask_of(b)), name  # type: ignore[arg-type]
        assert a.form is b.form is None
    assert same_bits(model, found, [m.text for m in tiny_data.messages[::5]])
    assert model.size_bytes() == found.size_bytes()


def test_counts_are_those_of_what_is_left(tiny_model: NLUModel) -> None:
    dense, model = variant(tiny_model, "plain"), pruned_model(tiny_model)
    gone = sum(int((~mask).sum()) for _, m, _ in model.matrices() if (mask := mask_of(m)) is not None)
    assert gone > 1000
    assert model.n_parameters() == dense.n_parameters() - gone
    bits = sum(len(m.weight) * -(-m.weight.shape[1] // 8) for _, m, _ in model.matrices() if mask_of(m) is not None)
    assert model.size_bytes() == dense.size_bytes() - 4 * gone + bits


def test_training_keeps_masks_and_zeros(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = pruned_model(tiny_model)
    before = {name: (mask_of(m), m.weight.detach().clone()) for name, m, _ in model.matrices()}
    for _, module, part in model.matrices():
        if part == "encoder":
            set_form(module, int8_rows(module.weight.detach().numpy()))
    settings = TrainingSettings(epochs=1, learning_rate=0.01, weight_decay=0.1)
    fit(model, tiny_data.train, tiny_data.validation, settings, device="cpu", progress=False)
    for name, module, part in model.matrices():
        mask, weight = before[name]
        assert module.form is None
        assert np.array_equal(mask_of(module), mask)  # type: ignore[arg-type]
        assert not torch.equal(module.weight, weight) or part == "embeddings"
        if mask is not None:
            assert not module.weight.detach().numpy()[~mask].any()


def test_other_masks_are_another_training(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """Two models with the same weights, one of which may not train those that happen to be 0."""
    from flyweight.errors import ConfigError

    model, free = pruned_model(tiny_model), pruned_model(tiny_model)
    for _, module, _ in free.matrices():
        if isinstance(module, Linear):
            module.mask = None
    settings = TrainingSettings(epochs=1)
    fit(model, tiny_data.train, (), settings, device="cpu", folder=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="belongs to a training with other settings"):
        fit(free, tiny_data.train, (), settings, device="cpu", folder=tmp_path, progress=False)


def test_masked_int8_rows_are_trained_in_the_steps_of_the_file() -> None:
    module = pruned()
    module.weight_quantizer = quantizer = Int8Rows()
    simulated = module(torch.eye(5))
    set_form(module, quantizer.form(module.weight.detach()))
    module.weight_quantizer = None
    assert torch.equal(module(torch.eye(5)), simulated)
