"""Integer mathematics: golden values by hand, the distance to the float functions, no overflow at the stated ends."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight import integer_math as im
from flyweight.runtime.reference import gelu

SCALES = [2.0**-14, 1.7e-4, 2.0**-10, 0.7e-3]


def test_division_rounds_halves_up() -> None:
    a = np.array([-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7])
    # /4: -1.75 -1.5 -1.25 -1 -0.75 -0.5 -0.25 0 0.25 0.5 0.75 1 1.25 1.5 1.75
    assert im.divide(a, 4).tolist() == [-2, -1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert im.divide(a, 3).tolist() == [-2, -2, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_requantize_by_hand() -> None:
    found = [
        (m.tolist(), shift) for m, shift in map(im.multipliers, ([1.0, 0.75, 2.0**-31], [1 - 2.0**-33], [0.0, -1.0]))
    ]
    assert found == [([2**30, 3 * 2**28, 0], 30), ([2**31 - 1], 31), ([0, 0], 31)]  # 0.5 rounds to even
    assert im.multipliers(2.0**-31) == (2**30, 61)
    assert im.multipliers(2.0**40) == (2**30, 1)
    assert im.requantize(np.array([-400, -6, -2, 0, 1, 2, 3, 400]), 0.5).tolist() == [-127, -3, -1, 0, 1, 1, 2, 127]
    assert im.requantize(np.array([2, -3]), 100.0, 1000).tolist() == [200, -300]


def test_reciprocals_by_hand() -> None:
    m, shift = im.reciprocals(np.array([1, 2, 3, 2**32 - 1]))
    assert m.tolist() == [2**30, 2**30, round(2**31 / 3), 2**29]
    assert shift.tolist() == [30, 31, 31, 61]


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(2.0**-31, 2.0**20))
def test_requantize_is_near_the_product(q: int, ratio: float) -> None:
    found = int(im.requantize(np.array([q]), ratio, 2**62)[0])
    assert abs(found - Fraction(q) * Fraction(ratio)) <= Fraction(1, 2) + abs(Fraction(q) * Fraction(ratio)) / 2**30


def test_exp_by_hand() -> None:
    """scale 1/64: ln2 = 44, b = 86, c = floor(0.344 * 4096 / 0.3585) = 3930."""
    found, scale = im.exp(np.array([0, -10, -44, -50, -100]), 1 / 64)
    assert scale == 0.3585 / 4096
    # -50 = -44 - 6, -100 = -2 * 44 - 12: (86 - 6)^2 + 3930 = 10330, (86 - 12)^2 + 3930 = 9406
    assert found.tolist() == [86**2 + 3930, 76**2 + 3930, (86**2 + 3930) >> 1, 10330 >> 1, 9406 >> 2]


@pytest.mark.parametrize("scale", SCALES)
def test_exp_is_near_exp(scale: float) -> None:
    q = np.arange(-math.ceil(25 / scale), 1, 7)
    found, found_scale = im.exp(q, scale)
    assert np.abs(found * found_scale - np.exp(q * scale)).max() <= 2.5e-3
    assert found.max() < 2**31
    assert np.all(np.diff(found[-1000:]) >= 0)
    assert im.exp(np.array([-(2**40)]), scale)[0].tolist() == [0]


@pytest.mark.parametrize("scale", SCALES)
def test_softmax_is_near_softmax(scale: float) -> None:
    q = np.random.default_rng(0).normal(scale=2 / scale, size=(50, 12)).astype(np.int64)
    steps = im.softmax_steps(q, scale)
    assert steps.max(axis=-1).tolist() == [255] * 50
    e = np.exp(q * scale - (q * scale).max(axis=-1, keepdims=True))
    # half a step of 1/255, and the polynomial twice: its own error and that of exp(0)
    assert np.abs(steps / 255 - e).max() <= 0.5 / 255 + 5e-3
    shares = steps / steps.sum(axis=-1, keepdims=True)
    assert np.abs(shares - e / e.sum(axis=-1, keepdims=True)).max() <= 0.01


def test_the_average_by_hand() -> None:
    e8, v8 = np.array([[255, 94]]), np.array([[3, -100], [-4, 127]])
    # (765 - 376) / 349 = 1.1146, (-25500 + 11938) / 349 = -38.86; in steps a quarter as large 4.458, -155.4
    assert im.attention_average(e8, v8, 1.0).tolist() == [[1, -39]]
    assert im.attention_average(e8, v8, 4.0).tolist() == [[4, -127]]


def test_gelu_by_hand() -> None:
    """scale sqrt(2)/10, so erf at 0.1: b = floor(-17.69) = -18; c and one = floor(-346.26) = -347."""
    q = np.array([-30, -5, 0, 5, 30])
    found, scale = im.erf(q, 0.1)
    # |q| = 5: (5 - 18)^2 - 347 = -178; |q| = 30 -> 18: -347
    assert found.tolist() == [347, 178, 0, -178, -347]
    assert scale == pytest.approx(-0.002888)
    found, scale = im.gelu(q, math.sqrt(2) / 10)
    assert found.tolist() == [0, -5 * (347 - 178), 0, 5 * (347 + 178), 30 * 694]
    assert scale == pytest.approx(0.002888 * math.sqrt(2) / 20)
    # scale 2^-10: b = floor(-2561.8), c and one = floor(-7261606.6); 1 + erf in 24 bits, 9 of them are cut
    found, scale = im.gelu(np.array([1024, -1024]), 2.0**-10)
    one = 7261607
    erf = one - (1024 - 2562) ** 2
    assert found.tolist() == [1024 * ((one + erf) >> 9), -1024 * ((one - erf) >> 9)]
    assert scale == pytest.approx(0.2888 * 2.0**-23)


@pytest.mark.parametrize("scale", [*SCALES[1:], 0.01])
def test_gelu_is_near_gelu(scale: float) -> None:
    q = np.arange(-math.ceil(8 / scale), math.ceil(8 / scale) + 1, 3)
    found, found_scale = im.gelu(q, scale)
    assert np.abs(found * found_scale - gelu(q * scale)).max() <= 0.02
    assert np.abs(found).max() < 2**31


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=9))
def test_the_square_root_is_that_of_whole_numbers(values: list[int]) -> None:
    assert im.square_root(np.array(values)).tolist() == [math.isqrt(v) for v in values]


def test_the_square_root_at_its_edges() -> None:
    edges = [0, 1, 2, 3, 4, 8, 9, 15, 16, 17, 2**31 - 1, 2**31, (2**31 - 1) ** 2, (2**31 - 1) ** 2 - 1, 2**62 - 1]
    assert im.square_root(np.array(edges).reshape(3, 5)).ravel().tolist() == [math.isqrt(v) for v in edges]


def test_layer_norm_by_hand() -> None:
    """1, 3, 5, 7: mean 4, variance 5, deviation floor(256 sqrt 5) = 572 of 1/256."""
    weight, bias = im.norm_constants(np.array([1.0, 2.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.5, 0.0]))
    found, scale = im.layer_norm(np.array([[1, 3, 5, 7], [9, 9, 9, 9]]), weight, bias)
    normed = [round(c * 2**22 / 572) for c in (-3, -1, 1, 3)]
    assert scale == 2.0**-28
    assert found[0].tolist() == [normed[0] << 14, normed[1] << 15, (normed[2] << 14) + (1 << 27), normed[3] << 14]
    assert found[1].tolist() == [0, 0, 1 << 27, 0]


@pytest.mark.parametrize("size", [500.0, 20_000.0])
def test_layer_norm_is_near_layer_norm(size: float) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(scale=size, size=(20, 384)).astype(np.int64)
    q[:, 5] += int(12 * size)  # the outlier of BERT's residual stream
    weight, bias = rng.normal(1, 0.3, 384), rng.normal(0, 0.3, 384)
    found, scale = im.layer_norm(q, *im.norm_constants(weight, bias))
    x = q - q.mean(axis=-1, keepdims=True)
    wanted = x / np.sqrt((x * x).mean(axis=-1, keepdims=True)) * weight + bias
    # the mean is rounded to a step, so values move by half a step of the deviation at most
    assert np.abs(found * scale - wanted).max() <= 2 * np.abs(weight).max() * (0.5 / size + 2.0**-14)


def test_nothing_overflows_at_the_stated_ends() -> None:
    """The same in whole numbers without end."""
    n, values = 4096, [2**16 - 1] * 2048 + [-(2**16) + 1] * 2047 + [0]
    weight, bias = im.norm_constants(np.full(n, 32000.0), np.full(n, -32000.0))
    found, _ = im.layer_norm(np.array([values]), weight, bias)
    mean = (2 * sum(values) + n) // (2 * n)
    variance = (2 * sum((v - mean) ** 2 << 16 for v in values) + n) // (2 * n)
    deviation = math.isqrt(variance)
    shift = 29 + deviation.bit_length()
    m = (2 * (1 << shift) + deviation) // (2 * deviation)
    normed = [((v - mean) * m + (1 << (shift - 23))) >> (shift - 22) for v in values]
    wanted = [x * (32000 << 14) - (32000 << 28) for x in normed]
    assert found[0].tolist() == wanted
