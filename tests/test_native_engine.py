"""The C++ engine: equal bits at every level, in every batch, over any threads; near to the reference and to PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import (
    PACKINGS,
    SHAPES,
    Logits,
    artifact_of,
    engine_at,
    flat,
    levels,
    packed,
    random_messages,
    same,
)
from random_models import largest_difference

from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import GOLDEN_FLOOR, NOISE_FACTOR, _noise_effect, _stack, rms, save
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.native import ISA_VARIABLE, Native
from flyweight.runtime.parser import load
from flyweight.runtime.reference import Reference, rms_difference
from flyweight.tokenizer import Encoded
from flyweight.training.teacher import build

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native engine is not built")

FLOAT_TOLERANCE = 1e-4  # of float models, whose logits are a few units
WIDE = ("small", "bert", "mpnet", "electra", "deep")  # the scalar level and NumPy take their time with these
TIMEOUT_S = 60


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices are tiny: PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def like(tiny_data: NLUData) -> NLUModel:
    """Tokenizer, labels and card for the random models; untrained."""
    model = build(tiny_data, "small")
    model.card.golden = [m.text for m in tiny_data.validation]
    return model


@pytest.fixture(scope="module")
def case(like: NLUModel) -> Any:
    """(shape, packing) -> the model, its file, messages and what the scalar level says to them."""

    @cache
    def make(shape: str, packing: str) -> tuple[NLUModel, Artifact, list[Encoded], Logits]:
        model = packed(like, shape, packing)
        artifact, vocab = artifact_of(model), model.encoder.config.vocab_size
        messages = random_messages(5 if shape in WIDE else 9, vocab, longest=40)
        with pytest.MonkeyPatch.context() as patch:
            return model, artifact, messages, engine_at("scalar", artifact, patch).logits(messages)

    return make


def packings(shape: str) -> list[str]:
    """Every form for every narrow shape, those that behave differently for the wide ones."""
    if shape == "deep":
        return ["mixed"]
    chosen = ["float32", "int8 row", "4 centres of the matrix", "static int8", "static 16 centres", "mixed"]
    return chosen if shape in WIDE else [*PACKINGS, "mixed"]


def first_head(logits: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
    """Rows of the intent head (1, C), or, of a model without intents, those of the entity head (W, n_tags)."""
    intent, tags = logits
    if intent.size:
        return intent[None]
    assert tags is not None
    return tags


# levels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_gives_equal_bits_in_every_form(shape: str, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for packing in packings(shape):
        _, artifact, messages, wanted = case(shape, packing)
        assert all(np.isfinite(a).all() for a in flat(wanted))
        assert np.ptp(np.concatenate([first_head(row) for row in wanted]), axis=0).max() > 0.05  # messages matter
        for level in levels()[1:]:
            assert same(engine_at(level, artifact, monkeypatch).logits(messages), wanted), (packing, level)


def test_a_level_can_be_forced(case: Any, like: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    model, artifact, _, _ = case("plain", "int8 row")
    assert Native(artifact).level == levels()[-1]
    path = save(model, tmp_path / "m.fly")
    for level in levels():
        monkeypatch.setenv(ISA_VARIABLE, level)
        nlu = load(path)
        golden = nlu.check_golden()
        assert (nlu.engine.title, golden.must_equal, golden.equal) == (f"engine {level}", True, True)
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(ConfigError, match=r"^FLYWEIGHT_ISA is 'sse9', but this build has no such level; usable here: "):
        load(path)
    with pytest.raises(ValueError, match=r"^level 'sse9' cannot run here$"):
        native.module().Engine({}, {}, {}, "sse9")
    code = f"import flyweight; flyweight.load({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("flyweight.errors.ConfigError: FLYWEIGHT_ISA is 'sse9', but")


# batches and threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "packing"),
    [("plain", "float32"), ("pooler", "int8 matrix"), ("cut", "3 centres"), ("no entities", "16 centres"),
     ("relative", "mixed"), ("projected", "int8 row"), ("entities only", "mixed"), ("cut", "static int8"),
     ("small", "static 16 centres")],
)  # fmt: skip
def test_batches_orders_and_threads_give_equal_bits(
    shape: str, packing: str, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every size from 1 to 70 messages, ragged, in any order: each message is what it is alone."""
    model, artifact, _, _ = case(shape, packing)
    messages = random_messages(70, model.encoder.config.vocab_size, longest=40, seed=1)
    wanted = [engine_at("scalar", artifact, monkeypatch).logits([e])[0] for e in messages]
    rng = np.random.default_rng(0)
    for level in levels():
        engine = engine_at(level, artifact, monkeypatch)
        for n in range(1, 71, 1 if level == levels()[-1] else 7):
            chosen = rng.permutation(70)[:n]
            found = engine.logits([messages[i] for i in chosen], threads=1 + n % 4)
            assert same(found, [wanted[i] for i in chosen]), (level, n)


