"""LSTM, convolution, max pooling and bags in the C++ engine: equal bits, near to the reference and to PyTorch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_cases import PACKINGS, Logits, artifact_of, engine_at, flat, levels, packed, random_messages, same
from random_models import KINDS, largest_difference

from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.reference import Reference, rms_difference
from flyweight.tokenizer import Encoded
from flyweight.training.teacher import build

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native engine is not built")

FLOAT_TOLERANCE = 1e-4  # of float models, whose logits are a few units
# Forms that compute in other ways: floats, int8 in both kinds of steps, codes of each width, sparse.
CHOSEN = (
    "float32", "int8 row", "int8 matrix", "16 centres", "4 centres of the matrix", "2 centres", "20 centres, 5 bits",
    "codes by floats", "float centres", "static int8", "static 16 centres", "sparse int8",
    "sparse 16 centres in blocks",
    "sparse codes by floats", "mixed",
)  # fmt: skip


@pytest.fixture(scope="module")
def case(tiny_data: NLUData) -> Any:
    """(kind, packing) -> the model, its file, messages and what the scalar level says to them."""
    like = build(tiny_data, "small")

    @cache
    def make(kind: str, packing: str) -> tuple[NLUModel, Artifact, list[Encoded], Logits]:
        model = packed(like, kind, packing, std=0.15)
        artifact = artifact_of(model)
        messages = random_messages(9, model.encoder.config.vocab_size, longest=40)
        with pytest.MonkeyPatch.context() as patch:
            return model, artifact, messages, engine_at("scalar", artifact, patch).logits(messages)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_gives_equal_bits_in_every_form(kind: str, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for packing in [*PACKINGS, "mixed"]:
        _, artifact, messages, wanted = case(kind, packing)
        assert all(np.isfinite(a).all() for a in flat(wanted))
        for level in levels()[1:]:
            assert same(engine_at(level, artifact, monkeypatch).logits(messages), wanted), (packing, level)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_threads_give_equal_bits(kind: str, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is what it is alone, in any order, with any neighbours."""
    model, artifact, _, _ = case(kind, "mixed")
    messages = random_messages(40, model.encoder.config.vocab_size, longest=40, seed=1)
    wanted = [engine_at("scalar", artifact, monkeypatch).logits([e])[0] for e in messages]
    rng = np.random.default_rng(0)
    for level in levels():
        engine = engine_at(level, artifact, monkeypatch)
        for n in range(1, 41, 3):
            chosen = rng.permutation(40)[:n]
            assert same(engine.logits([messages[i] for i in chosen], threads=1 + n % 4), [wanted[i] for i in chosen])


@pytest.mark.parametrize("packing", CHOSEN)
@pytest.mark.parametrize("kind", KINDS)
def test_near_to_the_reference_and_to_pytorch(kind: str, packing: str, case: Any) -> None:
    """Float models agree to rounding; of the others nearly all messages do.

    A value that lies on the border of two int8 steps may fall on either side: a step of 1/127 of a token's largest.
    """
    model, artifact, messages, found = case(kind, packing)
    for wanted in (Reference(artifact).logits(messages), model.logits(messages)):
        if PACKINGS.get(packing, (None, "int8"))[1] == "float":
            assert largest_difference(flat(found), flat(wanted)) <= FLOAT_TOLERANCE
            continue
        gaps = [np.abs(a - b).max() for a, b in zip(flat(found), flat(wanted), strict=True) if a.size]
        assert np.median(gaps) <= FLOAT_TOLERANCE, gaps
        assert rms_difference(flat(found), flat(wanted)) <= 0.05 * rms_difference(
            flat(wanted), [0 * a for a in flat(wanted)]
        )
