"""Which weights stay: scores, masks of a shape, schedules; and the masks of a model while it is trained.

    magnitude   s = |w|
    movement    s = |w_0| / rms(w_0) - 0.02 sum_t m_t / rms(m_t),  m = dL/dw' * w,  w' = w * mask

    unstructured   the weights with the highest scores
    1x4            four neighbours along the input stay or go together, by the sum of their scores
    n:m            of every m neighbours along the input the n with the highest scores

    share removed, s at the end, at a share t of the training
    one-shot    s from the first step on
    iterative   1 - (1 - s)^(r / 4) in round r of 4 rounds as long as each other: each leaves the same share
    gradual     s (1 - (1 - u)^3),  u from 0 at t = BEGIN to 1 at t = END

Sources: magnitude and rounds, Han et al. 2015, arXiv:1506.02626; cubic schedule, Zhu & Gupta 2017, arXiv:1710.01878;
movement, Sanh et al. 2020, arXiv:2005.07683; n:m, Mishra et al. 2021, arXiv:2104.08378.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.forms import Float32, Sparse
from flyweight.model.linear import Linear, set_mask
from flyweight.model.nlu import NLUModel
from flyweight.training.loop import TrainingSettings
from flyweight.training.losses import Batch, Loss
from flyweight.training.quantizers import WeightQuantizer

Criterion = Literal["magnitude", "movement"]
Scope = Literal["matrix", "global"]
Schedule = Literal["one-shot", "iterative", "gradual"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SPARSITY = 0.8  # where neither a share nor n:m is given
AUTO_STEPS = 3000  # aimed at where epochs are not given: as many as a fine-tuning has
BLOCK = 4  # weights of a 1x4 block
MAX_GROUP = 16  # the largest m of n:m
ROUNDS = 4  # of the iterative schedule
BEGIN, END = 0.1, 0.6  # of the training, where the gradual schedule begins and ends: then the weights left settle
UPDATE_STEPS = 10  # training steps between two masks of the gradual schedule
SCORE_STEP = 0.02  # root mean square, over a matrix, of what a training step adds to the scores of movement
LOWEST = -1e30  # score of a weight that is not there; sums of a block of them are finite


# shapes and masks ---------------------------------------------------------------------------------------------------


def group(shape: str) -> tuple[int, int] | None:
    """(n, m) of a shape "n:m", 1 <= n < m <= 16; None for any other text."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", shape)
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    return (n, m) if 0 < n < m <= MAX_GROUP else None


def check_removed(room: str, sparsity: object, shape: object) -> None:
    """Refuse shares and shapes that no mask has, and a share that a shape n:m does not leave. Errors: ConfigError."""
    if not isinstance(shape, str) or (shape not in ("unstructured", "1x4") and group(shape) is None):
        allowed = (
            f"unstructured, 1x4, or n:m with whole numbers 1 <= n < m <= {MAX_GROUP}, such as 2:4 (in YAML with quotes)"
        )
        raise ConfigError(f"{room}: shape is {shape!r}; allowed: {allowed}")
    if sparsity is not None and not (type(sparsity) in (int, float) and 0 <= sparsity < 1):  # type: ignore[operator]
        raise ConfigError(f"{room}: sparsity is {sparsity!r}; allowed: none, or a number from 0 to below 1")
    of = group(shape)
    if of is not None and sparsity is not None and abs(sparsity - (1 - of[0] / of[1])) > 1e-6:  # type: ignore[operator]
        raise ConfigError(
            f"{room}: sparsity is {sparsity!r}; allowed: none, or {1 - of[0] / of[1]:g}, as {shape} has it"
        )


def share_removed(sparsity: float | None, shape: str) -> float:
    """The share of the weights that a room's settings remove."""
    of = group(shape)
    if of is not None:
        return 1 - of[0] / of[1]
    return SPARSITY if sparsity is None else sparsity


def prunable(model: NLUModel, heads: bool) -> list[Linear]:
    """The matrices that are pruned: those of attention and FFN, and where wanted of the heads; no empty ones."""
    parts = ("encoder", "heads") if heads else ("encoder",)
    found = [module for _, module, part in model.matrices() if part in parts and isinstance(module, Linear)]
    return [module for module in found if module.weight.numel()]


