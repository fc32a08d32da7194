"""What every technique must keep, whatever it does: one test over all rooms, from the table TECHNIQUES.

A new room adds a line to SETTINGS in technique_cases.py; `claimed_form` says what its settings promise of each matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import VARIANTS, all_logits, counted, quiet_run, rms_gap, same_bits, variant
from technique_cases import CASES, SETTINGS

from flyweight.analyse.shapes import Clock
from flyweight.artifact import LOOKED_UP, RECURRENT, RECURRENT_STEP, Artifact, read
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.forms.codes import code_bits
from flyweight.model.linear import mask_of
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.runtime.parser import load
from flyweight.runtime.parts import POOLERS
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.room import technique

PRUNING = ("magnitude", "movement")
STRUCTURE = (
    "hidden_pruning",
    "structured",
    "head_pruning",
    "neuron_pruning",
    "layer_pruning",
    "mask_search",
    "vocabulary",
    "student",
)  # of float models only: what they remove is gone from the shape
# Rooms that know transformer layers alone refuse others; all else goes by matrices, of whatever layer.
TRANSFORMERS = tuple(name for name in STRUCTURE if name not in ("vocabulary", "student"))
STUDENTS = ("lstm", "kinds mixed", "bag")  # of KINDS
# Every variant of a model; the settings of 256 centres, which take a second, on one only.
SLOW = (("codebook", 0), ("codebook", 4))
PAIRS = [
    pytest.param(of, name, i, id=f"{of}-{name}-{i}")
    for of in VARIANTS
    for name, all_ in SETTINGS.items()
    for i, settings in enumerate(all_)
    if of == "plain" or (name, i) not in SLOW
    if not (settings.get("integer_only") and VARIANTS[of].get("pooling", "mean") in POOLERS)  # these are refused
] + [
    pytest.param(of, name, i, id=f"{of}-{name}-{i}")
    for of in STUDENTS
    for name, all_ in SETTINGS.items()
    for i, settings in enumerate(all_)
    if name not in STRUCTURE and (name, i) not in SLOW and not settings.get("integer_only")
    if (i == 1 or of == "kinds mixed") and "max_size_mb" not in settings  # MB of the plain variant
]
Applied = Callable[[str, str, int], tuple[NLUModel, NLUModel, Path]]


@pytest.fixture(scope="module", autouse=True)
def no_clock() -> Iterator[None]:
    """Rooms that choose by measured time choose by the number of weights here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "measure", counted)
        yield


@pytest.fixture(scope="module")
def applied(tiny_data: NLUData, tiny_model: NLUModel, tmp_path_factory: pytest.TempPathFactory) -> Applied:
    """(parent, child, exported file) of a variant, a room and the number of its settings; each made once."""
    folder = tmp_path_factory.mktemp("fly")
    parents = {name: variant(tiny_model, name) for name in (*VARIANTS, *STUDENTS)}
    made: dict[tuple[str, str, int], tuple[NLUModel, NLUModel, Path]] = {}

    def make(name: str, room_name: str, i: int) -> tuple[NLUModel, NLUModel, Path]:
        key = (name, room_name, i)
        if key not in made:
            step = technique(TECHNIQUES, room_name, SETTINGS[room_name][i])
            child = step.apply(parents[name], quiet_run(tiny_data, parents[name]))
            made[key] = parents[name], child, save(child, folder / f"{name}-{room_name}-{i}.fly")
        return made[key]

    return make


def other_texts(data: NLUData, model: NLUModel, n: int = 30) -> list[str]:
    """Messages that are not among the golden ones, an empty and a too long one among them."""
    texts = [m.text for m in data.messages if m.text not in model.card.golden]
    return ["", "book a flight to " * 20, *texts][:n]


