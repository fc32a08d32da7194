"""Settings that every room is tried with; a new room adds a line."""

from __future__ import annotations

from typing import Any

import pytest

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
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, all_ in SETTINGS.items() for i in range(len(all_))]