def masks(scores: Sequence[Tensor], keep: float, shape: str, scope: Scope) -> list[Tensor]:
    """Which weights stay, (R, C) bool each. scores (R, C) each; keep: share of the weights, or of the blocks.

    scope: matrix (each keeps that share) | global (all together do, by scores as they are). round(keep * n) of n stay;
    of equal scores those that come first. n:m: ceil(keep * m) of each group, whatever the scope.
    """
    of = group(shape)
    if of is not None:
        return [_best_of_group(s, math.ceil(keep * of[1] - 1e-9), of[1]) for s in scores]
    if shape == "1x4":
        kept = masks([_blocks(s, BLOCK).sum(-1) for s in scores], keep, "unstructured", scope)
        return [k.repeat_interleave(BLOCK, dim=1)[:, : s.shape[1]] for k, s in zip(kept, scores, strict=True)]
    if scope == "matrix":
        return [_top(s, keep) for s in scores]
    chosen = _top(torch.cat([s.flatten() for s in scores]), keep)
    return [part.view(s.shape) for part, s in zip(chosen.split([s.numel() for s in scores]), scores, strict=True)]


def _top(scores: Tensor, keep: float) -> Tensor:
    """True for the round(keep * n) highest of n scores; of equal ones those that come first."""
    flat = scores.flatten()
    n = round(keep * len(flat))
    if not 0 < n < len(flat):
        return torch.full_like(scores, n > 0, dtype=torch.bool)
    edge = flat.kthvalue(len(flat) - n + 1).values
    found = flat > edge
    found[(flat == edge).nonzero()[: n - int(found.sum()), 0]] = True
    return found.view(scores.shape)


def _blocks(scores: Tensor, size: int, filling: float = 0.0) -> Tensor:
    """(R, C) -> (R, ceil(C / size), size), filled up behind the last column."""
    return F.pad(scores, (0, -scores.shape[1] % size), value=filling).unflatten(1, (-1, size))


def _best_of_group(scores: Tensor, n: int, m: int) -> Tensor:
    """True for the n highest of every m neighbours, the first of equal ones; a short last group keeps n, too."""
    if not scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    best = _blocks(scores, m, -torch.inf).argsort(dim=-1, descending=True, stable=True)[..., :n]
    found = torch.zeros(len(scores), scores.shape[1] + -scores.shape[1] % m, dtype=torch.bool, device=scores.device)
    found.unflatten(1, (-1, m)).scatter_(-1, best, True)
    return found[:, : scores.shape[1]]


def left(module: Linear, mask: Tensor) -> Tensor:
    """The mask, without what the module has lost already: whatever is asked for, nothing is given back."""
    return mask if module.mask is None else mask & module.mask


# schedules ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a training of n_steps prunes, or, of 0, how it is done at once.

    sparsity: share of the weights removed at the end, from 0 to below 1.
    """

    criterion: Criterion
    sparsity: float
    shape: str
    scope: Scope
    schedule: Schedule
    n_steps: int = 0

    @property
    def settled_at(self) -> int:
        """The step before which the last mask is set, counted from 0."""
        share = {"one-shot": 0.0, "iterative": (ROUNDS - 1) / ROUNDS, "gradual": END}[self.schedule]
        return int(share * self.n_steps)

    def removed(self, step: int) -> float:
        """Share of the weights removed in a training step."""
        if step >= self.settled_at:
            return self.sparsity
        t = step / self.n_steps
        if self.schedule == "iterative":
            return float(1 - (1 - self.sparsity) ** ((int(t * ROUNDS) + 1) / ROUNDS))
        u = min(max((t - BEGIN) / (END - BEGIN), 0.0), 1.0)
        return float(self.sparsity * (1 - (1 - u) ** 3))

    def renews(self, step: int) -> bool:
        """Whether masks are made anew before this step."""
        if step >= self.settled_at:
            return step == self.settled_at
        if self.schedule == "iterative":
            return step == 0 or int(step / self.n_steps * ROUNDS) > int((step - 1) / self.n_steps * ROUNDS)
        return step % UPDATE_STEPS == 0


def steps_of(settings: TrainingSettings, data: NLUData) -> int:
    """Number of steps of a training on data.train, its epochs given."""
    assert settings.epochs is not None
    return settings.epochs * math.ceil(len(data.train) / settings.batch_size)


# at once, and while training ----------------------------------------------------------------------------------------


def prune(matrices: Sequence[Linear], plan: Plan) -> None:
    """The plan's last masks at once, by the size of the weights."""
    found = masks([magnitude(m.weight) for m in matrices], 1 - plan.sparsity, plan.shape, plan.scope)
    for module, mask in zip(matrices, found, strict=True):
        set_mask(module, left(module, mask))


