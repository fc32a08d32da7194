"""One-dimensional k-means: minimise sum_i h_i (w_i - c_{z_i})^2 over k centres; plain k-means has h = 1. NumPy only.

In one dimension clusters are intervals of the sorted values, so prefix sums give an interval's mean and error in O(1):
`exact` is the dynamic programme (the specification, O(k n^2)); `centres` is what is used on millions of weights:
a start, then Lloyd on the sorted values to convergence.

    best      one matrix: the dynamic programme on a histogram; many rows at once: the better of agglomeration (Ward's
              merging of neighbours, which keeps outliers apart) and companding
    linear    equal steps from the smallest to the largest weight         Deep Compression, arXiv:1510.00149
    kmeans++  one after another, drawn by h_i times the squared distance to the nearest one so far
    quantile  the middles of k parts of equal weight

Sources: Wang & Song 2011 (Ckmeans.1d.dp); Lloyd 1982; Ward 1963; equal steps of density^(1/3): Panter & Dite 1951;
Arthur & Vassilvitskii 2007 (k-means++); weights by sensitivity: Kim et al. 2023, arXiv:2306.07629.
"""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import numpy as np

from flyweight.forms.codes import MAX_CENTRES, Codes, codes_from_centres
from flyweight.forms.int8 import Int8, int8_rows

Start = Literal["best", "linear", "kmeans++", "quantile"]
Granularity = Literal["row", "group", "matrix"]
STARTS: tuple[Start, ...] = get_args(Start)
ROW_TABLE_LIMIT = 64  # more centres than this would make a row's table as large as its codes: rows share one
SHARED_ROWS = 16  # that share one where centres are int8: an outlier's coarse steps are theirs alone
_LEAST = 1e-6  # of the mean weight: a part of the row that weighs nothing still has a mean and a place
_DRAWN_FROM = 4096  # values that kmeans++ draws from
_BINS = 1024  # of the histogram: k * bins^2 additions, 20 ms at k = 16
_WARD_POINTS = 128  # groups that a row's agglomeration starts from; the outermost values stay single


def exact(values: np.ndarray, k: int, counts: np.ndarray | None = None) -> np.ndarray:
    """Optimal centres, (k,) float64 ascending, of `values` (n,), each counted `counts` times (any weights above 0).

    D[j, m] = min_i D[i, m-1] + error(i..j). Memory n^2 doubles: for n up to a few thousand. Fewer than k different
    values: the last centres repeat.
    """
    order = np.argsort(values, kind="stable")
    v = np.asarray(values, np.float64)[order]
    h = np.ones(len(v)) if counts is None else np.asarray(counts, np.float64)[order]
    v0 = v - v.mean()  # centred: prefix sums of squares keep their digits
    n0, n1, n2 = (np.concatenate([[0.0], np.cumsum(a)]) for a in (h, h * v0, h * v0 * v0))
    j, i = np.arange(len(v))[:, None], np.arange(len(v))[None, :]  # i in rows: argmin is 8 times faster along them
    weight = np.maximum(n0[j + 1] - n0[i], h.min())
    error = np.where(i <= j, np.maximum(n2[j + 1] - n2[i] - (n1[j + 1] - n1[i]) ** 2 / weight, 0.0), np.inf)  # (n, n)
    best = error[:, 0]
    starts = []
    for _ in range(1, min(k, len(v))):
        total = np.concatenate([[np.inf], best[:-1]]) + error  # interval i..j after the best of 0..i-1
        starts.append(total.argmin(axis=1))
        best = total[np.arange(len(v)), starts[-1]]
    edges, j_last = [], len(v) - 1
    for start in reversed(starts):
        edges.append(int(start[j_last]))
        j_last = edges[-1] - 1
    bounds = [0, *reversed(edges), len(v)]
    found = [(h[a:b] @ v[a:b]) / h[a:b].sum() for a, b in itertools.pairwise(bounds)]
    return np.array(found + [found[-1]] * (k - len(found)))


