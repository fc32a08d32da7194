"""Write a model as a .fly file: gate, golden samples, model card.

The gate, or nothing is written: the file decodes to the model's weights bit for bit; every block computes what the
model's block does on the same input; the whole, in the reference and in the native engine, answers the golden messages
like the model.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyweight import __version__
from flyweight.artifact import Artifact, matrix_layout, read, write
from flyweight.errors import ConfigError, ParityError
from flyweight.export.sparse import chosen
from flyweight.forms import describe
from flyweight.model.linear import computes
from flyweight.model.nlu import NLUModel, pad
from flyweight.runtime import native
from flyweight.runtime.native import Native
from flyweight.runtime.reference import Reference, rms_difference
from flyweight.tokenizer import Encoded

# Two right evaluations of one file differ by float rounding, and where a rounding moves an activation over the middle
# of an int8 step, by that step and what follows from it. Within one block that befalls few tokens: measured on MiniLM,
# int8 and 4-bit, the median token differs by 2e-7 of the block's output (root mean squares), the worst by 1e-2, while
# quantizing at all changes every token by 1e-2 to 6e-2.
BLOCK_TOLERANCE = 1e-3
# Through all layers the steps add up: how much depends on the model, so it is measured. Noise on the embeddings moves
# many activations at once; its size hardly matters (2^-18 and 2^-10 change MiniLM's logits alike, by 0.8% RMS; two
# right evaluations differ by up to 0.5%).
NOISE_FACTOR = 2.0
NOISE = 2.0**-10  # standard deviation; an int8 step of a normed vector is about 3 / 127 = 2^-5.4
N_NOISE = 3
GOLDEN_FLOOR = 1e-3  # of the golden logits, for models that round nothing to int8


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
        artifact = unproved(trial, manifest, arrays)
        check_contents(model, artifact)
        check_blocks(model, artifact)
        golden, golden_arrays = golden_samples(model, artifact)
        return write(path, manifest | {"golden": golden}, arrays | golden_arrays)
    finally:
        trial.unlink(missing_ok=True)


def unproved(path: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> Artifact:
    """Written and read: a file of `contents` without golden samples, which is only compared or timed."""
    return read(write(path, manifest | {"golden": {"texts": [], "tolerance": 0.0}}, arrays))


def contents(model: NLUModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest (without golden samples) and arrays of a model."""
    arrays: dict[str, np.ndarray] = {}
    weights: dict[str, Any] = {}
    for name, form, multiplies in model.forms():
        form = chosen(name, form, multiplies["activations"])
        entry = describe(form)
        layout = matrix_layout(name, entry, multiplies["activations"])
        weights[name] = entry | multiplies | {"layout": layout}
        arrays |= {f"{name}.{part}": a for part, a in form.arrays(layout).items()}
    arrays |= {name: v.detach().float().cpu().numpy() for name, v in model.vectors()}
    arrays["tokenizer.json"] = np.frombuffer(model.tokenizer.source.encode(), np.uint8)
    card = asdict(model.card)
    lineage = {k: card[k] for k in ("base", "data_fingerprint", "split", "seen", "steps")}
    if card["survivors"] is not None:
        lineage["survivors"] = card["survivors"]
    manifest = {
        "model": model.describe(),
        "weights": weights,
        "lineage": lineage | {"versions": versions()},
        "metrics": card["metrics"],
    }
    return manifest, arrays


def check_contents(model: NLUModel, artifact: Artifact) -> None:
    """Gate, first part: every matrix decodes to the model's weight and every vector is the model's, bit for bit."""
    for name, module, _ in model.matrices():
        if not module.weight.isfinite().all():
            raise ParityError(f"{name} holds NaN or infinite weights; weights must be finite, nothing was written")
        if not np.array_equal(artifact.form(name).dense(), module.weight.detach().float().numpy()):
            raise ParityError(
                f"{name} in the exported file decodes to other weights than the model's; nothing was written"
            )
    for name, vector in model.vectors():
        if not vector.isfinite().all():
            raise ParityError(f"{name} holds NaN or infinite values; weights must be finite, nothing was written")
        if not np.array_equal(artifact.array(name), vector.detach().float().numpy()):
            raise ParityError(f"{name} in the exported file differs from the model's; nothing was written")