def test_one_message_over_threads(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 tokens by 2.8 million weights: worth 3 threads, which share every matrix."""
    model, artifact, _, _ = case("deep", "mixed")
    for level in levels()[1:]:
        engine = engine_at(level, artifact, monkeypatch)
        for e in random_messages(4, model.encoder.config.vocab_size, longest=40, seed=2)[1:]:
            wanted = engine.logits([e], threads=1)
            for threads in (2, 3, 10**6):
                assert same(engine.logits([e], threads=threads), wanted)


def test_batches_over_threads(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of tokens: each thread takes whole groups of messages, never the same one."""
    model, artifact, _, _ = case("small", "mixed")
    messages = random_messages(150, model.encoder.config.vocab_size, longest=40, seed=2)
    for level in levels()[1:]:
        engine = engine_at(level, artifact, monkeypatch)
        wanted = engine.logits(messages, threads=1)
        for i in range(12):
            assert same(engine.logits(messages, threads=2 + i % 3), wanted)


def together(work: Any, n: int) -> None:
    """Call work(0), ..., work(n - 1) in n threads; none may fail or hang."""
    failures: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + TIMEOUT_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    assert failures == []


def test_callers_in_many_threads_get_equal_bits(case: Any) -> None:
    """8 callers share two engines; over 1, 2 or 3 threads, small batches and large ones mixed."""
    engines, wanted, messages = [], [], []
    for shape, packing in (("relative", "int8 row"), ("small", "mixed")):
        model, artifact, _, _ = case(shape, packing)
        engines.append(Native(artifact))
        messages.append(random_messages(30, model.encoder.config.vocab_size, longest=40, seed=3))
        wanted.append([engines[-1].logits([e])[0] for e in messages[-1]])

    def work(caller: int) -> None:
        rng = np.random.default_rng(caller)
        for i in range(24):
            which = (caller + i) % 2
            chosen = rng.permutation(30)[: (1, 30, 3)[i % 3]]
            found = engines[which].logits([messages[which][j] for j in chosen], threads=1 + (caller // 2 + i) % 3)
            assert same(found, [wanted[which][j] for j in chosen])

    together(work, 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_computes_and_exits(case: Any) -> None:
    model, artifact, _, _ = case("small", "mixed")
    engine, messages = Native(artifact), random_messages(20, model.encoder.config.vocab_size, longest=40)
    wanted = engine.logits(messages, threads=2)
    child = os.fork()
    if child == 0:
        right = all(same(engine.logits(messages, threads=n), wanted) for n in (2, 1, 4))
        os._exit(0 if right else 3)
    end = time.monotonic() + TIMEOUT_S
    status = 0
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert same(engine.logits(messages), wanted)


# against the reference and PyTorch -----------------------------------------------------------------------------------


def as_far_as_noise(model: NLUModel, messages: list[Encoded], wanted: list[np.ndarray]) -> float:
    """The golden samples' tolerance, RMS. Two right evaluations differ by float rounding, about 3e-7 of a value. Where
    that moves x * 127 / absmax over a half, an activation moves by a whole int8 step and what follows differs too:
    noise on the embeddings, which moves many of them, shows how much that is in this model."""
    return max(NOISE_FACTOR * _noise_effect(model, messages, wanted), GOLDEN_FLOOR * rms(wanted))


@pytest.mark.parametrize("shape", SHAPES)
def test_near_to_the_reference_and_to_pytorch(shape: str, case: Any) -> None:
    """Activations move over a half rarely: with 127 * 3e-7 of rounding in a step, about 8e-5 of them do; a token of the
    28 wide models has 350, so most messages of few tokens have none and agree to float rounding."""
    for packing in packings(shape):
        model, artifact, messages, found = case(shape, packing)
        reference, torch_logits = Reference(artifact).logits(messages), model.logits(messages)
        for wanted in (reference, torch_logits):
            assert [a.shape for a in flat(found)] == [a.shape for a in flat(wanted)]
            if PACKINGS.get(packing, (None, "int8"))[1] == "float":
                assert largest_difference(flat(found), flat(wanted)) <= FLOAT_TOLERANCE, packing
                continue
            stacked = _stack(wanted)
            assert rms_difference(_stack(found), stacked) <= as_far_as_noise(model, messages, stacked), packing
            if model.encoder.config.hidden == 28:
                pairs = [(first_head(a), first_head(b)) for a, b in zip(found, wanted, strict=True)]
                gaps = [np.abs(a - b).max() for a, b in pairs if a.size]
                assert np.median(gaps) <= FLOAT_TOLERANCE, (packing, gaps)


@pytest.mark.parametrize("packing", ["int8 row", "16 centres", "static int8", "mixed"])
def test_the_median_message_agrees_to_float_rounding(packing: str, case: Any) -> None:
    """100 short messages, where an int8 step is 1e-2 of a value: nearly all agree a hundred times nearer than that."""
    model, artifact, _, _ = case("relative", packing)
    messages = random_messages(200, model.encoder.config.vocab_size, longest=8, seed=5)
    found = Native(artifact).logits(messages)
    for wanted in (Reference(artifact).logits(messages), model.logits(messages)):
        gaps = np.array([np.abs(a[0] - b[0]).max() for a, b in zip(found, wanted, strict=True)])
        size = rms([intent for intent, _ in wanted])
        assert np.median(gaps) <= 2e-6 * max(size, 1.0)
        assert np.mean(gaps > 1e-4 * size) < 0.25
