"""What every technique must keep, whatever it does: one test over all rooms, from the table TECHNIQUES.

A new room adds a line to SETTINGS and to BAD; `claimed_form` says what its settings promise of each matrix.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from random_models import VARIANTS, all_logits, counted, quiet_run, rms_gap, same_bits, variant

import flyweight
from flyweight.analyse.shapes import Clock
from flyweight.artifact import LOOKED_UP, RECURRENT, RECURRENT_STEP, Artifact, read
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.forms.codes import code_bits
from flyweight.model.linear import mask_of
from flyweight.model.nlu import NLUModel
from flyweight.recipe import Recipe, compress
from flyweight.runtime.parser import load
from flyweight.runtime.parts import POOLERS
from flyweight.techniques import TECHNIQUES, room
from flyweight.techniques.room import Technique, technique
from flyweight.training.distances import LOSSES

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "mixed_precision": [
        {},
        {"max_size_mb": 0.06},
        {"max_average_bits": 4.5, "lowest_bits": 2, "messages": 10, "rounding": "nearest"},
        {"max_f1_drop": 100},
    ],
    "int8": [
        {},
        {"granularity": "matrix"},
        {"embeddings": False},
        {"heads": False, "granularity": "matrix"},
    ],
    "codebook": [
        {},
        {"encoder": 2, "embeddings": 2, "heads": 2},
        {"encoder": 3, "embeddings": 5, "heads": None},
        {"encoder": 16, "embeddings": 16, "heads": 16, "granularity": "matrix"},
        {"encoder": 256, "embeddings": None, "heads": 3},
        {"encoder": 16, "embeddings": 3, "heads": 16, "activations": "float"},
        {"encoder": 2, "embeddings": 16, "heads": 3, "granularity": "matrix", "activations": "float"},
        {"encoder": 16, "embeddings": 3, "heads": 5, "granularity": "group", "group": 3, "start": "quantile"},
        {"encoder": 3, "embeddings": 16, "heads": 16, "sensitivity": "fisher", "start": "kmeans++"},
    ],
    "gptq": [
        {"n_messages": 40, "embeddings": 16},
        {"encoder": 2, "embeddings": 3, "heads": 16, "grid": "uniform", "damp": 0.1},
        {"encoder": 256, "embeddings": None, "heads": 256, "grid": "uniform", "n_messages": 1},
        {"encoder": 3, "embeddings": None, "heads": None, "act_order": False},
    ],
    "trained_codes": [
        {"epochs": 1},
        {"encoder": 2, "embeddings": 2, "heads": 2, "epochs": 1, "distil": "logits"},
        {"encoder": 3, "embeddings": 5, "heads": None, "granularity": "matrix", "epochs": 1, "distil": None},
        {"encoder": 4, "embeddings": None, "heads": 16, "epochs": 2, "reassign": 3, "learning_rate": 0.01},
        {"encoder": 16, "embeddings": 16, "heads": 3, "epochs": 1, "reassign": None},
        {"encoder": 3, "embeddings": None, "heads": None, "epochs": 1},
    ],
    "static_int8": [
        {"n_messages": 32, "fallback": None},
        {"n_messages": 32, "fallback": None, "integer_only": True},
        {"n_messages": 16, "fallback": None, "calibration": "min-max", "attention": False, "smooth": 0.5},
        {"n_messages": 40, "fallback": 1e-12, "calibration": "entropy", "embeddings": False},
        {"n_messages": 48, "fallback": None, "calibration": "average", "heads": False},
        {"n_messages": 48, "fallback": 0.9, "calibration": "p99.99", "smooth": 0.25},
    ],
    "qat": [
        {"epochs": 1},
        {"epochs": 1, "granularity": "matrix", "activations": "float"},
        {"epochs": 2, "activations": "static", "delay": 0.5},
        {"epochs": 1, "activations": "static", "ranges": "lsq", "delay": 0.0, "distil": "logits"},
        {"epochs": 1, "granularity": "matrix", "ranges": "lsq", "embeddings": False, "learning_rate": 0.001},
    ],
    "magnitude": [
        {"epochs": 1},
        {"epochs": 0, "schedule": "one-shot", "shape": "1x4", "sparsity": 0.6},
        {
            "epochs": 2,
            "shape": "unstructured",
            "schedule": "iterative",
            "scope": "global",
            "sparsity": 0.9,
            "heads": True,
            "distil": None,
        },
        {"epochs": 1, "schedule": "one-shot", "shape": "2:4", "distil": "logits", "learning_rate": 0.001},
        {"epochs": 1, "shape": "1x4", "scope": "global", "sparsity": 0.3},
    ],
    "movement": [
        {"epochs": 1},
        {"epochs": 2, "shape": "1x4", "sparsity": 0.7, "heads": True, "distil": None},
        {"epochs": 1, "shape": "3:5", "distil": "logits", "learning_rate": 0.001},
        {"epochs": 3, "mode": "soft", "shape": "unstructured", "sparsity": 0.5},
    ],
    "hidden_pruning": [
        {"epochs": 1},
        {"keep": 0.5, "epochs": 0, "n_messages": 20},
        {"keep": 0.9, "epochs": 1, "transfer": 0, "learning_rate": 0.001},
    ],
    "structured": [
        {"rounds": 1, "epochs": 1, "transfer": 1},
        {"speedup": 1.5, "structures": "neurons", "rounds": 2, "epochs": 0, "bits": 4},
        {
            "target_ms": 0.7,
            "structures": "heads+layers",
            "rounds": 1,
            "epochs": 1,
            "transfer": 0,
            "learning_rate": 0.001,
        },
    ],
    "head_pruning": [
        {"epochs": 1, "n_messages": 16},
        {"keep": 0.2, "step": 0.5, "between": 1, "epochs": 1, "distil": "logits"},
        {"keep": 0.0, "epochs": 0, "step": 1},
        {"keep": 0.7, "epochs": 1, "distil": None, "learning_rate": 0.001},
    ],
    "neuron_pruning": [
        {"epochs": 1, "n_messages": 16, "step": 0.3},
        {"keep": 0.1, "step": 0.5, "between": 1, "epochs": 1, "distil": "logits"},
        {"keep": 0.0, "epochs": 0, "step": 1, "between": 0},
        {"keep": 0.7, "epochs": 1, "distil": None, "learning_rate": 0.001},
    ],
    "layer_pruning": [
        {"epochs": 1},
        {"keep": 1, "between": 1, "epochs": 1, "distil": "logits"},
        {"keep": 0, "epochs": 0, "cost": "loss"},
        {"keep": 1, "epochs": 1, "distil": None, "learning_rate": 0.001},
    ],
    "mask_search": [
        {},
        {"keep": 0.2, "n_messages": 16},
        {"keep": 0.5, "heads": False, "swap": False},
        {"keep": 0.1, "neurons": False, "tune": False},
        {"keep": 0.4, "cost": "ms"},
    ],
    "vocabulary": [{"common": 0}, {"least": 3, "common": 0}, {"least": 100, "common": 140}],
    "student": [
        {"layers": 1},
        {"hidden": 14, "ffn": 20, "embedding": 10},
        {"kind": "bag", "hidden": 16, "ngrams": 100, "layers": 0},
        {"base": "small", "layers": 1, "hidden": 16, "vocabulary": 200},
    ],
    "distillation": [
        {"epochs": 1, "transfer": 1},
        {"losses": "mse+tags", "epochs": 1, "transfer": 0, "soft": 1.0, "learning_rate": 0.001},
        {"losses": "hints+logits+hidden+embeddings", "epochs": 2, "transfer": 1, "temperature": 4, "soft": 0.5},
        {"losses": "embeddings", "epochs": 1, "transfer": 0, "soft": 0.9, "teacher": "first"},
    ],
}
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
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, all_ in SETTINGS.items() for i in range(len(all_))]
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
