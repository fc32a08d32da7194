"""Rounding whose errors are made up for: the maths of GPTQ, and the grids it rounds to.

    minimise |W X - Q X|^2 over Q on a grid, column by column: see flyweight.techniques.gptq

Source: Frantar et al. 2022, GPTQ, arXiv:2210.17323.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flyweight.forms import Codes, Int8
from flyweight.forms.int8 import LIMIT, int8_rows
from flyweight.forms.kmeans import ROW_TABLE_LIMIT, kmeans_codes

BLOCK = 128  # columns whose errors reach the columns behind them in one product
SHRINKS = np.linspace(1.0, 0.1, 31)  # of a row's range, tried for the uniform grid


def rounded(
    w: Tensor, k: int, h: Tensor, kind: str, damp: float, act_order: bool, mask: Tensor | None = None
) -> Codes | Int8:
    """The packed matrix. w (R, C), k centres, h (C, C) second moments of its inputs; kind: see `grid`.

    mask (R, C) bool: weights outside it stay 0; of them codes say nothing.
    """
    start = grid(w, k, h.diagonal(), kind, mask)
    if w.numel() == 0:
        return start
    if isinstance(start, Int8):
        steps = torch.arange(-LIMIT, LIMIT + 1, device=w.device)
        centres = steps * torch.from_numpy(start.scale).to(w.device)[:, None]
        codes = compensated(w, centres, h, damp, act_order, mask)
        return replace(start, q=(codes.cpu().to(torch.int16) - LIMIT).to(torch.int8).numpy())
    assert start.scale is not None  # centres of multiplied matrices are int8
    centres = torch.from_numpy(start.table * start.scale[:, None]).to(w.device)
    return replace(start, codes=compensated(w, centres, h, damp, act_order, mask).cpu().numpy())


def compensated(
    w: Tensor, centres: Tensor, h: Tensor, damp: float, act_order: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Codes of every weight such that the error of the product is small, (R, C) uint8.

    w (R, C); centres (R or 1, k) ascending; h (C, C) second moments. Factors in float64, columns in float32.
    mask (R, C) bool: weights outside it are rounded to 0, and later columns make up for what they were to take over.
    """
    n = w.shape[1]
    order = h.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(n, device=w.device)
    h = h[order][:, order].double()
    mean = float(h.diagonal().mean())
    h.diagonal().add_(damp * mean if mean > 0 else 1.0)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    rest = w.t()[order].contiguous()  # (C, R)
    there = None if mask is None else mask.t()[order]  # (C, R)
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=w.device)
    edges = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
    shared = len(centres) == 1
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        errors = torch.empty(end - begin, len(w), device=w.device)
        for j in range(begin, end):
            if shared:
                code = torch.searchsorted(edges[0], rest[j])
                q = centres[0][code]
            else:
                code = torch.searchsorted(edges, rest[j][:, None])
                q = centres.gather(1, code)[:, 0]
            codes[j] = code.flatten().to(torch.uint8)
            if there is not None:
                q = q * there[j]
            errors[j - begin] = (rest[j] - q) / u[j, j]
            rest[j + 1 : end].addr_(u[j, j + 1 : end], errors[j - begin], alpha=-1)
        rest[end:].addmm_(u[begin:end, end:].t(), errors, alpha=-1)
    found = torch.empty_like(codes)
    found[order] = codes
    return found.t().contiguous()


def grid(w: Tensor, k: int, h: Tensor, kind: str, mask: Tensor | None = None) -> Codes | Int8:
    """Where weights may lie: a form whose centres stand, its codes still to be chosen.

    w (R, C); h (C,): how much the error of a column counts; mask (R, C) bool: which weights are there.
    """
    values = w.cpu().numpy()
    if kind == "uniform" and k > ROW_TABLE_LIMIT:
        return int8_rows(values)
    if kind == "kmeans" or w.numel() == 0:
        there = None if mask is None else mask.cpu().numpy()
        return kmeans_codes(values, k, "row", True, h=np.broadcast_to(h.cpu().numpy(), values.shape), mask=there)
    table, scale = even_levels(w, k, h, mask)
    return Codes(np.zeros(values.shape, np.uint8), table.to(torch.int8).cpu().numpy(), scale.cpu().numpy())


def even_levels(w: Tensor, k: int, h: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """k equally spaced int8 centres of each row and their scale, (R, k) and (R,), k at most 64.

    From shrunk ranges p [min(w, 0), max(w, 0)] that with the least sum_c h_c (w_c - q_c)^2, c within the mask. With
    the step s between centres and the larger end m: centres lie d = floor(127 s / m) apart on the int8 grid, whose
    scale is s / d.
    """
    low, high = w.amin(dim=1).clamp_max(0), w.amax(dim=1).clamp_min(0)  # (R,)
    step = ((high - low) / (k - 1)).clamp_min(2.0**-100)
    apart = (LIMIT * step / torch.maximum(-low, high).clamp_min(2.0**-100)).floor().clamp(1, 2 * LIMIT // (k - 1))
    lowest = (low / step * apart).round()  # in steps of the int8 grid, the same for every shrink
    least, best = torch.full_like(low, torch.inf), torch.zeros_like(low)
    for shrink in SHRINKS.tolist():
        scale = shrink * step / apart
        x = w / scale[:, None]
        q = ((x - lowest[:, None]) / apart[:, None]).round_().clamp_(0, k - 1) * apart[:, None] + lowest[:, None]
        gap = (x - q) ** 2 if mask is None else (x - q) ** 2 * mask
        error = scale**2 * (gap @ h)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    table = lowest[:, None] + apart[:, None] * torch.arange(k, device=w.device)
    return table, torch.where(high - low >= 2.0**-100, best, 0.0)
