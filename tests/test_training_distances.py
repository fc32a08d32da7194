"""The table of losses, each against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flyweight.training.distances import (
    LOSSES,
    Compared,
    divergence_of_rows,
    informative,
    relation_scores,
    relative_error,
    squared_logits,
)

LN3 = math.log(3.0)
# KL of (3/4, 1/4) from (1/2, 1/2), and of (3/4, 1/4) from (1/4, 3/4)
HALF = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
TURNED = 0.5 * LN3
INSIDE = ("hidden", "hints", "embeddings", "neurons")


def compared(**given: Any) -> Compared:
    """One message of two tokens about which nothing is said but what is given."""
    nothing: dict[str, Any] = {
        "intents": (torch.zeros(1, 2), torch.zeros(1, 2)),
        "tags": None,
        "path": None,
        "mask": torch.ones(1, 2, dtype=torch.bool),
        "temperature": 1.0,
    }
    return Compared(**(nothing | given))


def test_logits_by_hand() -> None:
    intents = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * LN3, 0.0]])  # / T: (3/4, 1/4)
    tags = torch.tensor([[0.0, 2 * LN3]]), torch.tensor([[2 * LN3, 0.0]])
    found = LOSSES["logits"](compared(intents=intents, temperature=2.0))
    assert float(found) == pytest.approx(4 * HALF, rel=1e-6)  # T^2 = 4 is applied
    found = LOSSES["logits"](compared(intents=intents, tags=tags, temperature=2.0))
    assert float(found) == pytest.approx(4 * (HALF + TURNED), rel=1e-6)


def test_logits_is_a_mean_over_messages() -> None:
    one = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
    two = torch.cat([one[0], one[0]]), torch.cat([one[1], torch.zeros(1, 2)])
    assert float(LOSSES["logits"](compared(intents=one))) == pytest.approx(HALF, rel=1e-6)
    assert float(LOSSES["logits"](compared(intents=two))) == pytest.approx(HALF / 2, rel=1e-6)


def test_mse_by_hand() -> None:
    """Rows less their means: (-1, 1) and (3, -3), two squares of 16."""
    ours, theirs = torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0, 4.0]])
    assert float(squared_logits(ours, theirs)) == 16.0
    assert float(squared_logits(ours + 7, theirs - 100)) == 16.0
    tags = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]])  # (-1, 1) and (0, 0)
    assert float(LOSSES["mse"](compared(intents=(ours, theirs), tags=tags, temperature=9.0))) == 17.0


def test_mse_leaves_out_what_the_teacher_never_means() -> None:
    """26 below the largest: a class that counts for nothing, in no row's mean either; 24 below it counts."""
    ours = torch.tensor([[1.0, 3.0, 50.0]], requires_grad=True)
    found = squared_logits(ours, torch.tensor([[10.0, 4.0, -16.0]]))
    found.backward()
    assert float(found.detach()) == 16.0
    assert ours.grad is not None
    assert ours.grad[0, 2] == 0.0
    assert float(squared_logits(ours, torch.tensor([[10.0, 4.0, -14.0]])).detach()) > 100


@pytest.mark.parametrize("never", [-1e20, -1e30])
def test_mse_with_classes_that_are_excluded(never: float) -> None:
    """What a file of logits may hold: -1e30 for a class that is never meant."""
    assert float(squared_logits(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[10.0, 4.0, never]]))) == 16.0


def test_tags_by_hand() -> None:
    tags = torch.tensor([[0.0, LN3], [0.0, LN3]]), torch.zeros(2, 2)
    path = torch.tensor([0, 1])
    # -ln(1/4) and -ln(3/4)
    wanted = (math.log(4) + math.log(4 / 3)) / 2
    assert float(LOSSES["tags"](compared(tags=tags, path=path))) == pytest.approx(wanted, rel=1e-6)
    assert float(LOSSES["tags"](compared())) == 0.0
    empty = torch.zeros(0, 2)
    assert float(LOSSES["tags"](compared(tags=(empty, empty), path=torch.zeros(0, dtype=torch.int64)))) == 0.0
    assert float(LOSSES["logits"](compared(tags=(empty, empty)))) == 0.0  # not NaN


@pytest.mark.parametrize("name", INSIDE)
def test_hidden_numbers_by_hand(name: str) -> None:
    h, t = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert float(relative_error(h, t)) == pytest.approx(4 / 18)
    found = LOSSES[name](compared(states={name: [(h, t), (2 * t, t), (t, t)]}))
    assert float(found) == pytest.approx(4 / 18 + 1)


