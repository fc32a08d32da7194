"""Calibration: golden values by hand for histograms and clips, streaming equal to all at once, real tokens only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_models import random_model

from flyweight.artifact import is_step
from flyweight.data.messages import NLUData
from flyweight.model.nlu import NLUModel
from flyweight.training import calibration
from flyweight.training.calibration import (
    CALIBRATIONS,
    N_BINS,
    Histogram,
    Observer,
    entropy_bins,
    mse_clip,
    observe,
    percentile_clip,
)


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values, float(values.max(initial=0.0)))
    return histogram


# the histogram ------------------------------------------------------------------------------------------------------


def test_bins_merge_in_pairs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "N_BINS", 8)
    h = Histogram()
    h.add(np.array([0.0, 0.1, 0.3, 0.99], np.float32), 0.99)  # range 1, bins of 1/8
    assert (h.exponent, h.width) == (0, 0.125)
    assert h.counts.tolist() == [2, 0, 1, 0, 0, 0, 0, 1]
    h.add(np.array([1.0, 1.75], np.float32), 1.75)  # range 2, bins of 1/4: 1.0 lies on an edge and belongs above it
    assert (h.exponent, h.width) == (1, 0.25)
    assert h.counts.tolist() == [2, 1, 0, 1, 1, 0, 0, 1]
    h.add(np.array([8.0], np.float32), 8.0)  # 8 is not below 8: range 16, three doublings, bins of 2
    assert (h.exponent, h.width) == (4, 2.0)
    assert h.counts.tolist() == [6, 0, 0, 0, 1, 0, 0, 0]
    h.add(np.zeros(5, np.float32), 0.0)
    assert h.counts.tolist() == [11, 0, 0, 0, 1, 0, 0, 0]


@given(st.lists(st.lists(st.floats(0, 2.0**100, width=32), max_size=20), min_size=1, max_size=8))
def test_streamed_is_the_same_as_at_once(batches: list[list[float]]) -> None:
    streamed = Histogram()
    for batch in batches:
        values = np.array(batch, np.float32)
        streamed.add(values, float(values.max(initial=0.0)))
    at_once = counted(np.array([v for batch in batches for v in batch], np.float32))
    assert streamed.exponent == at_once.exponent
    assert np.array_equal(streamed.counts, at_once.counts)
    assert streamed.counts.nbytes == 8 * N_BINS


# clips --------------------------------------------------------------------------------------------------------------


def test_percentile_by_hand() -> None:
    counts = np.array([990, 9, 0, 1])
    assert percentile_clip(counts, 0.5, 0.99) == 0.5  # 990 of 1000 lie in the first bin
    assert percentile_clip(counts, 0.5, 0.995) == 1.0
    assert percentile_clip(counts, 0.5, 0.999) == 1.0  # 999 of 1000 in the first two
    assert percentile_clip(counts, 0.5, 0.9991) == 2.0
    assert percentile_clip(counts, 0.5, 1.0) == 2.0


def squared_error(values: list[tuple[float, int]], clip: float) -> float:
    """Spelled out: quantize each value to 127 steps up to the clip."""
    step = clip / 127
    return sum(n * (x - step * min(round(x / step), 127)) ** 2 for x, n in values)


def test_mse_weighs_clipping_against_rounding() -> None:
    width = 1 / 64
    counts = np.zeros(N_BINS, np.int64)
    counts[20], counts[37], counts[639] = 50_000, 50_000, 1  # middles 0.3203, 0.5859, and an outlier 9.9922
    values = [((i + 0.5) * width, int(counts[i])) for i in (20, 37, 639)]
    grid = [10 * 2.0 ** (-k / 16) for k in range(81)]
    best = min(grid, key=lambda clip: squared_error(values, clip))
    assert mse_clip(counts, width, 10.0) == best
    assert best < 10  # clipping pays
    counts[639] = 1_000_000
    assert mse_clip(counts, width, 10.0) > 9  # many of them are no outliers


def test_mse_of_a_uniform_distribution_clips_nothing() -> None:
    counts = np.zeros(N_BINS, np.int64)
    counts[:4096] = 3
    assert mse_clip(counts, 1 / 1024, 4.0) == 4.0


def test_entropy_by_hand() -> None:
    """Two levels. counts 4 4 2 2 0 1: i from 2 to 6.

    i = 2: P = 4, 9     Q = 4, 4                     KL = 4/13 ln(8/13) + 9/13 ln(18/13)                 = 0.0759
    i = 3: P = 4, 4, 5  Q = 4, 4 | 2 = 4, 4, 2       KL = 8/13 ln(10/13) + 5/13 ln(50/26)                = 0.0901
    i = 4: P = 4 4 2 3  Q = 4, 4 | 2, 2              KL = 10/13 ln(12/13) + 3/13 ln(36/26)               = 0.0135
    i = 5: P = 4 4 2 2 1, Q = 10/3 x 3 | 2/2 x 2     KL = 8/13 ln(1.2) + 2/13 ln(0.6) + 2/13 ln 2 + 0    = 0.1402
    i = 6: P = 4 4 2 2 0 1, Q = 10/3 x 3 | 3/2, 0, 3/2
           KL = 8/13 ln(1.2) + 2/13 ln(0.6) + 2/13 ln(4/3) + 1/13 ln(2/3)                                = 0.0467
    """
    counts = np.array([4, 4, 2, 2, 0, 1])
    assert entropy_bins(counts, 2, 1) == 4
    assert entropy_bins(counts, 2, 2) == 4
    assert entropy_bins(counts, 2, 4) == 6  # 2 and 6 alone are tried: 0.0759, 0.0467


def test_entropy_keeps_all_where_levels_suffice_and_what_it_could_not_represent() -> None:
    assert entropy_bins(np.array([3, 1, 0, 2, 0, 0]), 4, 1) == 4  # four filled bins for four levels
    assert entropy_bins(np.array([5]), 128, 16) == 1
    # i = 2: Q = 4, 0 where P has 4, 4: KL = ln(1/2)/2 + ln(0.5/1e-9)/2 = 9.7; likewise i = 3. i = 4: equal, 0.
    assert entropy_bins(np.array([4, 0, 0, 4]), 2, 1) == 4


def test_entropy_clips_a_far_outlier_and_keeps_a_uniform_range() -> None:
    rng = np.random.default_rng(0)
    normal = np.abs(rng.normal(size=200_000)).astype(np.float32)
    seen = Observer()
    seen.add(torch.from_numpy(np.append(normal, np.float32(100.0)))[:, None])
    assert CALIBRATIONS["entropy"](seen) < 15
    uniform = Observer()
    uniform.add(torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0)))
    assert CALIBRATIONS["entropy"](uniform) > 0.95


def test_steps_by_hand() -> None:
    seen = Observer()
    for batch in ([[1.0, -2.0], [0.5, 0.0]], [[-4.0, 1.0]], [[0.0, 0.0]]):
        seen.add(torch.tensor(batch))
    assert seen.absmax == 4.0
    assert seen.channels is not None
    assert seen.channels.tolist() == [4.0, 2.0]
    assert seen.average == pytest.approx((0.9 * 2 + 0.1 * 4) * 0.9)  # 2, then 2.2, then 1.98
    assert seen.step("min-max") == float(np.float32(4 / 127))
    assert seen.step("average") == float(np.float32(1.98 / 127))
    # 8 values in bins of 8/8192: 99.9% of 8 needs all of them; the clip never lies beyond the largest
    assert seen.step("p99.9") == seen.step("min-max")
    assert all(is_step(seen.step(method) or 0.0) for method in CALIBRATIONS)


def test_nothing_but_zeros_has_no_step() -> None:
    seen = Observer()
    for batch in (torch.zeros(0, 3), torch.zeros(2, 3), torch.zeros(2, 0)):
        seen.add(batch)
    assert all(seen.step(method) is None for method in CALIBRATIONS)
    seen.add(torch.full((1, 3), 2.0**-70))  # its step could not be stored
    assert all(seen.step(method) is None for method in CALIBRATIONS)


# what is seen of a model --------------------------------------------------------------------------------------------


def test_padding_is_never_counted(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """The same messages one by one, where there is no padding, and in batches."""
    model = random_model(tiny_model, embedding=13, pooling="cls+tanh")
    encoded = model.tokenizer.encode_batch([m.text for m in tiny_data.train])
    assert len({len(e.ids) for e in encoded[:16]}) > 1  # so that batches are padded
    together = observe(model, encoded)
    alone: dict[str, Observer] = {}
    for e in encoded:
        for name, seen in observe(model, [e]).items():
            before = alone.setdefault(name, Observer())
            before.absmax = max(before.absmax, seen.absmax)
            before.exponent = max(getattr(before, "exponent", -99), seen.histogram.exponent)  # type: ignore[attr-defined]
            before.n = getattr(before, "n", 0) + int(seen.histogram.counts.sum())  # type: ignore[attr-defined]
    n_tokens = sum(len(e.ids) for e in encoded)
    n_words = sum(len(e.first) for e in encoded)
    rows = {"heads.pooler": len(encoded), "heads.intent": len(encoded), "heads.tags": n_words}
    for name, seen in together.items():
        width = {"embeddings.projection": 13, "layers.0.attention.out": 21, "layers.1.attention.out": 14,
                 "layers.0.ffn.down": 37, "layers.1.ffn.down": 21}.get(name, 28)  # fmt: skip
        if name[-2:] in (".q", ".k", ".v"):
            width = 21 if name.startswith("layers.0") else 14
        assert int(seen.histogram.counts.sum()) == rows.get(name, n_tokens) * width, name
        assert seen.absmax == pytest.approx(alone[name].absmax, rel=1e-5), name
        assert seen.histogram.counts.sum() == alone[name].n  # type: ignore[attr-defined]
        assert seen.histogram.exponent in (math.frexp(seen.absmax)[1], alone[name].exponent)  # type: ignore[attr-defined]
    assert set(together) == {
        n for n, _, part in model.matrices() if n not in ("embeddings.words", "embeddings.positions")
    } | {f"layers.{i}.attention.qkv.{x}" for i in (0, 1) for x in "qkv"}


def test_q_k_and_v_are_told_apart(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((2, 9),))
    qkv = model.encoder.layers[0].attention.qkv
    with torch.no_grad():
        for i, constant in enumerate((1.0, 2.0, 4.0)):
            qkv.weight[14 * i : 14 * (i + 1)] = 0
            assert qkv.bias is not None
            qkv.bias[14 * i : 14 * (i + 1)] = constant
    seen = observe(model, model.tokenizer.encode_batch([m.text for m in tiny_data.train[:3]]))
    assert [seen[f"layers.0.attention.qkv.{x}"].absmax for x in "qkv"] == [1.0, 2.0, 4.0]
    assert seen["layers.0.attention.out"].absmax == pytest.approx(4.0)


def test_observing_leaves_no_trace(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model)
    model.train()
    observe(model, model.tokenizer.encode_batch([m.text for m in tiny_data.train[:3]]))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
