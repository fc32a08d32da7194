"""How a pruned matrix is stored: dense with its zeros, sparse, or sparse in blocks of four, whichever is fastest here.

The same weights in each, bit for bit; measured by the engine that will run the file, once a process for each shape,
form and density. Time is relative to the dense form, for messages of each length in TOKENS; dense stays unless

    geometric mean of (time / dense time) <= WORTH    and    every (time / dense time) <= LONGEST

of those that remain, the smallest within WORTH of the fastest is taken. Where the engine makes all of them dense in
memory, dense; without an engine the smallest of all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flyweight.artifact import RECURRENT
from flyweight.forms import Codes, Form, Int8, Sparse, describe, multiplied_layout
from flyweight.runtime.native import MAX_SPARSE_COLUMNS, level, matrix_seconds, multiplies_sparse, stays_sparse

TOKENS = (8, 16)  # of the messages that are timed: most of what people write lies between
ONE_TOKEN = ("heads.pooler", "heads.intent", *RECURRENT)  # ends of names; they multiply one vector at a time
SECONDS = 0.015  # of timing, of each form and length
WORTH = 0.97  # of the dense time: less is no more than noise from one run to the next
LONGEST = 1.25  # of the dense time, at either length
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # where `break_even` looks

_times: dict[tuple[Any, ...], list[list[float]]] = {}


def chosen(name: str, form: Form, activations: str) -> Form:
    """The form in which a matrix is written: of sparse ones the fastest equal one, others as they are."""
    if not isinstance(form, Sparse) or not timed(form, activations):
        return form
    found = candidates(form)
    if level() is None:
        return min(found, key=lambda f: f.size_bytes)
    times = relative(found, (1,) if name.endswith(ONE_TOKEN) else TOKENS) if multiplies_sparse() else []
    means = {i: math.exp(sum(map(math.log, t)) / len(t)) for i, t in enumerate(times) if max(t) <= LONGEST}
    fast = {i: mean for i, mean in means.items() if mean <= WORTH}
    near = [found[i] for i, mean in fast.items() if mean * WORTH <= min(fast.values())]
    return min(near, key=lambda f: f.size_bytes) if near else found[0]


def candidates(form: Sparse) -> list[Form]:
    """The same weights dense, as they are, and in blocks of four; int8 in place of codes of which no centre is 0."""
    dense, integer = form.densified(), form
    if dense is None:
        assert isinstance(form.values, Codes)
        assert form.scale is not None
        dense = Int8(form.integers(), form.scale)
        integer = Sparse(dense, form.mask)
    wide = integer.in_blocks()
    return [dense, form] + ([wide] if wide is not None and (form.block == 1 or integer is not form) else [])


def timed(form: Form, activations: str) -> bool:
    """Whether the engine multiplies the form as it is, at the levels that can."""
    fits = form.shape[0] > 0 and 0 < form.shape[1] <= MAX_SPARSE_COLUMNS
    return fits and multiplied_layout(describe(form), activations) == "panels" and activations != "float"


def relative(forms: list[Form], tokens: tuple[int, ...]) -> list[list[float]]:
    """Times of each form by those of the first, one a length. What looks alike is measured once."""
    key = (level(), tokens, *(_look(f) for f in forms))
    if key not in _times:
        by_length = [[s / row[0] for s in row] for row in (matrix_seconds(forms, n, SECONDS) for n in tokens)]
        _times[key] = [list(t) for t in zip(*by_length, strict=True)]
    return _times[key]


def _look(form: Form) -> tuple[str, float]:
    """What a form's time depends on: all that its entry says, such as bits, blocks and granularity, and its density."""
    return repr(describe(form)), round(form.density, 2) if isinstance(form, Sparse) else 1.0


def break_even(shape: tuple[int, int], block: int, bits: int = 8) -> float | None:
    """The sparsity from which a sparse matrix of that shape is as fast as a dense one here, between SPARSITIES.

    block: of the mask; single weights (1) count as stored in blocks where that is faster. None: never, or
    no engine that multiplies sparse matrices as they are.
    """
    if not multiplies_sparse():
        return None
    rng, before = np.random.default_rng(0), (0.0, -1.0)
    for sparsity in SPARSITIES:
        keep = rng.random((shape[0], -(-shape[1] // block))) >= sparsity
        sparse = Sparse(_some_values(shape, bits), np.repeat(keep, block, axis=1)[:, : shape[1]])
        times = relative([sparse.values, *(f for f in candidates(sparse) if isinstance(f, Sparse))], TOKENS)
        gain = -min(sum(map(math.log, t)) / len(t) for t in times[1:])
        if gain >= 0:
            share = gain / (gain - before[1])  # of the way back to the sparsity before
            return round(sparsity - share * (sparsity - before[0]), 3)
        before = (sparsity, gain)
    return None


def _some_values(shape: tuple[int, int], bits: int) -> Int8 | Codes:
    """Values whose time is that of any others."""
    scale = np.ones(shape[0], np.float32)
    if bits == 8:
        return Int8(np.ones(shape, np.int8), scale)
    return Codes(np.zeros(shape, np.uint8), np.ones((shape[0], 2**bits), np.int8), scale)


def report(weights: dict[str, Any], pruned: dict[str, Sparse], measure: bool = True) -> dict[str, Any]:
    """For a receipt: how each pruned matrix lies in the file and here in memory, and where sparse begins to pay.

    weights: the file's entries; pruned: the model's sparse forms by name. measure=False: without break_even. {} where
    nothing is pruned.
    """
    if not pruned:
        return {}
    stored = {name: _stored(weights[name], form) for name, form in pruned.items()}
    if not measure:
        return {"stored": stored}
    kinds = {(f.shape, f.block, f.bits) for name, f in pruned.items() if timed(f, weights[name]["activations"])}
    even = {
        f"{r} x {c}, block {block}, {bits} bits": break_even((r, c), block, bits)
        for (r, c), block, bits in sorted(kinds)
    }
    return {"stored": stored, "break_even": even}


def _stored(entry: dict[str, Any], form: Sparse) -> str:
    """How a pruned matrix lies in the file, in a few words."""
    if entry["form"] != "sparse":
        return str(entry["form"])
    found = "sparse" if entry["block"] == form.block else "sparse in blocks"
    return found if stays_sparse(entry) else f"{found}, dense in memory"
