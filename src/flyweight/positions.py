"""Buckets: the learned bias of two tokens by their distance (MPNet, T5), the row of a bigram. NumPy only."""

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


NO_TOKEN = 0xFFFFFFFF  # before the first


def bigram_buckets(ids: np.ndarray, n_buckets: int) -> np.ndarray:
    """Row of each token's bigram (id of the token before, own id), of n_buckets; ids (..., T) -> (..., T) int64.

        bucket(a, b) = mix(a * 0x9E3779B1 + b) mod n_buckets     in uint32; a = 0xFFFFFFFF before the first token
        mix(h): h ^= h >> 16;  h *= 0x85EBCA6B;  h ^= h >> 13;  h *= 0xC2B2AE35;  h ^= h >> 16

    mix is the end of MurmurHash3: every bit of h moves every bit of the bucket. Source: hashed n-gram rows as in
    fastText, Joulin et al. 2016, arXiv:1607.01759.
    """
    b = ids.astype(np.uint32)
    a = np.empty_like(b)
    a[..., :1], a[..., 1:] = NO_TOKEN, b[..., :-1]
    h = a * np.uint32(0x9E3779B1) + b
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    found: np.ndarray = (h % np.uint32(n_buckets)).astype(np.int64)
    return found
