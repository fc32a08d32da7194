"""A real .fly file, damaged by chance and by hostile values: every outcome is an answer or a FlyweightError."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fly_bytes import assemble, nodes, parts

from flyweight.artifact import read, verify, write
from flyweight.errors import ArtifactError, FlyweightError, ParityError
from flyweight.forms.int8 import int8_rows
from flyweight.runtime.parser import Parser, load
from flyweight.runtime.parts import check_parts

N_MUTATIONS = 500  # of each kind

HOSTILE_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"),
    "", "a", "int8", "codes", "\ud800", "\0", [], [[]], [1], ["a"], {}, {"a": {}}, [0] * 99,
]  # fmt: skip


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model in 40 kB: packed matrices of every kind, entities, pooler, relative positions."""
    from flyweight.answers import Labels
    from flyweight.export.fly import export_fly
    from flyweight.forms.int8 import int8_matrix
    from flyweight.forms.kmeans import kmeans_codes
    from flyweight.model.encoder import EncoderConfig, LayerShape
    from flyweight.model.linear import set_form
    from flyweight.model.nlu import NLUModel
    from flyweight.model.small import train_tokenizer
    from flyweight.tokenizer import Tokenizer

    texts = ["book a table", "fly to New York", "hello"]
    tokenizer = Tokenizer(train_tokenizer(texts, 90), 12)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden=8, head_size=4, max_positions=12, relative_buckets=8,
        layers=(LayerShape(heads=2, ffn=16), LayerShape(heads=0, ffn=0)),
    )  # fmt: skip
    model = NLUModel(config, tokenizer, Labels(("a", "b"), ("city",), synonyms={"nyc": "New York"}), pooling="cls+tanh")
    makers = [
        int8_rows,
        int8_matrix,
        lambda w: kmeans_codes(w, 4, "row", True),
        lambda w: kmeans_codes(w, 3, "matrix", True),
    ]
    for i, (_, module, part) in enumerate(model.matrices()):
        if part != "embeddings":
            set_form(module, makers[i % 4](module.weight.detach().numpy()), "int8")
    set_form(model.encoder.words, kmeans_codes(model.encoder.words.weight.detach().numpy(), 16, "matrix", False))
    model.card.golden = texts
    return export_fly(model, tmp_path_factory.mktemp("model") / "bot.fly").read_bytes()


def outcome(path: Path, data: bytes) -> str:
    """What opening, checking and using the file comes to: "fine" or the error's class; other exceptions pass."""
    path.write_bytes(data)
    try:
        parser = Parser(read(path))
        parser.check_golden()
        parser.parse_batch(["book a table", ""])
    except FlyweightError as error:
        return type(error).__name__
    return "fine"


def test_the_real_file_is_fine(model_file: bytes, tmp_path: Path) -> None:
    assert outcome(tmp_path / "x.fly", model_file) == "fine"
    assert load(tmp_path / "x.fly").parse("hello")["intent"]["name"] in ("a", "b")
    verify(tmp_path / "x.fly")