def centres(
    w: np.ndarray, k: int, h: np.ndarray | None = None, start: Start = "best", n_iterations: int = 100
) -> np.ndarray:
    """Near-optimal centres of every row of w (R, C) on its own -> (R, k) float64 ascending. Deterministic.

    h (R, C) >= 0: what an error of each weight counts (None: all the same). A whole matrix is one row: pass
    `w.reshape(1, -1)`. Error above the optimum from the best start, as measured with h = 1: one row of up to 1024
    values none, of more values at most 0.1% at k = 16, 0.3% at 100, 2% at 256 (6% at 256 for two narrow bells far
    apart), with outliers or without; many rows of 384 Gaussian weights with outliers 4% in the mean at k = 16, 14% in
    the worst row, 7% in the mean at k = 64. Time on one core: 0.1 s for 2.4 million weights and 16 centres, 0.8 s for
    23 million and 256; with h half as much again.
    """
    if h is None:
        s = np.sort(w, axis=1).astype(np.float64)
    else:
        order = np.argsort(w, axis=1, kind="stable")
        s = np.take_along_axis(w, order, axis=1).astype(np.float64)
        h = _weights(np.take_along_axis(h, order, axis=1))
    if k >= s.shape[1]:  # every weight is its own centre, the last repeats
        return np.concatenate([s, np.repeat(s[:, -1:], k - s.shape[1], axis=1)], axis=1)
    rows = _Rows(s, h)
    found = np.stack([rows.lloyd(c, n_iterations) for c in _starts(rows, k, start)])  # (starts, R, k)
    if len(found) == 1:
        return found[0]
    best = np.stack([rows.errors(c) for c in found]).argmin(axis=0)  # (R,)
    return np.take_along_axis(found, best[None, :, None], axis=0)[0]


def kmeans_codes(
    w: np.ndarray,
    k: int,
    granularity: Granularity,
    integer: bool,
    *,
    h: np.ndarray | None = None,
    start: Start = "best",
    group: int = 16,
    mask: np.ndarray | None = None,
) -> Codes | Int8:
    """k-means codes of one matrix. w (R, C) float32; integer: int8 centres with a scale, else float32 centres.

    granularity: a table a row, a group of `group` rows, or the matrix; instead of tables of more than 64 centres a row,
    one of 16 rows, or of all where centres are float32, which no scale makes coarse; 256 int8 centres a row are all
    that there are: Int8. h, start: as `centres` has them. Rows shorter than k need fewer centres than k: the table then
    repeats the last ones. mask (R, C) bool: centres are those of the weights that are there.
    """
    if granularity == "row" and integer and k == MAX_CENTRES:
        return int8_rows(w)
    if w.size == 0:
        return codes_from_centres(w, np.zeros((1, k)), integer)
    n_rows, n_columns = w.shape

    def of(begin: int, end: int, n: int) -> np.ndarray:
        """Centres of the rows from begin to end, n weights to a table."""
        parts = [None if a is None else a[begin:end].reshape(-1, n) for a in (mask, h)]
        there, counts = survivors(w[begin:end].reshape(-1, n), *parts)
        return centres(there, k, counts, start)

    if granularity == "row" and k > ROW_TABLE_LIMIT:
        granularity, group = ("group", SHARED_ROWS) if integer else ("matrix", 1)
    if granularity == "row":
        return codes_from_centres(w, of(0, n_rows, n_columns), integer)
    if granularity == "matrix" or group >= n_rows:
        return codes_from_centres(w, of(0, n_rows, w.size), integer)
    found, last = [], n_rows - n_rows % group  # groups of the full number of rows, then the rest
    for begin, end, n in ((0, last, group), (last, n_rows, n_rows - last)):
        if begin < end:
            found.append(of(begin, end, n * n_columns))
    return codes_from_centres(w, np.concatenate(found), integer, group)


