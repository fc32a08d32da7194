"""The door to the C++ engine, without one: a made-up `_native` sees what it is given and says what it should.

What the real engine computes is another file's business; here: weights handed over without a copy, conversions, levels,
errors, the way without an engine, and when golden samples must be equal.
"""

from __future__ import annotations

import copy
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import Call
from random_models import quiet_run, variant

from flyweight.artifact import Artifact, read, write
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError, ConfigError, FlyweightWarning, ParityError
from flyweight.export.fly import save
from flyweight.forms import Codes, Int8, panels
from flyweight.forms.codes import unpack_bits
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.forms.kmeans import kmeans_codes
from flyweight.model.linear import set_form
from flyweight.model.nlu import NLUModel
from flyweight.positions import relative_buckets
from flyweight.runtime import native, parser
from flyweight.runtime.native import ISA_VARIABLE, Native
from flyweight.runtime.parser import Parser, load
from flyweight.runtime.reference import GoldenCheck, Reference
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8 as Int8Step
from flyweight.tokenizer import Encoded

USABLE = ["scalar", "avx2", "avx-vnni"]


class FakeEngine:
    """Keeps what it is given; `compute` gives logits; `refuse` is what it says to a model or a message."""

    compute: Any = None
    refuse: str | None = None
    given: tuple[Any, ...] = ()

    def __init__(self, config: dict[str, Any], matrices: dict[str, Any], vectors: dict[str, Any], level: str):
        if type(self).refuse:
            raise ValueError(type(self).refuse)
        type(self).given = (config, matrices, vectors, level)
        self.config = config

    def logits(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        assert [a.dtype for a in arguments[:4]] == [np.int32] * 4
        assert all(a.flags.c_contiguous for a in arguments[:4])
        return type(self).compute(self.config, *arguments)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """A native module in which nothing is computed."""

    class Engine(FakeEngine):
        @staticmethod
        def compute(config: dict[str, Any], ids: Any, lengths: Any, first: Any, n_words: Any, threads: int) -> Any:
            """Numbers that tell messages and words apart: intent (sum of ids, length, threads), tags (word's index)."""
            ends = np.cumsum(lengths)
            intent = np.zeros((len(lengths), config["n_intents"]), np.float32)
            intent[:, 0] = [ids[e - n : e].sum() for e, n in zip(ends, lengths, strict=True)]
            intent[:, 1], intent[:, 2] = lengths, threads
            return intent, np.tile(first[:, None], (1, config["n_tags"])).astype(np.float32)

    module = types.ModuleType("flyweight._native")
    vars(module).update(levels=lambda: list(USABLE), built=lambda: [*USABLE, "amx-int8"], Engine=Engine)
    use(monkeypatch, module)
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    return Engine


def use(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let `flyweight._native` be that module, or an error that importing it raises; the tokenizer keeps its own."""

    def find(name: str) -> Any:
        assert name == "flyweight._native"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(native, "import_module", find)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ModuleNotFoundError("No module named 'flyweight._native'", name="flyweight._native"))
    monkeypatch.setattr(parser, "_warned", False)


def reference_logits(path: Path) -> Any:
    """An engine that computes as the reference does."""
    reference = Reference(read(path))

    def compute(config: Any, ids: Any, lengths: Any, first: Any, n_words: Any, threads: int) -> Any:
        parts = [np.split(a, np.cumsum(n)[:-1]) for a, n in ((ids, lengths), (first, n_words))]
        rows = reference.logits([Encoded(i, f, [(0, 1)] * len(f)) for i, f in zip(*parts, strict=True)])
        return np.stack([row for row, _ in rows]), np.concatenate([t for _, t in rows if t is not None])

    return staticmethod(compute)


@pytest.fixture
def plain(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed file, made without an engine."""
    with monkeypatch.context() as patch:
        without(patch)
        return save(Int8Step().apply(tiny_model, quiet_run(tiny_data, tiny_model)), tmp_path / "m.fly")


# what the engine is given --------------------------------------------------------------------------------------------


def decoded(given: dict[str, Any]) -> np.ndarray:
    """The float weights that an engine reads out of what it is given."""
    rows, columns, data = given["rows"], given["columns"], given["data"]
    assert data.ndim == 1
    shape, p = (rows, columns), -(-rows // 16)
    in_rows = given["looked_up"]
    if given["form"] == "float32":
        return data.reshape(shape) if in_rows else panels.unpack_float32(data.reshape(p, columns, 16), shape)
    if given["form"] == "int8":
        q = data.reshape(shape) if in_rows else panels.unpack_int8(data.reshape(p, -(-columns // 64), 16, 64), shape)
        return Int8(q, given["scale"], given["shift"]).dense()
    bits = given["bits"]
    packed = data.reshape(rows, -1) if in_rows else data.reshape(p, -(-columns * bits // 512), 16, 64)
    codes = unpack_bits(packed, columns, bits) if in_rows else panels.unpack_codes(packed, shape, bits)
    return Codes(codes, given["table"], given["scale"]).dense()


FIELDS = {"form", "rows", "columns", "activations", "data", "table", "scale", "shift", "bits", "block", "mask", "bias",
          "input_scale", "output_scales"}  # fmt: skip
PACKINGS: dict[str, Any] = {
    "float": lambda w: None,
    "int8 row": int8_rows,
    "int8 matrix": int8_matrix,
    "2 centres": lambda w: kmeans_codes(w, 2, "row", True),
    "3 centres of the matrix": lambda w: kmeans_codes(w, 3, "matrix", True),
    "16 centres": lambda w: kmeans_codes(w, 16, "row", True),
    "6 centres": lambda w: kmeans_codes(w, 6, "row", True),
    "200 centres": lambda w: kmeans_codes(w, 200, "matrix", True),
    "float centres": lambda w: kmeans_codes(w, 16, "row", False),
}


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_matrix_is_handed_over(
    packing: str, activations: str, fake: type[FakeEngine], tiny_model: NLUModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if activations == "int8" and packing in ("float", "float centres"):
        return
    model = variant(tiny_model, "relative")
    for _, module, part in model.matrices():
        weight = module.weight.detach().numpy()
        if packing != "float" and weight.size:
            set_form(module, PACKINGS[packing](weight), "float" if part == "embeddings" else activations)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        without(patch)
        artifact = read(save(model, tmp_path / "m.fly"))
    Native(artifact)
    config, matrices, vectors, level = fake.given
    assert level == "avx-vnni"
    assert set(matrices) == {name for name, _, _ in model.matrices()}
    for name, module, _ in model.matrices():
        given = matrices[name]
        assert set(given) == FIELDS
        assert given["input_scale"] is None
        assert given["output_scales"] is None
        looked_up = name.startswith("embeddings")
        assert np.array_equal(decoded(given | {"looked_up": looked_up}), module.weight.detach().numpy()), name
        assert (given["rows"], given["columns"]) == tuple(module.weight.shape)
        engine_takes = (
            [("float32", "float")] if given["activations"] == "float" else [("int8", "int8"), ("codes", "int8")]
        )
        assert looked_up or (given["form"], given["activations"]) in engine_takes
        if given["form"] == "codes":
            assert looked_up or (given["bits"] in (1, 2, 4) and given["table"].dtype == np.int8)
        bias = module.bias
        assert given["bias"] is None if bias is None else np.array_equal(given["bias"], bias.detach().numpy())
        if looked_up or artifact.entry(name)["layout"] == "panels":  # views of the file, no copies
            assert all(not given[k].flags.owndata for k in ("data", "table", "scale", "bias") if given[k] is not None)
    biases = {f"{name}.bias" for name, module, _ in model.matrices()}
    wanted = {name: v.detach().numpy() for name, v in model.vectors() if name not in biases}
    assert set(vectors) == set(wanted)
    assert all(np.array_equal(vectors[name], a) for name, a in wanted.items())
    n = config["max_positions"]
    assert config["buckets"].dtype == np.int32
    table = relative_buckets(n, 32, 128)
    distances = np.concatenate([table[-1], table[0, 1:]])  # key - query from -(n - 1) to n - 1
    assert config["buckets"].tolist() == distances.tolist()
    assert {k: v for k, v in config.items() if k != "buckets"} == {
        "hidden": 28, "head_size": 7, "embedding": 0, "integer_only": False, "max_positions": 40,
        "vocab_size": model.encoder.config.vocab_size,
        "activation": "gelu", "norm_eps": 1e-12, "heads": [3, 0, 2], "ffn": [37, 21, 21],
            "kinds": ["transformer"] * 3, "widths": [0, 0, 0], "ngrams": 0,
        "pooling": "mean", "n_intents": 4, "n_tags": 9,
    }  # fmt: skip


def test_matrices_without_weights_have_one_form(
    fake: type[FakeEngine], tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant(tiny_model, "cut")  # layers without heads, without an FFN, without either
    makers: list[Any] = [
        int8_rows,
        int8_matrix,
        lambda w: Codes(w.astype(np.uint8), np.zeros((len(w), 16), np.int8), w[:, 0]),
    ]
    empty = [(name, module) for name, module, _ in model.matrices() if not module.weight.numel()]
    assert {tuple(module.weight.shape) for _, module in empty} == {(0, 28), (28, 0)}
    for i, (_, module) in enumerate(empty):
        weight = module.weight.detach().numpy()
        set_form(module, makers[i % 3 if len(weight) == 0 else i % 2](weight), "int8")
    with monkeypatch.context() as patch:
        without(patch)
        artifact = read(save(model, tmp_path / "m.fly"))
    Native(artifact)
    for name, module in empty:
        given = fake.given[1][name]
        assert (given["form"], given["activations"], given["data"].size) == ("float32", "float", 0)
        assert given["scale"] is given["table"] is None
        assert (given["rows"], given["columns"]) == tuple(module.weight.shape)


def test_no_more_threads_than_the_container_lets_run(
    fake: type[FakeEngine], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "usable_cores", lambda: 2)
    assert [load(plain, check=False, threads=n).engine.threads for n in (1, 2, 64)] == [1, 2, 2]  # type: ignore[union-attr]


def test_messages_go_in_and_logits_come_out_ragged(
    fake: type[FakeEngine], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "usable_cores", lambda: 8)
    nlu = load(plain, check=False, threads=3)
    assert (nlu.engine.name, nlu.engine.title, nlu.engine.has_tags) == ("engine", "engine avx-vnni", True)
    assert nlu.engine.vocab_size == nlu.artifact.manifest["model"]["encoder"]["vocab_size"]
    encoded = nlu.tokenizer.encode_batch(["book a flight to Rome", "", "hello"])
    assert [len(e.first) for e in encoded] == [5, 0, 1]
    for e, (intent, tags) in zip(encoded, nlu.engine.logits(encoded), strict=True):
        assert intent.tolist() == [e.ids.sum(), len(e.ids), 3, 0]
        assert tags is not None
        assert tags.tolist() == [[i] * 9 for i in e.first]
    assert nlu.engine.logits([]) == []
    assert isinstance(nlu.engine, Native)
    assert nlu.engine.logits(encoded, threads=2)[0][0][2] == 2


def test_a_model_without_tags(fake: type[FakeEngine], tiny_model: NLUModel, tmp_path: Path) -> None:
    fake.compute = staticmethod(lambda *a: (np.zeros((len(a[2]), 4), np.float32), np.zeros((len(a[3]), 0), np.float32)))
    with pytest.raises(
        ParityError, match=r"the native engine differs from the NumPy reference by .*nothing was written"
    ):
        save(variant(tiny_model, "no entities"), tmp_path / "m.fly")
    assert list(tmp_path.iterdir()) == []


def test_what_the_engine_refuses_is_an_artifact_error(
    fake: type[FakeEngine], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nlu = load(plain, check=False)

    def refuse(*_: Any) -> Any:
        raise ValueError("id 5 of 4")

    monkeypatch.setattr(fake, "compute", refuse)
    with pytest.raises(ArtifactError, match=r"m\.fly: id 5 of 4"):
        nlu.engine.logits(nlu.tokenizer.encode_batch(["hello"]))
    fake.refuse = "layers.0.ffn.up: 3 bytes of 4"
    with pytest.raises(ArtifactError, match=r"m\.fly: layers\.0\.ffn\.up: 3 bytes of 4"):
        load(plain)


def test_a_file_whose_parts_do_not_fit_never_reaches_the_engine(
    fake: type[FakeEngine], plain: Path, tmp_path: Path
) -> None:
    file = read(plain)
    manifest = copy.deepcopy(file.manifest)
    manifest["model"]["encoder"]["layers"][0]["ffn"] -= 1
    with pytest.raises(ArtifactError, match=r"layers\.0\.ffn\.up is .*; the model says"):
        Native(read(write(tmp_path / "y.fly", manifest, file.arrays)))
    assert fake.given == ()


# levels and settings -------------------------------------------------------------------------------------------------


def test_the_fastest_level_is_taken_unless_one_is_forced(
    fake: type[FakeEngine], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for forced, level in (("", "avx-vnni"), ("avx2", "avx2"), ("scalar", "scalar")):
        monkeypatch.setenv(ISA_VARIABLE, forced)
        assert load(plain, check=False).engine.title == f"engine {level}"
        assert fake.given[3] == level
    for forced, why in (("amx-int8", "this CPU cannot run it"), ("sse9", "this build has no such level")):
        monkeypatch.setenv(ISA_VARIABLE, forced)
        message = f"FLYWEIGHT_ISA is '{forced}', but {why}; usable here: scalar, avx2, avx-vnni; unset FLYWEIGHT_ISA to"
        with pytest.raises(ConfigError, match=message):
            load(plain)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads(fake: type[FakeEngine], plain: Path, threads: Any) -> None:
    with pytest.raises(ConfigError, match=r"threads is .*; allowed: whole numbers from 1"):
        load(plain, threads=threads)


def test_engines_by_name(fake: type[FakeEngine], plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(plain, check=False).engine.name == load(plain, check=False, engine="native").engine.name == "engine"
    assert load(plain, engine="numpy").engine.title == "numpy"
    with pytest.raises(ConfigError, match="engine is 'torch'; allowed: auto, native, numpy"):
        load(plain, engine="torch")  # type: ignore[arg-type]
    without(monkeypatch)
    with pytest.raises(ConfigError, match=r"the native engine was not built .*; install a C\+\+ compiler, then: pip"):
        load(plain, engine="native")


# without an engine ---------------------------------------------------------------------------------------------------


def test_without_an_engine_numpy_answers_and_one_warning_is_given(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert load(plain, engine="numpy").engine.name == "numpy"
        assert not said  # it was asked for
        assert load(plain).engine.name == "numpy"
        load(plain)
    assert [w.category for w in said] == [FlyweightWarning]
    assert str(said[0].message) == (
        "the native engine was not built when this Flyweight was installed: NumPy computes the answers, slower; "
        "install a C++ compiler, then: pip install --force-reinstall --no-deps flyweight"
    )
    assert said[0].filename == __file__


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (ImportError("libstdc++.so.6: version `GLIBCXX_9'\nnot found"), r"cannot be loaded \(libstdc.* not found\)"),
        (types.ModuleType("flyweight._native"), "was built in part only"),
    ],
)
def test_an_engine_that_cannot_be_loaded(module: Any, why: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    use(monkeypatch, module)
    with pytest.warns(FlyweightWarning, match=f"the native engine {why}: NumPy computes the answers"):
        assert load(plain).engine.name == "numpy"


def test_the_command_line_warns_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flyweight.cli import main

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(main, "run", lambda arguments: 0)
    monkeypatch.setattr(sys, "argv", ["flyweight"])
    with pytest.raises(SystemExit):
        main.main()
    text = warnings.formatwarning("slow\nengine", FlyweightWarning, "a.py", 1)
    assert text == "flyweight: slow engine\n"
    assert "a.py:1" in warnings.formatwarning("other", UserWarning, "a.py", 1)


# doctor --------------------------------------------------------------------------------------------------------------


def test_doctor_names_the_level(fake: type[FakeEngine], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("doctor", "--json").out)["engine"]
    assert found == {
        "engine": "engine", "level": "avx-vnni", "forced_level": None, "problem": None,
        "built_levels": ["scalar", "avx2", "avx-vnni", "amx-int8"], "usable_levels": USABLE,
    }  # fmt: skip
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    shown = call("doctor").out
    assert [line.split(maxsplit=2)[-1].rstrip() for line in shown.splitlines() if line.startswith("level ")] == [
        "avx2",
        "avx2, by FLYWEIGHT_ISA",
    ]
    assert "scalar, avx2, avx-vnni, amx-int8" in shown
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    found = json.loads(call("doctor", "--json").out)["engine"]
    assert (found["level"], found["forced_level"]) == (None, "mmx")
    assert found["problem"].startswith("FLYWEIGHT_ISA is 'mmx', but this build has no such level; usable here: scalar")
    assert "problem" in call("doctor").out


def test_doctor_without_an_engine(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    found = json.loads(call("doctor", "--json").out)
    assert found["engine"]["engine"] == "numpy"
    assert found["engine"]["problem"].startswith("the native engine was not built when this Flyweight was installed; ")
    assert found["memory_free_bytes"] > 0
    shown = call("doctor").out
    assert "no: NumPy answers, slower" in shown
    assert "install a C++ compiler" in " ".join(shown.split())


# golden samples ------------------------------------------------------------------------------------------------------


def test_a_golden_check_that_must_be_equal() -> None:
    assert GoldenCheck(0.0, 0.1, equal=True, must_equal=True).passed
    assert not GoldenCheck(1e-9, 0.1, equal=False, must_equal=True).passed
    assert GoldenCheck(1e-9, 0.1, equal=False, must_equal=False).passed
    assert not GoldenCheck(0.0, -1.0, equal=True, must_equal=True).passed


def nudged(path: Path, name: str = "golden.intent") -> Path:
    """The file again, one golden logit moved to the next float."""
    file = read(path)
    stored = {k: a.copy() for k, a in file.arrays.items()}
    stored[name].flat[0] = np.nextafter(stored[name].flat[0], np.float32(np.inf))
    return write(path.with_name("nudged.fly"), file.manifest, stored)


def test_golden_samples_of_the_engine_must_be_equal(
    fake: type[FakeEngine], plain: Path, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake.compute = reference_logits(plain)
    assert read(plain).manifest["golden"]["made_by"] == "numpy"
    assert not load(plain).check_golden().must_equal
    load(nudged(plain))  # made by NumPy: within the tolerance
    made = save(Int8Step().apply(tiny_model, quiet_run(tiny_data, tiny_model)), tmp_path / "engine.fly")
    assert read(made).manifest["golden"]["made_by"] == "engine"
    golden = load(made).check_golden()
    assert (golden.equal, golden.must_equal, golden.passed) == (True, True, True)
    for name in ("golden.intent", "golden.tags"):
        with pytest.raises(ParityError, match=r"differ by \S+ \(RMS\), allowed is none: the engine .* equal bits; the"):
            load(nudged(made, name))
    load(nudged(made), engine="numpy")
    without(monkeypatch)
    load(nudged(made))
    monkeypatch.undo()
    file = read(made)
    older = Artifact(file.path, file.manifest | {"numerics_version": 0}, file.arrays, file.size_bytes)
    use(monkeypatch, types.SimpleNamespace(levels=lambda: USABLE, built=lambda: USABLE, Engine=fake))
    assert not Parser(older).check_golden().must_equal


def test_the_gate_compares_engine_and_reference(
    fake: type[FakeEngine], plain: Path, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    right = reference_logits(plain).__func__
    packed = Codebook(encoder=16).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    fake.compute = staticmethod(lambda *a: tuple(logits * np.float32(1.5) for logits in right(*a)))
    with pytest.raises(
        ParityError, match=r"the native engine differs from the NumPy reference by \(RMS\) .* nothing was"
    ):
        save(packed, tmp_path / "new.fly")
    assert not (tmp_path / "new.fly").exists()
