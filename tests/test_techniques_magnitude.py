"""Magnitude pruning: what goes, how it is trained, and the rooms that come after it keep the zeros."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import Call, Place
from random_models import quiet_run, random_model, same_bits, variant

from flyweight.artifact import read
from flyweight.data.messages import NLUData
from flyweight.export.fly import save
from flyweight.forms import Codes, Int8, Sparse
from flyweight.forms.kmeans import centres
from flyweight.model.linear import Linear, mask_of
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.gptq import GPTQ
from flyweight.techniques.int8 import Int8 as Int8Room
from flyweight.techniques.magnitude import Magnitude
from flyweight.techniques.mixed_precision import MixedPrecision
from flyweight.techniques.movement import Movement
from flyweight.techniques.qat import QAT
from flyweight.techniques.room import Run, Technique
from flyweight.techniques.static_int8 import StaticInt8
from flyweight.techniques.trained_codes import TrainedCodes
from flyweight.training import quantized
from flyweight.training.inputs import second_moment, stages
from flyweight.training.loop import TrainingSettings, fit
from flyweight.training.losses import Batch
from flyweight.training.pruning import PrunedWeight
from flyweight.training.quantized import taught_data
from flyweight.training.unlabelled import unlabelled_text

ONCE: dict[str, Any] = {"schedule": "one-shot", "epochs": 0}
ROOMS: list[Technique] = [
    Magnitude(shape="unstructured", epochs=2, sparsity=0.7),
    Magnitude(shape="unstructured", epochs=2, sparsity=0.7, schedule="iterative", scope="global", distil=None),
    Movement(epochs=2, sparsity=0.7, shape="1x4"),
    Movement(shape="unstructured", epochs=2, sparsity=0.7, mode="soft", distil="logits"),
]


def encoder_masks(model: NLUModel) -> dict[str, np.ndarray]:
    """Masks of the matrices that have one."""
    return {name: mask for name, module, _ in model.matrices() if (mask := mask_of(module)) is not None}


def blocks_of(mask: np.ndarray) -> np.ndarray:
    """(R, C) -> (R, ceil(C / 4)): whether any weight of a block is there."""
    return np.pad(mask, ((0, 0), (0, -mask.shape[1] % 4))).reshape(len(mask), -1, 4).any(axis=2)


# what goes ----------------------------------------------------------------------------------------------------------


def test_without_training_the_smallest_weights_of_each_matrix_go(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "cut")
    child = Magnitude(shape="unstructured", sparsity=0.7, **ONCE).apply(parent, quiet_run(tiny_data, parent))
    for (name, a, part), (_, b, _) in zip(parent.matrices(), child.matrices(), strict=True):
        w = a.weight.detach().numpy()
        if part != "encoder" or not w.size:
            assert mask_of(b) is None
            assert torch.equal(a.weight, b.weight), name
            continue
        mask = mask_of(b)
        assert mask is not None
        assert mask.sum() == round(0.3 * w.size)
        assert np.abs(w[mask]).min() >= np.abs(w[~mask]).max(), name
        assert np.array_equal(b.weight.detach().numpy(), np.where(mask, w, np.float32(0)))
    assert child.n_parameters() == parent.n_parameters() - sum(int((~m).sum()) for m in encoder_masks(child).values())


def test_globally_large_matrices_keep_more(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    with torch.no_grad():
        parent.encoder.layers[0].ffn.up.weight *= 10
    found = encoder_masks(
        Magnitude(shape="unstructured", scope="global", **ONCE).apply(parent, quiet_run(tiny_data, parent))
    )
    total = sum(m.size for m in found.values())
    assert sum(int(m.sum()) for m in found.values()) == round((1 - 0.8) * total)
    assert found["layers.0.ffn.up"].mean() > 0.5
    assert max(m.mean() for name, m in found.items() if name != "layers.0.ffn.up") < 0.2


@pytest.mark.parametrize("heads", [False, True])
def test_heads_go_only_where_wanted_and_embeddings_never(heads: bool, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "pooler")
    found = encoder_masks(
        Magnitude(shape="unstructured", heads=heads, **ONCE).apply(parent, quiet_run(tiny_data, parent))
    )
    assert ({"heads.pooler", "heads.intent", "heads.tags"} <= set(found)) == heads
    assert not any(name.startswith("embeddings.words") or name.startswith("embeddings.pos") for name in found)


def test_groups_keep_two_of_four(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    for mask in encoder_masks(Magnitude(shape="2:4", **ONCE).apply(parent, quiet_run(tiny_data, parent))).values():
        whole = mask[:, : mask.shape[1] // 4 * 4].reshape(len(mask), -1, 4)
        assert (whole.sum(axis=2) == 2).all()


# while training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ROOMS)
def test_trained_it_has_the_shares_and_the_file_has_the_zeros(
    step: Any, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    parent = variant(tiny_model, "plain")
    child = step.apply(parent, quiet_run(tiny_data, parent))
    found = encoder_masks(child)
    assert len(found) == 8
    per_matrix = getattr(step, "scope", "matrix") == "matrix" and getattr(step, "mode", "hard") == "hard"
    if step.shape == "1x4":
        found = {name: blocks_of(m) for name, m in found.items()}
    for m in found.values() if per_matrix else [np.concatenate([m.ravel() for m in found.values()])]:
        assert m.sum() == round(0.3 * m.size) or m.sum() == round((1 - 0.7) * m.size)
    for name, module, part in child.matrices():
        assert module.weight_quantizer is None
        if part == "encoder":
            mask = mask_of(module)
            assert mask is not None
            assert (module.weight.detach().numpy() != 0)[mask].all(), name
            assert not module.weight.detach().numpy()[~mask].any()
    file = read(save(child, tmp_path / "pruned.fly"))
    for name, mask in encoder_masks(child).items():
        form = file.form(name)
        assert isinstance(form, Sparse)
        assert np.array_equal(form.mask, mask)
    vectors = dict(parent.vectors())
    assert any(not torch.equal(v, vectors[name]) for name, v in child.vectors())  # biases and norms are trained along


def test_no_epoch_before_the_last_mask_is_the_best_one(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10 epochs the last mask is set in the middle of the seventh, the epochs before answer better."""
    seen: list[bool] = []

    def watched(model: NLUModel, *args: Any, **settings: Any) -> NLUModel:
        def score(logits: Any) -> float:
            weights = [m for m in model.modules() if isinstance(m, PrunedWeight)]
            seen.append(all(w.settled for w in weights))
            return -float(len(seen))  # the first epoch that is looked at wins

        return fit(model, *args, **(settings | {"score": score}))

    monkeypatch.setattr(quantized, "fit", watched)
    parent = variant(tiny_model, "plain")
    child = Magnitude(shape="unstructured", epochs=10, sparsity=0.9).apply(parent, quiet_run(tiny_data, parent))
    assert seen == [True] * 4
    assert child.card.steps[-1]["best_epoch"] == 7
    assert {m.sum() for m in encoder_masks(child).values()} == {
        round((1 - 0.9) * m.size) for m in encoder_masks(child).values()
    }


