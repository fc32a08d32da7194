"""Write a model as a .fly file: gate, golden samples, model card.

The gate: the written file must answer the golden messages like the PyTorch model, or nothing is written.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyweight import __version__
from flyweight.artifact import Artifact, read, write
from flyweight.errors import ConfigError, ParityError
from flyweight.forms import pack
from flyweight.model.nlu import NLUModel
from flyweight.runtime.reference import Reference, largest_difference
from flyweight.tokenizer import Encoded

# Two right evaluations of one file differ by float rounding, and where a rounding moves an activation over the middle
# of an int8 step, by that step and what follows from it. How much that is depends on the model, so it is measured.
# Rounding: float32 against float64. Steps: they are rare (a few of 100 messages of a small model), so that two runs
# on 16 messages may well show none; noise on the embeddings moves many of them at once.
TOLERANCE_FACTOR = 8.0
TOLERANCE_FLOOR = 1e-3  # of the largest golden logit
STEPS_FACTOR = 2.0
NOISE = 2.0**-10  # standard deviation; an int8 step of a normed vector is about 3 / 127 = 2^-5.4
N_NOISE = 3


def save(model: NLUModel, path: str | Path) -> Path:
    """Save a model: `*.fly` exports an artifact for the service half, any other name is a model folder.

    Errors: ParityError when the file does not answer like the model; nothing is written then.
    """
    path = Path(path)
    return export_fly(model, path) if path.suffix == ".fly" else model.save(path)


def export_fly(model: NLUModel, path: Path) -> Path:
    """Write the .fly file through a temporary neighbour, so that a failing gate leaves nothing behind."""
    if not model.card.golden:
        raise ConfigError("the model has no golden messages; models made by train() have them")
    model = model.copy().to("cpu").eval()
    trial = path.with_name(f".{path.name}.trial")
    try:
        manifest, arrays = contents(model)
        write(trial, manifest | {"golden": {"texts": [], "tolerance": 0.0}}, arrays)
        golden, golden_arrays = golden_samples(model, read(trial))
        return write(path, manifest | {"golden": golden}, arrays | golden_arrays)
    finally:
        trial.unlink(missing_ok=True)


def contents(model: NLUModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest (without golden samples) and arrays of a model."""
    arrays: dict[str, np.ndarray] = {}
    weights: dict[str, Any] = {}
    for name, form, activations in model.forms():
        entry, parts = pack(form)
        weights[name] = entry | {"activations": activations}
        arrays |= {f"{name}.{part}": a for part, a in parts.items()}
    arrays |= {name: v.detach().float().cpu().numpy() for name, v in model.vectors()}
    arrays["tokenizer.json"] = np.frombuffer(model.tokenizer.source.encode(), np.uint8)
    card = asdict(model.card)
    lineage = {k: card[k] for k in ("base", "data_fingerprint", "split", "steps")}
    manifest = {
        "model": model.describe(),
        "weights": weights,
        "tokenizer_sha256": model.tokenizer.sha256,
        "lineage": lineage | {"versions": versions()},
        "metrics": card["metrics"],
    }
    return manifest, arrays


def golden_samples(model: NLUModel, artifact: Artifact) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Golden messages with the file's logits and the tolerance; the gate against the PyTorch model.

    tolerance = max(8 * max|float32 - float64|, 2 * max|with noise - without|, 1e-3 * max|logit|), the first of the
    reference, the second of the PyTorch model where its activations are int8.
    """
    texts = model.card.golden
    encoded = model.tokenizer.encode_batch(texts)
    parent = _stack(model.logits(encoded))
    single = _stack(Reference(artifact).logits(encoded))
    double = _stack(Reference(artifact, np.float64).logits(encoded))
    largest = largest_difference(single, [np.zeros_like(a) for a in single])
    rounding, steps = largest_difference(single, double), _noise_effect(model, encoded, parent)
    tolerance = max(TOLERANCE_FACTOR * rounding, STEPS_FACTOR * steps, TOLERANCE_FLOOR * largest)
    difference = largest_difference(single, parent)
    if not difference <= tolerance:
        raise ParityError(
            f"the exported file differs from the model by {difference:.3g} on its golden messages, "
            f"allowed is {tolerance:.3g}; nothing was written"
        )
    names = ("golden.intent", "golden.tags")
    arrays = {name: a.astype(np.float32) for name, a in zip(names, single, strict=False)}
    return {"texts": texts, "tolerance": tolerance, "made_by": Reference.name}, arrays


def _noise_effect(model: NLUModel, encoded: list[Encoded], parent: list[np.ndarray]) -> float:
    """max|logit with noise on the embeddings - logit|: many int8 activations moved by a step. 0 for float models."""
    if all(module.activations == "float" for _, module, _ in model.matrices()):
        return 0.0
    rng, bias = np.random.default_rng(0), model.encoder.norm.bias.detach()
    right, effects = bias.clone(), []
    for _ in range(N_NOISE):
        bias.copy_(right + torch.from_numpy(rng.normal(scale=NOISE, size=len(right)).astype(np.float32)))
        effects.append(largest_difference(_stack(model.logits(encoded)), parent))
    bias.copy_(right)
    return max(effects)


def versions() -> dict[str, str]:
    """Versions of what made the file."""
    found = {"flyweight": __version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "tokenizers"):
        found[package] = metadata.version(package)
    return found


def _stack(logits: list[tuple[np.ndarray, np.ndarray | None]]) -> list[np.ndarray]:
    """Intent logits (n, C) and, with an entity head, tag logits of all words (W, n_tags)."""
    stacked = [np.stack([intent for intent, _ in logits])]
    tags = [t for _, t in logits if t is not None]
    return [*stacked, np.concatenate(tags)] if tags else stacked
