"""Ranges of activations for static int8: what is seen of each tensor, and the clip that a method makes of it.

    step = clip / 127;  clip by     min-max      max |x|
                                    average      m <- 0.9 m + 0.1 max |x| of the batch
                                    p99.9 p99.99 the smallest bin edge with that share of |x| below it
                                    mse          min sum (x - quantized x)^2
                                    entropy      min KL(|x| clipped || its 128 levels)

Only real tokens count, never padding. The last three read one streaming histogram of |x|; memory is 64 kB a tensor,
whatever the number of messages. Sources: moving average, Jacob et al. 2017, arXiv:1712.05877; entropy, Migacz 2017
(8-bit inference with TensorRT, GTC).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.artifact import is_step
from flyweight.model.encoder import Layer
from flyweight.model.linear import STEPS, Linear, Recurrent
from flyweight.model.nlu import NLUModel, pad
from flyweight.progress import Advance
from flyweight.tokenizer import Encoded

MOMENTUM = 0.9  # of the moving average, a batch
BATCH = 16  # messages whose largest value is one value of the moving average
N_BINS = 8192
FIRST_RANGE = -60  # the histogram's range begins at 2^-60, the smallest step that a file may hold
MSE_OCTAVES, MSE_STEPS = 5, 16  # clips down to max / 2^5, 16 an octave: the finest step is still a bin wide
ENTROPY_MERGE, ENTROPY_STRIDE = 4, 16  # 2048 bins, clips every 16 of them
LEVELS = 128  # of |x|: 0 to 127
MISSING = 1e-9  # share of what a distribution lacks


class Histogram:
    """Counts of |x| in N_BINS equal bins over [0, 2^exponent), the range doubled by merging pairs of bins.

    The range is a power of two, so that a bin that was merged holds what it would have held from the start: the counts
    do not depend on the order of the values.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(N_BINS, np.int64)
        self.exponent = FIRST_RANGE

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent) / N_BINS

    def add(self, magnitudes: np.ndarray, largest: float) -> None:
        """Count |x| (n,) float32, `largest` the largest of them."""
        exponent = math.frexp(largest)[1] if largest > 0 else self.exponent
        while exponent > self.exponent:  # largest < 2^exponent
            self.counts[: N_BINS // 2] = self.counts[::2] + self.counts[1::2]
            self.counts[N_BINS // 2 :] = 0
            self.exponent += 1
        # A division by a power of two is exact: a value on an edge belongs to the bin above it.
        self.counts += np.bincount((magnitudes.astype(np.float64) / self.width).astype(np.int64), minlength=N_BINS)


class Observer:
    """What has been seen of one tensor: largest |x|, moving average of it, largest of each channel, histogram."""

    def __init__(self) -> None:
        self.absmax = 0.0
        self.average: float | None = None
        self.channels: np.ndarray | None = None  # (C,)
        self.histogram = Histogram()

    def add(self, x: Tensor) -> None:
        """One batch: the vectors (N, C) of its real tokens."""
        if not x.numel():
            return
        magnitudes = x.detach().float().abs().cpu().numpy()
        channels = magnitudes.max(axis=0)
        largest = float(channels.max())
        self.absmax = max(self.absmax, largest)
        self.average = largest if self.average is None else MOMENTUM * self.average + (1 - MOMENTUM) * largest
        self.channels = channels if self.channels is None else np.maximum(self.channels, channels)
        self.histogram.add(magnitudes.ravel(), largest)

    def step(self, method: str) -> float | None:
        """The int8 step that a method of CALIBRATIONS chooses; None where nothing but zeros was seen."""
        if self.absmax == 0:
            return None
        step = float(np.float32(min(CALIBRATIONS[method](self), self.absmax) / STEPS))
        return step if is_step(step) else None


def percentile_clip(counts: np.ndarray, width: float, share: float) -> float:
    """The smallest upper edge of a bin with at least `share` of all values at or below that bin."""
    below = np.cumsum(counts)
    return float(np.searchsorted(below, share * below[-1]) + 1) * width


def mse_clip(counts: np.ndarray, width: float, absmax: float) -> float:
    """The clip c = absmax * 2^(-k/16), k = 0..80, with the smallest squared error; each bin's values are its middle.

    error(c) = sum_i counts[i] (x_i - s clamp(round(x_i / s), 0, 127))^2,  s = c / 127
    """
    used = np.flatnonzero(counts)
    x, n = (used + 0.5) * width, counts[used]
    clips = absmax * 2.0 ** (-np.arange(MSE_OCTAVES * MSE_STEPS + 1) / MSE_STEPS)
    errors = [float(n @ (x - c / STEPS * np.minimum(np.rint(x * (STEPS / c)), STEPS)) ** 2) for c in clips]
    return float(clips[int(np.argmin(errors))])


def entropy_bins(counts: np.ndarray, n_levels: int, stride: int) -> int:
    """How many of the first bins to keep: i in n_levels, n_levels + stride, ... with the smallest divergence.

    P = counts[:i], what lies beyond added to its last bin; Q = counts[:i] summed into n_levels equal groups, each sum
    spread evenly over the group's bins that P fills; KL(P || Q), both normalised, Q at least 1e-9 (its last group may
    lack what was clipped into P's). All bins that are filled, where those are no more than n_levels.
    """
    n = int(np.flatnonzero(counts)[-1]) + 1
    best, kept = math.inf, n
    for i in [*range(n_levels, n, stride), n] if n > n_levels else []:
        p = counts[:i].astype(np.float64)
        filled = p > 0
        p[-1] += counts[i:].sum()
        filled[-1] = p[-1] > 0
        group = np.arange(i) * n_levels // i
        sums = np.bincount(group, counts[:i], minlength=n_levels)
        shares = np.bincount(group, filled, minlength=n_levels)
        q = np.where(filled, (sums / np.maximum(shares, 1))[group], 0.0)
        p, q = p[filled] / p.sum(), np.maximum(q[filled] / q.sum(), MISSING)
        divergence = float(p @ np.log(p / q))
        if divergence < best:
            best, kept = divergence, i
    return kept


def _entropy_clip(seen: Observer) -> float:
    merged = seen.histogram.counts.reshape(-1, ENTROPY_MERGE).sum(axis=1)
    return entropy_bins(merged, LEVELS, ENTROPY_STRIDE) * seen.histogram.width * ENTROPY_MERGE


CALIBRATIONS: dict[str, Callable[[Observer], float]] = {
    "min-max": lambda seen: seen.absmax,
    "average": lambda seen: seen.average or seen.absmax,
    "p99.9": lambda seen: percentile_clip(seen.histogram.counts, seen.histogram.width, 0.999),
    "p99.99": lambda seen: percentile_clip(seen.histogram.counts, seen.histogram.width, 0.9999),
    "mse": lambda seen: mse_clip(seen.histogram.counts, seen.histogram.width, seen.absmax),
    "entropy": _entropy_clip,
}


@torch.no_grad()
def observe(
    model: NLUModel, encoded: Sequence[Encoded], advance: Advance = lambda n=1, note="": None
) -> dict[str, Observer]:
    """Run tokenized messages through a model and see what its matrices are given.

    `layers.0.ffn.up`: the input of that matrix; `layers.0.attention.qkv.q` (.k, .v): what comes out of it. Batches are
    in the given order. A tensor that nothing reaches (a layer without heads) is seen as empty.
    """
    seen: dict[str, Observer] = {}
    real: list[Tensor] = []  # mask (B, T) of the batch that is under way
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module, _ in model.matrices():
        if isinstance(module, Linear) and not isinstance(module, Recurrent):  # h is in [-1, 1], its step a constant
            seen[name] = Observer()
            handles.append(module.register_forward_pre_hook(_sees_input(seen[name], real)))
    for i, layer in enumerate(model.encoder.layers):
        if not isinstance(layer, Layer):
            continue
        parts = [Observer() for _ in "qkv"]
        seen |= {f"layers.{i}.attention.qkv.{part}": o for part, o in zip("qkv", parts, strict=True)}
        handles.append(layer.attention.qkv.register_forward_hook(_sees_outputs(parts, real)))
    was_training, device = model.training, model.intent_head.weight.device
    model.eval()
    try:
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            ids, mask = (t.to(device) for t in pad([e.ids for e in batch]))
            real[:] = [mask]
            _, hidden = model(ids, mask)
            if model.tag_head is not None:
                model.tag_head(torch.cat([hidden[row, e.first] for row, e in enumerate(batch)]))
            advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return seen


def _sees_input(observer: Observer, real: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook for what goes in: (B, T, C) of padded messages, or (N, C) of which all is real."""
    return lambda _, inputs: observer.add(_real_vectors(inputs[0], real[0]))


def _sees_outputs(parts: list[Observer], real: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook for Q, K and V, which come out side by side."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for observer, x in zip(parts, _real_vectors(output, real[0]).chunk(3, dim=-1), strict=True):
            observer.add(x)

    return hook


def _real_vectors(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask] if x.ndim == 3 else x