# what it does to a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "i"), CASES)
def test_the_input_is_untouched(name: str, i: int, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    if i % 2 and name not in STRUCTURE:  # an input that is packed already, too
        parent = TECHNIQUES["int8"](heads=False).apply(parent, quiet_run(tiny_data, parent))
    state = {k: v.clone() for k, v in parent.state_dict().items()}
    forms = {k: (m.form, m.activations) for k, m, _ in parent.matrices()}
    stored = {k: {p: a.copy() for p, a in m.form.arrays().items()} for k, m, _ in parent.matrices() if m.form}
    card, labels, training = copy.deepcopy(parent.card), copy.deepcopy(parent.labels), parent.training
    child = technique(TECHNIQUES, name, SETTINGS[name][i]).apply(parent, quiet_run(tiny_data, parent))
    assert child is not parent
    with torch.no_grad():  # nor does the child share memory with it
        for p in child.parameters():
            p.fill_(7.0)
    child.card.steps.append({"technique": "spoiled"})
    assert all(torch.equal(v, state[k]) for k, v in parent.state_dict().items())
    for k, module, _ in parent.matrices():
        form, activations = forms[k]
        assert module.form is form
        assert module.activations == activations
        assert form is None or all(np.array_equal(a, stored[k][p]) for p, a in form.arrays().items())
    assert (parent.card, parent.labels, parent.training) == (card, labels, training)


@pytest.mark.parametrize("name", [name for name, cls in TECHNIQUES.items() if cls.ZERO is not None])
@pytest.mark.parametrize("packed", [False, True])
def test_zero_strength_changes_nothing(name: str, packed: bool, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    if packed:
        parent = TECHNIQUES["int8"](granularity="matrix").apply(parent, run)
    child = TECHNIQUES[name](**(TECHNIQUES[name].ZERO or {})).apply(parent, run)
    assert child is not parent
    assert all(torch.equal(v, child.state_dict()[k]) for k, v in parent.state_dict().items())
    for (k, a, _), (_, b, _) in zip(parent.matrices(), child.matrices(), strict=True):
        assert (type(a.form), a.activations) == (type(b.form), b.activations), k
    assert same_bits(parent, child, [m.text for m in tiny_data.messages])


@pytest.mark.parametrize(("name", "i"), CASES)
def test_no_strength_but_zero_leaves_the_weights(name: str, i: int, applied: Applied) -> None:
    parent, child, _ = applied("plain", name, i)
    before, after = parent.state_dict(), child.state_dict()
    if name in STRUCTURE:
        assert any(k not in after or not torch.equal(v, after[k]) for k, v in before.items())
    else:
        assert not torch.equal(before["encoder.layers.0.ffn.up.weight"], after["encoder.layers.0.ffn.up.weight"])


@pytest.mark.parametrize(("name", "i"), CASES)
def test_same_seed_same_bytes(name: str, i: int, applied: Applied, tiny_data: NLUData, tmp_path: Path) -> None:
    parent, child, file = applied("plain", name, i)
    again = technique(TECHNIQUES, name, SETTINGS[name][i]).apply(parent, quiet_run(tiny_data, parent))
    data = file.read_bytes()
    assert save(again, tmp_path / "again.fly").read_bytes() == data
    assert save(child, tmp_path / "twice.fly").read_bytes() == data


@pytest.mark.parametrize("name", TECHNIQUES)
def test_compressing_twice_gives_the_same_file_but_for_its_cost(
    name: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    parent, step = variant(tiny_model, "plain"), technique(TECHNIQUES, name, SETTINGS[name][0])
    files = [
        read(save(compress(parent, tiny_data, [step], measure=False, progress=False), tmp_path / f"{k}.fly"))
        for k in "ab"
    ]
    for file in files:
        receipt = file.manifest["lineage"]["steps"][-1]
        assert receipt["technique"] == name
        assert receipt.pop("minutes") >= 0
        assert receipt.pop("peak_memory_mb") > 0
    assert files[0].manifest == files[1].manifest  # SHA-256 of every tensor among it


@pytest.mark.parametrize(("of", "name", "i"), PAIRS)
def test_saved_and_loaded_it_is_the_same_model(
    of: str, name: str, i: int, applied: Applied, tiny_data: NLUData, tmp_path: Path
) -> None:
    _, child, file = applied(of, name, i)
    found = NLUModel.load(child.save(tmp_path / "model"))
    assert same_bits(child, found, [m.text for m in tiny_data.messages[::3]])
    assert found.card == child.card
    assert save(found, tmp_path / "found.fly").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("of", "name", "i"), PAIRS)
def test_the_file_answers_like_the_model(of: str, name: str, i: int, applied: Applied, tiny_data: NLUData) -> None:
    _, child, file = applied(of, name, i)
    nlu = load(file)  # the golden samples are checked here
    golden = nlu.check_golden()
    assert golden.passed
    texts = other_texts(tiny_data, child)
    assert len(texts) == 30
    assert rms_gap(nlu, child, texts) <= golden.tolerance
    size = np.sqrt(np.mean(np.concatenate([a.ravel() for a in all_logits(child, texts)]) ** 2))
    assert golden.tolerance <= 0.05 * size  # a tolerance that lets anything pass proves nothing


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_rooms_of_heads_and_layers_refuse_other_layers_in_one_line(
    name: str, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    for of, layer in (("lstm", "layers.0 is of kind lstm"), ("convolution", "layers.0 is of kind convolution")):
        parent = variant(tiny_model, of)
        step = technique(TECHNIQUES, name, SETTINGS[name][0])
        with pytest.raises(ConfigError, match=rf"^{name} works on transformer layers, but {layer}; leave it out$"):
            step.apply(parent, quiet_run(tiny_data, parent))


# what it claims of the file -----------------------------------------------------------------------------------------


def claimed_form(name: str, settings: dict[str, Any], part: str, is_embedding: bool) -> dict[str, Any]:
    """What a room's settings promise of a matrix: form, activations, and bytes by (rows, columns)."""
    plain = {"form": "float32", "activations": "float", "bytes": {"values": lambda r, c: 4 * r * c}}
    if name in (*PRUNING, *STRUCTURE, "distillation"):  # of PRUNING an empty matrix; for others see pruned_form
        return plain
    if name in ("int8", "static_int8", "qat"):
        if part != "encoder" and not settings.get(part, True) and (name != "qat" or is_embedding):
            return plain
        per = "row" if name == "qat" and is_embedding else settings.get("granularity", "row")
        scales = (lambda r, c: 4 * r) if per == "row" else (lambda r, c: 4)
        sizes: dict[str, Any] = {"q": lambda r, c: r * c, "scale": scales}
        multiplied = "static" if name == "static_int8" and settings["fallback"] != 1e-12 else "int8"
        if name == "qat":
            multiplied = settings.get("activations", "dynamic").replace("dynamic", "int8")
        return {"form": "int8", "per": per, "activations": "float" if is_embedding else multiplied, "bytes": sizes}
    k = settings.get(part, {"encoder": 4 if name == "trained_codes" else 16, "embeddings": 256, "heads": 256}[part])
    if k is None:
        return plain
    integer = settings.get("activations", "int8") == "int8" and not is_embedding
    of_rows = integer and settings.get("granularity", "row") == "row" and name != "trained_codes"
    if of_rows and k > (64 if settings.get("grid") == "uniform" else 255):  # the steps of int8 themselves
        return claimed_form("int8", {}, part, is_embedding)
    bits = {2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 16: 4, 256: 8}[k]
    shared = k > 64 or (name == "trained_codes" and is_embedding)
    per = "matrix" if shared else settings.get("granularity", "row")
    group = {"row": 1, "group": settings.get("group", 16)}.get(per)
    tables = (lambda r: -(-r // group)) if group else (lambda r: 1)
    sizes = {"codes": lambda r, c: r * -(-c * bits // 8), "table": lambda r, c: tables(r) * k * (1 if integer else 4)}
    if integer:
        sizes["scale"] = lambda r, c: 4 * tables(r)
    claimed = {"form": "codes", "centres": k, "per": per, "table": "int8" if integer else "float32", "bytes": sizes}
    if per == "group":
        claimed["rows"] = group
    return claimed | {"activations": "int8" if integer else "float"}


def pruned_form(settings: dict[str, Any], part: str, mask: np.ndarray) -> dict[str, Any]:
    """The claim of a pruning room on a matrix that is not empty: survivors as floats, a bit for each weight or four."""
    if part == "embeddings" or (part == "heads" and not settings.get("heads", False)):
        return claimed_form("codebook", {part: None}, part, False)
    block = 4 if settings.get("shape", "1x4") == "1x4" else 1
    sizes = {"mask": lambda r, c: r * -(-c // (8 * block)), "values": lambda r, c: 4 * int(mask.sum())}
    return {"form": "sparse", "block": block, "values": {"form": "float32"}, "activations": "float", "bytes": sizes}


def measured_form(bits: int, part: str, is_embedding: bool) -> dict[str, Any]:
    """The claim of mixed precision on a matrix to which it gave these bits: codes always have int8 centres."""
    if bits == 8:
        return claimed_form("int8", {}, part, is_embedding)
    claimed = claimed_form("codebook", {part: 2**bits, "granularity": "row"}, part, False)
    return claimed | {"activations": "float" if is_embedding else "int8"}


def panels_bytes(part: str, bits: int, rows: int, columns: int) -> int:
    """Bytes of a matrix in panels of 16 rows: float32 by column, else 64-byte pieces of 512 / bits columns."""
    padded = -(-rows // 16) * 16
    return padded * columns * 4 if part == "values" else padded * 64 * -(-columns * bits // 512)


@pytest.mark.parametrize(("of", "name", "i"), PAIRS)
def test_the_file_holds_the_claimed_forms(of: str, name: str, i: int, applied: Applied) -> None:
    parent, child, path = applied(of, name, i)
    file: Artifact = read(path)
    entries = dict(file.manifest["weights"])
    seen, padding, n_removed = set(), 0, 0
    for matrix, module, part in child.matrices():
        claimed = claimed_form(name, SETTINGS[name][i], part, matrix in LOOKED_UP)
        if name == "mixed_precision":
            assert module.form is not None
            claimed = measured_form(module.form.bits, part, matrix in LOOKED_UP)
        if name in PRUNING and module.weight.numel():
            mask = mask_of(module)
            claimed = pruned_form(SETTINGS[name][i], part, np.ones((0, 0), bool) if mask is None else mask)
            n_removed += 0 if mask is None else int((~mask).sum())
        if matrix.endswith(RECURRENT) and claimed["activations"] == "int8":
            claimed |= {"activations": "static", "input_scale": RECURRENT_STEP}
        entry, sizes = entries.pop(matrix), claimed.pop("bytes")
        rows, columns = entry["shape"]
        assert (rows, columns) == tuple(module.weight.shape)
        if rows * columns == 0:  # a part that was cut off: nothing is stored of it but a table or a scale
            claimed.pop("per", None)
            claimed.pop("rows", None)
            if claimed["activations"] == "static":  # nothing is multiplied, nothing was seen
                claimed["activations"] = "int8"
        assert {k: entry[k] for k in claimed} == claimed, matrix
        found = {k[len(matrix) + 1 :]: a for k, a in file.arrays.items() if k.startswith(f"{matrix}.")}
        stored = {k: a for k, a in found.items() if "." not in k}  # a convolution's norm is named after it
        bias = stored.pop("bias", None)
        assert (bias is None) == (module.bias is None)
        assert set(stored) == set(sizes), matrix
        bits = code_bits(claimed["centres"]) if "centres" in claimed else 8
        kind = (claimed["form"], claimed["activations"])
        in_panels = matrix not in LOOKED_UP and (
            kind in (("float32", "float"), ("int8", "int8"), ("int8", "static"))
            or (kind in (("codes", "int8"), ("codes", "static")) and bits in (1, 2, 4))
        )
        assert entry["layout"] == ("panels" if in_panels else "rows"), matrix
        for part_name, a in stored.items():
            if rows * columns or part_name in ("q", "codes", "values"):
                wanted = sizes[part_name](rows, columns)
                if in_panels and part_name in ("q", "codes", "values"):
                    padding += panels_bytes(part_name, bits, rows, columns) - wanted
                    wanted = panels_bytes(part_name, bits, rows, columns)
                assert a.nbytes == wanted, f"{matrix}.{part_name}"
        # and these bytes are the weights that PyTorch computes with
        assert np.array_equal(file.form(matrix).dense(), module.weight.detach().numpy())
        seen.add(claimed["form"])
    assert entries == {}
    if of == "bag":  # embeddings and heads alone: no part that every setting is about
        return
    if name == "mixed_precision":
        assert "codes" in seen
    elif name in PRUNING:
        assert seen == {"float32", "sparse"}
    elif name in (*STRUCTURE, "distillation"):
        assert seen == {"float32"}
    else:
        own = claimed_form(name, SETTINGS[name][i], "encoder", False)["form"]
        beside = (
            {"int8", "codes"} if name in ("codebook", "gptq") else set()
        )  # 256 centres: of a row, and of embeddings
        assert {own} <= seen - {"float32"} <= {own} | beside
    if name in STRUCTURE:
        assert child.n_parameters() < parent.n_parameters()
    else:
        assert child.n_parameters() == parent.n_parameters() - n_removed
    assert (
        sum(a.nbytes for k, a in file.arrays.items() if k != "tokenizer.json" and "golden" not in k)
        == child.size_bytes() + padding
    )
