"""How a pruned matrix is stored: dense with its zeros, sparse, or sparse in blocks of four, whichever is fastest here.

The same weights in each, bit for bit; measured by the engine that will run the file, once a process for each shape,
form and density. Without an engine the smallest is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flyweight.forms import Codes, Float32, Form, Int8, Sparse, describe, multiplied_layout
from flyweight.runtime.native import MAX_SPARSE_COLUMNS, matrix_seconds

TOKENS = (8, 16)  # of the messages that are timed: short ones, as people write
CALLS = 15
WORTH = 0.97  # of the time of a smaller form: what a larger one must stay below
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # where `break_even` looks

_seconds: dict[tuple[Any, ...], float | None] = {}


def chosen(form: Form, activations: str) -> Form:
    """The form in which a matrix is written: of sparse ones the fastest equal one, others as they are."""
    if not isinstance(form, Sparse) or not timed(form, activations):
        return form
    found = sorted(candidates(form), key=lambda f: f.size_bytes)
    best = found[0]
    for other in found[1:]:
        ours, theirs = seconds(best), seconds(other)
        if ours is not None and theirs is not None and theirs < WORTH * ours:
            best = other
    return best


def candidates(form: Sparse) -> list[Form]:
    """A sparse matrix, and the same weights dense and in blocks of four, where these can hold them."""
    wide = form.in_blocks() if form.block == 1 else None
    return [f for f in (form, form.densified(), wide) if f is not None]


def timed(form: Form, activations: str) -> bool:
    """Whether the engine multiplies the form as it is."""
    fits = form.shape[0] > 0 and 0 < form.shape[1] <= MAX_SPARSE_COLUMNS
    return fits and multiplied_layout(describe(form), activations) == "panels" and activations != "float"


def seconds(form: Form) -> float | None:
    """Seconds of a product, added up over TOKENS; None without an engine. Measured once for what looks alike."""
    assert not isinstance(form, Float32)
    density = round(form.density, 2) if isinstance(form, Sparse) else None
    key = (form.shape, type(form), form.bits, form.block if isinstance(form, Sparse) else 0, density)
    if key not in _seconds:
        measured = [matrix_seconds(form, n, CALLS) for n in TOKENS]
        _seconds[key] = None if None in measured else sum(s for s in measured if s is not None)
    return _seconds[key]


def break_even(shape: tuple[int, int], block: int, bits: int = 8) -> float | None:
    """The sparsity from which a sparse matrix of that shape is as fast as a dense one here, between SPARSITIES.

    block: of the mask; single weights (1) count as stored in blocks where that is faster. None: no engine, or never.
    """
    rng, before = np.random.default_rng(0), (0.0, -1.0)
    for sparsity in SPARSITIES:
        keep = rng.random((shape[0], -(-shape[1] // block))) >= sparsity
        sparse = Sparse(_some_values(shape, bits), np.repeat(keep, block, axis=1)[:, : shape[1]])
        dense = seconds(sparse.values)
        found = [seconds(f) for f in candidates(sparse) if isinstance(f, Sparse)]
        if dense is None or None in found:
            return None
        gain = 1 - min(s for s in found if s is not None) / dense
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


def report(weights: dict[str, Any], pruned: dict[str, Sparse]) -> dict[str, Any]:
    """For a receipt: how each pruned matrix lies in the file, and where sparse begins to pay for its shape.

    weights: the file's entries; pruned: the model's sparse forms by name. {} without any.
    """
    if not pruned:
        return {}
    stored = {name: weights[name]["form"] for name in pruned}
    for name, entry in ((name, weights[name]) for name in pruned):
        if entry["form"] == "sparse" and entry["block"] != pruned[name].block:
            stored[name] = "sparse in blocks"
    kinds = {(f.shape, f.block, f.bits) for name, f in pruned.items() if timed(f, weights[name]["activations"])}
    even = {
        f"{r} x {c}, block {block}, {bits} bits": break_even((r, c), block, bits)
        for (r, c), block, bits in sorted(kinds)
    }
    return {"stored": stored, "break_even": even}