class _Masked(torch.autograd.Function):
    """w * mask; backward dL/dw = dL/dw' * mask, and the scores of movement are added to in place."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, scores: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.scores = scores
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        (grad,) = grads
        if ctx.scores is not None:
            moved = grad * weight
            ctx.scores.sub_(moved, alpha=SCORE_STEP / max(float(rms(moved)), 2.0**-100))
        return grad * mask, None, None


class PrunedWeight(WeightQuantizer):
    """W -> W * mask, the mask set by a Pruner. What it keeps is in the model's state: trainings resume bit for bit.

    Weights outside the mask get no gradient, but stay in the model, so that they may come back: not quite as they
    were, since AdamW's momentum of the steps before and its weight decay go on moving them.
    """

    def __init__(self, weight: Tensor, plan: Plan):
        super().__init__()
        self.plan = plan
        self.mask: Tensor
        self.scores: Tensor | None
        self.step: Tensor
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        moves = plan.criterion == "movement"
        size = magnitude(weight)
        self.register_buffer("scores", size / rms(size).clamp_min(2.0**-100) if moves else None)

    def extra_repr(self) -> str:
        """Settings, for a training's identity."""
        return str(self.plan)

    @property
    def settled(self) -> bool:
        """Whether the last mask is set."""
        return int(self.step) > self.plan.settled_at

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        scores = None if self.settled else self.scores
        found: Tensor = _Masked.apply(weight, self.mask, scores)
        return found

    def form(self, weight: Tensor) -> Sparse:
        """Floats under the mask."""
        return Sparse(Float32((weight * self.mask).float().cpu().numpy()), self.mask.cpu().numpy())


class Pruner:
    """Prunes Linear matrices of a model while it is trained: gives them PrunedWeights, and sets their masks.

    Matrices that have a mask already keep no weight outside it.
    """

    def __init__(self, matrices: Sequence[Linear], plan: Plan):
        self.matrices, self.plan = matrices, plan
        self.weights = [PrunedWeight(m.weight, plan) for m in matrices]
        for module, weight in zip(matrices, self.weights, strict=True):
            module.weight_quantizer = weight

    def while_training(self, loss: Loss) -> Loss:
        """The same loss; before each call, which is a training step, masks are brought to where the plan is."""

        def pruned(model: NLUModel, batch: Batch) -> Tensor:
            self.advance()
            return loss(model, batch)

        pruned.__name__ = getattr(loss, "__name__", type(loss).__name__)
        return pruned

    @torch.no_grad()
    def advance(self) -> None:
        """One training step: count it, and set new masks where the plan wants some."""
        step = int(self.weights[0].step)
        for weight in self.weights:
            weight.step += 1
        if not self.plan.renews(step):
            return
        scores = [_scores(m, w) for m, w in zip(self.matrices, self.weights, strict=True)]
        self._set(masks(scores, 1 - self.plan.removed(step), self.plan.shape, self.plan.scope))

    def _set(self, found: Sequence[Tensor]) -> None:
        for module, weight, mask in zip(self.matrices, self.weights, found, strict=True):
            weight.mask.copy_(left(module, mask))


def _scores(module: Linear, weight: PrunedWeight) -> Tensor:
    """(R, C); weights that were pruned before have the lowest."""
    if weight.scores is None:
        return magnitude(module.weight)
    return weight.scores if module.mask is None else weight.scores.masked_fill(~module.mask, LOWEST)


def magnitude(weight: Tensor) -> Tensor:
    """|w|."""
    return weight.detach().float().abs()


def rms(x: Tensor) -> Tensor:
    """Root mean square, ()."""
    return x.square().mean().sqrt()
