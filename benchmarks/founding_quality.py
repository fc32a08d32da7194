"""Macro-F1 of one classifier in every form of the founding experiment; called by founding.py.

Each recipe is applied, written as .fly and answers the test messages in the engine. The loss is against the float .fly
file of the same model, with the 95% paired bootstrap interval.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flyweight as fw
from flyweight.answers import Answer
from flyweight.data.messages import Message
from flyweight.measure.quality import evaluate_answers
from flyweight.techniques.room import Technique

CENTRES = (256, 64, 16, 8, 4, 2)
ALONE = (256, 16, 4, 2)  # of the sensitivity question
FLOAT = "float"


def founding(encoder: int | None, embeddings: int | None, heads: int | None) -> fw.Codebook:
    """The form of 2019: one table of float32 centres a matrix, float32 products."""
    return fw.Codebook(encoder=encoder, embeddings=embeddings, heads=heads, granularity="matrix", activations="float")


def _recipes() -> dict[str, list[Technique]]:
    found: dict[str, list[Technique]] = {FLOAT: []}
    for k in CENTRES:
        found[f"everywhere {k}, founding form"] = [founding(k, k, k)]
        found[f"everywhere {k}"] = [fw.Codebook(encoder=k, embeddings=k, heads=k)]
    found["encoder 2, rest 256, founding form"] = [founding(2, 256, 256)]
    found["encoder 2, rest 256"] = [fw.Codebook(encoder=2, embeddings=256, heads=256)]
    for k in ALONE:
        found[f"encoder {k} alone, founding form"] = [founding(k, None, None)]
        found[f"embeddings {k} alone, founding form"] = [founding(None, k, None)]
    found["int8, a scale a row"] = [fw.Int8()]
    found["int8, scale and shift a matrix"] = [fw.Int8(granularity="matrix")]
    return found


RECIPES = _recipes()
REPORTED = tuple(f"{recipe}, founding form" for recipe in ("everywhere 4", "everywhere 2", "encoder 2, rest 256"))


def measure(
    model: fw.NLUModel,
    data: fw.NLUData,
    messages: Sequence[Message],
    recipes: Sequence[str],
    rows: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Fill in the recipes that `rows` lacks, on these messages; `keep` is called after each.

    A row: scores, loss against the float file, intent flips; weight_bytes (matrices and vectors), file_bytes (with the
    tokenizer and golden samples).
    """
    if all(name in rows for name in recipes):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fly"
        parent = answers_of(model, path, messages)
        for name in recipes:
            if name in rows:
                continue
            recipe = RECIPES[name]
            small = fw.compress(model, data, recipe, measure=False, progress=False) if recipe else model
            path.unlink(missing_ok=True)
            found = answers_of(small, path, messages)
            rows[name] = score(found, parent, messages) | {
                "weight_bytes": small.size_bytes(),
                "file_bytes": path.stat().st_size,
            }
            keep(rows)


def answers_of(model: fw.NLUModel, path: Path, messages: Sequence[Message]) -> list[Answer]:
    """Written as .fly, asked in the engine."""
    return fw.load(fw.save(model, path), check=False).answers([m.text for m in messages])


def score(found: Sequence[Answer], parent: Sequence[Answer], messages: Sequence[Message]) -> dict[str, Any]:
    """Intent scores, and the loss of macro-F1 against the parent's answers."""
    quality = evaluate_answers(found, messages, against=parent)
    return {
        "intent_macro_f1": quality.intent_macro_f1,
        "intent_accuracy": quality.intent_accuracy,
        "intent_flips": quality.n_intent_flips,
        "loss": quality.losses["intent_macro_f1"].to_dict(),
    }


def answers_from_logits(model: fw.NLUModel, messages: Sequence[Message], logits: np.ndarray) -> list[Answer]:
    """Intents of logits (N, C) that another runtime computed; no entities."""
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return [Answer(m.text, model.labels.intents, p) for m, p in zip(messages, probabilities, strict=True)]
