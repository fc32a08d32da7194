"""Suggested students: within the time, made by their recipes as they are described, resumed, refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_cases import Call, Place
from random_models import quiet_run, random_model

from flyweight.analyse import shapes as shapes_module
from flyweight.analyse import suggest as suggest_module
from flyweight.analyse.structures import Choice
from flyweight.analyse.suggest import Known, suggest
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, DataError
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.recipe import Recipe
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.room import technique

BASE = 0.02  # of the dense model's time: a message without layers


def work(config: EncoderConfig) -> float:
    """Multiplications a token in the layers."""
    d, of = config.hidden, 0.0
    for layer in config.layers:
        heads = layer.heads * config.head_size if isinstance(layer, LayerShape) else 0
        of += d * (4 * heads + 2 * layer.ffn) if isinstance(layer, LayerShape) else 8 * d * d
    return of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[EncoderConfig]:
    """A clock that counts multiplications; the shapes it was asked for."""
    asked: list[EncoderConfig] = []

    def measure(self: shapes_module.Clock, config: EncoderConfig, n_calls: int) -> tuple[float, float]:
        asked.append(config)
        return 2.0, BASE + (1 - BASE) * work(config) / work(self.config)

    monkeypatch.setattr(shapes_module.Clock, "measure", measure)
    monkeypatch.setattr(shapes_module, "_KNOWN", {})
    return asked


@pytest.fixture
def dense(tiny_model: NLUModel) -> NLUModel:
    return random_model(tiny_model, layers=((4, 64),) * 4, hidden=64, head_size=16)


def test_every_student_is_within_the_time(
    dense: NLUModel, tiny_data: NLUData, clock: list[EncoderConfig], tmp_path: Path
) -> None:
    found, known = suggest(dense, tiny_data, speedup=3, progress=False)
    assert [s.name for s in found] == ["pruned", "informed", "shallow", "bilstm", "uniform"]
    for s in found:
        assert 0 < s.predicted_ms <= 2.0 / 3
        assert s.speedup == pytest.approx(2.0 / s.predicted_ms, rel=0.01)
    assert known.energy == sorted(known.energy)
    assert known.energy[-1] == pytest.approx(1)
    assert 0 < known.used <= known.of == dense.tokenizer.vocab_size
    # what the rooms make of the recipes is what was timed
    for s in found[1:]:
        [(name, settings)] = s.steps[0].items()
        made = technique(TECHNIQUES, name, settings).apply(dense, quiet_run(tiny_data, dense))
        kept = replace(made.encoder.config, embedding=0)
        timed = [replace(c, embedding=0) for c in clock]
        assert (kept.hidden, kept.layers) in [(c.hidden, c.layers) for c in timed], s.name
        share = BASE + (1 - BASE) * work(made.encoder.config) / work(dense.encoder.config)
        assert share * 2.0 == pytest.approx(s.predicted_ms, abs=1e-4), s.name
    assert found[0].steps[0] == {"structured": {"target_ms": round(2.0 / 3, 4)}}
    again, _ = suggest(dense, tiny_data, target_ms=2.0 / 3, progress=False)
    assert [s.shape for s in again] == [s.shape for s in found]


def test_an_interrupted_call_goes_on(
    dense: NLUModel, tiny_data: NLUData, clock: list[EncoderConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = suggest(dense, tiny_data, speedup=3, folder=str(tmp_path), progress=False)
    clock.clear()
    monkeypatch.setattr(shapes_module, "_KNOWN", {})  # another process
    monkeypatch.setattr(suggest_module, "blocks_of", None)
    again = suggest(dense, tiny_data, speedup=3, folder=str(tmp_path), progress=False)
    assert clock == []
    assert again[0] == first[0]
    [path] = tmp_path.glob("known-*.json")
    path.write_text("[1]")
    with pytest.raises(TypeError):  # measured again
        suggest(dense, tiny_data, speedup=3, folder=str(tmp_path), progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_ms": 1.0, "speedup": 2.0}, "target_ms and speedup are given; give one of them"),
        ({"speedup": 1.0}, "speedup is 1; allowed: a number above 1, as in 4"),
        ({"speedup": 0}, "speedup is 0; allowed: a number above 1, as in 4"),
        ({"speedup": -1.0}, "speedup is -1; allowed: a number above 1, as in 4"),
        ({"speedup": float("inf")}, "speedup is inf; allowed: a number above 1, as in 4"),
        ({"speedup": float("nan")}, "speedup is nan; allowed: a number above 1, as in 4"),
        ({"target_ms": 0.0}, "target_ms is 0; allowed: a number of milliseconds above 0, as in 0.2"),
        ({"target_ms": -0.5}, "target_ms is -0.5; allowed: a number of milliseconds above 0, as in 0.2"),
        ({"target_ms": float("nan")}, "target_ms is nan; allowed: a number of milliseconds above 0, as in 0.2"),
        ({"target_ms": 2.5}, "the model takes 2 ms in int8 as it is; allowed: a time below"),
        ({"target_ms": 0.01}, "no student of this model is within 0.01 ms; ask for less speed"),
    ],
)
def test_refusals(
    settings: dict[str, Any], message: str, dense: NLUModel, tiny_data: NLUData, clock: list[EncoderConfig]
) -> None:
    with pytest.raises(ConfigError) as error:
        suggest(dense, tiny_data, progress=False, **settings)
    assert str(error.value) == message
    with pytest.raises(DataError, match="no training messages"):
        suggest(dense, replace(tiny_data, train=()), progress=False)


def test_messages_of_other_intents(clock: list[EncoderConfig], place: Place, tmp_path: Path, call: Call) -> None:
    (tmp_path / "d.csv").write_text("text,intent\n" + "".join(f"word {i},zzz\nother {i},yyy\n" for i in range(10)))
    done = call("suggest", place.teacher, tmp_path / "d.csv", "--out", tmp_path / "s")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "no message has an intent that the model knows" in done.err
    assert not (tmp_path / "s").exists()
    assert clock == []  # nothing was timed


def test_reasons(
    dense: NLUModel, tiny_data: NLUData, clock: list[EncoderConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer goes, three go; a width that the time narrows is said to be narrowed."""
    found_known = Known([min(1.0, (d + 1) / 40) for d in range(64)], [], 1, 2)  # 38/40 is 0.95: a width of 48
    timer = shapes_module.Clock(dense, ["hello"], 8, None)
    layer = LayerShape(heads=4, ffn=64)
    for left, share, goes, carried in (
        (3, 0.9, "3e-05 nats before training, 1 layer goes", "48 of 64 numbers carry 100% of the states; pruning"),
        (1, 0.06, "3e-05 nats before training, 3 layers go", "(95% need 48); pruning keeps 1 layer"),
    ):
        layers = (layer,) * left + (None,) * (4 - left)
        monkeypatch.setattr(suggest_module, "choices", lambda *_, c=layers: [Choice(c, 3e-5, BASE)])
        pruned = suggest_module._pruned(found_known, timer, share, 2.0, list)
        informed = suggest_module._informed(found_known, timer, share, 2.0, list, [layer] * 4)
        assert pruned is not None
        assert pruned.reason.endswith(f": {goes}")
        assert informed is not None
        assert carried in informed.reason
        assert ("as many as the time allows" in informed.reason) == (left == 1)
    assert informed.reason.startswith("16 of 64 numbers carry 40% of the states, as many as the time allows ")


