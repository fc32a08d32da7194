"""GPTQ: two columns worked out by hand, nearest rounding where inputs are independent, less output error where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_models import quiet_run, random_model, same_bits
from torch import Tensor

from flyweight.data.messages import NLUData
from flyweight.errors import DataError
from flyweight.forms import Codes, Int8
from flyweight.forms.codes import nearest
from flyweight.model.linear import Linear, quantize_activations
from flyweight.model.nlu import NLUModel
from flyweight.techniques.gptq import GPTQ
from flyweight.training.compensated import BLOCK, compensated, even_levels
from flyweight.training.inputs import second_moment, stages

NO_DAMP = 1e-9


def correlated(n_rows: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (n_rows, n) and inputs (600, n) that share a few directions and differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 6)) @ rng.normal(size=(6, n)) + 0.3 * rng.normal(size=(600, n))
    x *= np.exp(rng.normal(size=n))
    return torch.from_numpy(rng.normal(size=(n_rows, n))).float(), torch.from_numpy(x).float()


def row_centres(w: Tensor, k: int) -> Tensor:
    """k even levels over each row's range."""
    low, high = w.amin(dim=1, keepdim=True), w.amax(dim=1, keepdim=True)
    return low + (high - low) * torch.linspace(0, 1, k)


def rounded(centres: Tensor, codes: Tensor) -> Tensor:
    return centres.expand(codes.shape[0], -1).gather(1, codes.long())


# pure maths ---------------------------------------------------------------------------------------------------------