def to_float(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Entry of a float32 matrix of zeros, which is put among the arrays."""
    arrays[f"{name}.values"] = np.zeros(shape, np.float32)
    return {"form": "float32", "table": "float32", "layout": "rows"}


def make_static(manifest: dict[str, Any], name: str, step: object = 0.5) -> None:
    """Static activations of one matrix."""
    manifest["weights"][name].update(activations="static", input_scale=step)


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]  # of manifest and arrays, in place
MISFITS: list[tuple[str, Edit, str]] = [
    (
        "labels",
        lambda m, a: m["model"]["labels"]["intents"].append("c"),
        r"heads\.intent is \(2, 8\); the model says \(3, 8\)",
    ),
    (
        "entities",
        lambda m, a: m["model"]["labels"]["entity_labels"].append("b"),
        r"heads\.tags is .* the model says \(5, 8\)",
    ),
    (
        "heads",
        lambda m, a: m["model"]["encoder"]["layers"][0].update(heads=1),
        r"layers\.0\.attention\.qkv is \(24, 8\); the model says \(12, 8\)",
    ),
    (
        "neurons",
        lambda m, a: m["model"]["encoder"]["layers"][0].update(ffn=15),
        r"layers\.0\.ffn\.up is \(16, 8\); the mod",
    ),
    (
        "layer",
        lambda m, a: m["model"]["encoder"]["layers"].append({"heads": 1, "ffn": 1}),
        "matrix 'layers.2.attention.qkv' is",
    ),
    ("pooling", lambda m, a: m["model"].update(pooling="min"), r"pooling is 'min'; allowed: mean, max, cls, cls\+tanh"),
    (
        "activation",
        lambda m, a: m["model"]["encoder"].update(activation="swish"),
        "encoder.activation is 'swish'; allowed: gelu,",
    ),
    (
        "eps",
        lambda m, a: m["model"]["encoder"].update(norm_eps=0.0),
        "encoder.norm_eps is 0.0; allowed: above 0 and below 1",
    ),
    (
        "no bias",
        lambda m, a: a.pop("layers.0.ffn.up.bias"),
        r"tensor 'layers\.0\.ffn\.up\.bias' is missing; the file is incomplete",
    ),
    ("NaN bias", lambda m, a: a.update({"heads.tags.bias": np.full(3, np.nan, np.float32)}), "allowed: finite float32"),
    (
        "NaN norm",
        lambda m, a: a.update({"embeddings.norm.bias": np.full(8, np.inf, np.float32)}),
        "allowed: finite float32",
    ),
    (
        "int8 lookup",
        lambda m, a: m["weights"]["embeddings.positions"].update(activations="int8"),
        "positions is looked up, its activations must be 'float'",
    ),
    (
        "float weights",
        lambda m, a: m["weights"]["heads.tags"].update(to_float(a, "heads.tags", (3, 8))),
        r"heads\.tags has float weights; int8 activations need integer weights",
    ),
    ("no layout", lambda m, a: m["weights"]["heads.tags"].pop("layout"), "tags: layout ''; allowed: rows, panels"),
    (
        "layout list",
        lambda m, a: m["weights"]["heads.tags"].update(layout=["rows"]),
        r"tags: layout \['rows'\]; allowed: rows, panels",
    ),
    (
        "panels called rows",
        lambda m, a: m["weights"]["layers.0.ffn.up"].update(layout="rows"),
        r"ffn\.up: 'q' is int8 \[1, 1, 16, 64\]; it must be int8 \[16, 8\]",
    ),
    (
        "multiplied in rows",
        lambda m, a: (
            m["weights"]["heads.pooler"].update(form="int8", per="row", shift=0, layout="rows"),
            a.update({"heads.pooler.q": np.zeros((8, 8), np.int8), "heads.pooler.scale": np.ones(8, np.float32)}),
        ),
        r"heads\.pooler lies in rows; it must lie in panels, export the model again",
    ),
    (
        "looked up in panels",
        lambda m, a: (
            m["weights"]["embeddings.positions"].update(layout="panels"),
            a.update({"embeddings.positions.values": np.zeros((1, 8, 16), np.float32)}),
        ),
        r"embeddings\.positions lies in panels; it must lie in rows",
    ),
    (
        "-128 in the filling",
        lambda m, a: a["layers.0.ffn.up.q"].flat.__setitem__(-1, -128),
        "'q' holds -128; int8 weights must be from -127 to 127",
    ),
    (
        "pieces",
        lambda m, a: a.update({"layers.0.ffn.up.q": np.zeros((1, 2, 16, 64), np.int8)}),
        r"'q' is int8 \[1, 2, 16, 64\]; it must be int8 \[1, 1, 16, 64\]",
    ),
    (
        "activations",
        lambda m, a: m["weights"]["heads.tags"].update(activations="int4"),
        "activations 'int4'; allowed: float, int8, static",
    ),
    *(
        (
            f"step {step!r}",
            lambda m, a, s=step: make_static(m, "heads.tags", s),
            r"heads\.tags has the step .*; allowed: ",
        )
        for step in (0.0, -0.5, 0.1, 2.0**-61, 2.0**61, float("nan"), float("inf"), 1, True, "1", None, [0.5])
    ),
    (
        "static without a step",
        lambda m, a: m["weights"]["heads.tags"].update(activations="static"),
        r"heads\.tags has activations 'static'; 'static' needs an input_scale, others have none",
    ),
    (
        "a step without static",
        lambda m, a: m["weights"]["heads.tags"].update(input_scale=0.5),
        r"heads\.tags has activations 'int8'; 'static' needs an input_scale, others have none",
    ),
    (
        "static lookup",
        lambda m, a: make_static(m, "embeddings.words", 0.5),
        "words is looked up, its activations must be 'float'",
    ),
    (
        "static float weights",
        lambda m, a: (
            m["weights"]["heads.tags"].update(to_float(a, "heads.tags", (3, 8))),
            make_static(m, "heads.tags"),
        ),
        r"heads\.tags has float weights; static activations need integer weights",
    ),
    *(
        (
            f"output scales {scales!r} at {name}",
            lambda m, a, n=name, s=scales: m["weights"][n].update(output_scales=s),
            rf"{name} has (output_scales|the step) .*; allowed: ",
        )
        for name, scales in (
            ("heads.tags", [0.5, 0.5, 0.5]),
            ("layers.0.ffn.up", [0.5, 0.5, 0.5]),
            *(("layers.0.attention.qkv", s) for s in (None, 0.5, [], [0.5, 0.5], [0.5] * 4, [0.5, 0.5, 0.0], {"a": 1})),
            ("layers.0.attention.qkv", [0.5, "0.5", 0.5]),
        )
    ),
    (
        "max_tokens",
        lambda m, a: m["model"].update(max_tokens=13),
        r"max_tokens is 13; allowed: 3 to max_positions \(12\)",
    ),
    ("temperature", lambda m, a: m["model"]["labels"].update(temperature=0), "the temperature from 1e-6 to 1e6"),
    ("synonyms", lambda m, a: m["model"]["labels"].update(synonyms={"a": 1}), "labels must be lists of names"),
    (
        "tokenizer",
        lambda m, a: a.update({"tokenizer.json": np.full(9, 0xFF, np.uint8)}),
        "tokenizer.json is no UTF-8 text",
    ),
    (
        "tokenizer JSON",
        lambda m, a: a.update({"tokenizer.json": np.full(9, 65, np.uint8)}),
        "tokenizer.json cannot be read",
    ),
]


@pytest.mark.parametrize(("edit", "message"), [m[1:] for m in MISFITS], ids=[m[0] for m in MISFITS])
def test_models_whose_parts_do_not_fit(model_file: bytes, tmp_path: Path, edit: Edit, message: str) -> None:
    (tmp_path / "x.fly").write_bytes(model_file)
    found = read(tmp_path / "x.fly")
    manifest, stored = copy.deepcopy(found.manifest), {k: a.copy() for k, a in found.arrays.items()}
    edit(manifest, stored)
    with pytest.raises(ArtifactError, match=message) as error:
        Parser(read(write(tmp_path / "y.fly", manifest, stored)))
    assert "\n" not in str(error.value)


UNSEEN: list[tuple[str, Edit, str]] = [
    (
        "filling of int8",
        lambda m, a: a["layers.0.ffn.up.q"].flat.__setitem__(-1, 1),
        r"layers\.0\.ffn\.up: panels of 16 x 8 weights are not filled up with zeros",
    ),
    (
        "filling of codes",
        lambda m, a: a["layers.0.attention.qkv.codes"].flat.__setitem__(8, 1),
        r"layers\.0\.attention\.qkv: panels of 24 x 8 weights are not filled up with zeros",
    ),
    (
        "code beyond the table",
        lambda m, a: a["layers.0.attention.out.codes"].flat.__setitem__(0, 3),
        r"layers\.0\.attention\.out: code 3 beyond a table of 3 centres",
    ),
]


@pytest.mark.parametrize(("edit", "message"), [u[1:] for u in UNSEEN], ids=[u[0] for u in UNSEEN])
def test_what_only_unpacking_sees_is_refused_by_verify(
    model_file: bytes, tmp_path: Path, edit: Edit, message: str
) -> None:
    """The native engine loads without unpacking: a filling changes no answer, codes beyond the table are its last."""
    (tmp_path / "x.fly").write_bytes(model_file)
    found = read(tmp_path / "x.fly")
    manifest, stored = copy.deepcopy(found.manifest), {k: a.copy() for k, a in found.arrays.items()}
    edit(manifest, stored)
    path = write(tmp_path / "y.fly", manifest, stored)
    check_parts(read(path))
    with pytest.raises(ArtifactError, match=message):
        verify(path)
    with pytest.raises(ArtifactError, match=message):
        Parser(read(path), engine="numpy")


def test_golden_samples_are_checked_at_load(model_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.fly").write_bytes(model_file)
    found = read(tmp_path / "x.fly")
    for name in ("golden.intent", "golden.tags"):
        wrong = {k: a.copy() for k, a in found.arrays.items()}
        for value, message in ((1.0, "golden samples differ by"), (np.nan, "golden samples differ by nan")):
            wrong[name] = found.arrays[name].copy()
            wrong[name][0, 0] += value
            path = write(tmp_path / "y.fly", found.manifest, wrong)
            with pytest.raises(ParityError, match=message):
                load(path)
            load(path, check=False)
        wrong[name] = np.zeros((1, 1), np.float32)
        with pytest.raises(ArtifactError, match="golden logits have other shapes than the model's; export again"):
            load(write(tmp_path / "y.fly", found.manifest, wrong))


def test_random_bytes(model_file: bytes, tmp_path: Path) -> None:
    rng = random.Random(0)
    n_header = 8 + int.from_bytes(model_file[:8], "little")
    seen = set()
    for _ in range(N_MUTATIONS):
        data = bytearray(model_file)
        kind = rng.random()
        for _ in range(rng.choice([1, 1, 1, 4, 50])):
            at = (
                rng.randrange(n_header) if kind < 0.7 else rng.randrange(8) if kind < 0.75 else rng.randrange(len(data))
            )
            data[at] = data[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
        if kind > 0.95:
            data = data[: rng.randrange(len(data))]
        seen.add(outcome(tmp_path / "x.fly", bytes(data)))
    assert {"fine", "ArtifactError"} <= seen


def test_hostile_json(model_file: bytes, tmp_path: Path) -> None:
    rng = random.Random(1)
    header, manifest, tensors = parts(model_file)
    seen = set()
    for i in range(N_MUTATIONS):
        new_header, new_manifest = copy.deepcopy(header), copy.deepcopy(manifest)
        tree = new_header if i % 8 == 0 else new_manifest if i % 8 < 4 else new_manifest["model"]
        for _ in range(rng.choice([1, 1, 2])):
            container, key = rng.choice(nodes(tree))
            if rng.random() < 0.15:
                del container[key]
            else:
                container[key] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
        seen.add(outcome(tmp_path / "x.fly", assemble(new_header, new_manifest, tensors)))
    assert {"fine", "ArtifactError"} <= seen


def test_every_node_of_the_model_and_every_hostile_value(model_file: bytes, tmp_path: Path) -> None:
    header, manifest, tensors = parts(model_file)
    refused = 0
    for i in range(len(nodes(manifest["model"]))):
        for value in HOSTILE_VALUES:
            changed = copy.deepcopy(manifest)
            container, key = nodes(changed["model"])[i]
            container[key] = value
            refused += outcome(tmp_path / "x.fly", assemble(header, changed, tensors)) == "ArtifactError"
    assert refused > 500
