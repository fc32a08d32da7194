"""The C++ engine given what does not fit: one line, no crash. And its memory, threads and floating-point state."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import artifact_of, engine_at, flat, levels, packed, random_messages, same

from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.errors import ParityError
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.native import Native
from flyweight.runtime.parser import Parser
from flyweight.runtime.reference import Reference
from flyweight.training.teacher import build

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native engine is not built")

I32 = np.int32


@pytest.fixture(scope="module")
def like(tiny_data: NLUData) -> NLUModel:
    """Tokenizer, labels and card for the random models; untrained."""
    return build(tiny_data, "small")


@pytest.fixture(scope="module")
def artifact(like: NLUModel) -> Artifact:
    return artifact_of(packed(like, "relative", "mixed"))


class Parts:
    """What an engine is made of, to be changed."""

    def __init__(self, artifact: Artifact):
        check = native.check_parts(artifact)
        assert check
        self.config = native.config(artifact)
        self.matrices = {name: native.matrix(artifact, name) for name in native.matrix_shapes(artifact)}
        self.vectors = {name: artifact.array(name) for name in native.vector_shapes(artifact)}

    def engine(self, level: str = "scalar") -> Any:
        return native.module().Engine(self.config, self.matrices, self.vectors, level)

    def refusal(self, change: Callable[[Parts], Any]) -> str:
        """What the engine says to a changed copy; "" where it takes it."""
        other = copy.copy(self)
        other.config, other.vectors = dict(self.config), dict(self.vectors)
        other.matrices = {name: dict(entry) for name, entry in self.matrices.items()}
        change(other)
        try:
            other.engine()
        except ValueError as error:
            return " (in several lines)" if "\n" in str(error) else str(error)
        return ""


@pytest.fixture(scope="module")
def parts(artifact: Artifact) -> Parts:
    return Parts(artifact)


# what does not fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["relative", "projected"])
def test_every_array_cut_or_spoilt_is_refused(shape: str, like: NLUModel) -> None:
    parts = Parts(artifact_of(packed(like, shape, "mixed")))
    assert parts.refusal(lambda p: None) == ""
    n_tried = 0
    for name, entry in parts.matrices.items():
        for key in ("data", "table", "scale", "bias"):
            whole = entry[key]
            if whole is None or not whole.size:
                continue
            longer = np.concatenate([whole.ravel(), whole.ravel()[:1]])
            changes = {"cut": whole.ravel()[:-1], "longer": longer, "none": whole.ravel()[:0]}
            if whole.size == 1:  # one scale or bias for one row
                changes = {"none": whole.ravel()[:0]} if key == "scale" else {}
            if whole.dtype == np.float32:
                for bad in (np.nan, np.inf, -np.inf):
                    changes[str(bad)] = whole.ravel().copy()
                    changes[str(bad)][-1] = bad
            if key == "table" and len(whole) == 1:  # the last centre of a shared table stands for all missing ones
                changes = {"none": whole.ravel()[:0]}
            changes["wide"] = whole.astype(np.float64)
            if whole.size > 1:
                changes["gaps"] = np.repeat(whole.ravel(), 2)[::2]
            for what, value in changes.items():
                if what == "none" and key == "bias":
                    continue  # a matrix without a bias
                said = parts.refusal(lambda p: p.matrices[name].update({key: value}))  # noqa: B023
                assert name in said, (name, key, what, said)
                assert re.search("entries|NaN|no array|table|scale", said), said
                n_tried += 1
        for key, values in {"rows": (-1, 0, 2**31 - 1), "columns": (-1, 0, 2**31 - 1), "shift": (-128, 200)}.items():
            for value in values:
                if entry[key] != value:
                    assert name in parts.refusal(lambda p: p.matrices[name].update({key: value})), (name, key)  # noqa: B023
                    n_tried += 1
        assert parts.refusal(lambda p: p.matrices.pop(name)) == f"{name}: is missing"  # noqa: B023
    for name, whole in parts.vectors.items():
        if not whole.size or (name.endswith(".bias") and name[:-5] in parts.matrices):
            continue
        for value in (whole.ravel()[:-1], np.append(whole, whole.ravel()[:1]), whole * np.float32(np.nan)):
            assert name in parts.refusal(lambda p: p.vectors.update({name: value.astype(np.float32)}))  # noqa: B023
        assert "no array" in parts.refusal(lambda p: p.vectors.update({name: whole.astype(np.float64)}))  # noqa: B023
        assert parts.refusal(lambda p: p.vectors.pop(name)) == f"{name}: is missing"  # noqa: B023
    assert n_tried > 200


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *((key, (-1, 0, 2**31 - 1, 27.5, "28", None)) for key in
          ("hidden", "head_size", "vocab_size", "max_positions", "n_intents")),
        ("n_tags", (-1, 2**31 - 1, "9")),
        ("embedding", (-1, 13, 28, 2**31 - 1, 13.5, "13", None)),
        ("heads", ([3, 0], [3, 0, -2], [3, 0, 3], [2**31 - 1] * 3, 3, None)),
        ("ffn", ([37, 21], [37, 21, -21], [37, 21, 22], [2**31 - 1] * 3)),
        ("activation", ("swish", "tanh", None)),
        ("pooling", ("sum", "cls+tanh", "cls+relu", "cls+gelu", "cls+", None)),
        ("norm_eps", (0.0, -1.0, math.nan, math.inf, None)),
        ("buckets", (np.zeros(3, I32), np.full(79, 32, I32), np.full(79, -1, I32), np.zeros(79, np.int64), [0] * 79)),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(key: str, values: tuple[Any, ...], parts: Parts) -> None:
    for value in values:
        assert parts.refusal(lambda p: p.config.update({key: value})), (key, value)  # noqa: B023
    assert parts.refusal(lambda p: p.config.pop(key)) == f"field '{key}' is missing"


def test_settings_of_matrices_that_do_not_fit_are_refused(parts: Parts) -> None:
    for name, entry in parts.matrices.items():
        for key, values in {
            "form": ("int4", None), "activations": ("int4", "int8" if entry["activations"] == "float" else "float", 8),
            "bits": (0, 9, -1, 64) if entry["form"] == "codes" else ("8",), "rows": (None, 2.5), "shift": ("0",),
        }.items():  # fmt: skip
            for value in values:
                if entry["form"] != "float32" or key != "activations" or not name.startswith("embeddings"):
                    assert parts.refusal(lambda p: p.matrices[name].update({key: value})), (name, key, value)  # noqa: B023
        for key in entry.keys() - {"input_scale", "output_scales"}:  # those are absent where nothing is static
            assert parts.refusal(lambda p: p.matrices[name].pop(key)) == f"field '{key}' is missing"  # noqa: B023


MESSAGES: dict[str, tuple[list[int], list[int], list[int], list[int], str]] = {
    "id below 0": ([1, -1], [2], [0], [1], "token id -1; allowed: 0 to"),
    "id beyond": ([1, 10**6], [2], [0], [1], "token id 1000000; allowed: 0 to"),
    "no token": ([1], [1, 0], [0], [1, 0], "message 1 has 0 tokens; allowed: 1 to 40"),
    "too long": ([1] * 41, [41], [0], [1], "message 0 has 41 tokens; allowed: 1 to 40"),
    "fewer ids": ([1], [2], [0], [1], "do not belong together"),
    "more ids": ([1] * 3, [2], [0], [1], "do not belong together"),
    "lengths that only add up": ([1] * 4, [9, -5], [0], [1, 0], "do not belong together"),
    "more words than first": ([1] * 4, [2, 2], [0, 1], [2, 1], "do not belong together"),
    "words that only add up": ([1] * 40, [35, 5], [0], [4, -3], "do not belong together"),
    "words of more messages": ([1] * 4, [2, 2], [0, 1], [1, 1, 0], "do not belong together"),
    "more words than tokens": ([1] * 2, [2], [0, 1, 1], [3], "more words than tokens"),
    "a word before": ([1] * 4, [2, 2], [0, -1], [1, 1], "a word begins outside of its message"),
    "a word behind": ([1] * 4, [2, 2], [2, 0], [1, 1], "a word begins outside of its message"),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_messages_that_do_not_fit_are_refused(what: str, parts: Parts) -> None:
    *arrays, message = MESSAGES[what]
    engine = parts.engine()
    with pytest.raises(ValueError, match=message) as caught:
        engine.logits(*(np.array(a, I32) for a in arrays))
    assert "\n" not in str(caught.value)
    right = [np.array(a, I32) for a in ([1, 2], [2], [0], [1])]
    intent, tags = engine.logits(*right)
    assert (intent.shape, tags.shape) == ((1, 4), (1, 9))
    for i in range(4):  # another type is refused, not converted: 2^32 + 1 is no 1
        with pytest.raises(TypeError):
            engine.logits(*(a.astype(np.int64) if i == j else a for j, a in enumerate(right)))
    none = engine.logits(*(np.zeros(0, I32) for _ in range(4)))
    assert [a.shape for a in none] == [(0, 4), (0, 9)]


@pytest.mark.parametrize("packing", ["3 centres", "5 centres", "3 centres of the matrix", "9 centres of the matrix"])
def test_codes_beyond_the_table_find_its_last_centre(
    packing: str, like: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that no exporter makes, of which `check` leaves the codes to the engine: it reads nothing else."""
    parts = Parts(artifact_of(packed(like, "plain", packing)))
    for entry in parts.matrices.values():
        if entry["form"] == "codes":
            entry["data"] = np.full_like(entry["data"], 0xFF)
            entry["data"][::3] = 0xB7
    full = copy.deepcopy(parts)
    for entry in full.matrices.values():
        if entry["form"] == "codes":
            missing = (1 << entry["bits"]) - entry["table"].shape[1]
            assert missing > 0
            entry["table"] = np.pad(entry["table"], ((0, 0), (0, missing)), mode="edge")
    ids = np.arange(30, dtype=I32)
    arguments = (ids, np.array([30], I32), np.arange(9, dtype=I32), np.array([9], I32))
    wanted = full.engine().logits(*arguments)
    assert np.isfinite(wanted[0]).all()
    for level in levels():
        found = parts.engine(level).logits(*arguments)
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


