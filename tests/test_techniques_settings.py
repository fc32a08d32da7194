"""The shape of every room, the settings that it refuses and how, and where settings are read from.

A new room adds a line to SETTINGS in technique_cases.py, and one to BAD.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from technique_cases import CASES, SETTINGS

import flyweight
from flyweight.errors import ConfigError
from flyweight.recipe import Recipe
from flyweight.techniques import TECHNIQUES, room
from flyweight.techniques.room import Technique, technique
from flyweight.training.distances import LOSSES

# (settings, the field at fault, what is allowed)
PRUNED: list[tuple[dict[str, Any], str, str]] = [
    *(
        ({"sparsity": v}, "sparsity", "allowed: none, or a number from 0 to below 1")
        for v in (1, 1.0, -0.1, "0.5", True, float("nan"), [0.5])
    ),
    ({"sparsity": 0.8, "shape": "2:4"}, "sparsity", "allowed: none, or 0.5, as 2:4 has it"),
    *(
        (
            {"shape": v},
            "shape",
            "allowed: unstructured, 1x4, or n:m with whole numbers 1 <= n < m <= 16, such as 2:4 (in YAML with quotes)",
        )
        for v in ("4x1", "4:4", "4:2", "0:4", "2:17", "02:4", "2:4:8", "", None, 124, True)
    ),
    *(({"heads": v}, "heads", "allowed: true, false") for v in (1, 0, None, "yes")),
    *(
        ({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1")
        for v in (0, 1, -0.1, "fast", None, True, float("nan"))
    ),
    *(({"distil": v}, "distil", "allowed: none, logits, hidden") for v in ("all", "none", True)),
]
TRAINED: list[tuple[dict[str, Any], str, str]] = [
    *(({"between": v}, "between", "allowed: a whole number from 0 to 1000") for v in (-1, 1001, 1.0, None, True)),
    *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, "5", True)),
    *(({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1") for v in (0, 1, None)),
    *(({"distil": v}, "distil", "allowed: none, logits, hidden") for v in ("soft", True)),
]
IN_ROUNDS: list[tuple[dict[str, Any], str, str]] = [
    *(({"keep": v}, "keep", "allowed: a number from 0 to 1") for v in (-0.1, 1.1, None, "0.5", True, float("nan"))),
    *(({"step": v}, "step", "allowed: a number above 0, at most 1") for v in (0, 1.1, -0.1, None, "0.5", True)),
    *(
        ({"n_messages": v}, "n_messages", "allowed: a whole number from 1 to 100000")
        for v in (0, 100_001, 16.0, None, True)
    ),
    *TRAINED,
]
BAD: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "mixed_precision": [
        *(
            ({name: v}, name, "allowed: none, or a number above 0")
            for name in ("max_average_bits", "max_size_mb", "max_ms", "max_f1_drop")
            for v in (0, -1, 0.0, "3", True, float("nan"), float("inf"), [3])
        ),
        *(({"lowest_bits": v}, "lowest_bits", "allowed: 1, 2, 3, 4") for v in (0, 5, 8, None, 2.0, True)),
        *(({"messages": v}, "messages", "allowed: a whole number from 1") for v in (0, -5, 10.0, None, True)),
        *(({"rounding": v}, "rounding", "allowed: gptq, nearest") for v in ("fisher", None, True)),
    ],
    "int8": [
        *(({"granularity": v}, "granularity", "allowed: row, matrix") for v in ("column", "Row", None, 1, True)),
        *(({"embeddings": v}, "embeddings", "allowed: true, false") for v in (1, 0, None, "yes", 2.0)),
        *(({"heads": v}, "heads", "allowed: true, false") for v in (1, 0, None, "true", [])),
    ],
    "codebook": [
        *(
            ({name: v}, name, "allowed: none, or a whole number from 2 to 256")
            for name in ("encoder", "embeddings", "heads")
            for v in (1, 0, -4, 257, 16.0, "16", True, float("nan"), [16])
        ),
        *(({"granularity": v}, "granularity", "allowed: row, group, matrix") for v in ("rows", None, 2)),
        *(({"sensitivity": v}, "sensitivity", "allowed: plain, fisher") for v in ("hessian", None, 1)),
        *(({"start": v}, "start", "allowed: best, linear, kmeans++, quantile") for v in ("random", None, True)),
        *(
            ({"group": v}, "group", "allowed: a whole number from 2 to 4096")
            for v in (1, 0, 4097, None, 16.0, "16", True)
        ),
        *(({"activations": v}, "activations", "allowed: int8, float") for v in ("int4", None, 8, "float32")),
    ],
    "gptq": [
        *(
            ({name: v}, name, "allowed: none, or a whole number from 2 to 256")
            for name in ("encoder", "embeddings", "heads")
            for v in (1, 257, 16.0, "16", True)
        ),
        *(({"grid": v}, "grid", "allowed: uniform, kmeans") for v in ("int4", None, 4)),
        *(
            ({"n_messages": v}, "n_messages", "allowed: a whole number from 1 to 100000")
            for v in (0, -1, 100_001, 16.0, "16", None, True)
        ),
        *(
            ({"damp": v}, "damp", "allowed: a number above 0, at most 1")
            for v in (0, -0.1, 1.5, None, "auto", True, float("nan"))
        ),
        *(({"act_order": v}, "act_order", "allowed: true, false") for v in (1, 0, None, "yes")),
    ],
    "trained_codes": [
        *(
            ({name: v}, name, "allowed: none, kept, or a whole number from 2 to 256")
            for name in ("encoder", "embeddings", "heads")
            for v in (1, 257, 16.0, "16", "keep", True)
        ),
        *(({"granularity": v}, "granularity", "allowed: row, matrix") for v in ("group", None, 2)),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 1 to 1000") for v in (0, 1001, 2.0, True)),
        *(
            ({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1")
            for v in (0, 1, -0.1, "fast", None, True, float("nan"))
        ),
        *(({"distil": v}, "distil", "allowed: none, logits, hidden") for v in ("all", "none", True)),
        *(
            ({"reassign": v}, "reassign", "allowed: none, or a whole number from 1 to 100000")
            for v in (0, 100_001, 1.0, "1", True)
        ),
    ],
    "static_int8": [
        *(
            (
                {"integer_only": True, "fallback": v},
                "integer_only",
                "allowed: only with attention, embeddings and heads true, and fallback none",
            )
            for v in (0.001, 0.5)
        ),
        *(
            ({"calibration": v}, "calibration", "allowed: min-max, average, p99.9, p99.99, mse, entropy")
            for v in ("kl", "minmax", None, 99.9, True)
        ),
        *(
            ({"n_messages": v}, "n_messages", "allowed: a whole number from 16 to 100000")
            for v in (15, 0, -1, 100_001, 16.0, "16", None, True)
        ),
        *(
            ({name: v}, name, "allowed: none, or a number above 0 and below 1")
            for name in ("smooth", "fallback")
            for v in (0, 1, 0.0, 1.0, -0.5, "auto", True, False, float("nan"), float("inf"))
        ),
        *(
            ({name: v}, name, "allowed: true, false")
            for name in ("attention", "embeddings", "heads")
            for v in (1, 0, None, "yes")
        ),
    ],
    "qat": [
        *(({"granularity": v}, "granularity", "allowed: row, matrix") for v in ("group", None, 2)),
        *(({"activations": v}, "activations", "allowed: dynamic, static, float") for v in ("int8", None, 8)),
        *(({"ranges": v}, "ranges", "allowed: ema, lsq") for v in ("minmax", None, True)),
        *(
            ({"delay": v}, "delay", "allowed: a number from 0 to below 1")
            for v in (-0.1, 1, 1.5, None, "none", True, float("nan"))
        ),
        *(({"embeddings": v}, "embeddings", "allowed: true, false") for v in (1, 0, None, "yes")),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 1 to 1000") for v in (0, 1001, 2.0, "5")),
        *(({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1") for v in (0, 1, None)),
        *(({"distil": v}, "distil", "allowed: none, logits, hidden") for v in ("soft", True)),
    ],
    "magnitude": [
        *PRUNED,
        *(({"scope": v}, "scope", "allowed: matrix, global") for v in ("layer", None, True)),
        *(({"schedule": v}, "schedule", "allowed: one-shot, iterative, gradual") for v in ("cubic", None, 1)),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, True)),
        *(
            (
                {"epochs": 0} | schedule,
                "epochs",
                "allowed: none, or a whole number from 1 to 1000; 0 only with schedule one-shot",
            )
            for schedule in ({}, {"schedule": "iterative"})
        ),
    ],
    "movement": [
        *PRUNED,
        *(({"mode": v}, "mode", "allowed: hard, soft") for v in ("sigmoid", None, True)),
        ({"mode": "soft", "shape": "2:4"}, "mode", "allowed: hard, where shape is 2:4"),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 1 to 1000") for v in (0, 1001, 2.0, True)),
    ],
    "hidden_pruning": [
        *(
            ({"keep": v}, "keep", "allowed: a number above 0, at most 1")
            for v in (0, -0.5, 1.5, None, True, float("nan"))
        ),
        *(
            ({"n_messages": v}, "n_messages", "allowed: a whole number from 1 to 100000")
            for v in (0, 100_001, 1.0, None, True)
        ),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, "5")),
        *(({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1") for v in (0, 1, None)),
        *(({"transfer": v}, "transfer", "allowed: a whole number from 0 to 100") for v in (-1, 101, 1.0, None, True)),
    ],
    "structured": [
        *(
            ({"target_ms": v}, "target_ms", "allowed: none, or a number above 0")
            for v in (0, -1, "2", True, float("nan"))
        ),
        *(({"speedup": v}, "speedup", "allowed: none, or a number from 1") for v in (0.9, 0, "4x", True, float("inf"))),
        *(
            (
                {"structures": v},
                "structures",
                "allowed: heads, neurons, layers, heads+neurons, heads+layers, neurons+layers, heads+neurons+layers",
            )
            for v in ("neurons+heads", "all", "", None, True)
        ),
        *(({"bits": v}, "bits", "allowed: 8, 4, 2, 1") for v in (3, 32, 8.0, None, True)),
        *(({"rounds": v}, "rounds", "allowed: a whole number from 1 to 20") for v in (0, 21, 1.0, None, True)),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, "5")),
        *(({"learning_rate": v}, "learning_rate", "allowed: a number above 0 and below 1") for v in (0, 1, None)),
        *(({"transfer": v}, "transfer", "allowed: a whole number from 0 to 100") for v in (-1, 101, 1.0, None, True)),
    ],
    "head_pruning": IN_ROUNDS,
    "neuron_pruning": IN_ROUNDS,
    "layer_pruning": [
        *(({"keep": v}, "keep", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, True)),
        *(({"cost": v}, "cost", "allowed: agreement, loss") for v in ("f1", None, True)),
        *TRAINED,
    ],
    "mask_search": [
        *(({"keep": v}, "keep", "allowed: a number from 0 to 1") for v in (-0.1, 1.1, None, "0.5", True)),
        *(({"cost": v}, "cost", "allowed: flops, ms") for v in ("time", None, True)),
        *(
            ({name: v}, name, "allowed: true, false")
            for name in ("heads", "neurons", "swap", "tune")
            for v in (1, 0, None, "yes")
        ),
        *(
            ({"n_messages": v}, "n_messages", "allowed: a whole number from 1 to 100000")
            for v in (0, 100_001, 16.0, None, True)
        ),
    ],
    "vocabulary": [
        *(({"least": v}, "least", "allowed: a whole number from 1 to 10000000") for v in (0, -1, 1.0, None, True)),
        *(({"common": v}, "common", "allowed: a whole number from 0 to 10000000") for v in (-1, 1.0, None, "5", True)),
    ],
    "student": [
        *(({"kind": v}, "kind", "allowed: transformer, bilstm, cnn, bag") for v in ("lstm", None, True)),
        *(({"base": v}, "base", "allowed: none, small, minilm, a folder or a Hub id") for v in ("", 3, True)),
        *(({"layers": v}, "layers", "allowed: none, or a whole number from 0 to 100") for v in (-1, 101, 2.0, True)),
        ({"kind": "bag", "layers": 1}, "layers", "allowed: none, or 0, where kind is bag"),
        *(({"hidden": v}, "hidden", "allowed: none, or a whole number from 8 to 4096") for v in (7, 4097, 64.0, "64")),
        ({"kind": "bilstm", "hidden": 65}, "hidden", "allowed: even numbers, where kind is bilstm"),
        *(({"ffn": v}, "ffn", "allowed: none, or a whole number from 0 to 16384") for v in (-1, 16385, 1.0, True)),
        *(({"kind": k, "ffn": 8}, "ffn", f"allowed: none, where kind is {k}") for k in ("bilstm", "cnn", "bag")),
        *(({"embedding": v}, "embedding", "allowed: none, or a whole number from 8 to 4096") for v in (7, 4097, 9.5)),
        *(
            ({"vocabulary": v}, "vocabulary", "allowed: none, or a whole number from 200 to 100000")
            for v in (199, 100_001, 4e3, True)
        ),
        *(
            ({"ngrams": v}, "ngrams", "allowed: none, or a whole number from 0 to 16777216")
            for v in (-1, 2**24 + 1, 1.0)
        ),
    ],
    "distillation": [
        *(
            ({"losses": v}, "losses", f"allowed: one or more of {', '.join(LOSSES)}, joined by +, each once")
            for v in ("", "kl", "logits+", "logits+logits", "logits,mse", None, True, ["logits"])
        ),
        ({"losses": "hints"}, "losses", "allowed: hints before another loss, as hints+logits"),
        *(
            ({"temperature": v}, "temperature", "allowed: a number from 0.1 to 100")
            for v in (0, 0.09, 101, None, "2", True, float("nan"))
        ),
        *(({"soft": v}, "soft", "allowed: a number from 0 to 1") for v in (-0.1, 1.1, None, "1", True)),
        (
            {"losses": "hidden+neurons", "soft": 1},
            "soft",
            "allowed: below 1 (labels teach the heads), or one of the losses logits, mse, tags beside hidden+neurons",
        ),
        *(({"transfer": v}, "transfer", "allowed: a whole number from 0 to 100") for v in (-1, 101, 1.0, None, True)),
        *(({"text": v}, "text", "allowed: none, or a file or folder") for v in ("", 3, True, ["a.txt"])),
        *(({"epochs": v}, "epochs", "allowed: none, or a whole number from 0 to 1000") for v in (-1, 1001, 2.0, "5")),
        *(
            ({"learning_rate": v}, "learning_rate", "allowed: none, or a number above 0 and below 1")
            for v in (0, 1, "fast", True, float("nan"))
        ),
        *(
            ({"teacher": v}, "teacher", "allowed: first, assistant, a path, or a list of paths")
            for v in ("", None, 3, [], [3])
        ),
    ],
}


# the table ----------------------------------------------------------------------------------------------------------


def test_every_room_is_in_the_table_and_in_this_test() -> None:
    folder = Path(room.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "room"}
    assert files == set(TECHNIQUES)
    assert set(SETTINGS) == set(BAD) == set(TECHNIQUES)
    for name, cls in TECHNIQUES.items():
        assert cls.__module__ == f"flyweight.techniques.{name}"
        assert getattr(flyweight, cls.__name__) is cls  # public


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_room_has_the_shape_of_a_room(name: str) -> None:
    cls: Any = TECHNIQUES[name]
    fields = dataclasses.fields(cls)
    assert 1 <= len(fields) <= 8
    default = cls()
    assert isinstance(default, Technique)
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(default, field.name, getattr(default, field.name))
        assert re.search(rf"(^|[\s,]){field.name}:", cls.__doc__), f"{field.name} is not explained"
    with pytest.raises(TypeError):
        cls(getattr(default, fields[0].name))  # keyword-only
    assert set(cls.ZERO or {}) <= {f.name for f in fields}
    assert {f.name for f in fields} == {field for _, field, _ in BAD[name]}, "BAD must try every field"
    text = inspect.getdoc(inspect.getmodule(cls)) or ""
    assert re.search(r"^    .*(=|minimise)", text, re.MULTILINE), "the formula"
    assert re.search(r"^Changes: ", text, re.MULTILINE)
    assert re.search(r"Sources?: ", text)
    assert inspect.getdoc(cls.apply)


# configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in BAD.items() for case in cases])
def test_bad_settings_name_field_value_and_what_is_allowed(
    name: str, case: tuple[dict[str, Any], str, str], tmp_path: Path
) -> None:
    settings, field, allowed = case
    wanted = f"{name}: {field} is {settings[field]!r}; {allowed}"
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        technique(TECHNIQUES, name, settings)
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"techniques": [{name: settings}]}))
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        Recipe.load(tmp_path / "r.yml")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_unknown_settings_are_refused_by_name(name: str, tmp_path: Path) -> None:
    names = ", ".join(f.name for f in dataclasses.fields(TECHNIQUES[name]))  # type: ignore[arg-type]
    wanted = f"^{name} has no setting 'bitz'; allowed: {names}$"
    with pytest.raises(ConfigError, match=wanted):
        Recipe.parse([f"{name}:bitz=4"])
    (tmp_path / "r.yml").write_text(f"techniques:\n  - {name}: {{bitz: 4}}\n")
    with pytest.raises(ConfigError, match=wanted):
        Recipe.load(tmp_path / "r.yml")


@pytest.mark.parametrize(("name", "i"), CASES)
def test_settings_read_from_words_and_yaml_are_those_given(name: str, i: int, tmp_path: Path) -> None:
    settings = SETTINGS[name][i]
    step = TECHNIQUES[name](**settings)
    assert {k: v for k, v in vars(step).items() if k in settings} == settings
    words = ",".join(f"{k}={str(v).lower()}" for k, v in settings.items())
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"techniques": [{name: settings}]}))
    assert Recipe.parse([f"{name}:{words}"]) == Recipe.load(tmp_path / "r.yml") == Recipe((step,))