def test_two_columns_by_hand() -> None:
    """Once q0 is fixed, the error is least at w1 + H01 / H11 (w0 - q0): what the first column lost, the second gives.

    Row 0: 0.4 -> 0, and 0.4 + 1/2 0.4 = 0.6 -> 1 (nearest alone: 0). Row 1: 0.6 -> 1, 0.6 - 1/2 0.4 = 0.4 -> 0.
    Row 2: 0 loses nothing.
    """
    w = torch.tensor([[0.4, 0.4], [0.6, 0.6], [0.0, 0.6]])
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert compensated(w, torch.tensor([[0.0, 1.0]]), h, NO_DAMP).tolist() == [[0, 1], [1, 0], [0, 1]]
    own = torch.tensor([[0.0, 1.0]] * 3)
    assert compensated(w, own, h, NO_DAMP).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_damping_by_hand() -> None:
    """damp = 1 adds the mean of the diagonal, 2: H01 / H11 = 1/4, and 0.39 + 0.1 stays at 0, where 0.39 + 0.2 is 1."""
    w, h = torch.tensor([[0.4, 0.39]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert compensated(w, torch.tensor([[0.0, 1.0]]), h, 1.0).tolist() == [[0, 0]]
    assert compensated(w, torch.tensor([[0.0, 1.0]]), h, NO_DAMP).tolist() == [[0, 1]]


def test_act_order_rounds_large_inputs_first_and_keeps_their_places() -> None:
    """Column 1 first: 0.3 -> 0; column 0 gets H01 / H00 0.3 = 0.3: 0.6 -> 1. In the given order 0.3 + 0.03 -> 0, 0."""
    w, h = torch.tensor([[0.3, 0.3]]), torch.tensor([[1.0, 1.0], [1.0, 10.0]])
    centres = torch.tensor([[0.0, 1.0]])
    assert compensated(w, centres, h, NO_DAMP, act_order=True).tolist() == [[1, 0]]
    assert compensated(w, centres, h, NO_DAMP, act_order=False).tolist() == [[0, 0]]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_independent_inputs_are_nearest_rounding(shared: bool, act_order: bool) -> None:
    w, _ = correlated(9, 40)
    centres = row_centres(w.reshape(1, -1) if shared else w, 5)
    wanted = nearest(w.numpy(), centres.numpy())
    for h in (torch.eye(40), torch.diag(torch.arange(1.0, 41.0)), torch.zeros(40, 40)):
        assert np.array_equal(compensated(w, centres, h, 0.01, act_order).numpy(), wanted)


@pytest.mark.parametrize("n", [30, BLOCK, 2 * BLOCK + 17])
@pytest.mark.parametrize("k", [2, 4, 16])
def test_less_output_error_than_nearest_rounding(n: int, k: int) -> None:
    w, x = correlated(24, n)
    centres = row_centres(w, k)
    plain = ((x @ (w - rounded(centres, torch.from_numpy(nearest(w.numpy(), centres.numpy())))).t()) ** 2).sum()
    for act_order in (False, True):
        codes = compensated(w, centres, x.t() @ x, 0.01, act_order)
        # Measured: 0.05 to 0.5 of nearest rounding's error.
        assert ((x @ (w - rounded(centres, codes)).t()) ** 2).sum() < 0.6 * plain


def one_by_one(w: np.ndarray, centres: np.ndarray, h: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The specification (OBQ): after each column the inverse of H loses it, the rest moves by the optimum.

    A weight outside the mask becomes 0, whatever it was to take over.
    """
    w, inverse, codes = w.astype(np.float64).copy(), np.linalg.inv(h), np.zeros(w.shape, np.uint8)
    for j in range(w.shape[1]):
        codes[:, j] = nearest(w[:, j : j + 1], centres)[:, 0]
        q = centres[np.arange(len(w)), codes[:, j]]
        error = (w[:, j] - (q if mask is None else q * mask[:, j])) / inverse[j, j]
        w[:, j:] -= error[:, None] * inverse[j, j:]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def test_equals_the_inverse_updated_column_by_column() -> None:
    w, x = correlated(7, BLOCK + 12)
    h = (x.t() @ x).double()
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    centres = row_centres(w, 4)
    found = compensated(w, centres, x.t() @ x, 0.01).numpy()
    wanted = one_by_one(w.numpy(), centres.double().numpy(), h.numpy())
    assert (found == wanted).mean() > 0.99  # float32 columns: a tie may fall to the other side, and moves what follows


def test_what_a_pruned_weight_was_to_take_over_later_columns_do() -> None:
    """H^-1 of columns 1 and 2 is (2, -1; -1, 2) / 3. 0.32 -> -0.2: e0 = 0.52 gives them 2/3 e0 = 0.347, -1/3 e0.

    Pruned, column 1 stays 0, and column 2 gets 1/2 0.347 back: 0.4 -> 0.86, as if there were no column 1. Free, column
    1 becomes 0.86, e1 = -0.513, and column 2, 0.4 - 0.173 - 0.257 = -0.03, becomes -0.2.
    """
    h = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    w, centres = torch.tensor([[0.32, 0.0, 0.4]]), torch.tensor([[-0.2, 0.86]])
    mask = torch.tensor([[True, False, True]])
    assert compensated(w, centres, h, NO_DAMP).tolist() == [[0, 1, 0]]
    assert compensated(w, centres, h, NO_DAMP, mask=mask)[0, [0, 2]].tolist() == [0, 1]


@pytest.mark.parametrize("act_order", [False, True])
def test_with_a_mask_it_equals_the_inverse_updated_column_by_column(act_order: bool) -> None:
    w, x = correlated(7, BLOCK + 12)
    mask = torch.from_numpy(np.random.default_rng(1).random(w.shape) < 0.4)
    w = w * mask
    h = (x.t() @ x).double()
    order = h.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(len(h))
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    centres = row_centres(w, 4)
    found = compensated(w, centres, x.t() @ x, 0.01, act_order, mask)[:, order].numpy()
    parts = w[:, order].numpy(), centres.double().numpy(), h[order][:, order].numpy(), mask[:, order].numpy()
    there = parts[3]
    assert (found == one_by_one(*parts))[there].mean() > 0.99
    assert (found == one_by_one(*parts[:3]))[there].mean() < 0.9


def test_even_levels_by_hand() -> None:
    """-3 .. 3 in 4 levels, step 2, m = 3: floor(127 * 2 / 3) = 84 apart, from round(-3 / 2 * 84) = -126."""
    w = torch.tensor([[-3.0, -1, 1, 3], [0, 0, 0, 0], [0, 1, 2, 3]])
    table, scale = even_levels(w, 4, torch.ones(4))
    # row 2: step 1, m = 3: floor(42.3) = 42 apart, from 0
    assert table[[0, 2]].tolist() == [[-126, -42, 42, 126], [0, 42, 84, 126]]
    assert scale.tolist() == pytest.approx([2 / 84, 0, 1 / 42])


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16, 64])
def test_even_levels_fit_int8_and_shrink_where_that_helps(k: int) -> None:
    w = torch.from_numpy(np.random.default_rng(k).standard_t(4, size=(40, 200))).float()
    w[0], w[1] = w[0].abs(), -w[1].abs()
    table, scale = even_levels(w, k, torch.ones(200))
    assert (table.abs() <= 127).all()
    assert (table == table.round()).all()
    assert (table.diff(dim=1) == table[:, 1:2] - table[:, :1]).all()
    assert (table.diff(dim=1) >= 1).all()
    centres = (table * scale[:, None]).numpy()
    error = ((w.numpy() - np.take_along_axis(centres, nearest(w.numpy(), centres).astype(int), 1)) ** 2).sum(axis=1)
    whole = row_centres(w, k).numpy()
    plain = ((w.numpy() - np.take_along_axis(whole, nearest(w.numpy(), whole).astype(int), 1)) ** 2).sum(axis=1)
    # At 64 centres, 2 to 4 steps of the int8 grid apart, the ends move by up to half a step of it.
    assert error.sum() < (plain.sum() if k <= 16 else 1.01 * plain.sum())


# through the technique ----------------------------------------------------------------------------------------------


def modules(model: NLUModel) -> dict[str, Any]:
    return {name: module for name, module, _ in model.matrices()}


def test_second_moments_are_those_of_single_messages(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Every matrix: the sum over messages one by one, no padding, of what it was given, rounded to int8."""
    model = random_model(tiny_model, embedding=13, pooling="cls+tanh")
    encoded = model.tokenizer.encode_batch([m.text for m in tiny_data.messages[:30]])
    seen: dict[str, list[Tensor]] = {}
    linear = {name: m for name, m in modules(model).items() if isinstance(m, Linear)}
    handles = [
        m.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(given[0]))
        for name, m in linear.items()
    ]
    for e in encoded:
        model.logits([e])
    for handle in handles:
        handle.remove()
    names = []
    for stage in stages(model, encoded):
        for name in stage.names:
            names.append(name)
            x = torch.cat([quantize_activations(a).reshape(-1, a.shape[-1]) for a in seen[name]])
            found = second_moment(linear[name], stage.replay)
            # An activation on the border of two int8 steps may fall to the other side: sums of a batch differ in order.
            assert torch.allclose(found, x.t() @ x, rtol=1e-2, atol=1e-2 * float((x**2).sum()) / len(found)), name
    assert names == list(linear)


def test_later_stages_see_the_changed_matrices(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    encoded = model.tokenizer.encode_batch([m.text for m in tiny_data.messages[:10]])
    moments = []
    for change in (False, True):
        for stage in stages(model, encoded):
            if "layers.1.attention.qkv" in stage.names:
                moments.append(second_moment(model.encoder.layers[1].attention.qkv, stage.replay))
            elif change:
                with torch.no_grad():
                    model.encoder.layers[0].ffn.down.weight.mul_(-1)
    assert not torch.allclose(moments[0], moments[1], rtol=0.1)


@pytest.mark.parametrize("grid", ["uniform", "kmeans"])
def test_outputs_are_closer_than_those_of_nearest_rounding(grid: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """The first matrix with inputs, the same centres: sum over real tokens of |Wx - Qx|^2."""
    settings: dict[str, Any] = {"encoder": 4, "embeddings": None, "heads": None, "grid": grid}
    run = quiet_run(tiny_data, tiny_model)
    child = GPTQ(**settings).apply(tiny_model, run)
    encoded = tiny_model.tokenizer.encode_batch([m.text for m in tiny_data.train])
    before = tiny_model.encoder.layers[0].attention.qkv
    stage = next(stages(tiny_model, encoded))
    h = second_moment(before, stage.replay)
    form = child.encoder.layers[0].attention.qkv.form
    assert isinstance(form, Codes)
    assert form.scale is not None
    w = before.weight.detach()
    plain = torch.from_numpy(form.table * form.scale[:, None])
    near = rounded(plain, torch.from_numpy(nearest(w.numpy(), plain.numpy())))
    lost, lost_near = (float((((w - q) @ h) * (w - q)).sum()) for q in (torch.from_numpy(form.dense()), near))
    assert lost < 0.8 * lost_near


def test_forms_of_both_grids(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    run = quiet_run(tiny_data, model)
    child = GPTQ(encoder=16, embeddings=5, heads=100, grid="uniform", n_messages=20).apply(model, run)
    for name, module in modules(child).items():
        if name.startswith("embeddings."):
            assert isinstance(module.form, Codes)
            assert (module.form.scale, module.activations) == (None, "float")
        elif name.startswith("heads."):
            assert isinstance(module.form, Int8)
        else:
            assert module.form.table.dtype == np.int8
            steps = np.diff(module.form.table.astype(int), axis=1)
            assert (steps == steps[:, :1]).all()
            assert module.activations == "int8"


def test_no_messages_no_inputs(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    with pytest.raises(DataError, match=r"^no training messages; gptq needs at least one, labelled or not$"):
        GPTQ().apply(tiny_model, quiet_run(NLUData(()), tiny_model))
    model = random_model(tiny_model)
    child = GPTQ(encoder=None, embeddings=4, heads=None).apply(model, quiet_run(NLUData(()), model))
    assert isinstance(child.encoder.words.form, Codes)


def test_labels_do_not_matter_and_the_test_split_is_not_looked_at(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    step = GPTQ(encoder=4, embeddings=None, heads=4, n_messages=30)
    bare = NLUData(tuple(replace(m, intent=None, entities=()) for m in tiny_data.train))
    a, b = (step.apply(model, quiet_run(data, model)) for data in (tiny_data, bare))
    assert same_bits(a, b, [m.text for m in tiny_data.messages[:10]])