def test_the_width_that_carries() -> None:
    energy = [(d + 1) / 64 for d in range(64)]
    known = Known(energy, [], 1, 2)
    assert [known.width(e) for e in (0.2, 0.25, 0.26, 0.75, 0.76, 1.0)] == [16, 16, 32, 48, 64, 64]


def test_bits_of_a_sensitivity_file(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    for kl, bits in ((0.009, 4), (0.011, 8)):
        cells = [{"part": p, "bits": b, "kl": kl * (b == 4)} for p in "ab" for b in (8, 4)]
        file.write_text(json.dumps({"cells": cells}))
        assert suggest_module._bits(file) == bits
    file.write_text(json.dumps({"cells": [{"bits": 8, "kl": 0.0}]}))
    assert suggest_module._bits(file) == 8  # 4 bits were not tried
    for odd in ("[", "{}", '{"cells": [3]}'):
        file.write_text(odd)
        with pytest.raises(ConfigError, match=r"is no sensitivity\.json; flyweight sensitivity MODEL DATA writes one"):
            suggest_module._bits(file)


def test_the_command_line_writes_recipes(place: Place, tmp_path: Path, call: Call, clock: list[EncoderConfig]) -> None:
    done = call("suggest", place.teacher, place.csv, "--speedup", 2, "--out", tmp_path / "s", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert json.loads((tmp_path / "s" / "suggest.json").read_text()) == found
    for student in found["students"]:
        recipe = Recipe.load(student["recipe"])
        assert recipe.description.startswith(student["reason"])
        assert [TECHNIQUES[name] for step in student["steps"] for name in step] == [type(t) for t in recipe.techniques]
    table = call("suggest", place.teacher, place.csv, "--speedup", 2, "--out", tmp_path / "s").out
    assert all(student["name"] in table for student in found["students"])
    for arguments in (("--speedup", 0), ("--speedup", 0.5), ("--target-ms", 0)):
        refused = call("suggest", place.teacher, place.csv, *arguments, "--out", tmp_path / "r")
        assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
        assert not (tmp_path / "r").exists()
    for model, message in ((place.int8, "is a .fly"), (tmp_path / "nope", "is not there"), (place.csv, "is a .csv")):
        refused = call("suggest", model, place.csv, "--out", tmp_path / "r")
        wanted = f"flyweight: {model} {message}; a model folder is needed: what 'flyweight train --out' wrote\n"
        assert (refused.code, refused.err) == (1, wanted)