def test_attention_by_hand() -> None:
    theirs = torch.tensor([[[[LN3, 0.0], [5.0, 5.0]]]])  # (1, 1, 2, 2): rows (3/4, 1/4), (1/2, 1/2)
    ours = torch.zeros(1, 1, 2, 2)
    found = LOSSES["attention"](compared(scores={"attention": [(ours, theirs), (theirs, theirs)]}))
    assert float(found) == pytest.approx(HALF / 2, rel=1e-5)


def test_attention_of_other_numbers_of_heads_is_compared_by_its_mean() -> None:
    theirs = torch.tensor([[[[LN3, 0.0], [0.0, 0.0]], [[0.0, LN3], [0.0, 0.0]]]])  # both heads together (1/2, 1/2)
    found = LOSSES["attention"](compared(scores={"attention": [(torch.zeros(1, 1, 2, 2), theirs)]}))
    assert float(found) == pytest.approx(0.0, abs=1e-6)
    both = torch.zeros(1, 2, 2, 2)
    found = LOSSES["attention"](compared(scores={"attention": [(both, theirs)]}))
    assert float(found) == pytest.approx(HALF / 2, rel=1e-5)


def padded(scores: Tensor) -> Tensor:
    """A third token of padding: -inf as key, anything as row."""
    found = torch.full((*scores.shape[:2], 3, 3), -torch.inf)
    found[..., :2, :2] = scores
    found[..., 2, 0] = 9.0
    return found


@pytest.mark.parametrize("name", ["attention", "relations"])
def test_padding_counts_for_nothing(name: str) -> None:
    ours = torch.zeros(1, 1, 2, 2, requires_grad=True)
    theirs = torch.tensor([[[[LN3, 0.0], [5.0, 5.0]]]])
    mask = torch.tensor([[True, True, False]])
    found = LOSSES[name](compared(mask=mask, scores={name: [(padded(ours), padded(theirs))]}))
    assert float(found.detach()) == pytest.approx(HALF / 2, rel=1e-5)
    found.backward()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()


def test_relations_are_summed_over_q_k_and_v() -> None:
    one = torch.zeros(1, 1, 2, 2), torch.tensor([[[[LN3, 0.0], [0.0, LN3]]]])
    assert float(LOSSES["relations"](compared(scores={"relations": [one] * 3}))) == pytest.approx(3 * HALF, rel=1e-5)


def test_relation_scores_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]]])
    found = relation_scores(x, torch.ones(1, 2, dtype=torch.bool), heads=2)
    wanted = torch.tensor([[[[5.0, 2.0], [2.0, 1.0]], [[25.0, 4.0], [4.0, 1.0]]]]) / math.sqrt(2)
    assert torch.allclose(found, wanted)
    cut = relation_scores(x, torch.tensor([[True, False]]), heads=1)
    assert torch.equal(cut[0, 0], torch.tensor([[15.0, -torch.inf], [3.0, -torch.inf]]))


def test_rows_are_averaged_over_heads_and_real_tokens() -> None:
    p, q = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    theirs = torch.stack([torch.stack([p, q]), torch.stack([q, q])])[None]  # (1, 2, 2, 2)
    ours = q.expand(1, 2, 2, 2)
    found = divergence_of_rows(ours, theirs, torch.ones(1, 2, dtype=torch.bool))
    assert float(found) == pytest.approx(HALF / 4, rel=1e-6)


def test_informative_numbers_by_hand() -> None:
    """Answers 0, 0, 1, 1. Shares: 1 of what is the answer, 0 of a constant and of noise, 1/2 of (0, 1, 1, 2)."""
    pooled = torch.tensor([[5.0, 0.0, 0.0, 3.0], [5.0, 1.0, 1.0, 3.0], [5.0, 0.0, 1.0, 7.0], [5.0, 1.0, 2.0, 7.0]])
    answers = torch.tensor([0, 0, 1, 1])
    assert informative(pooled, answers, 1).tolist() == [3]
    assert informative(pooled, answers, 2).tolist() == [2, 3]


def test_every_loss_says_its_formula_or_source() -> None:
    for name, loss in LOSSES.items():
        assert loss.__name__ == name
        assert loss.__doc__
