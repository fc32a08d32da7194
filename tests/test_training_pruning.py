"""Scores, masks, schedules and masks while training: worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyweight.forms import Sparse
from flyweight.model.linear import Linear
from flyweight.training import pruning
from flyweight.training.pruning import Plan, PrunedWeight, Pruner, check_removed, group, masks, share_removed

SCORES = torch.tensor([[3.0, 1.0, 2.0, 5.0, 0.0, 0.0, 9.0, 8.0], [4.0, 4.0, 4.0, 4.0, 1.0, 2.0, 3.0, 4.0]])


def plan(**fields: object) -> Plan:
    """A plan of 20 steps."""
    defaults = {
        "criterion": "magnitude",
        "sparsity": 0.5,
        "shape": "unstructured",
        "scope": "matrix",
        "schedule": "one-shot",
        "n_steps": 20,
    }
    return Plan(**(defaults | fields))  # type: ignore[arg-type]


def linear(weight: Tensor) -> Linear:
    """A matrix without bias."""
    module = Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module


def kept(shape: str, keep: float, scores: Tensor = SCORES) -> list[list[int]]:
    """The mask of one matrix as zeros and ones."""
    (found,) = masks([scores], keep, shape, "matrix")
    assert found.shape == scores.shape
    assert found.dtype == torch.bool
    return found.int().tolist()


# masks --------------------------------------------------------------------------------------------------------------


def test_the_best_weights_stay_and_of_equal_ones_the_first() -> None:
    # 9, 8, 5, then five of the six fours: 8 of 16
    assert kept("unstructured", 0.5) == [[0, 0, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 1]]
    assert kept("unstructured", 0.4) == [[0, 0, 0, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]]  # round(6.4) = 6
    assert kept("unstructured", 0.0) == [[0] * 8] * 2
    assert kept("unstructured", 1.0) == [[1] * 8] * 2


def test_blocks_of_four_stay_together_by_their_sum() -> None:
    assert kept("1x4", 0.5) == [[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]]  # sums 11, 17; 16, 10
    assert kept("1x4", 0.75) == [[1] * 8, [1, 1, 1, 1, 0, 0, 0, 0]]
    assert kept("1x4", 0.5, SCORES[:, :6]) == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]  # 11, 0; 16, 3


def test_of_every_m_neighbours_the_best_n_stay() -> None:
    assert kept("2:4", 0.5) == [[1, 0, 0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1, 1]]
    assert kept("1:4", 0.25) == [[0, 0, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 1]]
    assert kept("2:4", 0.6)[0] == [1, 0, 1, 1, 1, 0, 1, 1]  # on the way: ceil(0.6 * 4) = 3 of 4
    assert kept("2:3", 2 / 3, SCORES[:, :7]) == [[1, 0, 1, 1, 1, 0, 1], [1, 1, 0, 1, 0, 1, 1]]  # a last group of one


def test_globally_matrices_compete() -> None:
    small = torch.full((1, 4), 0.5)
    found = masks([SCORES, small], 0.5, "unstructured", "global")  # 10 of 20, all ten of 3.. in the first matrix
    assert found[0].sum() == 10
    assert not found[1].any()
    found = masks([SCORES, small], 0.5, "unstructured", "matrix")
    assert found[1].tolist() == [[True, True, False, False]]
    blocks = masks([SCORES, small * 10], 0.4, "1x4", "global")  # sums 11, 17, 16, 10 and 20: two of five
    assert blocks[0].int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8]
    assert blocks[1].all()


@pytest.mark.parametrize("shape", ["unstructured", "1x4", "2:4"])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_empty_matrices_have_empty_masks(shape: str, scope: pruning.Scope) -> None:
    found = masks([torch.zeros(0, 3), SCORES, torch.zeros(3, 0)], 0.5, shape, scope)
    assert [tuple(m.shape) for m in found] == [(0, 3), (2, 8), (3, 0)]
    assert found[1].sum() == 8


def test_groups_and_shares() -> None:
    assert [group(s) for s in ("2:4", "1:2", "15:16", "4:4", "0:4", "4:17", "x", "2:4 ")] == [
        *((2, 4), (1, 2), (15, 16)),
        *[None] * 5,
    ]
    assert share_removed(None, "unstructured") == 0.8
    assert share_removed(0.0, "1x4") == 0.0
    assert share_removed(None, "1:4") == share_removed(0.75, "1:4") == 0.75
    check_removed("room", 2 / 3, "1:3")


# schedules ----------------------------------------------------------------------------------------------------------


def test_cubic_schedule_by_hand() -> None:
    """20 steps: begins at step 2 (a tenth), ends at 12 (six tenths); half way u = 1/2: s (1 - 1/8)."""
    gradual = plan(schedule="gradual", sparsity=0.8)
    assert gradual.settled_at == 12
    assert [gradual.removed(i) for i in (0, 1, 2)] == [0, 0, 0]
    assert gradual.removed(7) == pytest.approx(0.8 * 7 / 8)
    assert gradual.removed(3) == pytest.approx(0.8 * (1 - 0.9**3))
    assert gradual.removed(12) == gradual.removed(19) == 0.8
    assert [i for i in range(20) if gradual.renews(i)] == [0, 10, 12]
    long = plan(schedule="gradual", n_steps=1000)
    assert [i for i in range(1000) if long.renews(i)] == list(range(0, 601, 10))


def test_rounds_leave_the_same_share_each() -> None:
    rounds = plan(schedule="iterative", sparsity=1 - 0.5**4)
    assert [i for i in range(20) if rounds.renews(i)] == [0, 5, 10, 15]
    assert [rounds.removed(i) for i in (0, 4, 5, 10, 14, 15, 19)] == pytest.approx(
        [0.5, 0.5, 0.75, 0.875, 0.875, 0.9375, 0.9375]
    )
    assert rounds.settled_at == 15


def test_one_shot_is_settled_after_the_first_step() -> None:
    once = plan(schedule="one-shot")
    assert (once.settled_at, once.removed(0)) == (0, 0.5)
    assert [i for i in range(20) if once.renews(i)] == [0]


@pytest.mark.parametrize("schedule", pruning.SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_the_last_mask_is_set_within_the_shortest_training(schedule: pruning.Schedule, n_steps: int) -> None:
    module = linear(SCORES)
    short = plan(schedule=schedule, n_steps=n_steps)
    pruner = Pruner([module], short)
    removed = []
    for _ in range(n_steps):
        pruner.advance()
        removed.append(int((~pruner.weights[0].mask).sum()))
    assert pruner.weights[0].settled
    assert removed == sorted(removed)
    assert removed[-1] == 8


# while training -----------------------------------------------------------------------------------------------------


def test_masked_weights_get_no_gradient_and_are_not_set_to_0_yet() -> None:
    module = linear(torch.tensor([[1.0, -3.0, 0.5, 2.0]]))
    pruner = Pruner([module], plan())
    weight = pruner.weights[0]
    assert weight.mask.all()
    assert not weight.settled
    pruner.advance()
    assert weight.settled
    assert module(torch.ones(1, 4)).item() == -3 + 2
    module(torch.ones(1, 4)).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[0, 1, 0, 1]]
    assert module.weight.tolist() == [[1, -3, 0.5, 2]]
    form = weight.form(module.weight.detach())
    assert isinstance(form, Sparse)
    assert form.dense().tolist() == [[0, -3, 0, 2]] == weight(module.weight).tolist()


def test_movement_scores_by_hand() -> None:
    """|w| / rms(w) = (3, 4) / sqrt(12.5). Gradients (1, 1), (-3, 0): terms (3, -4) / sqrt(12.5), (-9, 0) sqrt 2 / 9.

    Weights do not change here.
    """
    module = linear(torch.tensor([[3.0, -4.0]]))
    pruner = Pruner([module], plan(criterion="movement", schedule="gradual"))
    weight, size = pruner.weights[0], 12.5**0.5
    assert weight.scores is not None
    assert weight.scores.tolist()[0] == pytest.approx([3 / size, 4 / size])
    for gradient in ([1.0, 1.0], [-3.0, 0.0]):
        pruner.advance()
        module(torch.eye(2)).backward(torch.tensor(gradient)[:, None])
    wanted = [3 / size - 0.02 * (3 / size - 2**0.5), 4 / size + 0.02 * 4 / size]
    assert weight.scores.tolist()[0] == pytest.approx(wanted)
    for _ in range(11):
        pruner.advance()
    assert weight.settled
    assert weight.mask.tolist() == [[False, True]]
    module(torch.eye(2)).sum().backward()  # what comes behind the last mask is not counted
    assert weight.scores.tolist()[0] == pytest.approx(wanted)


def test_a_gradient_of_zeros_and_weights_of_zeros_move_no_score() -> None:
    module = linear(torch.tensor([[3.0, -4.0]]))
    pruner = Pruner([module], plan(criterion="movement", schedule="gradual"))
    module(torch.zeros(2, 2)).sum().backward()
    assert pruner.weights[0].scores is not None
    assert pruner.weights[0].scores.tolist()[0] == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    module = linear(torch.zeros(2, 2))
    pruner = Pruner([module], plan(criterion="movement", schedule="gradual"))
    module(torch.ones(2, 2)).sum().backward()
    assert pruner.weights[0].scores is not None
    assert not pruner.weights[0].scores.any()


def test_a_masked_weight_is_scored_and_comes_back() -> None:
    module = linear(torch.tensor([[1.0, 2.0]]))
    pruner = Pruner([module], plan(criterion="movement", schedule="gradual", n_steps=200))
    weight = pruner.weights[0]
    weight.mask[0, 0] = False
    for _ in range(121):  # the first wants to grow, the second to shrink, by terms of 0.0126 and 0.0253 a step
        pruner.advance()
        module(torch.eye(2)).backward(torch.tensor([[-1.0], [1.0]]))
    assert weight.scores is not None
    assert weight.scores[0, 0] > weight.scores[0, 1]
    assert weight.mask.tolist() == [[True, False]]


def test_with_one_threshold_matrices_find_their_own_shares() -> None:
    modules = [linear(torch.tensor([[3.0, -4.0]])), linear(torch.tensor([[300.0, -400.0]]))]
    pruner = Pruner(modules, plan(criterion="movement", schedule="gradual", scope="global", sparsity=0.25))
    for weight, scores in zip(pruner.weights, ([5.0, 4.0], [3.0, 2.0]), strict=True):
        weight.scores = torch.tensor([scores])
    for _ in range(13):
        pruner.advance()
    assert [weight.mask.tolist() for weight in pruner.weights] == [[[True, True]], [[True, False]]]


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
@pytest.mark.parametrize("shape", ["unstructured", "1x4"])
def test_what_was_pruned_before_stays_so(criterion: pruning.Criterion, shape: str) -> None:
    rng = np.random.default_rng(0)
    before = torch.from_numpy(rng.random((6, 8)) < 0.5)
    module = linear(torch.from_numpy(rng.normal(size=(6, 8)).astype(np.float32)) * before)
    module.mask = before
    pruner = Pruner([module], plan(criterion=criterion, shape=shape, schedule="gradual", sparsity=0.75))
    for _ in range(20):
        pruner.advance()
        module(torch.randn(3, 8)).square().sum().backward()
    mask = pruner.weights[0].mask
    assert not (mask & ~before).any()
    if shape == "unstructured":
        assert mask.sum() == 12


def test_a_shared_step_is_counted_once_whatever_the_number_of_forward_passes() -> None:
    module = linear(SCORES)
    pruner = Pruner([module], plan(schedule="gradual"))

    def loss(model: object, batch: object) -> Tensor:
        found: Tensor = module(torch.ones(1, 8)).sum() + module(torch.ones(1, 8)).sum()
        return found

    wrapped = pruner.while_training(loss)
    assert wrapped.__name__ == "loss"
    wrapped(None, None)  # type: ignore[arg-type]
    assert int(pruner.weights[0].step) == 1


def test_its_state_is_the_models_state() -> None:
    """What a checkpoint keeps: masks, scores and steps; the plan is part of a training's identity."""
    first, second = nn.Sequential(linear(SCORES)), nn.Sequential(linear(SCORES))
    settings = plan(criterion="movement", schedule="gradual")
    pruners = [Pruner([m[0]], settings) for m in (first, second)]  # type: ignore[list-item]
    for _ in range(12):
        pruners[0].advance()
        first(torch.randn(3, 8)).square().sum().backward()
    second.load_state_dict(first.state_dict())
    for pruner in pruners:
        pruner.advance()
    a, b = (pruner.weights[0] for pruner in pruners)
    assert torch.equal(a.mask, b.mask)
    assert int(a.step) == int(b.step) == 13
    assert a.settled
    assert b.settled
    assert "sparsity=0.5" in repr(a)
    assert repr(a) != repr(PrunedWeight(SCORES, plan()))
