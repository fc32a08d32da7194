"""What survived the pruning: indices through several cuts, strengths, pictures and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import Call
from random_models import random_model

from flyweight.analyse.heat_map import panel
from flyweight.analyse.survival import Survival, draw, neuron_bins, strengths, survival
from flyweight.cli.survival import lines
from flyweight.errors import ArtifactError, CheckpointError, ConfigError
from flyweight.export.fly import save
from flyweight.model.encoder import LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.model.slicing import sliced
from flyweight.model.surgery import keep_heads, keep_layers, keep_neurons
from flyweight.model.survivors import Survivors, fingerprint, survivors_of


@pytest.fixture(scope="module")
def dense(tiny_model: NLUModel) -> NLUModel:
    return random_model(tiny_model, layers=((4, 40), (4, 40), (2, 8)))


@pytest.fixture(scope="module")
def pruned(dense: NLUModel) -> NLUModel:
    """Cut in several steps: indices are those of the model as it is then."""
    once = keep_neurons(keep_heads(dense, {0: [1, 2, 3], 2: []}), {0: range(0, 40, 2), 1: [7]})
    return keep_heads(keep_neurons(keep_layers(once, [0, 2]), {0: [0, 5, 19], 1: [3, 1]}), {0: [2, 0]})


def test_indices_are_those_of_the_dense_model(pruned: NLUModel) -> None:
    found = survivors_of(pruned)
    assert found.layers == (0, 2)
    assert found.heads == ((1, 3), ())
    assert found.neurons == ((0, 10, 38), (1, 3))
    assert [found.of_dense(i) for i in range(3)] == [((1, 3), (0, 10, 38)), ((), ()), ((), (1, 3))]


def test_survivors_in_json(pruned: NLUModel) -> None:
    found = survivors_of(pruned).to_dict()
    # 2^1 + 2^3 = 10; 2^0 + 2^10 + 2^38
    assert found["heads"] == ["a", "0"]
    assert found["neurons"] == [f"{1 + 1024 + 2**38:x}", "a"]
    assert Survivors.from_dict(json.loads(json.dumps(found))) == survivors_of(pruned)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"layers": [0, 3]},
        {"layers": [0]},
        {"heads": ["ff", "0"]},
        {"neurons": ["zz", "0"]},
        {"dense": [[1]]},
        {"layers": ["x", 1]},
        {"layers": [-1, 2]},
        {"layers": [2, 0]},
        {"layers": [0, 0]},
        {"layers": [0, True]},
        {"layers": {"0": 0, "2": 2}},
        {"dense": [[10**12, 10**12]] * 3},
        {"dense": [[4, 40]] * 100_000},
        {"heads": ["-3", "0"]},
        {"heads": ["0xa", "0"]},
        {"heads": ["a", "0", "0"]},
        {"heads": "a0"},
        {"neurons": ["f" * 10_000_000, "0"]},
        {"neurons": [10, 10]},
        {"fingerprint": "x"},
        {"fingerprint": 3},
    ],
)
def test_broken_survivors_are_refused(pruned: NLUModel, wrong: dict[str, Any]) -> None:
    fields = survivors_of(pruned).to_dict() | wrong if wrong else {}
    with pytest.raises(CheckpointError, match=r"^what survived the pruning "):
        Survivors.from_dict(fields)


def test_survivors_that_are_not_the_models(pruned: NLUModel, tmp_path: Path) -> None:
    other = pruned.copy()
    other.card.survivors = survivors_of(pruned).to_dict() | {"heads": ["8", "0"]}
    with pytest.raises(CheckpointError, match=r"^what survived the pruning is of a model with other heads"):
        survivors_of(other)
    for path, error in ((tmp_path / "m", CheckpointError), (tmp_path / "m.fly", ArtifactError)):
        with pytest.raises(
            error, match=r"m(\.fly)?: what survived the pruning is of a model with other heads"
        ) as found:
            survival(save(other, path))
        assert "\n" not in str(found.value)
    for wrong in ([], "x", {}, {"dense": [[10**12, 10**12]], "layers": [], "heads": [], "neurons": []}):
        other.card.survivors = wrong  # type: ignore[assignment]
        with pytest.raises(ArtifactError, match=r"m\.fly: what survived the pruning is "):
            survival(save(other, tmp_path / "m.fly"))


def test_a_parent_with_other_weights(dense: NLUModel, pruned: NLUModel, tmp_path: Path) -> None:
    assert survivors_of(pruned).fingerprint == fingerprint(dense)
    assert survivors_of(dense).fingerprint == ""
    file = save(pruned, tmp_path / "m.fly")
    assert survival(file, NLUModel.load(save(dense, tmp_path / "dense"))).strengths is not None
    other = random_model(dense, layers=((4, 40), (4, 40), (2, 8)), seed=1)
    assert fingerprint(other) != fingerprint(dense)
    with pytest.raises(
        ConfigError, match=r"^the parent has the shape but not the weights of the model that .* was cut"
    ):
        survival(file, other)


def test_a_narrowed_model_keeps_its_dense_one(dense: NLUModel, tmp_path: Path) -> None:
    narrow = sliced(
        dense, torch.eye(dense.encoder.config.hidden)[:, :20], dense.tokenizer.encode_batch(["hello bot", "thank you"])
    )
    with pytest.raises(ConfigError, match=r"has all its heads, neurons and layers"):
        survival(save(narrow, tmp_path / "m.fly"))
    assert survival(save(keep_layers(narrow, [0]), tmp_path / "m.fly"), dense).survivors.layers == (0,)


def test_a_whole_model_has_all(dense: NLUModel) -> None:
    found = survivors_of(dense)
    assert found.layers == (0, 1, 2)
    assert found.heads == ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1))
    assert [len(n) for n in found.neurons] == [40, 40, 8]


def test_folders_and_files_say_the_same(pruned: NLUModel, tmp_path: Path) -> None:
    folder, file = save(pruned, tmp_path / "m"), save(pruned, tmp_path / "m.fly")
    assert survival(folder).to_dict() == survival(file).to_dict()
    assert survival(file).to_dict()["heads"] == [[1, 3], [], []]


def test_what_was_never_cut_and_other_parents(dense: NLUModel, pruned: NLUModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has all its heads, neurons and layers; give a model made by a structural"):
        survival(save(dense, tmp_path / "dense"))
    file = save(pruned, tmp_path / "m.fly")
    with pytest.raises(
        ConfigError, match=r"^the parent has 2x3 2x8 heads x neurons, .* was cut from 4x40 4x40 2x8; give"
    ):
        survival(file, keep_heads(keep_neurons(keep_layers(dense, [0, 2]), {0: [1, 2, 3]}), {0: [0, 1]}))


def test_strengths_by_hand(tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((2, 2),), hidden=2, head_size=1)
    attention, ffn = model.encoder.layers[0].attention, model.encoder.layers[0].ffn
    with torch.no_grad():
        attention.qkv.weight.copy_(
            torch.tensor([[9.0, 9]] * 4 + [[3, 4], [0, 1]])
        )  # values of heads 0 and 1: last rows
        attention.out.weight.copy_(torch.tensor([[1.0, 0], [0, 2]]))
        ffn.up.weight.copy_(torch.tensor([[3.0, 4], [1, 0]]))
        ffn.down.weight.copy_(torch.tensor([[0.0, 5], [2, 12]]))
    found = strengths(model)
    # |(1, 0)| |(3, 4)| = 5 and |(0, 2)| |(0, 1)| = 2; neurons 5 * 2 = 10 and 1 * 13 = 13
    assert found["heads"][0] == pytest.approx([1.0, 0.4])
    assert found["neurons"][0] == pytest.approx([10 / 13, 1.0])


def test_shares_of_the_strong() -> None:
    of = Survivors((LayerShape(heads=4, ffn=3), LayerShape(heads=1, ffn=0)), (0,), ((0, 3),), ((1,),))
    strong = {"heads": [np.array([1.0, 0.2, 0.3, 0.9]), np.ones(1)], "neurons": [np.array([0.1, 1.0, 0.5]), np.ones(0)]}
    found = Survival(of, strong)
    assert found.shares("heads") == [{"kept": 2, "of": 4, "strong": 1.0}, {"kept": 0, "of": 1, "strong": 0.0}]
    assert found.shares("neurons") == [{"kept": 1, "of": 3, "strong": 0.5}, {"kept": 0, "of": 0}]
    assert Survival(of).shares("heads")[0] == {"kept": 2, "of": 4}
    bins = neuron_bins(found, 3)  # strongest first: 1, 2, 0
    assert bins[0].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(bins[1]).all()
    assert lines(Survival(of)) == [
        f"layer  0  █··█  |{' ' + '█' + ' ' * 30}|  2 of 4 heads, 1 of 3 neurons",
        "layer  1  gone",
    ]


def test_the_picture(dense: NLUModel, pruned: NLUModel, tmp_path: Path) -> None:
    file = save(pruned, tmp_path / "m.fly")
    for parent in (None, dense):
        path = draw(survival(file, parent), "a title", tmp_path / "p.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_is_gone_is_grey(dense: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[np.ndarray] = []

    def seen(ax: Any, title: str, warm: np.ndarray, *of: Any, **how: Any) -> Any:
        cells.append(warm)
        return panel(ax, title, warm, *of, **how)

    monkeypatch.setattr("flyweight.analyse.survival.panel", seen)
    few = keep_neurons(keep_heads(keep_layers(dense, [0]), {0: [2]}), {0: [0]})
    draw(survival(save(few, tmp_path / "m.fly")), "a title", tmp_path / "p.png")
    heads, neurons = cells
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in heads] == [[2], [], []]
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in neurons] == [[0], [], []]
    assert neurons[0, 0] == 0.5  # neurons 0 and 1 of 40 are the first of 32 bins


def test_the_command(dense: NLUModel, pruned: NLUModel, tmp_path: Path, call: Call) -> None:
    file, parent, out = save(pruned, tmp_path / "m.fly"), save(dense, tmp_path / "dense"), tmp_path / "report"
    done = call("survival", file, "--parent", parent, "--out", out)
    assert done.code == 0
    assert "2 of 3 layers" in done.out
    assert "layer  1  gone" in done.out
    assert "2 of 4 heads, 3 of 40 neurons; of the stronger half" in done.out
    assert (out / "survival.png").is_file()
    done = call("survival", file, "--out", out, "--json")
    assert json.loads(done.out)["neurons"] == [[0, 10, 38], [], [1, 3]]
    assert json.loads((out / "survival.json").read_text())["layers"] == [0, 2]
    done = call("survival", parent, "--out", out)
    assert done.code == 1
    assert done.err.count("\n") == 1
