"""Quantizers while training: gradients and ranges worked out by hand, and the packed form equal to the simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.model.linear import Embedding, Linear
from flyweight.training.quantizers import (
    Centres,
    Int8Matrix,
    Int8Rows,
    LearnedRows,
    RealTokens,
    StaticInput,
    WeightQuantizer,
    nearest_codes,
)


def matrix(rows: int = 5, columns: int = 37, seed: int = 0) -> Tensor:
    """Gaussian weights; a row of zeros, and one with an outlier."""
    w = np.random.default_rng(seed).normal(0, 0.1, (rows, columns)).astype(np.float32)
    w[1] = 0
    w[2, 3] = 4
    return torch.from_numpy(w)


def test_centres_take_the_sum_of_their_clusters_gradient() -> None:
    weight = nn.Parameter(torch.tensor([[-1.1, -0.4, 0.2, 0.9], [0.0, 0.6, 0.4, 3.0]]))
    quantizer = Centres(np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]), weight, integer=False)
    found = quantizer(weight)
    assert found.tolist() == [[-1, 0, 0, 1], [0, 1, 0, 2]]
    found.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    assert quantizer.centres.grad is not None
    assert weight.grad is not None
    assert quantizer.centres.grad.tolist() == [[1, 2 + 3, 4], [5 + 7, 6, 8]]
    assert weight.grad.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_shared_table_takes_the_gradient_of_all_rows() -> None:
    weight = torch.tensor([[-2.0, 0.1], [0.9, -0.6]])
    quantizer = Centres(np.array([[-1.0, 1.0]]), weight, integer=False)
    quantizer(weight).backward(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    assert quantizer.centres.grad is not None
    assert quantizer.centres.grad.tolist() == [[1 + 8, 2 + 4]]


def test_integer_centres_lie_on_the_int8_grid_of_the_file() -> None:
    weight = torch.tensor([[-0.9, 0.25, 1.2]])
    quantizer = Centres(np.array([[-1.0, 0.3, 1.27]]), weight, integer=True)
    form = quantizer.form(weight)  # steps of 1.27 / 127 = 0.01
    assert form.table.tolist() == [[-100, 30, 127]]
    assert form.codes.tolist() == [[0, 1, 2]]
    assert quantizer(weight).tolist() == [pytest.approx([-1.0, 0.3, 1.27], rel=1e-6)]
    quantizer(weight).sum().backward()
    assert quantizer.centres.grad is not None
    assert quantizer.centres.grad.tolist() == [pytest.approx([1, 1, 1], rel=1e-6)]  # straight through the rounding


def test_of_two_centres_at_the_same_distance_the_lower_is_taken_whatever_their_order() -> None:
    weight = torch.tensor([[0.5, -0.5, 0.51, -0.51]])
    assert nearest_codes(weight, torch.tensor([[-1.0, 0.0, 1.0]])).tolist() == [[1, 0, 2, 0]]
    assert nearest_codes(weight, torch.tensor([[1.0, -1.0, 0.0]])).tolist() == [[2, 1, 0, 1]]
    many = torch.linspace(-1, 1, 21)[None]
    slow = (weight[:, :, None] - many[0]).abs().argmin(dim=2)
    assert nearest_codes(weight, many)[0, 2:].tolist() == slow[0, 2:].tolist()


def test_assignments_are_made_anew_after_so_many_training_steps() -> None:
    weight = torch.tensor([[-0.9, 0.8]])
    fixed = Centres(np.array([[-1.0, 1.0]]), weight, integer=False, reassign=None)
    third = Centres(np.array([[-1.0, 1.0]]), weight, integer=False, reassign=3)
    moved = torch.tensor([[0.9, 0.8]])
    assert [third(moved).tolist() for _ in range(4)] == [[[-1, 1]], [[-1, 1]], [[1, 1]], [[1, 1]]]
    assert [fixed(moved).tolist() for _ in range(4)] == [[[-1, 1]]] * 4
    third.eval()
    for _ in range(3):
        assert third(weight).tolist() == [[1, 1]]  # validation assigns nothing
    assert third.form(weight).codes.tolist() == [[1, 1]]


def quantizers(w: Tensor) -> list[WeightQuantizer]:
    """One of every kind, moved away from where it started."""
    rng = np.random.default_rng(1)
    rows = np.sort(rng.normal(0, 0.1, (len(w), 4)), axis=1)
    made: list[WeightQuantizer] = [
        Centres(rows, w, integer=True),
        Centres(rows, w, integer=True, reassign=5),
        Centres(rows[:1], w, integer=True, reassign=None),
        Centres(rng.normal(0, 0.1, (1, 200)), w, integer=False),
        Int8Rows(),
        Int8Matrix(),
        LearnedRows(w),
        LearnedRows(w, per_row=False),
    ]
    with torch.no_grad():
        for quantizer in made:
            for p in quantizer.parameters():
                p += 0.05 * torch.from_numpy(rng.normal(size=tuple(p.shape)).astype(np.float32))
    return made


@pytest.mark.parametrize("shape", [(5, 37), (3, 4), (1, 1), (4, 0), (0, 4)])
def test_the_form_decodes_to_what_was_simulated(shape: tuple[int, int]) -> None:
    start = matrix()[: shape[0], : shape[1]].contiguous()
    for quantizer in quantizers(start):
        for w in (start, start + 0.03, start * 0):
            simulated = quantizer(w).detach().numpy()
            assert np.array_equal(quantizer.form(w).dense(), simulated), quantizer


def test_int8_is_that_of_the_file() -> None:
    w = matrix()
    for quantizer, form in ((Int8Rows(), int8_rows(w.numpy())), (Int8Matrix(), int8_matrix(w.numpy()))):
        found = quantizer.form(w)
        assert np.array_equal(found.q, form.q)
        assert np.array_equal(found.scale, form.scale)
        assert found.shift == form.shift
    weight = nn.Parameter(w)
    Int8Matrix()(weight).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.ones_like(w))  # straight through


def test_a_learned_step_has_lsqs_gradient() -> None:
    weight = nn.Parameter(torch.tensor([[0.26, -0.74, 300.0, -300.0]]))
    quantizer = LearnedRows(weight)
    with torch.no_grad():
        quantizer.start.fill_(0.5)
        quantizer.ratio.fill_(2.0)  # a step of 1
    found = quantizer(weight)
    assert found.tolist() == [[0, -1, 127, -127]]
    found.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    # inside: round(w / s) - w / s; outside: +-127; times 1 / sqrt(4 * 127), and the start's 0.5 for the ratio
    by_hand = 1 * (0 - 0.26) + 10 * (-1 + 0.74) + 100 * 127 + 1000 * -127
    assert quantizer.ratio.grad is not None
    assert weight.grad is not None
    assert float(quantizer.ratio.grad) == pytest.approx(0.5 * by_hand / (4 * 127) ** 0.5, rel=1e-6)
    assert weight.grad.tolist() == [[1, 10, 0, 0]]


def test_a_range_is_a_moving_average_and_counts_after_its_delay() -> None:
    tokens = RealTokens()
    tokens.mask = torch.tensor([[True, True, False]])
    quantizer = StaticInput(tokens, delay=2)
    batch = torch.tensor([[[1.0, -2.0], [0.5, 0.3], [9.0, 9.0]]])  # the third position is filling
    assert quantizer.eval()(batch).equal(batch)  # nothing is known yet
    quantizer.train()
    assert quantizer(batch).equal(batch)
    assert float(quantizer.range) == 2
    assert quantizer(3 * batch).equal(3 * batch)
    assert float(quantizer.range) == pytest.approx(0.99 * 2 + 0.01 * 6)
    found = quantizer(batch)  # the third step
    step = (0.99 * 2.04 + 0.01 * 2) / 127
    assert float(quantizer.scale()) == pytest.approx(step, rel=1e-6)
    assert found[0, 0].tolist() == pytest.approx([round(1 / step) * step, -round(2 / step) * step], rel=1e-6)
    assert found[0, 2].tolist() == pytest.approx([127 * step] * 2, rel=1e-6)
    quantizer.eval()(100 * batch)
    assert float(quantizer.scale()) == pytest.approx(step, rel=1e-6)  # validation widens nothing


def test_a_learned_range_is_watched_first_then_learned() -> None:
    quantizer = StaticInput(RealTokens(), learned=True)
    x = torch.tensor([[127.0, 0.4]])
    assert quantizer(x).tolist() == [[127, 0]]  # a step of 1 from the first batch
    quantizer(5 * x)
    assert float(quantizer.range) == 127  # not watched any more
    quantizer.zero_grad()
    quantizer(torch.tensor([[3.4, 200.0]])).backward(torch.tensor([[1.0, 10.0]]))
    assert quantizer.ratio.grad is not None
    assert float(quantizer.ratio.grad) == pytest.approx((3 - 3.4 + 10 * 127) / (2 * 127) ** 0.5, rel=1e-6)


def test_matrices_use_their_quantizers() -> None:
    linear, embedding = Linear(3, 2), Embedding(4, 3)
    linear.weight_quantizer, embedding.weight_quantizer = Int8Matrix(), Int8Rows()
    linear.input_quantizer = StaticInput(RealTokens()).train()
    x = torch.tensor([[127.0, 0.4, -1.6]])
    assert linear(x).equal(torch.tensor([[127.0, 0, -2]]) @ Int8Matrix()(linear.weight).T + linear.bias)
    ids = torch.tensor([[3, 0], [0, 1]])
    assert embedding(ids).equal(Int8Rows()(embedding.weight)[ids])
