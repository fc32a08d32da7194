"""k-means in one dimension: the dynamic programme equals brute force, and what is used stays close to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.forms import kmeans

# Sums of squares of values up to 100 in double precision, a dozen of them.
ROUNDING = 1e-9
# Mean excess over the optimum of 48 rows of 384 Gaussian weights with outliers.
# Measured at k = 2, 4, 8, 16: 0.01%, 0.51%, 1.51%, 3.62%; the worst row 13.2% (k = 16).
ROW_EXCESS = {2: 0.002, 4: 0.01, 8: 0.02, 16: 0.04}
# One matrix of 1500 or 4000 weights. Measured at most 0.0003% up to 4 centres, 0.09% at 16, 0.09% at 100, 0.26% at 256
# (4000 weights, too slow to repeat here: 0.3% at 100, 1.9% at 256).
MATRIX_EXCESS = {2: 0.0001, 4: 0.0001, 16: 0.002, 100: 0.002, 256: 0.005}

# 384 Gaussian weights with outliers, weighted log-normally (sigma 2); see the test.
WEIGHTED_EXCESS = {2: 0.01, 4: 0.05, 16: 0.2}

values = st.lists(st.integers(-100, 100), min_size=1, max_size=9)


def squared_error(w: np.ndarray, centres: np.ndarray) -> float:
    """sum_i min_j (w_i - c_j)^2."""
    return float(((w[:, None] - centres[None, :]) ** 2).min(axis=1).sum())


def brute_force(w: np.ndarray, k: int) -> float:
    """The least error over all ways to cut the sorted values into at most k intervals."""
    s = np.sort(w)
    best = np.inf
    for n_cuts in range(min(k, len(s))):
        for cuts in combinations(range(1, len(s)), n_cuts):
            parts = np.split(s, cuts)
            best = min(best, sum(float(((p - p.mean()) ** 2).sum()) for p in parts))
    return best


def outlier_rows(n_rows: int, n: int, seed: int = 0) -> np.ndarray:
    """Gaussian weights; one in a hundred is ten times as large, as in trained encoders."""
    rng = np.random.default_rng(seed)
    w = rng.normal(scale=0.05, size=(n_rows, n))
    w[rng.random(w.shape) < 0.01] *= 10
    return w.astype(np.float32)


# the specification --------------------------------------------------------------------------------------------------


def test_exact_by_hand() -> None:
    w = np.array([10.0, 1, 2, 11, 3, 30])
    assert kmeans.exact(w, 1).tolist() == [9.5]
    assert kmeans.exact(w, 2).tolist() == [5.4, 30]  # 1 2 3 10 11 | 30: 97.2, before 1 2 3 | 10 11 30
    assert kmeans.exact(w, 3).tolist() == [2, 10.5, 30]
    assert kmeans.exact(w, 6).tolist() == [1, 2, 3, 10, 11, 30]


@given(values, st.integers(1, 6))
def test_exact_equals_brute_force(found: list[int], k: int) -> None:
    w = np.array(found, np.float64)
    centres = kmeans.exact(w, k)
    assert centres.shape == (k,)
    assert (np.diff(centres) >= 0).all()
    assert squared_error(w, centres) == pytest.approx(brute_force(w, k), abs=ROUNDING)


@given(values, st.integers(1, 5), st.data())
def test_counts_are_repetitions(found: list[int], k: int, data: st.DataObject) -> None:
    w = np.array(found, np.float64)
    counts = np.array(data.draw(st.lists(st.integers(1, 4), min_size=len(w), max_size=len(w))))
    repeated = np.repeat(w, counts)
    counted = kmeans.exact(w, k, counts)
    assert squared_error(repeated, counted) == pytest.approx(
        squared_error(repeated, kmeans.exact(repeated, k)), abs=ROUNDING
    )


@given(st.sets(st.integers(-50, 50), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 4))
def test_fewer_distinct_values_than_centres(distinct: set[int], times: int, more: int) -> None:
    w = np.repeat(np.array(sorted(distinct), np.float64), times)
    k = len(distinct) + more
    assert set(kmeans.exact(w, k).tolist()) == distinct
    assert squared_error(w, kmeans.centres(w[None], k)[0]) == pytest.approx(0, abs=ROUNDING)


def test_exact_keeps_its_digits_far_from_zero() -> None:
    w = np.array([0, 0.001, 0.002, 0.010, 0.011, 0.012])
    assert kmeans.exact(w + 1e4, 2) - 1e4 == pytest.approx([0.001, 0.011], abs=1e-10)


# what is used -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_rows_are_close_to_the_optimum(k: int) -> None:
    w = outlier_rows(48, 384)
    found = kmeans.centres(w, k)
    assert found.shape == (48, k)
    best = [squared_error(row, kmeans.exact(row, k)) for row in w.astype(np.float64)]
    used = [squared_error(row, c) for row, c in zip(w.astype(np.float64), found, strict=True)]
    excess = np.array(used) / np.array(best) - 1
    assert excess.min() >= -ROUNDING
    assert excess.mean() <= ROW_EXCESS[k], f"mean excess {excess.mean():.4f}, largest {excess.max():.4f}"


def normal(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=n)


def with_values(w: np.ndarray, *others: float) -> np.ndarray:
    return np.concatenate([w[len(others) :], others])


SHAPES: dict[str, Callable[[int], np.ndarray]] = {
    "outliers": lambda n: outlier_rows(1, n)[0].astype(np.float64),
    "normal": normal,
    "one far away": lambda n: with_values(normal(n), 3000.0),
    "two far away": lambda n: with_values(normal(n), 2000.0, -3000.0),
    "heavy tails": lambda n: np.random.default_rng(0).standard_t(2, size=n),
    "uniform": lambda n: np.random.default_rng(0).random(n),
    "mostly zero": lambda n: np.where(np.random.default_rng(1).random(n) < 0.7, 0, normal(n)),
}


@pytest.mark.parametrize(("n", "k"), [*((1500, k) for k in MATRIX_EXCESS), (4000, 4), (4000, 16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_matrix_is_close_to_the_optimum(shape: str, n: int, k: int) -> None:
    w = SHAPES[shape](n)
    best = squared_error(w, kmeans.exact(w, k))
    assert squared_error(w, kmeans.centres(w[None], k)[0]) <= best * (1 + MATRIX_EXCESS[k]) + ROUNDING


@pytest.mark.parametrize("k", [4, 16])
def test_a_matrix_of_few_values_is_optimal(k: int) -> None:
    for shape in SHAPES.values():
        w = shape(kmeans._BINS)
        best = squared_error(w, kmeans.exact(w, k))
        assert squared_error(w, kmeans.centres(w[None], k)[0]) == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize("k", [16, 64, 256])
def test_outliers_cost_a_large_matrix_one_centre_each(k: int) -> None:
    """The centres for the rest are those of k - 1 (k - 2) centres without the outliers."""
    w = normal(200_000)
    for outliers in ((3000.0,), (2000.0, -3000.0)):
        inner = with_values(w)[len(outliers) :]
        rest = kmeans._Rows(np.sort(inner)[None]).errors(kmeans.centres(inner[None], k - len(outliers)))[0]
        mixed = with_values(w, *outliers)
        found = kmeans._Rows(np.sort(mixed)[None]).errors(kmeans.centres(mixed[None], k))[0]
        # Measured: at most 0% up to 64 centres, 0.21% at 256.
        assert found <= rest * (1.001 if k < 256 else 1.005)


@pytest.mark.parametrize("k", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (3, 5), (4, 33), (2, 130)])
def test_every_shape(k: int, shape: tuple[int, int]) -> None:
    w = outlier_rows(*shape, seed=3)
    found = kmeans.centres(w, k)
    assert found.shape == (shape[0], k)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=1) >= 0).all()
    for row, c in zip(w, found, strict=True):
        assert c.min() >= row.min() - ROUNDING
        assert c.max() <= row.max() + ROUNDING
        assert squared_error(row, c) <= squared_error(row, row.mean(keepdims=True)) + ROUNDING


@pytest.mark.parametrize("columns", [1, 4, 16])
def test_as_many_centres_as_columns_lose_nothing(columns: int) -> None:
    w = outlier_rows(5, columns)
    for row, c in zip(w.astype(np.float64), kmeans.centres(w, 16), strict=True):
        assert squared_error(row, c) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [2, 4, 16, 100])
@pytest.mark.parametrize("shape", [(1, 40), (3, 40), (3, 1)])
def test_constant_rows(k: int, shape: tuple[int, int]) -> None:
    w = np.zeros(shape, np.float32) + np.arange(shape[0], dtype=np.float32)[:, None] - 1
    assert (kmeans.centres(w, k) == w[:, :1]).all()


def test_rows_do_not_influence_each_other() -> None:
    w = np.concatenate([outlier_rows(3, 100), 1e4 * outlier_rows(1, 100, seed=1), np.zeros((1, 100), np.float32)])
    together = kmeans.centres(w, 4)
    for order in ([4, 3, 2, 1, 0], [1, 0, 3, 2, 4]):
        assert np.array_equal(kmeans.centres(w[order], 4), together[order])


def test_deterministic_and_independent_of_the_order_of_weights() -> None:
    w = outlier_rows(6, 200)
    before = w.copy()
    first = kmeans.centres(w, 8)
    assert np.array_equal(kmeans.centres(w, 8), first)
    assert np.array_equal(kmeans.centres(w[:, ::-1], 8), first)
    assert np.array_equal(w, before)


@given(st.integers(0, 1000), st.sampled_from([2, 3, 8]), st.integers(3, 40))
def test_lloyd_never_increases_the_error(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    s = np.sort(rng.normal(size=(4, n)), axis=1)
    c = np.sort(rng.normal(scale=2, size=(4, k)), axis=1)  # some centres start empty
    errors = [np.array([squared_error(row, x) for row, x in zip(s, c, strict=True)])]
    for _ in range(6):
        c = kmeans._Rows(s).lloyd(c, 1)
        assert (np.diff(c, axis=1) >= 0).all()
        errors.append(np.array([squared_error(row, x) for row, x in zip(s, c, strict=True)]))
        assert (errors[-1] <= errors[-2] + ROUNDING).all()
    assert kmeans._Rows(s).errors(c) == pytest.approx(errors[-1], abs=ROUNDING)


def test_lloyd_ends_where_no_border_moves() -> None:
    s = np.sort(outlier_rows(5, 150).astype(np.float64), axis=1)
    found = kmeans.centres(s, 4)
    for row, c in zip(s, found, strict=True):
        owner = np.abs(row[:, None] - c[None, :]).argmin(axis=1)
        for j in range(4):
            assert (owner == j).any()
            assert c[j] == pytest.approx(row[owner == j].mean(), abs=ROUNDING)


# weights and starts ---------------------------------------------------------------------------------------------------


def weighted_error(w: np.ndarray, h: np.ndarray, centres: np.ndarray) -> float:
    """sum_i h_i min_j (w_i - c_j)^2."""
    return float((h * ((w[:, None] - centres[None, :]) ** 2).min(axis=1)).sum())


def test_weighted_centres_by_hand() -> None:
    """0 1 | 10: (3 * 0 + 1 * 1) / 4 and 10. With 10 light and 1 heavy: 0 | 1 10: (9 * 1 + 0.01 * 10) / 9.01."""
    w = np.array([[10.0, 0, 1], [10.0, 0, 1]])
    h = np.array([[2.0, 3, 1], [0.01, 9, 9]])
    for start in kmeans.STARTS:
        found = kmeans.centres(w, 2, h, start)
        assert found[0].tolist() == pytest.approx([0.25, 10], rel=1e-9), start
    assert kmeans.centres(w[1:], 2, h[1:])[0].tolist() == pytest.approx([0, 9.1 / 9.01], rel=1e-9)
    assert kmeans.exact(w[1], 2, h[1]).tolist() == pytest.approx([0, 9.1 / 9.01], rel=1e-12)


@pytest.mark.parametrize("k", [2, 4, 16])
@pytest.mark.parametrize("n_rows", [1, 12])
def test_weighted_rows_are_close_to_the_optimum(n_rows: int, k: int) -> None:
    w = outlier_rows(n_rows, 384)
    h = np.random.default_rng(5).lognormal(sigma=2, size=w.shape)
    found = kmeans.centres(w, k, h)
    pairs = [
        (weighted_error(row, g, c), weighted_error(row, g, kmeans.exact(row, k, g)))
        for row, g, c in zip(w.astype(np.float64), h, found, strict=True)
    ]
    excess = np.array([a / b - 1 for a, b in pairs])
    assert excess.min() >= -1e-6
    assert excess.mean() <= WEIGHTED_EXCESS[k], f"mean excess {excess.mean():.4f}, largest {excess.max():.4f}"


@pytest.mark.parametrize("start", kmeans.STARTS)
@pytest.mark.parametrize("n_rows", [1, 5])
def test_equal_weights_are_no_weights(start: kmeans.Start, n_rows: int) -> None:
    w = outlier_rows(n_rows, 300)
    plain = kmeans.centres(w, 6, None, start)
    for h in (np.ones_like(w), 1e-12 * np.ones_like(w), np.zeros_like(w)):
        assert weighted_error(w[0], np.ones(300), kmeans.centres(w, 6, h, start)[0]) == pytest.approx(
            weighted_error(w[0], np.ones(300), plain[0]), rel=0.02
        )


@pytest.mark.parametrize("start", kmeans.STARTS)
@pytest.mark.parametrize("k", [2, 4, 16])
def test_every_start_ends_where_lloyd_stands_still(start: kmeans.Start, k: int) -> None:
    w = outlier_rows(4, 200)
    found = kmeans.centres(w, k, None, start)
    assert found.shape == (4, k)
    assert (np.diff(found, axis=1) >= 0).all()
    rows = kmeans._Rows(np.sort(w, axis=1).astype(np.float64))
    assert rows.lloyd(found, 1) == pytest.approx(found, abs=1e-9)
    assert rows.errors(found).sum() >= rows.errors(kmeans.centres(w, k)).sum() * (1 - 1e-9)
    assert np.array_equal(kmeans.centres(w, k, None, start), found)


def test_starts_by_hand() -> None:
    """Before Lloyd: even steps over the range; the middles of equal parts, by number or by weight."""
    s = np.array([[0.0, 1, 2, 3, 4, 5, 6, 10]])
    rows = kmeans._Rows(s)
    assert kmeans._starts(rows, 3, "linear")[0].tolist() == [[0, 5, 10]]
    assert kmeans._starts(rows, 2, "quantile")[0].tolist() == [[2, 6]]
    h = np.array([[8.0, 1, 1, 1, 1, 1, 1, 2]])  # of 16: a quarter of the weight is in 0, three quarters at 4
    assert kmeans._starts(kmeans._Rows(s, h), 2, "quantile")[0].tolist() == [[0, 5]]
    drawn = kmeans._starts(rows, 8, "kmeans++")[0]
    assert drawn.tolist() == s.tolist()  # a value that is a centre already is never drawn again


def test_groups_share_what_their_weights_want() -> None:
    """Rows 0, 1 and rows 2, 3 have one table each, row 4 its own; as if each group were one row."""
    w = outlier_rows(5, 60)
    form = kmeans.kmeans_codes(w, 4, "group", False, group=2)
    assert (form.group, form.table.shape) == (2, (5, 4))
    for rows in ([0, 1], [2, 3], [4]):
        wanted = kmeans.centres(w[rows].reshape(1, -1), 4)[0]
        assert form.table[rows[0]] == pytest.approx(wanted, rel=0.2, abs=0.02)
        assert (form.table[rows] == form.table[rows[0]]).all()
    assert kmeans.kmeans_codes(w, 4, "group", False, group=5).table.shape == (1, 4)
    many = outlier_rows(40, 60)
    for integer, group, table in ((True, 16, (40, 100)), (False, 1, (1, 100))):
        form = kmeans.kmeans_codes(many, 100, "row", integer)
        assert (form.group, form.table.shape) == (group, table)


# pruned weights -----------------------------------------------------------------------------------------------------


def test_survivors_by_hand() -> None:
    """Three of eight: repeated 3, 3 and 2 times, and each counts 1 in all. Rows without any stay as they are."""
    w = np.array([[0, 5, 0, 0, -2, 0, 7, 0], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8], np.float32)
    mask = np.stack([w[0] != 0, np.ones(8, bool), np.zeros(8, bool)])
    found, counts = kmeans.survivors(w, mask)
    assert found.tolist() == [[5, 5, 5, -2, -2, -2, 7, 7], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8]
    assert counts is not None
    assert counts[0].tolist() == pytest.approx([1 / 3] * 6 + [1 / 2] * 2)
    assert counts[1:].tolist() == [[1] * 8] * 2
    weighted = kmeans.survivors(w, mask, np.arange(24.0).reshape(3, 8))[1]
    assert weighted is not None
    assert weighted[0].tolist() == pytest.approx([1 / 3] * 3 + [4 / 3] * 3 + [3, 3])
    assert kmeans.survivors(w, None) == (w, None)


@pytest.mark.parametrize("n_there", [1, 3, 40, 300, 383, 384])
@pytest.mark.parametrize("k", [2, 16])
def test_centres_of_pruned_rows_are_those_of_the_weights_that_are_there(n_there: int, k: int) -> None:
    """As good as centres of the survivors on their own, whatever lies at 0 beside them."""
    rng = np.random.default_rng(n_there)
    w = outlier_rows(6, 384)
    mask = np.zeros(w.shape, bool)
    for row in mask:
        row[rng.permutation(384)[:n_there]] = True
    found = kmeans.kmeans_codes(w * mask, k, "row", False, mask=mask).table
    rows = [w[r][mask[r]] for r in range(6)]
    alone = sum(squared_error(row, kmeans.centres(row[None], k)[0]) for row in rows)
    assert sum(map(squared_error, rows, found)) <= 1.2 * alone + ROUNDING
    matrix = kmeans.kmeans_codes(w * mask, k, "matrix", False, mask=mask).table[0]
    alone = squared_error(w[mask], kmeans.centres(w[mask][None], k)[0])
    assert squared_error(w[mask], matrix) <= 1.2 * alone + ROUNDING