def survivors(
    w: np.ndarray, mask: np.ndarray | None, h: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows (R, C) of the weights that are there alone, and what an error of each counts.

    Rows have unlike numbers of them, so each row's are repeated until it is full, and a weight that occurs n times
    counts an n-th each time. A row without any is as it was. mask (R, C) bool, None: all are there; h as in `centres`.
    """
    if mask is None or not w.size:
        return w, h
    n = w.shape[1]
    there = mask.sum(axis=1, keepdims=True)
    there = np.where(there > 0, there, n)  # (R, 1)
    at = np.arange(n) * there // n  # (R, C): of the weights that are there, the first, the first, .., the last
    times = -(-(at + 1) * n // there) - -(-at * n // there)
    source = np.take_along_axis(np.argsort(~mask, axis=1, kind="stable"), at, axis=1)
    counts = np.ones(w.shape) if h is None else np.take_along_axis(h, source, axis=1)
    return np.take_along_axis(w, source, axis=1), counts / times


def _weights(h: np.ndarray) -> np.ndarray:
    """Weights of mean 1 in each row, none of them quite nothing. h (R, C) >= 0 -> (R, C) float64."""
    h = h.astype(np.float64)
    mean = h.mean(axis=1, keepdims=True)
    return np.where(mean > 0, np.maximum(np.divide(h, mean, out=np.ones_like(h), where=mean > 0), _LEAST), 1.0)


def _starts(rows: _Rows, k: int, start: Start) -> list[np.ndarray]:
    """Centres to begin with, each (R, k)."""
    s, h = rows.s, rows.h
    if start == "linear":
        return [s[:, :1] + (s[:, -1:] - s[:, :1]) * np.linspace(0, 1, k)]
    if start == "quantile":
        return [_quantiles(rows, k)]
    if start == "kmeans++":
        return [_drawn(s, h, k)]
    if len(s) == 1:
        return [_from_histogram(s[0], None if h is None else h[0], k)[None]]
    companding = _companding(s, h, k)
    return [companding, _ward(s, h, k)] if 2 * k < s.shape[1] else [companding]


def _quantiles(rows: _Rows, k: int) -> np.ndarray:
    """The values at (j + 1/2) / k of each row's weight, (R, k)."""
    n = rows.s.shape[1]
    if rows.masses is None:
        return rows.s[:, (np.arange(k) * 2 + 1) * n // (2 * k)]
    steps = (np.arange(k) + 0.5) / k
    at = np.stack([np.searchsorted(m, steps * m[-1], side="right") - 1 for m in rows.masses])
    return np.take_along_axis(rows.s, np.clip(at, 0, n - 1), axis=1)


def _drawn(s: np.ndarray, h: np.ndarray | None, k: int) -> np.ndarray:
    """k-means++ of every row, (R, k) ascending: drawn from at most 4096 values of evenly spaced ranks, always alike."""
    at = np.unique(np.linspace(0, s.shape[1] - 1, _DRAWN_FROM).round().astype(int))
    s = s[:, at]
    h = np.ones(s.shape) if h is None else h[:, at]
    rng, r = np.random.default_rng(0), np.arange(len(s))
    found = np.empty((len(s), k))
    distance = np.ones(s.shape)
    for j in range(k):
        line = np.cumsum(h * distance, axis=1)
        drawn = (line < rng.random((len(s), 1)) * line[:, -1:]).sum(axis=1)
        found[:, j] = s[r, np.minimum(drawn, s.shape[1] - 1)]
        new = (s - found[:, j : j + 1]) ** 2
        distance = new if j == 0 else np.minimum(distance, new)
    return np.sort(found, axis=1)


def _from_histogram(s: np.ndarray, h: np.ndarray | None, k: int) -> np.ndarray:
    """Exact centres of a histogram of the sorted values s (n,), its bins represented by their means; (k,)."""
    cut = _bins(s, k)
    if h is None:
        counts = np.diff(cut).astype(np.float64)
        return exact(np.add.reduceat(s, cut[:-1]) / counts, k, counts)
    mass = np.add.reduceat(h, cut[:-1])
    return exact(np.add.reduceat(h * s, cut[:-1]) / mass, k, mass)


def _bins(s: np.ndarray, k: int) -> np.ndarray:
    """Borders of the bins, indices 0..n ascending. No single rule suits every distribution, so several share the bins.

    The outermost values stay single; a quarter of the bins has equal widths (tails), half equal steps of
    density^(1/3) (between tails and bulk), and what is left of all equal numbers of values (the bulk beside outliers).
    """
    n = len(s)
    if n <= _BINS:
        return np.arange(n + 1)
    edge = min(16 + k, n // 4)
    widths = np.searchsorted(s, np.linspace(s[0], s[-1], _BINS // 4 + 1)[1:-1], side="right")
    steps = _companding(s[None, edge : n - edge], None, _BINS // 2)[0]
    ends = np.arange(edge)
    found = np.unique(np.concatenate([ends, widths, np.searchsorted(s, steps, side="right"), n - ends]))
    counts = np.linspace(0, n, max(_BINS - len(found), 1) + 1).round().astype(int)
    return np.unique(np.concatenate([found, counts]))


def _ward(s: np.ndarray, h: np.ndarray | None, k: int) -> np.ndarray:
    """Merge neighbouring groups, always the pair that adds least error, until k are left; (R, k) means.

    Merging groups of weights n1, n2 with means m1, m2 adds n1 n2 / (n1 + n2) (m1 - m2)^2. All rows at once:
    one argmin and one compaction of (R, groups) a step.
    """
    rows, n = s.shape
    edge = min(16 + k, n // 4)
    inner = np.linspace(edge, n - edge, max(_WARD_POINTS, 4 * k) - 2 * edge + 1).round().astype(int)
    at = np.unique(np.concatenate([np.arange(edge), inner, np.arange(n - edge, n)]))
    if h is None:
        count = np.tile(np.diff(np.append(at, n)).astype(np.float32), (rows, 1))
        mean = (np.add.reduceat(s, at, axis=1) / count).astype(np.float32)
    else:
        mass = np.add.reduceat(h, at, axis=1)
        count, mean = mass.astype(np.float32), (np.add.reduceat(h * s, at, axis=1) / mass).astype(np.float32)
    r = np.arange(rows)
    while mean.shape[1] > k:
        cost = count[:, :-1] * count[:, 1:] / (count[:, :-1] + count[:, 1:]) * np.diff(mean, axis=1) ** 2
        p = cost.argmin(axis=1)
        merged = count[r, p] + count[r, p + 1]
        mean[r, p] = (count[r, p] * mean[r, p] + count[r, p + 1] * mean[r, p + 1]) / merged
        count[r, p] = merged
        keep = np.ones(mean.shape, bool)
        keep[r, p + 1] = False
        mean = mean[keep].reshape(rows, -1)
        count = count[keep].reshape(rows, -1)
    return mean.astype(np.float64)


def _companding(s: np.ndarray, h: np.ndarray | None, k: int) -> np.ndarray:
    """Centres at equal steps of (weight density)^(1/3), (R, k): the best many-centre quantizer for a smooth density."""
    n = s.shape[1]
    n_groups = int(np.clip(n // 6, 1, 4 * k))
    at = np.linspace(0, n - 1, n_groups + 1).round().astype(int)
    knots = s[:, at]  # (R, groups + 1): equal numbers of values between knots, so density ~ 1 / width
    steps = np.diff(knots, axis=1) ** (2 / 3)
    if h is not None:
        steps *= np.add.reduceat(h, at[:-1], axis=1) ** (1 / 3)
    mass = np.cumsum(steps + 1e-30, axis=1)
    mass = np.concatenate([np.zeros((len(s), 1)), mass], axis=1) / mass[:, -1:]
    wanted = (np.arange(k) + 0.5) / k
    return np.stack([np.interp(wanted, mass[r], knots[r]) for r in range(len(s))])


class _Rows:
    """Sorted rows with what every iteration needs: prefix sums, and one ascending array that holds all rows."""

    def __init__(self, s: np.ndarray, h: np.ndarray | None = None):
        self.s, self.h = s, h
        self.masses = None if h is None else _prefix(h)  # with h = 1 an interval's weight is its length
        hs = s if h is None else h * s
        self.sums, self.squares = _prefix(hs), _prefix(hs * s)
        self.low, self.span = s[:, :1], np.maximum(s[:, -1:] - s[:, :1], 1e-300)
        # Row r lives in [r, r + 0.5], so that one search serves all rows.
        self.offset = np.arange(len(s))[:, None]
        self.line = (self.offset + 0.5 * (s - self.low) / self.span).ravel()

    def cuts(self, c: np.ndarray) -> np.ndarray:
        """Where the rows change their nearest centre, (R, k + 1) indices 0..C."""
        rows, n = self.s.shape
        middles = np.clip(((c[:, 1:] + c[:, :-1]) / 2 - self.low) / self.span, -0.5, 1.5)
        found = np.searchsorted(self.line, (self.offset + 0.5 * middles).ravel(), side="right").reshape(rows, -1)
        inner = np.clip(found - self.offset * n, 0, n)
        return np.concatenate([np.zeros((rows, 1), int), inner, np.full((rows, 1), n)], axis=1)

    def lloyd(self, c: np.ndarray, n_iterations: int) -> np.ndarray:
        """Lloyd's iteration until no border moves. Empty clusters keep their centre."""
        before = None
        for _ in range(n_iterations):
            cut = self.cuts(c)
            if before is not None and np.array_equal(cut, before):
                break
            before = cut
            mass, total = self.masses_between(cut), _between(self.sums, cut)
            c = np.sort(np.where(mass > 0, total / np.where(mass > 0, mass, 1), c), axis=1)
        return c

    def errors(self, c: np.ndarray) -> np.ndarray:
        """Weighted squared error of each row with its centres, (R,)."""
        cut = self.cuts(c)
        n0, n1, n2 = self.masses_between(cut), _between(self.sums, cut), _between(self.squares, cut)
        return (n2 - 2 * c * n1 + n0 * c * c).sum(axis=1)

    def masses_between(self, cut: np.ndarray) -> np.ndarray:
        """Weight of each interval, (R, k)."""
        return np.diff(cut, axis=1) if self.masses is None else _between(self.masses, cut)


def _prefix(a: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, .., C values of each row, (R, C + 1)."""
    return np.concatenate([np.zeros((len(a), 1)), np.cumsum(a, axis=1)], axis=1)


def _between(prefix: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Sums over the intervals between neighbouring cuts, (R, k)."""
    return np.diff(np.take_along_axis(prefix, cut, axis=1), axis=1)