@pytest.mark.parametrize("step", ROOMS)
@pytest.mark.parametrize("stop", [2, 9])
def test_interrupted_and_resumed_is_uninterrupted(
    step: Any, stop: int, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = variant(tiny_model, "plain")
    whole = step.apply(parent, quiet_run(tiny_data, parent))
    calls = 0

    def interrupting(*args: Any, loss: Any, **settings: Any) -> NLUModel:
        def one(model: NLUModel, batch: Batch) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGINT)
            found: torch.Tensor = loss(model, batch)
            return found

        one.__name__ = loss.__name__
        return fit(*args, loss=one, **settings)

    monkeypatch.setattr(quantized, "fit", interrupting)
    run = Run(tiny_data, parent, device="cpu", folder=str(tmp_path), progress=False)
    learnt = taught_data(tiny_data, step.distil, 0, text=unlabelled_text(tiny_data, parent, parent, 1, 0)).train
    n_steps = step.epochs * math.ceil(len(learnt) / TrainingSettings.batch_size)
    if stop <= n_steps:
        with pytest.raises(KeyboardInterrupt):
            step.apply(parent, run)
    assert calls == min(stop, n_steps) or stop > n_steps
    torch.manual_seed(999)
    found = step.apply(parent, run)
    assert calls == n_steps
    assert encoder_masks(found).keys() == encoder_masks(whole).keys()
    assert all(np.array_equal(m, encoder_masks(whole)[name]) for name, m in encoder_masks(found).items())
    assert same_bits(found, whole, [m.text for m in tiny_data.messages])