# what is not finite --------------------------------------------------------------------------------------------------


def parser_of(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, level: str) -> Parser:
    parser = Parser(artifact)
    parser.engine = engine_at(level, artifact, monkeypatch)
    return parser


@pytest.mark.parametrize("packing", ["float32", "int8 row", "16 centres", "mixed"])
@pytest.mark.parametrize(
    "name",
    ["embeddings.norm.weight", "layers.0.attention.qkv.bias", "layers.0.ffn.up.bias", "layers.2.attention.out.bias",
     "layers.2.ffn.down.bias", "layers.2.ffn.norm.weight"],
)  # fmt: skip
def test_what_overflows_is_an_error_at_every_level(
    name: str, packing: str, like: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = artifact_of(packed(like, "relative", packing))
    huge = np.resize(np.array([3e38, -3e38, 2e38], np.float32), whole.array(name).shape)
    broken = Artifact(whole.path, whole.manifest, whole.arrays | {name: huge}, 0)
    # Int8 attention clamps Q, K and V to 127 steps: nothing overflows there.
    clamped = "output_scales" in whole.entry(name.removesuffix(".bias")) if name.endswith("qkv.bias") else False
    for level in levels():
        parser = parser_of(broken, monkeypatch, level)
        [(intent, _)] = parser.engine.logits(parser.tokenizer.encode_batch(["a flight to Rome"]))
        assert np.isfinite(intent).all() == clamped
        if clamped:
            continue
        with pytest.raises(ParityError, match="logits of 'a flight to Rome' are not finite; the model is damaged"):
            parser.parse("a flight to Rome")


@pytest.mark.parametrize("packing", ["float32", "int8 row", "16 centres"])
def test_a_message_that_overflows_harms_no_other(packing: str, like: NLUModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word's embedding overflows the sums of the first norm: its message is refused, in a batch too, and the next
    calls, which use the same memory, give what they gave."""
    model = packed(like, "plain", packing)
    bad = model.tokenizer.encode("rome").ids[1]
    model.encoder.words.form = None
    with torch.no_grad():
        model.encoder.words.weight[bad] = 3e38
    artifact = artifact_of(model)
    texts = ["hello", "fly to rome today", "", "to Paris tomorrow, please " * 9, "good morning"]
    for level in levels():
        parser = parser_of(artifact, monkeypatch, level)
        encoded = parser.tokenizer.encode_batch(texts)
        sound = [e for e in encoded if bad not in e.ids]
        assert len(sound) == 4
        wanted = parser.engine.logits(sound)
        assert all(np.isfinite(a).all() for a in flat(wanted))
        for _ in range(3):
            found = parser.engine.logits(encoded)
            assert not any(np.isfinite(a).any() for a in flat(found[1:2]))
            assert same([*found[:1], *found[2:]], wanted)
            assert same(parser.engine.logits(sound), wanted)
            with pytest.raises(ParityError, match="logits of 'fly to rome today' are not finite"):
                parser.parse_batch(texts)
            assert parser.parse("hello")["intent"]["confidence"] > 0


# memory, threads, floating-point state -------------------------------------------------------------------------------


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow(artifact: Artifact, like: NLUModel) -> None:
    engine, tokenizer = Native(artifact), like.tokenizer.native
    messages = random_messages(40, engine.vocab_size, longest=40, seed=1)
    arguments = [
        (e.ids, np.array([len(e.ids)], I32), e.first.astype(I32), np.array([len(e.first)], I32)) for e in messages
    ]
    texts = ["book a flight to Rome", "", "hello " * 30]

    def call(n: int) -> None:
        for i in range(n):
            engine._engine.logits(*arguments[i % 40])
            if i % 4 == 0:
                engine._engine.answers(tokenizer, texts[: 1 + i % 3], 1.0, 1)
            if i % 100 == 0:
                engine.logits(messages, threads=1 + i // 100 % 2)

    call(2000)
    before = resident_bytes()
    call(20_000)
    # A leak of 100 bytes a call would be 2 MB.
    assert resident_bytes() - before < 2_000_000
    for _ in range(300):  # engines go, and what they held with them
        Native(artifact).logits(messages[:2])
    assert resident_bytes() - before < 4_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_threads_that_cannot_be_started_are_done_without() -> None:
    """Where no memory is left for a thread's stack, the caller does its part; nothing waits for it."""
    code = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import random_models, engine_cases
from flyweight.runtime.native import Native
from flyweight.training.teacher import build
from flyweight.data.messages import Message, NLUData
data = tuple(Message(f"hello {i}", "ab"[i % 2]) for i in range(8))
model = engine_cases.packed(build(NLUData(data, data[:2], data[:2]), "small"), "deep", "int8 row")
tasks = lambda: len(os.listdir("/proc/self/task"))
engine = Native(engine_cases.artifact_of(model))
messages = engine_cases.random_messages(2, engine.vocab_size, longest=40)[1:]  # one, worth three threads
wanted = engine.logits(messages)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), -1))
try:
    import threading
    threading.Thread(target=int).start()
