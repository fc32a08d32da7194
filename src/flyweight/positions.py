"""Relative position buckets (MPNet, T5): which learned bias a pair of tokens gets. NumPy only."""

from __future__ import annotations

import numpy as np


def relative_buckets(n_tokens: int, n_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query i, key j) pair, (T, T) int64: that of the distance j - i."""
    distance = np.arange(n_tokens)[None, :] - np.arange(n_tokens)[:, None]  # (query, key)
    return distance_buckets(distance, n_buckets, max_distance)


def distance_buckets(distance: np.ndarray, n_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance d = key - query, int64.

    With h = n_buckets / 2: keys after the query take the upper half (+h); |d| < h/2 has a bucket of its own; larger
    distances share buckets on a log scale up to `max_distance`, the rest falls into the last one:
        bucket(|d|) = h/2 + floor(log(2|d|/h) / log(2 max_distance/h) * h/2), at most h - 1.
    Source: Raffel et al. 2020, arXiv:1910.10683; MPNet: arXiv:2004.09297.
    """
    half = n_buckets // 2
    exact = half // 2
    n = np.abs(distance)
    # float32 like the checkpoints' own code: at the bucket edges the rounding decides. The logarithm is rounded from
    # float64, since NumPy's float32 one differs by units in the last place from CPU to CPU.
    log = np.log((np.maximum(n, 1).astype(np.float32) / np.float32(exact)).astype(np.float64)).astype(np.float32)
    ratio = log / np.float32(np.log(max_distance / exact))
    large = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(n < exact, n, large) + np.where(distance > 0, half, 0)