@pytest.mark.parametrize("step", [*ROOMS, Magnitude(shape="unstructured", **ONCE)])
def test_a_model_without_layers_has_nothing_to_prune(step: Any, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = random_model(tiny_model, layers=())
    child = step.apply(parent, quiet_run(tiny_data, parent))
    assert same_bits(child, parent, [m.text for m in tiny_data.messages[:5]])


def test_pruned_further_only_what_was_left_can_stay(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    first = Magnitude(shape="unstructured", sparsity=0.5, **ONCE).apply(parent, run)
    for step in (
        Magnitude(shape="unstructured", sparsity=0.8, epochs=1),
        Movement(shape="unstructured", sparsity=0.8, epochs=1),
    ):
        second = step.apply(first, run)
        for name, mask in encoder_masks(second).items():
            assert not (mask & ~encoder_masks(first)[name]).any()
            assert mask.sum() == round((1 - 0.8) * mask.size)


def test_a_lower_sparsity_gives_nothing_back(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Nor does the training that follows: what is gone stays 0 in the int8 weights, too."""
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    first = Magnitude(sparsity=0.9, shape="unstructured", **ONCE).apply(parent, run)
    wanted = encoder_masks(first)
    assert len(wanted) == 8
    for step in (
        Magnitude(sparsity=0.5, shape="unstructured", **ONCE),
        Magnitude(sparsity=0.5, shape="1x4", **ONCE),
        Magnitude(shape="unstructured", sparsity=0.5, scope="global", **ONCE),
        Magnitude(sparsity=0.5, epochs=1),
        Movement(sparsity=0.5, epochs=1),
    ):
        second = step.apply(first, run)
        for name, mask in encoder_masks(second).items():
            assert not (mask & ~wanted[name]).any(), (step, name)
    second = Magnitude(sparsity=0.5, shape="unstructured", **ONCE).apply(first, run)
    third = QAT(epochs=1, learning_rate=0.01).apply(second, run)
    for name, module, part in third.matrices():
        if part == "encoder":
            assert not module.weight.detach().numpy()[~wanted[name]].any()


# rooms behind it ----------------------------------------------------------------------------------------------------

BEHIND: list[Technique] = [
    Int8Room(),
    StaticInt8(n_messages=32, fallback=None),
    StaticInt8(n_messages=32, fallback=None, smooth=0.5),
    StaticInt8(n_messages=32, fallback=None, integer_only=True),
    Codebook(encoder=16),
    Codebook(encoder=4, granularity="matrix", sensitivity="fisher"),
    Codebook(encoder=3, granularity="group", group=5, activations="float"),
    GPTQ(encoder=16, embeddings=16, n_messages=40),
    GPTQ(encoder=4, embeddings=None, grid="uniform", n_messages=40),
    GPTQ(encoder=256, embeddings=None, grid="uniform", n_messages=40),
    TrainedCodes(encoder=4, epochs=1, learning_rate=0.01),
    TrainedCodes(encoder=16, epochs=1, reassign=None, granularity="matrix"),
    QAT(epochs=1, learning_rate=0.01),
    QAT(epochs=1, ranges="lsq"),
    QAT(epochs=1, activations="static"),
    MixedPrecision(messages=10),
]


@pytest.mark.parametrize("shape", ["unstructured", "1x4", "2:4"])
@pytest.mark.parametrize("behind", BEHIND, ids=repr)
def test_rooms_behind_it_keep_the_masks(
    shape: str, behind: Technique, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    pruned = Magnitude(shape=shape, **ONCE).apply(parent, run)
    child = behind.apply(pruned, run)
    wanted = encoder_masks(pruned)
    assert len(wanted) == 8
    for name, module, part in child.matrices():
        if part != "encoder":
            continue
        assert isinstance(module.form, Sparse), name
        assert isinstance(module.form.values, Int8 | Codes)
        assert np.array_equal(module.form.mask, wanted[name])
        assert module.form.block == (4 if shape == "1x4" else 1)
        assert not module.weight.detach().numpy()[~wanted[name]].any()
    loaded = NLUModel.load(child.save(tmp_path / "model"))
    texts = [m.text for m in tiny_data.messages[::3]]
    assert same_bits(child, loaded, texts)
    assert all(np.array_equal(m, wanted[name]) for name, m in encoder_masks(loaded).items())
    assert loaded.size_bytes() == child.size_bytes()
    if shape != "2:4":  # of which a bit a weight is as much as half of the 2-bit codes
        assert child.size_bytes() < behind.apply(parent, run).size_bytes()
    unpacked = loaded.unpack()
    assert all(np.array_equal(m, wanted[name]) for name, m in encoder_masks(unpacked).items())


def test_int8_with_a_shift_stores_every_weight(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """Zeros are exact steps of it, but it has no sparse form: the file says so, and so does the model."""
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    pruned = Magnitude(shape="unstructured", **ONCE).apply(parent, run)
    child = Int8Room(granularity="matrix").apply(pruned, run)
    for name, module, _ in child.matrices():
        mask = encoder_masks(pruned).get(name)
        if mask is not None and isinstance(module.form, Int8):
            assert module.form.shift
            assert mask_of(module) is None
            assert not module.weight.detach().numpy()[~mask].any()
    assert same_bits(child, NLUModel.load(child.save(tmp_path / "m")), [m.text for m in tiny_data.messages[::5]])


def test_centres_are_those_of_the_survivors(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    pruned = Magnitude(shape="unstructured", sparsity=0.5, **ONCE).apply(parent, run)
    child = Codebook(encoder=4, activations="float").apply(pruned, run)
    form = child.encoder.layers[0].ffn.up.form
    assert isinstance(form, Sparse)
    assert isinstance(form.values, Codes)
    w = pruned.encoder.layers[0].ffn.up.weight.detach().numpy()
    for r in range(len(w)):
        found = form.values.table[r]
        wanted = centres(w[r][form.mask[r]][None], 4)[0]
        error = ((w[r] - form.dense()[r]) ** 2)[form.mask[r]].sum()
        best = ((w[r][form.mask[r]][:, None] - wanted) ** 2).min(axis=1).sum()
        assert error <= 1.25 * best + 1e-9  # k-means from another start, of the same weights
        assert np.abs(found).min() > 0


@pytest.mark.parametrize("encoder", [8, 4])
def test_gptq_of_pruned_weights_is_nearer_than_nearest(encoder: int, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """On the inputs that it is made for: |W X - Q X|^2 of the first matrix against codes by nearest centre."""
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    pruned = Magnitude(shape="unstructured", sparsity=0.5, **ONCE).apply(parent, run)
    plain = Codebook(encoder=encoder, embeddings=None, heads=None).apply(pruned, run)
    better = GPTQ(encoder=encoder, embeddings=None, heads=None, n_messages=1000).apply(pruned, run)
    encoded = pruned.tokenizer.encode_batch([m.text for m in tiny_data.train])
    stage, name = next(iter(stages(pruned, encoded))), "layers.0.attention.qkv"
    assert name in stage.names
    parent_w, plain_w, better_w = (
        next(module for n, module, _ in model.matrices() if n == name) for model in (pruned, plain, better)
    )
    assert isinstance(parent_w, Linear)
    h = second_moment(parent_w, stage.replay).double()
    gaps = [(child.weight - parent_w.weight).detach().double() for child in (plain_w, better_w)]
    nearest, compensated = (float((gap @ h * gap).sum()) for gap in gaps)
    assert compensated < 0.95 * nearest


def test_trained_codes_train_the_survivors_only(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Kept codes of a pruned model start from the float weights, and no pruned weight comes back."""
    parent = variant(tiny_model, "plain")
    run = quiet_run(tiny_data, parent)
    packed = Codebook(encoder=16).apply(Magnitude(shape="unstructured", **ONCE).apply(parent, run), run)
    child = TrainedCodes(encoder="kept", embeddings="kept", heads="kept", epochs=1).apply(packed, run)
    for (name, a, _), (_, b, _) in zip(packed.matrices(), child.matrices(), strict=True):
        assert type(a.form) is type(b.form), name
        if isinstance(a.form, Sparse) and isinstance(b.form, Sparse):
            assert np.array_equal(a.form.mask, b.form.mask)
            assert a.form.fields() == b.form.fields()
            assert not np.array_equal(a.form.dense(), b.form.dense())


def test_receipts_of_a_chain(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    steps = [Magnitude(shape="unstructured", sparsity=0.75, **ONCE), Int8Room()]
    small = compress(tiny_model, tiny_data, steps, measure=False, progress=False)
    first, second = small.card.steps[-2:]
    assert first["technique"] == "magnitude"
    assert first["n_parameters"] == second["n_parameters"] < tiny_model.n_parameters()
    assert (first["repacked"], second["repacked"]) == (0, 0)
    assert set(first["bits"].values()) == {32}
    assert set(second["bits"].values()) == {8}
    assert second["file_bytes"] < first["file_bytes"]


# the command line ---------------------------------------------------------------------------------------------------


def test_by_the_command_line(place: Place, call: Call, tmp_path: Path) -> None:
    """The folder keeps the mask, whatever the file holds: that is what is fastest here, and answers the same."""
    words = ["-t", "magnitude:sparsity=0.75,shape=1x4,schedule=one-shot,epochs=0", "-t", "int8"]
    for out in ("x.fly", "folder"):
        done = call("compress", place.teacher, place.csv, *words, "--out", tmp_path / out, "--json")
        assert done.code == 0, done.err
        first, second = json.loads(done.out)["receipts"]
        assert (first["technique"], second["technique"]) == ("magnitude", "int8")
        assert first["settings"]["shape"] == "1x4"
    entry = json.loads((tmp_path / "folder" / "config.json").read_text())["weights"]["layers.0.ffn.up"]
    assert (entry["form"], entry["block"], entry["values"]["form"]) == ("sparse", 4, "int8")
    model, file = NLUModel.load(tmp_path / "folder"), read(tmp_path / "x.fly")
    for name, module, _ in model.matrices():
        assert np.array_equal(file.form(name).dense(), module.weight.detach().numpy()), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("magnitude:sparsity=1", "magnitude: sparsity is 1; allowed: none, or a number from 0 to below 1"),
        ("magnitude:shape=2:4,sparsity=0.8", "magnitude: sparsity is 0.8; allowed: none, or 0.5, as 2:4 has it"),
        ("movement:mode=soft,shape=2:4", "movement: mode is 'soft'; allowed: hard, where shape is 2:4"),
        ("movement:epochs=0", "movement: epochs is 0; allowed: none, or a whole number from 1 to 1000"),
    ],
)
def test_bad_settings_are_one_line(words: str, said: str, place: Place, call: Call, tmp_path: Path) -> None:
    done = call("compress", place.teacher, place.csv, "-t", words, "--out", tmp_path / "x.fly")
    assert done.code == 1
    assert done.out == ""
    assert done.err.splitlines()[-1].endswith(said)
    assert len(done.err.splitlines()) == 1