except RuntimeError:
    print("no threads")
before = tasks()
for _ in range(5):
    assert engine_cases.same(engine.logits(messages, threads=4), wanted)
assert tasks() == before
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
for _ in range(20):
    assert engine_cases.same(engine.logits(messages, threads=4), wanted)
assert tasks() == before + 2  # now there are
print("equal")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["no threads", "equal"]


@pytest.fixture
def flushing() -> Iterator[None]:
    """Denormals count as zero in this thread, as some libraries leave it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


def test_flushing_denormals_changes_nothing(like: NLUModel, flushing: None) -> None:
    """Embeddings that differ by denormals alone, brought up to usual numbers by the norm's weight and eps."""
    model = packed(like, "plain", "float32")
    arrays = artifact_of(model).arrays
    torch.set_flush_denormal(False)
    new = {
        f"embeddings.{k}.values": arrays[f"embeddings.{k}.values"] * np.float32(1e-38) for k in ("words", "positions")
    }
    new |= {"embeddings.norm.weight": np.full(28, 1e34, np.float32)}
    artifact = Artifact(Path("m.fly"), artifact_of(model).manifest, arrays | new, 0)
    messages = random_messages(20, model.encoder.config.vocab_size, longest=40)
    wanted = Native(artifact).logits(messages)
    assert np.ptp(np.stack([intent for intent, _ in wanted]), axis=0).max() > 0.1
    assert same(Reference(artifact).logits(messages), Reference(artifact).logits(messages))
    torch.set_flush_denormal(True)
    engine = Native(artifact)
    tiny = torch.full((4,), 1e-30) * torch.full((4,), 1e-10)
    assert tiny.tolist() == [0.0] * 4  # it is on
    for threads in (1, 2):
        assert same(engine.logits(messages, threads=threads), wanted)
    with pytest.raises(ValueError, match="allowed"):
        engine._engine.logits(*(np.array(a, I32) for a in ([-1], [1], [0], [1])))
    tiny = torch.full((4,), 1e-30) * torch.full((4,), 1e-10)
    assert tiny.tolist() == [0.0] * 4  # and stays on
