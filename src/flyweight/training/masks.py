"""Which heads and neurons go under a budget without training, and factors by which the others make up for them.

    search      keep K heads and N neurons with the most Fisher information, K cost_h + N cost_n <= budget, such that
                the information that goes, sum of F_u over what is removed, is least over all K
    rearrange   within a layer: minimise mean_x (sum of g_x[u] over what is removed)^2 by swaps, as many kept as before
    tune        factors m of a layer's kept heads, then neurons:   minimise sum_t |x'_t + sum_u m_u C_u(t) + b - s_t|^2

g, F: gradients of masks and their mean squares (importance.py). C_u(t) = W_u a_u(t): what head or neuron u adds to the
residual stream; x' what the part sees in the pruned model, b its bias, s its sum before the norm in the dense model.
The tuned factors are folded into Wo and W2.
Source: Kwon et al. 2022, arXiv:2204.09656. Theirs solves for m by LSMR; here by the normal equations, drawn to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.tokenizer import Encoded
from flyweight.training.importance import most_important
from flyweight.training.inputs import stages

Kept = dict[int, list[int]]
DAMP = 1e-2  # of the mean of the normal equations' diagonal: how strongly factors are drawn to 1
LARGEST = 10.0  # factors beyond it are no small correction: the part stays as it is, as in the paper's code


def search(
    heads: Sequence[np.ndarray], neurons: Sequence[np.ndarray], costs: tuple[float, float], budget: float
) -> tuple[Kept, Kept]:
    """(heads kept, neurons kept) of each layer. heads, neurons: F of each layer; costs: of a head and of a neuron.

    Of equal choices that with more heads. A cost of 0 keeps all of its kind.
    """
    (n_heads, lost_heads), (n_neurons, lost_neurons) = _lost(heads), _lost(neurons)
    cost_head, cost_neuron = costs
    best = (np.inf, 0, 0)
    for k in range(n_heads, -1, -1):
        left = budget - k * cost_head
        if left < 0 and k:
            continue
        affordable = n_neurons if cost_neuron == 0 else min(n_neurons, max(0, int(left / cost_neuron + 1e-9)))
        lost = float(lost_heads[k] + lost_neurons[affordable])
        if lost < best[0]:
            best = (lost, k, affordable)
    return most_important(heads, best[1]), most_important(neurons, best[2])


def _lost(scores: Sequence[np.ndarray]) -> tuple[int, np.ndarray]:
    """(number of units N, what is removed in sum when the k highest stay, for k from 0 to N)."""
    ordered = np.sort(np.concatenate([np.zeros(0), *scores]))[::-1]
    return len(ordered), np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])


def rearranged(gradients: np.ndarray, kept: Sequence[int]) -> list[int]:
    """Swaps of a kept unit for a removed one, the best each time, as long as the mean square falls.

    gradients (N, units) of one layer. At most as many swaps as there are units.
    """
    g = gradients.astype(np.float64)
    n, units = g.shape
    block = g.T @ g / max(n, 1)  # (units, units): the layer's Fisher information
    there = np.zeros(units, bool)
    there[list(kept)] = True
    for _ in range(units):
        out, back = np.flatnonzero(there), np.flatnonzero(~there)  # candidates to remove, to take back
        if not len(out) or not len(back):
            break
        pull = block[:, back].sum(axis=1)  # (units,): mean of g_u times the sum over what is removed
        square = np.diag(block)
        # mean (s + g_i - g_j)^2 - mean s^2 for i removed, j taken back.
        change = (2 * pull[out] + square[out])[:, None] + (square[back] - 2 * pull[back]) - 2 * block[np.ix_(out, back)]
        i, j = np.unravel_index(int(change.argmin()), change.shape)
        if change[i, j] >= -1e-12 * square.sum():
            break
        there[out[i]], there[back[j]] = False, True
    return np.flatnonzero(there).tolist()


@torch.no_grad()
def tune(dense: NLUModel, pruned: NLUModel, encoded: Sequence[Encoded]) -> None:
    """Fold tuned factors into Wo and W2 of the pruned model (in place), layer by layer, on these messages.

    Both in evaluation mode, on one device; `pruned` has the layers of `dense`.
    """
    for stage, wanted in zip(stages(pruned, encoded), stages(dense, encoded), strict=True):
        if not stage.names or not stage.names[0].startswith("layers."):
            continue
        i = int(stage.names[0].split(".")[1])
        ours, theirs = (model.encoder.transformer_layers("tuning of masks")[i] for model in (pruned, dense))
        with _inputs_of(theirs.attention.norm) as attention, _inputs_of(theirs.ffn.norm) as ffn:
            wanted.replay()
        for part, matrix, size, sums in (
            (ours.attention, ours.attention.out, ours.attention.head_size, attention),
            (ours.ffn, ours.ffn.down, 1, ffn),
        ):
            with _inputs_of(part) as seen, _inputs_of(matrix) as given:
                stage.replay()
            if seen and matrix.weight.shape[1]:
                _tune_part(matrix, torch.cat(given), torch.cat(sums) - torch.cat(seen), size)


def _tune_part(matrix: Linear, a: Tensor, target: Tensor, size: int) -> None:
    """a (tokens, C): inputs of the matrix; target (tokens, D): what it should add to the residual stream."""
    if matrix.bias is not None:
        target = target - matrix.bias
    w, a, target = matrix.weight.double(), a.double(), target.double()
    m = factors(w, a.t() @ a, (a * (target @ w)).sum(dim=0), size)
    matrix.weight.mul_(m.repeat_interleave(size).to(matrix.weight.dtype))


def factors(w: Tensor, moment: Tensor, right: Tensor, size: int, damp: float = DAMP) -> Tensor:
    """m (units,) with (G + d I) m = r + d,  G[u, v] = sum_t C_u(t) . C_v(t),  r[u] = sum_t C_u(t) . target(t).

    w (D, C), moment (C, C) = sum_t a_t a_t^T, right (C,) = sum_t a_t * (W^T target_t); a unit has `size` inputs, and
    d = damp * mean diag G. 1 where some factor would be larger than LARGEST.
    """
    units = w.shape[1] // size
    g = ((w.t() @ w) * moment).view(units, size, units, size).sum(dim=(1, 3))
    d = damp * g.diagonal().mean().clamp_min(torch.finfo(g.dtype).tiny)
    eye = torch.eye(units, dtype=g.dtype, device=g.device)
    m: Tensor = torch.linalg.solve(g + d * eye, right.view(units, size).sum(dim=1) + d)
    fine = bool(m.isfinite().all()) and float(m.abs().max()) <= LARGEST
    return m if fine else torch.ones_like(m)


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module is given within, batch by batch: (tokens, width)."""
    found: list[Tensor] = []

    def keep(_: Any, given: tuple[Any, ...]) -> None:
        found.append(given[0].flatten(0, -2))

    handle = module.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