@torch.no_grad()
def check_blocks(model: NLUModel, artifact: Artifact) -> None:
    """Gate, second part: embeddings, each layer and the heads give what the model's give on the same golden input.

    median over tokens of RMS(reference - model) <= 1e-3 RMS(model) for every block, over the golden messages.
    """
    reference = Reference(artifact)
    n_blocks = len(reference.layers) + 2
    found: list[list[np.ndarray]] = [[] for _ in range(n_blocks)]
    wanted: list[list[np.ndarray]] = [[] for _ in range(n_blocks)]
    for e in model.tokenizer.encode_batch(model.card.golden):
        ids, mask = pad([e.ids])
        states = [state[0].numpy() for state in model.encoder.hidden_states(ids, mask)]
        buckets = reference.buckets(len(e.ids))
        outputs = [reference.embed(e)]
        outputs += [layer(x, buckets) for layer, x in zip(reference.layers, states, strict=False)]
        for i, (a, b) in enumerate(zip(outputs, states, strict=True)):
            found[i].append(a)
            wanted[i].append(b)
        found[-1] += [a for a in reference.heads(states[-1], e) if a is not None]
        wanted[-1] += [a for a in model.logits([e])[0] if a is not None]
    for i in range(n_blocks):
        gaps = [rms_difference([x], [y]) for a, b in zip(found[i], wanted[i], strict=True) for x, y in _tokens(a, b)]
        difference, allowed = float(np.median(gaps)), BLOCK_TOLERANCE * rms(wanted[i])
        if not difference <= allowed:
            name = "embeddings" if i == 0 else "heads" if i == n_blocks - 1 else f"layers.{i - 1}"
            raise ParityError(
                f"{name} of the exported file, given the model's input, differ by {difference:.3g} "
                f"(RMS, median of tokens), allowed is {allowed:.3g}; nothing was written"
            )


def _tokens(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows; intent logits (C,) are one row."""
    return zip(np.atleast_2d(a), np.atleast_2d(b), strict=True)


def golden_samples(model: NLUModel, artifact: Artifact) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Golden messages with the file's logits and the tolerance; gate, third part: the whole against the PyTorch model.

    tolerance = max(2 * RMS(logits with noise on the embeddings - logits), 1e-3 * RMS(logits)); the noise counts
    where anything is rounded to int8 steps. The reference must be that near to the model, and the native engine to the
    reference; its logits are the golden ones where there is one.
    """
    texts = model.card.golden
    encoded = model.tokenizer.encode_batch(texts)
    logits, made_by = _stack(Reference(artifact).logits(encoded)), Reference.name
    parent = _stack(model.logits(encoded))
    tolerance = max(NOISE_FACTOR * _noise_effect(model, encoded, parent), GOLDEN_FLOOR * rms(logits))
    _check_whole(logits, parent, tolerance, "the exported file differs from the model")
    if native.module() is not None:
        reference, logits, made_by = logits, _stack(Native(artifact).logits(encoded)), Native.name
        _check_whole(logits, reference, tolerance, "the native engine differs from the NumPy reference")
    arrays = {name: a.astype(np.float32) for name, a in zip(("golden.intent", "golden.tags"), logits, strict=False)}
    return {"texts": texts, "tolerance": tolerance, "made_by": made_by}, arrays


def _check_whole(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float, what: str) -> None:
    difference = rms_difference(found, wanted)
    if not difference <= tolerance:
        raise ParityError(
            f"{what} by (RMS) {difference:.3g} on its golden messages, allowed is {tolerance:.3g}; nothing was written"
        )


def _noise_effect(model: NLUModel, encoded: list[Encoded], parent: list[np.ndarray]) -> float:
    """RMS(logits with noise on the embeddings - logits): many int8 activations moved by a step. 0 for float models."""
    if all(computes(module) == {"activations": "float"} for _, module, _ in model.matrices()):
        return 0.0
    rng, bias = np.random.default_rng(0), model.encoder.norm.bias.detach()
    right, effects = bias.clone(), []
    for _ in range(N_NOISE):
        bias.copy_(right + torch.from_numpy(rng.normal(scale=NOISE, size=len(right)).astype(np.float32)))
        effects.append(rms_difference(_stack(model.logits(encoded)), parent))
    bias.copy_(right)
    return max(effects)


def rms(arrays: list[np.ndarray]) -> float:
    """Root mean square over all numbers of all arrays."""
    return rms_difference(arrays, [np.zeros_like(a) for a in arrays])


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
