"""Removing inputs of a matrix such that the others make up for them: which ones first, and the weights that stay.

    minimise sum_t |W x_t - W' x_t[S]|^2        over W' for the kept inputs S; x_t (C,) inputs at token t
    W' = W H[:, S] H[S, S]^-1,                  H = sum_t x_t x_t^T

    error of removing group J next = tr(W_J (H^-1)_JJ^-1 W_J^T)       the least goes first, then W and H^-1 are updated

A group is a head (its d inputs of the output matrix) or a neuron (one input of the second FFN matrix). The last input
may be the constant 1, whose column is the bias: then the bias makes up, too, and it is never removed.
Sources: Hassibi & Stork 1992 (optimal brain surgeon); for structures ZipLM, Kurtic et al. 2023, arXiv:2302.04089.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DAMP = 1e-2  # of the mean diagonal of H, added to it


def removal_order(w: Tensor, h: Tensor, n_groups: int, at_once: int = 1) -> list[int]:
    """Groups in the order in which they go, all of them.

    w (R, C), h (C, C); groups of one size lie one after another, C = n_groups * size, or one more for the constant.
    at_once: so many of the least errors go before errors are counted anew. Float64.
    """
    size = w.shape[1] // max(n_groups, 1)
    w, inverse = w.double().clone(), _inverse(h)
    there, order = list(range(n_groups)), []
    while there:
        at = torch.tensor(there)[:, None] * size + torch.arange(size)  # (G, size)
        blocks = inverse[at[:, :, None], at[:, None, :]]  # (G, size, size)
        parts = w[:, at].permute(1, 2, 0)  # (G, size, R)
        errors = (parts * torch.linalg.solve(blocks, parts)).sum(dim=(1, 2))
        least = errors.argsort(stable=True)[:at_once]
        gone = at[least].flatten()
        step = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # (J, C)
        w -= w[:, gone] @ step
        inverse -= inverse[:, gone] @ step
        w[:, gone] = 0.0
        inverse[gone], inverse[:, gone] = 0.0, 0.0
        inverse[gone, gone] = 1.0
        order += [there[i] for i in least.tolist()]
        taken = set(order)
        there = [group for group in there if group not in taken]
    return order


def refitted(w: Tensor, h: Tensor, kept: Sequence[int]) -> Tensor:
    """W' (R, len(kept)) float32: the kept columns of w (R, C), made to give what all of them gave."""
    at = torch.tensor(kept, dtype=torch.int64)
    h = _damped(h)
    return torch.linalg.solve(h[at][:, at], h[at] @ w.double().t()).t().float().contiguous()


def _damped(h: Tensor) -> Tensor:
    h = h.double().clone()
    mean = float(h.diagonal().mean())
    h.diagonal().add_(DAMP * mean if mean > 0 else 1.0)
    return h


def _inverse(h: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(_damped(h)))
