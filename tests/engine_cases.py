"""What the tests of the native engine share: models in every weight form, files without a gate, random messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from random_models import KINDS, VARIANTS, random_model

from flyweight.artifact import Artifact
from flyweight.export.fly import contents
from flyweight.forms import Form, Sparse
from flyweight.forms.codes import codes_from_centres
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.model.linear import Activations, Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.native import ISA_VARIABLE, Native
from flyweight.runtime.parts import POOLERS
from flyweight.tokenizer import Encoded

Logits = list[tuple[np.ndarray, np.ndarray | None]]

# Kinds of encoder: those of VARIANTS (zero heads, zero FFN, relative bias, similarity, narrow embeddings, one head
# alone, poolings), and the proportions of the bases.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden": 128, "head_size": 32, "layers": ((4, 512), (4, 512)), "intent_head": "similarity"},
    "bert": {"hidden": 96, "head_size": 16, "layers": ((6, 384), (6, 384))},
    "mpnet": {"hidden": 96, "head_size": 24, "layers": ((4, 384), (4, 384)), "relative_buckets": 32},
    "deep": {"hidden": 128, "head_size": 32, "layers": ((4, 512),) * 14},  # one message is worth several threads
    "electra": {"hidden": 96, "head_size": 24, "layers": ((4, 384), (4, 384)), "embedding": 48, "pooling": "cls+gelu"},
    **{pooling: {"pooling": pooling} for pooling in ("cls", *POOLERS)},
    "relu": {"activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    **VARIANTS,
}


def codes(k: int, per: str = "row", integer: bool = True) -> Callable[[np.ndarray], Form]:
    """A maker of codes with k centres that lie evenly between the extremes of each row, or of the matrix."""

    def make(w: np.ndarray) -> Form:
        rows = w if per == "row" else w.reshape(1, -1)
        low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        return codes_from_centres(w, low + (high - low) * np.linspace(0, 1, k)[None], integer)

    return make


def sparse(make: Callable[[np.ndarray], Form], block: int) -> Callable[[np.ndarray], Form]:
    """The same with half of the weights, or groups of four of them, gone."""

    def masked(w: np.ndarray) -> Form:
        keep = np.random.default_rng(w.shape).random((w.shape[0], -(-w.shape[1] // block))) < 0.5
        form = make(w)
        assert not isinstance(form, Sparse)
        return Sparse(form, np.repeat(keep, block, axis=1)[:, : w.shape[1]])

    return masked


# Multiplied matrices: (maker or None for float32, activations); embeddings take the maker alone.
PACKINGS: dict[str, tuple[Callable[[np.ndarray], Form] | None, Activations]] = {
    "float32": (None, "float"),
    "int8 row": (int8_rows, "int8"),
    "int8 matrix": (int8_matrix, "int8"),
    **{f"{k} centres": (codes(k), "int8") for k in (2, 3, 4, 5, 9, 16)},
    **{f"{k} centres of the matrix": (codes(k, "matrix"), "int8") for k in (2, 3, 4, 9, 16)},
    "8 centres, 3 bits": (codes(8), "int8"),
    "20 centres, 5 bits": (codes(20, "matrix"), "int8"),
    "33 centres, 6 bits": (codes(33), "int8"),
    "100 centres, 7 bits": (codes(100, "matrix"), "int8"),
    "256 centres, 8 bits": (codes(256), "int8"),
    "int8 by floats": (int8_matrix, "float"),
    "codes by floats": (codes(9), "float"),
    "float centres": (codes(16, "row", integer=False), "float"),
    "float centres of the matrix": (codes(5, "matrix", integer=False), "float"),
    "static int8": (int8_rows, "static"),
    "static int8 matrix": (int8_matrix, "static"),
    "static 16 centres": (codes(16), "static"),
    "static 20 centres, 5 bits": (codes(20, "matrix"), "static"),
    "sparse int8": (sparse(int8_rows, 1), "int8"),
    "sparse int8 in blocks": (sparse(int8_rows, 4), "int8"),
    "sparse 16 centres": (sparse(codes(16, "matrix"), 1), "int8"),
    "sparse 16 centres in blocks": (sparse(codes(16), 4), "int8"),
    "sparse 3 centres, static": (sparse(codes(3), 4), "static"),
    "sparse 20 centres, 5 bits": (sparse(codes(20), 1), "int8"),
    "sparse codes by floats": (sparse(codes(9), 1), "float"),
}
STEP = 0.03125  # of static activations: +-3.97 are kept of normed values, +-127 steps


def packed(like: NLUModel, shape: str, packing: str, std: float = 0.08) -> NLUModel:
    """A random model whose matrices are all in one form, or, "mixed", each in another.

    Static forms have integer attention too, a mixed model in every other layer, whatever qkv is.
    """
    model = random_model(like, **({"std": std} | (SHAPES | KINDS)[shape]))
    choices = list(PACKINGS.values()) if packing == "mixed" else [PACKINGS[packing]]
    for i, (name, module, part) in enumerate(model.matrices()):
        make, activations = choices[7 * i % len(choices)]
        weight = module.weight.detach().numpy()
        if make is not None and weight.size:
            set_form(module, make(weight), "float" if part == "embeddings" else activations)
        if isinstance(module, Linear) and weight.size:
            module.input_scale = STEP if activations == "static" and part != "embeddings" else None
            integer_attention = name[7] in "02468" if packing == "mixed" else activations == "static"
            if name.endswith(".attention.qkv") and integer_attention:
                module.output_scales = (STEP, 0.75 * STEP, 0.5 * STEP)
    return model


def artifact_of(model: NLUModel) -> Artifact:
    """What an exported file holds, without the gate and golden samples; matrices in the model's own forms."""
    with mock.patch("flyweight.export.fly.chosen", lambda name, form, activations: form):
        manifest, arrays = contents(model)
    return Artifact(Path("m.fly"), manifest | {"golden": {"texts": [], "tolerance": 0.0}}, arrays, 0)


def engine_at(level: str, artifact: Artifact, monkeypatch: Any) -> Native:
    """The engine with a forced level."""
    with monkeypatch.context() as patch:
        patch.setenv(ISA_VARIABLE, level)
        engine = Native(artifact)
    assert engine.level == level
    return engine


def levels() -> list[str]:
    """Of this CPU, slowest first: "scalar" is the specification."""
    found = native.module().levels()
    assert found[0] == "scalar"
    return list(found)


def random_messages(n: int, vocab_size: int, *, longest: int, seed: int = 0) -> list[Encoded]:
    """Ragged, half of them short; the first has one token, the second is the longest; words from none to all tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        length = {0: 1, 1: longest}.get(i, int(rng.integers(1, longest + 1 if i % 2 else 9)))
        first = np.sort(rng.choice(length, rng.integers(0, length + 1), replace=False)).astype(np.int64)
        ids = rng.integers(0, vocab_size, length).astype(np.int32)
        found.append(Encoded(ids, first, [(0, 1)] * len(first)))
    return found


def flat(logits: Logits) -> list[np.ndarray]:
    """Intent and tags of the first message, the second, ..."""
    return [a for row in logits for a in row if a is not None]


def same(found: Logits, wanted: Logits) -> bool:
    """Equal bits."""
    pairs = list(zip(flat(found), flat(wanted), strict=True))
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
